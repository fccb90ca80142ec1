"""Refusing at the door what the other side would refuse.

A call that ends in a refusal costs both sides as much as one that ends in an answer, and under overload the refused are
most: on a small machine they take the processor from the accepted. So who is told "overloaded" sends less, and more
again with each request that is accepted, as a sender of packets does that meets a full queue (Jacobson, Congestion
Avoidance and Control, 1988; for requests: Beyer et al., Site Reliability Engineering, 2016, chapter 21).
"""

import math
import random
import time
from collections.abc import Callable

from deployments.core.errors import Overloaded

RAISE = 1.02
LOWER = 0.9
"""What one accepted and one refused request does to the share let through. Both are in balance when one of six that are
sent is refused: so many find out, within a second or two, when there is room for more. Larger steps make the share
swing, for who is refused tells so at once and who is accepted when answered; smaller ones follow a slow model late."""
LEAST_SHARE = 0.05
"""From here a hundred and fifty accepted requests open everything again."""
MOST_SHARE = 1.5
"""Over 1 nothing is held back: the first refusals after a good time, three, are taken as chance."""
FORGETS_IN_S = 5.0
"""In this time 1/e of the way back to `MOST_SHARE` is left, whatever became of the others: who was refused an hour ago
is not held back."""


class Throttle:
    """Lets through a share of the requests, which follows what becomes of them.

    Whoever let a request through tells what became of it: `accepted` when it was taken, however it then ended, or
    `refused`; nothing when the other side did not answer.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, random_share: Callable[[], float] = random.random
    ) -> None:
        self._clock = clock
        self._random_share = random_share
        self._share = MOST_SHARE
        self._since_s = clock()
        self._words, self._retry_after_s = "", 1.0

    @property
    def share(self) -> float:
        """The share of requests that is let through, 0 to 1."""
        return min(1.0, self._share_now())

    def enter(self) -> None:
        """Let a request through, or hold it back.

        Raises:
            Overloaded: (429) the words and the time of the latest refusal.
        """
        if self._random_share() >= self.share:
            raise Overloaded(self._words, retry_after_s=self._retry_after_s)

    def accepted(self) -> None:
        """Learn that a request was accepted."""
        self._set(self._share_now() * RAISE)

    def refused(self, refusal: Overloaded) -> None:
        """Learn that a request was refused."""
        # Not the refusal itself: once raised, its stack would hold a request and its texts until the next one.
        self._words, self._retry_after_s = refusal.detail, refusal.retry_after_s
        self._set(self._share_now() * LOWER)

    def _share_now(self) -> float:
        left = math.exp((self._since_s - self._clock()) / FORGETS_IN_S)
        return MOST_SHARE - (MOST_SHARE - self._share) * left

    def _set(self, share: float) -> None:
        self._share = min(max(share, LEAST_SHARE), MOST_SHARE)
        self._since_s = self._clock()
