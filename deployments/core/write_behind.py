"""Writing after the answer: what nobody waits for gathers, and goes in few calls.

Unlike those of a look-up (`coalesce`), a call's items may wait on a timer here, for they keep nobody waiting. What is
being gathered is bounded, and lost when its process ends: this is for values that can be computed again.
"""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Mapping
from itertools import islice
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class WriteBehind(Generic[K, V]):
    """Turns many `put` into few calls of `write`, one at a time; the latest value of a key counts.

    Args:
        write: Writes some items, and tells whether they are written; it deals with its failures itself.
        pause_s: Time in which items gather.
        failed_pause_s: The same after a write that failed; `pause_s` when absent.
        max_items: Most items of a call.
        max_waiting: Most items that wait.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        write: Callable[[dict[K, V]], Awaitable[bool]],
        *,
        pause_s: float,
        max_items: int,
        max_waiting: int,
        failed_pause_s: float | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._write = write
        self._pause_s = pause_s
        self._failed_pause_s = pause_s if failed_pause_s is None else failed_pause_s
        self._max_items = max_items
        self._max_waiting = max_waiting
        self._sleep = sleep
        self._waiting: dict[K, V] = {}
        self._being_written: dict[K, V] = {}
        self._failed = False
        self._writer: asyncio.Task[None] | None = None

    def put(self, items: Mapping[K, V]) -> bool:
        """Have items written soon; returns at once. False: too many wait already, and none of these is taken."""
        if len(self._waiting) + sum(key not in self._waiting for key in items) > self._max_waiting:
            return False
        self._waiting |= items
        if self._writer is None and self._waiting:
            # In nobody's context: a request ends before its write, and Serve cancels what an ended request left.
            self._writer = asyncio.create_task(self._write_all(), context=contextvars.Context())
        return True

    def get(self, key: K) -> V | None:
        """What is not written yet: whoever reads elsewhere would miss it, or find what it replaces."""
        return self._waiting.get(key) or self._being_written.get(key)

    def clear(self) -> None:
        """Write nothing of what waits, and forget what is being written: that may be past recall."""
        self._waiting.clear()
        self._being_written = {}

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                await self._sleep(self._failed_pause_s if self._failed else self._pause_s)
                if oldest := list(islice(self._waiting, self._max_items)):
                    self._being_written = {key: self._waiting.pop(key) for key in oldest}
                    self._failed = not await self._write(self._being_written)
                    self._being_written = {}
        finally:
            self._being_written = {}
            self._writer = None
