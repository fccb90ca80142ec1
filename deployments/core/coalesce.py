"""Coalescing: what waits while a call is in flight travels together in the next one.

A call to another process costs about the same for one item as for a hundred (1.5 ms for a Serve handle call), so
under load the number of calls, not of items, decides the throughput. There is no timer:
an item that finds a free place goes at once, and a group is whatever gathered while the places were taken.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from deployments.core.errors import Unavailable

T = TypeVar("T")
R = TypeVar("R")

_Waiting = tuple[T, asyncio.Future[R]]


class Coalescer(Generic[T, R]):
    """Turns many `submit` calls into few calls of `send`, each carrying a list.

    `send(items)` returns one result an item, in order; when it raises, every item of that group gets the exception.
    A group has at most `max_items` items and, save for a single larger item, at most `max_size` of `size`. Cancelling a
    `submit` takes its own items out and fails no other.
    """

    def __init__(
        self,
        send: Callable[[list[T]], Awaitable[Sequence[R]]],
        *,
        max_items: int,
        max_in_flight: int = 1,
        size: Callable[[T], int] = lambda _: 0,
        max_size: int = 1024 * 1024,  # inter-replica gRPC takes 4 MiB a message; answers must fit too
    ) -> None:
        self._send = send
        self._max_items = max_items
        self._max_in_flight = max_in_flight
        self._size = size
        self._max_size = max_size
        self._waiting: deque[_Waiting[T, R]] = deque()
        self._calls: set[asyncio.Task[None]] = set()

    async def submit(self, items: Sequence[T]) -> list[R]:
        """Send `items` with whatever else waits; results come in the order of `items`.

        Raises:
            Exception: what `send` raised for a group that carried one of the items.
        """
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[R]] = [loop.create_future() for _ in items]
        self._waiting.extend(zip(items, futures, strict=True))
        self._dispatch()
        try:
            return list(await asyncio.gather(*futures))
        finally:
            for future in futures:
                future.cancel()

    def _dispatch(self) -> None:
        while self._waiting and len(self._calls) < self._max_in_flight:
            if group := self._next_group():
                call = asyncio.create_task(self._deliver(group))
                self._calls.add(call)
                call.add_done_callback(self._call_ended)

    def _next_group(self) -> list[_Waiting[T, R]]:
        group: list[_Waiting[T, R]] = []
        size = 0
        while self._waiting and len(group) < self._max_items:
            item, future = self._waiting[0]
            if not future.done():
                size += self._size(item)
                if group and size > self._max_size:
                    break
                group.append((item, future))
            self._waiting.popleft()
        return group

    async def _deliver(self, group: list[_Waiting[T, R]]) -> None:
        try:
            results = await self._send([item for item, _ in group])
            for (_, future), result in zip(group, results, strict=True):
                if not future.done():
                    future.set_result(result)
        except BaseException as error:
            # Whatever ends the call must reach those who wait for it; a cancelled call is a part that went away.
            failure = error if isinstance(error, Exception) else Unavailable("the call was cancelled")
            for _, future in group:
                if not future.done():
                    future.set_exception(failure)
            if not isinstance(error, Exception):
                raise

    def _call_ended(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._dispatch()
