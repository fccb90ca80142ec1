"""How busy a worker is: where nothing waits, it tells a replica that can be spared from one that is needed."""

import time
from collections.abc import Callable
from typing import Self


class BusyShare:
    """The share of the time in which a worker works: `with` stands around the work, one at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._busy_s = 0.0
        self._began_s: float | None = None
        self._taken_s = clock()

    def __enter__(self) -> Self:
        self._began_s = self._clock()
        return self

    def __exit__(self, *_: object) -> None:
        self._count_until(self._clock())
        self._began_s = None

    def take(self) -> float:
        """The share since it was last taken, 0 to 1; work under way counts."""
        now_s = self._clock()
        self._count_until(now_s)
        share = self._busy_s / (now_s - self._taken_s) if now_s > self._taken_s else 0.0
        self._busy_s, self._taken_s = 0.0, now_s
        return share

    def _count_until(self, now_s: float) -> None:
        if self._began_s is not None:
            self._busy_s += now_s - self._began_s
            self._began_s = now_s
