"""The rest of the graph as an ingress replica sees it: what becomes of predictions on their way into the store."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from deployments import parts
from deployments.core import metrics
from deployments.core.errors import Unavailable
from deployments.core.prediction import Prediction
from deployments.core.settings import Settings
from deployments.parts import HandleParts
from tests.unit.fakes import CountingMetrics, prediction
from tests.unit.test_corrections import until
from tests.unit.test_lookups import naming


class Store:
    """A cache deployment by handle: holds what it takes while `takes`, and raises `error`."""

    def __init__(self) -> None:
        self.held: dict[str, Prediction] = {}
        self.puts: list[list[str]] = []
        self.takes = True
        self.error: Exception | None = None

    async def put_many(self, predictions: Mapping[str, Prediction]) -> bool:
        self.puts.append(list(predictions))
        if self.error:
            raise self.error
        if self.takes:
            self.held |= predictions
        return self.takes

    async def get_many(self, keys: Sequence[str]) -> list[Prediction | None]:
        return [self.held.get(key) for key in keys]

    async def purge(self, keys: Sequence[str]) -> int:
        return sum(self.held.pop(key, None) is not None for key in keys)

    @property
    def handle(self) -> Any:
        """What Serve would give for it."""
        names = "put_many", "get_many", "purge"
        methods = {name: SimpleNamespace(remote=getattr(self, name)) for name in names}
        return SimpleNamespace(**methods, broadcast=naming(lambda: None))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "KEEP_PAUSE_S", 0.01)
    monkeypatch.setattr(parts, "KEEP_FAILED_PAUSE_S", 0.2)
    monkeypatch.setattr(parts, "MAX_UNKEPT", 2)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def counted() -> CountingMetrics:
    return CountingMetrics()


@pytest.fixture
async def graph(store: Store, counted: CountingMetrics) -> HandleParts:
    other: Any = SimpleNamespace(broadcast=naming(lambda: None))
    return HandleParts(Settings(), other, counted, cache=store.handle, model=other, feedback=other)


async def test_a_fresh_prediction_is_at_hand_until_the_store_has_it(graph: HandleParts, store: Store):
    """And the store alone is asked by a look-up."""
    graph.keep({"a": prediction("a")})
    before = graph.unwritten("a"), await graph.look_up(["a"])
    await until(lambda: store.held)

    assert before == (prediction("a"), [None])
    assert await graph.look_up(["a"]) == [prediction("a")]
    await until(lambda: graph.unwritten("a") is None)


@pytest.mark.parametrize("error", [None, Unavailable("no replica")], ids=["refused", "away"])
async def test_what_the_store_refuses_is_not_tried_again_and_the_next_waits(
    graph: HandleParts, store: Store, error: Exception | None
):
    """For as long as `KEEP_FAILED_PAUSE_S`, and is at hand meanwhile."""
    store.takes, store.error = False, error
    graph.keep({"a": prediction("a")})
    await until(lambda: store.puts and not graph.unwritten("a"))
    store.takes, store.error = True, None
    graph.keep({"b": prediction("b")})
    with pytest.raises(TimeoutError):
        await until(lambda: len(store.puts) > 1, timeout_s=0.1)
    at_hand = graph.unwritten("b")
    await until(lambda: store.held)

    assert at_hand == prediction("b")
    assert (store.puts, list(store.held)) == ([["a"], ["b"]], ["b"])


async def test_what_finds_no_room_to_wait_is_dropped_and_counted(
    graph: HandleParts, store: Store, counted: CountingMetrics
):
    """Each prediction counts."""
    graph.keep({"a": prediction(), "b": prediction()})
    graph.keep({"c": prediction(), "d": prediction()})
    await until(lambda: store.held)

    assert list(store.held) == ["a", "b"]
    assert counted.total(metrics.CACHE_DROPPED) == 2


async def test_what_is_purged_does_not_come_after(graph: HandleParts, store: Store):
    """It waits to be written when the purge is asked for."""
    graph.keep({"a": prediction()})
    purged = await graph.purge(["a"])
    graph.keep({"b": prediction()})
    await until(lambda: store.held)

    assert (purged, graph.unwritten("a"), list(store.held)) == (0, None, ["b"])


async def test_who_keeps_now_knows_whether_the_store_has_it(graph: HandleParts, store: Store):
    """A warming has no other purpose."""
    await graph.keep_now({"a": prediction()})
    store.takes = False

    with pytest.raises(Unavailable, match="does not keep"):
        await graph.keep_now({"b": prediction()})
    assert list(store.held) == ["a"]
