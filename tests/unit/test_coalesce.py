"""Coalescing: few calls, each its own result, nobody harmed by another's end."""

import asyncio
import contextvars

import pytest

from deployments.core.coalesce import Coalescer
from deployments.core.errors import Overloaded, Unavailable


class Wire:
    """Records each call's items; answers when `release` is set."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.release = asyncio.Event()
        self.error: BaseException | None = None

    async def send(self, items: list[int]) -> list[int]:
        self.calls.append(items)
        await self.release.wait()
        if self.error:
            raise self.error
        return [item * 10 for item in items]


async def submit_all(coalescer: Coalescer[int, int], *groups: list[int]) -> list[asyncio.Task[list[int]]]:
    """Submit one group after another, each in a turn of its own."""
    tasks = []
    for group in groups:
        tasks.append(asyncio.create_task(coalescer.submit(group)))
        for _ in range(4):
            await asyncio.sleep(0)
    return tasks


async def test_what_waits_while_a_call_is_in_flight_travels_together():
    """Three submits make two calls: the first goes at once, the rest share the second."""
    wire = Wire()
    coalescer = Coalescer(wire.send, max_items=10, max_waiting=100)
    tasks = await submit_all(coalescer, [1], [2, 3], [4])
    wire.release.set()

    assert await asyncio.gather(*tasks) == [[10], [20, 30], [40]]
    assert wire.calls == [[1], [2, 3, 4]]


async def test_what_comes_at_once_travels_together():
    """Submits of one turn of the event loop share the first call."""
    wire = Wire()
    wire.release.set()
    coalescer = Coalescer(wire.send, max_items=10, max_waiting=100)

    assert await asyncio.gather(*(coalescer.submit([n]) for n in (1, 2, 3))) == [[10], [20], [30]]
    assert wire.calls == [[1, 2, 3]]


async def test_a_group_keeps_its_bounds_in_items_and_in_size():
    """No call carries more than `max_items`, nor more than `max_size` unless one item alone is larger."""
    wire = Wire()
    wire.release.set()
    coalescer = Coalescer(wire.send, max_items=3, max_waiting=100, size_bytes=lambda item: item, max_bytes=10)

    assert await coalescer.submit([4, 5, 6, 50, 1, 1, 1, 1]) == [40, 50, 60, 500, 10, 10, 10, 10]
    assert wire.calls == [[4, 5], [6], [50], [1, 1, 1], [1]]


async def test_calls_in_flight_are_bounded():
    """With two allowed, the third group waits for one of them to end."""
    wire = Wire()
    coalescer = Coalescer(wire.send, max_items=1, max_waiting=100, max_in_flight=2)
    tasks = await submit_all(coalescer, [1], [2], [3])

    assert wire.calls == [[1], [2]]
    wire.release.set()
    assert await asyncio.gather(*tasks) == [[10], [20], [30]]


async def test_a_cancelled_submit_takes_out_its_own_items_and_fails_no_other():
    """Its waiting items are not sent; a neighbour in the same group still gets its result."""
    wire = Wire()
    coalescer = Coalescer(wire.send, max_items=10, max_waiting=100)
    first, leaver, stayer = await submit_all(coalescer, [1], [2], [3])
    leaver.cancel()
    await asyncio.sleep(0)
    wire.release.set()

    assert await first == [10]
    assert await stayer == [30]
    assert wire.calls == [[1], [3]]


async def test_a_cancelled_submit_does_not_cancel_the_call_others_share():
    """The call it was in goes on for the rest of its group."""
    wire = Wire()
    coalescer = Coalescer(wire.send, max_items=10, max_waiting=100)
    _, leaver, stayer = await submit_all(coalescer, [1], [2], [3])
    wire.release.set()
    await asyncio.sleep(0)
    wire.release.clear()
    await asyncio.sleep(0)
    leaver.cancel()
    wire.release.set()

    assert await stayer == [30]


@pytest.mark.parametrize(("raised", "seen"), [(ValueError("no"), ValueError), (asyncio.CancelledError(), Unavailable)])
async def test_a_failed_call_fails_its_group_alone(raised: BaseException, seen: type[Exception]):
    """Each of its items gets the error, and the next group goes out as ever."""
    wire = Wire()
    wire.error = raised
    coalescer = Coalescer(wire.send, max_items=1, max_waiting=100)
    (task,) = await submit_all(coalescer, [1])
    wire.release.set()

    with pytest.raises(seen):
        await task
    wire.error = None
    assert await coalescer.submit([2]) == [20]


async def test_a_call_that_returns_too_few_results_fails_instead_of_shifting_them():
    """A wrong count would give callers each other's answers; none of them gets one."""
    wire = Wire()

    async def send(items: list[int]) -> list[int]:
        return (await wire.send(items))[len(items) // 2 :]

    coalescer = Coalescer(send, max_items=10, max_waiting=100)
    _, second, third = await submit_all(coalescer, [1], [2], [3])
    wire.release.set()

    for task in (second, third):
        with pytest.raises(ValueError, match="1 results for 2 items"):
            await task


async def test_what_waits_is_bounded():
    """Beyond it the newcomer is refused at once, and those who wait are served."""
    wire = Wire()
    coalescer = Coalescer(wire.send, max_items=10, max_waiting=2)
    first, second = await submit_all(coalescer, [1], [2, 3])

    with pytest.raises(Overloaded, match="the limit is 2"):
        await coalescer.submit([4])
    wire.release.set()
    assert await asyncio.gather(first, second) == [[10], [20, 30]]


async def test_a_call_nobody_waits_for_is_cancelled():
    """Work for callers who have left would be done at the expense of those who have not."""
    cancelled = asyncio.Event()

    async def send(_items: list[int]) -> list[int]:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return []

    tasks = await submit_all(Coalescer(send, max_items=10, max_waiting=100), [1, 2])
    tasks[0].cancel()
    await asyncio.wait_for(cancelled.wait(), 1)

    assert cancelled.is_set()


async def test_a_call_that_is_to_end_by_itself_goes_on_without_callers():
    """Its end tells `send` how the other side is."""
    ended = asyncio.Event()
    released = asyncio.Event()

    async def send(items: list[int]) -> list[int]:
        await released.wait()
        ended.set()
        return items

    tasks = await submit_all(Coalescer(send, max_items=10, max_waiting=100, cancels_unwaited=False), [1, 2])
    tasks[0].cancel()
    await asyncio.sleep(0)
    released.set()
    await asyncio.wait_for(ended.wait(), 1)

    assert tasks[0].cancelled()


async def test_a_call_runs_in_nobodys_context():
    """Serve cancels what a request's context started when its client leaves; a group is many clients'."""
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="nobody's")
    seen: list[str] = []

    async def send(items: list[int]) -> list[int]:
        seen.append(request.get())
        return items

    request.set("mine")
    await Coalescer(send, max_items=1, max_waiting=100).submit([1, 2])

    assert seen == ["nobody's", "nobody's"]


async def test_who_has_left_takes_up_no_room():
    """What waited and was cancelled makes place for others, though no call has ended since."""
    wire = Wire()
    coalescer = Coalescer(wire.send, max_items=10, max_waiting=2)
    first, *leavers = await submit_all(coalescer, [1], [2], [3])
    with pytest.raises(Overloaded):
        await coalescer.submit([4])
    for leaver in leavers:
        leaver.cancel()
    await asyncio.wait(leavers)
    (comer,) = await submit_all(coalescer, [5, 6])
    wire.release.set()

    assert await first == [10]
    assert await comer == [50, 60]
    assert wire.calls == [[1], [5, 6]]
