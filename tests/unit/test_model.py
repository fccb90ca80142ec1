"""What a model replica makes of the resources that Serve gave it."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import ray

from deployments import model, runtime
from deployments.core.outcomes import outcomes_from_json, request_to_json
from deployments.core.prediction import Prediction
from deployments.core.rpc import connect
from tests.unit.fakes import prediction
from tests.unit.test_corrections import until


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


def checked(*, failed_in_a_row: int = 0, running_s: float = 0.0, error: Exception | None = None) -> int:
    """Check the health of a replica whose batcher tells so and whose model raises `error`; how often it was tried."""
    tried = 0

    def try_out() -> None:
        nonlocal tried
        tried += 1
        if error:
            raise error

    replica = object.__new__(model.Model)
    replica._batcher = SimpleNamespace(failed_in_a_row=failed_in_a_row, running_s=running_s)
    replica._endless_s = 60.0
    replica._classifier = SimpleNamespace(try_out=try_out)
    with ThreadPoolExecutor(1) as worker:
        replica._worker = worker
        asyncio.run(replica.check_health())
    return tried


def test_a_model_that_answers_nothing_is_tried_and_then_ill():
    """What failed may have been the texts: only a text that is known to be fine tells."""
    assert checked(failed_in_a_row=model.SUSPECT_BATCHES - 1, error=ValueError("device")) == 0
    assert checked(failed_in_a_row=model.SUSPECT_BATCHES) == 1
    with pytest.raises(ValueError, match="device"):
        checked(failed_in_a_row=model.SUSPECT_BATCHES, error=ValueError("device"))


def test_a_batch_without_end_is_ill():
    """It holds the only thread that could try the model."""
    assert checked(running_s=60) == 0
    with pytest.raises(RuntimeError, match="running for 61 s"):
        checked(running_s=61)


async def test_a_replica_that_serve_stops_answers_what_came_over_its_port(monkeypatch: pytest.MonkeyPatch):
    """Serve waits for handle calls by itself; of these it does not know, so its call of `__del__` waits for them."""
    monkeypatch.setattr(runtime, "host_for_replicas", lambda: "127.0.0.1")
    may_go = asyncio.Event()

    async def predict(texts: list[str], *, timeout_s: float) -> list[Prediction]:
        await may_go.wait()
        return [prediction(text) for text in texts]

    replica = object.__new__(model.Model)
    replica._batcher = SimpleNamespace(submit=predict)
    await replica._listen()
    made = await connect(await replica.address())
    under_way = asyncio.create_task(made.call(request_to_json(["a"], 10)))
    await asyncio.sleep(0)
    stopping = asyncio.create_task(replica.__del__())
    await until(lambda: not made.takes_calls)

    assert not stopping.done()
    may_go.set()
    assert outcomes_from_json(await under_way) == [prediction("a")]
    await asyncio.wait_for(stopping, 5)
    assert not hasattr(model.Model, "__del__")
