"""Writes gather and go in few calls, bounded, in nobody's way."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from deployments.core.write_behind import WriteBehind


class Store:
    """Records the calls; a pause ends when it is released."""

    def __init__(self) -> None:
        self.calls: list[dict[str, int]] = []
        self.paused_s: list[float] = []
        self.takes = True
        self._released = asyncio.Event()

    async def write(self, items: dict[str, int]) -> bool:
        self.calls.append(items)
        return self.takes

    async def sleep(self, time_s: float) -> None:
        self.paused_s.append(time_s)
        await self._released.wait()

    async def release(self) -> None:
        """End this pause and all that follow; return when nothing more happens."""
        self._released.set()
        for _ in range(200):
            await asyncio.sleep(0)


class Slow(Store):
    """Takes what it is given, and says so once `written` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.written = asyncio.Event()

    async def write(self, items: dict[str, int]) -> bool:
        taken = await super().write(items)
        await self.written.wait()
        return taken


def writes_to(store: Store, *, max_items: int = 100, max_waiting: int = 100) -> WriteBehind[str, int]:
    return WriteBehind(
        store.write,
        pause_s=0.1,
        failed_pause_s=1.0,
        max_items=max_items,
        max_waiting=max_waiting,
        sleep=store.sleep,
    )


async def test_what_comes_during_a_pause_goes_in_one_call():
    """Nothing is written before the pause is over, then everything at once, with the latest value of each key."""
    store = Store()
    writes = writes_to(store)
    for number, key in enumerate("abca"):
        assert writes.put({key: number})
        await asyncio.sleep(0)

    assert store.calls == []
    assert store.paused_s == [0.1]
    await store.release()
    assert store.calls == [{"a": 3, "b": 1, "c": 2}]


async def test_a_pause_begins_with_the_next_item():
    """Idle, it does nothing; what comes later is written too."""
    store = Store()
    writes = writes_to(store)
    await store.release()
    for key in "ab":
        writes.put({key: 1})
        await store.release()

    assert store.calls == [{"a": 1}, {"b": 1}]
    assert store.paused_s == [0.1, 0.1]


async def test_beyond_the_bound_nothing_is_taken():
    """All items of a `put` or none; what waited before is written, and then there is room again."""
    store = Store()
    writes = writes_to(store, max_waiting=2)

    assert writes.put({"a": 1})
    assert not writes.put({"b": 1, "c": 1})
    assert writes.put({"a": 1, "b": 1})
    await store.release()
    assert writes.put({"c": 1, "d": 1})
    await store.release()
    assert store.calls == [{"a": 1, "b": 1}, {"c": 1, "d": 1}]


async def test_where_writing_fails_items_gather_for_longer():
    """From the first failure until a write succeeds; what failed is not written again."""
    store = Store()
    writes = writes_to(store)
    await store.release()
    for key, takes in [("a", False), ("b", False), ("c", True), ("d", True)]:
        store.takes = takes
        writes.put({key: 1})
        await store.release()

    assert store.paused_s == [0.1, 1.0, 1.0, 0.1]
    assert store.calls == [{"a": 1}, {"b": 1}, {"c": 1}, {"d": 1}]


async def test_a_write_outlives_the_request_that_brought_it():
    """Cancelling whoever put an item does not cancel its write."""
    store = Store()
    writes = writes_to(store)

    async def request() -> None:
        writes.put({"a": 1})
        await asyncio.Event().wait()

    task = asyncio.create_task(request())
    await asyncio.sleep(0)
    task.cancel()
    await store.release()

    assert store.calls == [{"a": 1}]


async def test_a_defect_in_a_write_ends_no_later_one():
    """The items of that call are lost; the next item starts over."""
    store = Store()
    failing = [True]

    async def write(items: dict[str, int]) -> bool:
        if failing:
            failing.clear()
            raise ValueError
        return await Store.write(store, items)

    store.write = write
    writes = writes_to(store)
    writes.put({"a": 1})
    await store.release()
    left = writes.get("a")
    writes.put({"b": 1})
    await store.release()

    assert left is None
    assert store.calls == [{"b": 1}]


async def test_what_waits_can_be_let_go_of():
    """It is neither written nor read any more; what comes later is."""
    store = Store()
    writes = writes_to(store)
    writes.put({"a": 1})
    await asyncio.sleep(0)
    writes.clear()
    left = writes.get("a")
    await store.release()
    writes.put({"b": 1})
    await store.release()

    assert left is None
    assert store.calls == [{"b": 1}]


@given(
    st.lists(st.dictionaries(st.text("abcdefgh", max_size=2), st.integers(), max_size=5), max_size=12),
    st.integers(1, 6),
)
def test_everything_taken_is_written_once_and_in_bounds(puts: list[dict[str, int]], max_items: int):
    """Whatever is put in one pause: the last value of each key, oldest key first, no call too large."""

    async def calls() -> list[dict[str, int]]:
        store = Store()
        writes = writes_to(store, max_items=max_items)
        for items in puts:
            assert writes.put(items)
        await store.release()
        return store.calls

    expected: dict[str, int] = {}
    for items in puts:
        expected |= items
    written = asyncio.run(calls())
    assert [item for call in written for item in call.items()] == list(expected.items())
    assert all(1 <= len(call) <= max_items for call in written)


async def test_what_is_not_written_yet_can_be_read():
    """While it waits and while it is being written; the latest value counts."""
    store = Slow()
    writes = writes_to(store)
    writes.put({"a": 1, "b": 2})
    waiting = writes.get("a")
    await store.release()
    writes.put({"a": 3})
    meanwhile = writes.get("a"), writes.get("b"), writes.get("c")
    store.written.set()
    await store.release()

    assert waiting == 1
    assert meanwhile == (3, 2, None)
    assert (writes.get("a"), writes.get("b")) == (None, None)
    assert store.calls == [{"a": 1, "b": 2}, {"a": 3}]


async def test_what_is_being_written_can_be_forgotten():
    """It is written all the same."""
    store = Slow()
    writes = writes_to(store)
    writes.put({"a": 1})
    await store.release()
    before = writes.get("a")
    writes.clear()
    after = writes.get("a")
    store.written.set()
    await store.release()

    assert (before, after, store.calls) == (1, None, [{"a": 1}])
