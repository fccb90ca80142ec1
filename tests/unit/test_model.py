"""What a model replica makes of the resources that Serve gave it."""

from types import SimpleNamespace

import pytest
import ray

from deployments import model


@pytest.mark.parametrize(
    ("resources", "place", "threads"),
    [({}, "cpu", 1), ({"CPU": 0.4}, "cpu", 1), ({"CPU": 1.5}, "cpu", 2), ({"CPU": 1, "GPU": 0.25}, "cuda", 1)],
)
def test_a_replica_uses_what_was_reserved_for_it(
    resources: dict[str, float], place: str, threads: int, monkeypatch: pytest.MonkeyPatch
):
    """A GPU that was not may be somebody else's, whatever the machine has."""
    context = SimpleNamespace(get_assigned_resources=lambda: resources)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)

    assert (model._assigned_place(), model._threads()) == (place, threads)
