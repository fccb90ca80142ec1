"""How fast a caller may submit feedback: a token bucket for each.

A bucket holds `burst` tokens and gets `rate_per_s` of them a second; a record takes one, and one more for each KiB of
what it says: what fills the log's store is bytes. So within any t seconds a caller gets through at most
burst + rate · t records (Turner, New Directions in Communications, 1986).
"""

import time
from collections.abc import Awaitable, Callable, Sequence

from deployments.core.errors import IntentGraphError, Overloaded
from deployments.core.feedback_log import Receipt, Submission

MAX_CALLERS = 10_000
"""Buckets that are remembered; the one longest unused is forgotten first, which fills it."""

Append = Callable[[Sequence[Submission]], Awaitable[Sequence[Receipt | IntentGraphError]]]


class RateLimit:
    """Lets each caller through at its own rate; those without a name are trusted, and not held back."""

    def __init__(
        self,
        *,
        rate_per_s: float,
        burst: int,
        max_callers: int = MAX_CALLERS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate_per_s = rate_per_s
        self._burst = float(burst)
        self._max_callers = max_callers
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, as of when; the longest unused first

    def refusal(self, caller: str, tokens_taken: int = 1) -> Overloaded | None:
        """Take tokens of the caller's; without one, the error to answer with, which says when there will be one.

        A bucket with one token gives more than it has, and owes them: a record that takes many is not refused for ever.
        """
        if not caller:
            return None
        now_s = self._clock()
        tokens = self._tokens(caller, now_s)
        left = tokens - tokens_taken if tokens >= 1 else tokens
        self._buckets[caller] = left, now_s
        if len(self._buckets) > self._max_callers:
            del self._buckets[next(iter(self._buckets))]
        if tokens >= 1:
            return None
        return Overloaded(
            f"more feedback than {self._rate_per_s:g} records a second (`feedback_rate_per_s`); send it more slowly",
            retry_after_s=(1 - tokens) / self._rate_per_s,
        )

    def _tokens(self, caller: str, now_s: float) -> float:
        """Take the caller's bucket out, with what ran into it since."""
        tokens, since_s = self._buckets.pop(caller, (self._burst, now_s))
        return min(self._burst, tokens + (now_s - since_s) * self._rate_per_s)


async def append_within(
    limit: RateLimit, submissions: Sequence[Submission], append: Append
) -> list[Receipt | IntentGraphError]:
    """Append what the limit lets through; one outcome a submission, in order."""
    refusals = [limit.refusal(submission.by, _tokens_of(submission)) for submission in submissions]
    admitted = [submission for submission, refusal in zip(submissions, refusals, strict=True) if refusal is None]
    outcomes = iter(await append(admitted) if admitted else ())
    return [refusal or next(outcomes) for refusal in refusals]


def _tokens_of(submission: Submission) -> int:
    return 1 + sum(len(str(value).encode()) for value in submission.record.values()) // 1024
