"""Coalescing: what waits while a call is in flight travels together in the next one.

A call to another process costs about the same for one item as for a dozen (1.5 ms by a Serve handle), so under
load the number of calls, not of items, decides the throughput. There is no timer: an item that finds a free
place goes at once, with what came in the same turn of the event loop, and a group is whatever gathered while the
places were taken.
"""

import asyncio
import contextvars
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from deployments.core.errors import Overloaded, Unavailable

T = TypeVar("T")
R = TypeVar("R")

_Waiting = tuple[asyncio.Future[R], T]


class Coalescer(Generic[T, R]):
    """Turns many `submit` calls into few calls of `send`, each carrying a list.

    `send(items)` returns one result an item, in order; when it raises, every item of that group gets the exception.
    Cancelling a `submit` takes its own items out and fails no other; a call nobody waits for is cancelled if
    `cancels_unwaited`.

    Args:
        send: Carries a group and brings its results.
        max_items: Most items of a group.
        max_waiting: Most items that wait for a call; beyond it `Overloaded`.
        max_in_flight: Calls under way at once.
        cancels_unwaited: False for a call that ends soon by itself and whose end `send` learns from.
        size_bytes: The size of an item; a group, save for a single larger item, has at most `max_bytes`.
        max_bytes: Inter-replica gRPC takes 4 MiB a message, and answers must fit too.
    """

    def __init__(
        self,
        send: Callable[[list[T]], Awaitable[Sequence[R]]],
        *,
        max_items: int,
        max_waiting: int,
        max_in_flight: int = 1,
        cancels_unwaited: bool = True,
        size_bytes: Callable[[T], int] = lambda _: 0,
        max_bytes: int = 1024 * 1024,
    ) -> None:
        self._send = send
        self._max_items = max_items
        self._max_waiting = max_waiting
        self._max_in_flight = max_in_flight
        self._cancels_unwaited = cancels_unwaited
        self._size_bytes = size_bytes
        self._max_bytes = max_bytes
        self._waiting: OrderedDict[asyncio.Future[R], T] = OrderedDict()  # who leaves takes up no room
        self._calls: set[asyncio.Task[None]] = set()

    async def submit(self, items: Sequence[T]) -> list[R]:
        """Send `items` with whatever else waits; results come in the order of `items`.

        Raises:
            Overloaded: too many items wait already (429).
            Exception: what `send` raised for a group that carried one of the items.
        """
        self._require_room(len(items))
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[R]] = [loop.create_future() for _ in items]
        self._waiting.update(zip(futures, items, strict=True))
        loop.call_soon(self._dispatch)
        try:
            # Nearly every call is for one item, and gathering one takes 20 µs.
            return [await futures[0]] if len(futures) == 1 else list(await asyncio.gather(*futures))
        finally:
            for future in futures:
                future.cancel()
                self._waiting.pop(future, None)

    def _require_room(self, items: int) -> None:
        if self._lacks_room(items):
            self._dispatch()  # those that came in this turn of the loop may have places free for them
        if self._lacks_room(items):
            raise Overloaded(
                f"{len(self._waiting):,} wait already; the limit is {self._max_waiting:,}; come back later"
            )

    def _lacks_room(self, items: int) -> bool:
        return bool(self._waiting) and len(self._waiting) + items > self._max_waiting

    def _dispatch(self) -> None:
        while self._waiting and len(self._calls) < self._max_in_flight:
            if group := self._next_group():
                # Not in the context of whoever submits or ends a call: Serve cancels what a request's context started
                # when its client leaves, and a group is many clients'.
                call = asyncio.create_task(self._deliver(group), context=contextvars.Context())
                self._calls.add(call)
                call.add_done_callback(self._call_ended)
                if self._cancels_unwaited:
                    _cancel_when_nobody_waits(call, [future for future, _ in group])

    def _next_group(self) -> list[_Waiting[R, T]]:
        group: list[_Waiting[R, T]] = []
        size_bytes = 0
        while self._waiting and len(group) < self._max_items:
            future, item = next(iter(self._waiting.items()))
            if not future.done():
                size_bytes += self._size_bytes(item)
                if group and size_bytes > self._max_bytes:
                    break
                group.append((future, item))
            self._waiting.popitem(last=False)
        return group

    async def _deliver(self, group: list[_Waiting[R, T]]) -> None:
        try:
            results = await self._send([item for _, item in group])
            if len(results) != len(group):  # shifted, callers would get each other's answers
                raise ValueError(f"{len(results)} results for {len(group)} items")  # noqa: TRY301 — told like any other
            for (future, _), result in zip(group, results, strict=True):
                if not future.done():
                    future.set_result(result)
        except BaseException as error:
            # Whatever ends the call must reach those who wait for it; a cancelled call is a part that went away.
            failure = error if isinstance(error, Exception) else Unavailable("the call was cancelled")
            for future, _ in group:
                if not future.done():
                    future.set_exception(failure)
            if not isinstance(error, Exception):
                raise

    def _call_ended(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._dispatch()


def _cancel_when_nobody_waits(call: asyncio.Task[None], futures: list[asyncio.Future[R]]) -> None:
    waited_for = len(futures)

    def left(_future: asyncio.Future[R]) -> None:
        nonlocal waited_for
        waited_for -= 1
        if not waited_for:
            call.cancel()  # of an answered call: nothing, it has ended

    for future in futures:
        future.add_done_callback(left)
