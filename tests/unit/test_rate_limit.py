"""Feedback at a caller's rate: what is let through, what is not, and when it would be."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.core.errors import IntentGraphError, Overloaded, Unavailable
from deployments.core.feedback_log import Receipt, Submission
from deployments.core.rate_limit import RateLimit, append_within


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def admitted(limit: RateLimit, caller: str, tries: int) -> int:
    return sum(limit.refusal(caller) is None for _ in range(tries))


def test_a_burst_goes_through_at_once_and_then_the_rate(clock: Clock):
    """By hand: 5 at once, then one every half second."""
    limit = RateLimit(rate_per_s=2, burst=5, clock=clock)
    counts = [admitted(limit, "a", 10)]
    for _ in range(4):
        clock.now_s += 0.5
        counts.append(admitted(limit, "a", 10))

    assert counts == [5, 1, 1, 1, 1]


def test_a_pause_earns_a_burst_and_no_more(clock: Clock):
    """An hour of silence is no licence for an hour's records."""
    limit = RateLimit(rate_per_s=2, burst=5, clock=clock)
    admitted(limit, "a", 10)
    clock.now_s += 3600

    assert admitted(limit, "a", 10) == 5


def test_each_caller_has_a_bucket_of_its_own(clock: Clock):
    """One that floods the service holds up nobody else."""
    limit = RateLimit(rate_per_s=1, burst=1, clock=clock)
    admitted(limit, "flood", 1000)

    assert limit.refusal("flood") is not None
    assert limit.refusal("other") is None


def test_whoever_has_no_name_is_not_held_back(clock: Clock):
    """Such as this machine's own callers, and deployment handles."""
    limit = RateLimit(rate_per_s=1, burst=1, clock=clock)

    assert admitted(limit, "", 1000) == 1000


@settings(deadline=None)
@given(
    rate_per_s=st.floats(0.01, 1000),
    burst=st.integers(1, 50),
    pauses_s=st.lists(st.floats(0, 10), max_size=200),
)
def test_no_stretch_of_time_lets_through_more_than_burst_and_rate(rate_per_s: float, burst: int, pauses_s: list[float]):
    """However a caller spreads its tries; and who keeps to the rate is never refused more than that."""
    clock = Clock()
    limit = RateLimit(rate_per_s=rate_per_s, burst=burst, clock=clock)
    times_s = []
    for pause_s in pauses_s:
        clock.now_s += pause_s
        if limit.refusal("a") is None:
            times_s.append(clock.now_s)

    for first, start_s in enumerate(times_s):
        for last in range(first, len(times_s)):
            assert last - first + 1 <= burst + rate_per_s * (times_s[last] - start_s) + 1e-6


@settings(deadline=None)
@given(rate_per_s=st.floats(0.01, 1000), burst=st.integers(1, 50), tries=st.integers(0, 100))
def test_the_time_told_is_when_the_next_record_goes_through(rate_per_s: float, burst: int, tries: int):
    """Not before, and not much after; tries in vain put it off for nobody."""
    clock = Clock()
    limit = RateLimit(rate_per_s=rate_per_s, burst=burst, clock=clock)
    admitted(limit, "a", burst + tries)
    refusal = limit.refusal("a")
    assert refusal
    wait_s = refusal.retry_after_s
    clock.now_s += 0.99 * wait_s
    early = limit.refusal("a")
    clock.now_s += 0.01 * wait_s + 1e-6

    assert (refusal.status, refusal.slug) == (429, "overloaded")
    assert early is not None
    assert limit.refusal("a") is None


def test_buckets_are_bounded_and_the_longest_unused_goes_first(clock: Clock):
    """A forgotten one is a full one: nobody is held back by it."""
    limit = RateLimit(rate_per_s=1, burst=1, max_callers=2, clock=clock)
    for caller in ("a", "b", "a", "c"):
        limit.refusal(caller)

    assert len(limit._buckets) == 2
    assert limit.refusal("a") is not None
    assert limit.refusal("b") is None


def submission(caller: str, number: int) -> Submission:
    return Submission({"text": str(number)}, "", state="applied", idempotency_key=str(number), by=caller)


class Log:
    """Gives each record a receipt of its number, or the error it is to fail with."""

    def __init__(self, error: IntentGraphError | None = None) -> None:
        self.groups: list[list[str]] = []
        self._error = error

    async def append(self, submissions: Sequence[Submission]) -> list[Receipt | IntentGraphError]:
        numbers = [str(each.record["text"]) for each in submissions]
        self.groups.append(numbers)
        return [self._error or Receipt(number, duplicate=False, state="applied") for number in numbers]


async def test_what_is_within_the_limit_is_appended_together_and_every_outcome_is_its_own(clock: Clock):
    """In order, whoever else is in the group; what is beyond it does not reach the log."""
    limit, log = RateLimit(rate_per_s=1, burst=2, clock=clock), Log()
    callers = ["a", "b", "a", "a", "", "b", "b", "a", ""]
    outcomes = await append_within(limit, [submission(each, index) for index, each in enumerate(callers)], log.append)

    shown = [each.feedback_id if isinstance(each, Receipt) else each.status for each in outcomes]
    assert shown == ["0", "1", "2", 429, "4", "5", 429, 429, "8"]
    assert log.groups == [["0", "1", "2", "4", "5", "8"]]


async def test_a_group_wholly_beyond_the_limit_does_not_reach_the_log(clock: Clock):
    """Not even empty: that would cost a round trip."""
    limit, log = RateLimit(rate_per_s=1, burst=1, clock=clock), Log()
    limit.refusal("a")
    (outcome,) = await append_within(limit, [submission("a", 0)], log.append)

    assert isinstance(outcome, Overloaded)
    assert log.groups == []


async def test_the_logs_own_errors_pass_through(clock: Clock):
    """Each to the record it is of."""
    limit, log = RateLimit(rate_per_s=1, burst=1, clock=clock), Log(Unavailable("away"))
    outcomes = await append_within(limit, [submission("a", 0), submission("a", 1)], log.append)

    assert [each.status for each in outcomes if isinstance(each, IntentGraphError)] == [503, 429]


async def test_long_records_take_more_of_a_callers_rate():
    """A token for each KiB: what fills the store is bytes. A long one is let through and owed for."""
    now_s = 0.0
    limit = RateLimit(rate_per_s=1, burst=3, clock=lambda: now_s)

    async def append(submissions: Sequence[Submission]) -> list[Receipt]:
        return [Receipt("1-0", duplicate=False, state="recorded") for _ in submissions]

    def record(size: int) -> Submission:
        record = {"text": "x" * (size // 2), "user_id": "y" * (size - size // 2)}
        return Submission(record, "", state="recorded", idempotency_key="key", by="caller")

    first = await append_within(limit, [record(5 * 1024), record(1)], append)
    now_s = 3.5
    then = await append_within(limit, [record(1)], append)
    now_s = 4.5
    last = await append_within(limit, [record(1)], append)

    assert isinstance(first[0], Receipt)
    assert isinstance(first[1], Overloaded)
    assert first[1].retry_after_s == pytest.approx(4)
    assert isinstance(then[0], Overloaded)
    assert isinstance(last[0], Receipt)
