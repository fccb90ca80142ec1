"""The local tier: ready answers in an ingress replica's own memory, in front of the cache deployment.

An answer is served again only while the correction it was made with is the one in force, which is asked at each read.
So no correction has to find what it makes stale: whatever the overlay says, the tier says too. What else can make an
answer stale empties the tier: a purge, and not hearing of purges.

    closed ── open() ──▶ open ── purge: clear() ──▶ open, empty
       ▲                   │
       └──── close() ──────┘   the subscription to purges is lost: empty, and nothing is kept
"""

import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from deployments.core import metrics
from deployments.core.corrections import Correction

ENTRY_BYTES = 480
"""What an entry takes beside its text and its answer, counted high: key, times, links, the slack of a growing table."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A ready answer: the body's bytes, and the correction it is made with, of the text with that key."""

    body: bytes
    text_key: str
    correction: Correction | None


class LocalTier:
    """Text → ready answer; the least recently used leave first. One event loop owns it.

    Args:
        max_bytes: Most memory it takes; 0 keeps nothing.
        ttl_s: Seconds an answer is served.
        correction: Gives the correction in force for a text key.
        recorder: Tells the memory taken.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        ttl_s: float,
        correction: Callable[[str], Correction | None],
        recorder: metrics.Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._correction = correction
        self._metrics = recorder
        self._clock = clock
        self._answers: OrderedDict[tuple[str, bool], tuple[Kept, float]] = OrderedDict()  # with the time it expires
        self._is_open = False
        self.size_bytes = 0
        self.generation = 0

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def is_open(self) -> bool:
        """Whether it keeps anything at all."""
        return self._is_open

    def open(self) -> None:
        """Begin to keep answers: purges are heard of from now on. What was asked for before is from before one."""
        self.clear()
        self._is_open = self._max_bytes > 0

    def close(self) -> None:
        """Forget everything and keep nothing more."""
        self._is_open = False
        self.clear()

    def clear(self) -> None:
        """Forget everything, also what is being asked for right now: its `generation` is over."""
        self._answers.clear()
        self.size_bytes = 0
        self.generation += 1
        self._metrics.record(metrics.LOCAL_BYTES, 0)

    def get(self, text: str, *, scores: bool) -> Kept | None:
        """The answer for a text, unless it is too old or another correction has come or gone since."""
        key = text, scores
        entry = self._answers.get(key)
        if entry is None:
            return None
        kept, expires_s = entry
        if expires_s <= self._clock() or self._correction(kept.text_key) != kept.correction:
            self._drop(key)
            return None
        self._answers.move_to_end(key)
        return kept

    def put(self, text: str, kept: Kept, *, scores: bool, generation: int) -> None:
        """Keep an answer made from what was asked for in `generation`; one from before a purge is not kept."""
        if not self._is_open or generation != self.generation:
            return
        key = text, scores
        self._drop(key)
        self._answers[key] = kept, self._clock() + self._ttl_s
        self.size_bytes += _size_bytes(text, kept)
        while self.size_bytes > self._max_bytes:
            self._drop(next(iter(self._answers)))
        self._metrics.record(metrics.LOCAL_BYTES, self.size_bytes)

    def forget(self, text: str) -> None:
        """Serve a text's answers no longer."""
        for scores in (False, True):
            self._drop((text, scores))

    def _drop(self, key: tuple[str, bool]) -> None:
        if entry := self._answers.pop(key, None):
            self.size_bytes -= _size_bytes(key[0], entry[0])


def _size_bytes(text: str, kept: Kept) -> int:
    return sys.getsizeof(text) + sys.getsizeof(kept.body) + ENTRY_BYTES
