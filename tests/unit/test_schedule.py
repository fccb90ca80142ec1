"""The scheduler forms good batches, loses nothing and starves no one."""

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deployments.core.errors import Overloaded
from deployments.core.schedule import LOOKAHEAD, DrainRate, Limits, Scheduler, Ticket

ROOMY = Limits(max_batch_tokens=1000, max_batch_size=100, max_queue_tokens=10_000, pass_overhead_tokens=1000)


def tickets_of(call: str, *lengths: int) -> list[Ticket[str, str]]:
    return [Ticket(call, index, f"{call}{index}", tokens, arrived_s=0.0) for index, tokens in enumerate(lengths)]


def scheduler_with(limits: Limits, *, deadline_s: float = 100.0, **calls: tuple[int, ...]) -> Scheduler[str, str]:
    scheduler = Scheduler[str, str](limits)
    for call, lengths in calls.items():
        scheduler.admit(call, tickets_of(call, *lengths), deadline_s=deadline_s)
    return scheduler


def next_items(scheduler: Scheduler[str, str], now_s: float = 0.0) -> list[str]:
    return [ticket.item for ticket in scheduler.next_batch(now_s)[0]]


def test_worked_example():
    """By hand: budget 64 padded tokens, 4 items, a pass costs 8 tokens; a brings three texts, b two, c one.

    | batch | in turn, with lengths            | lead | riders                                                | padded |
    |-------|----------------------------------|------|-------------------------------------------------------|--------|
    | 1     | a0:10 b0:30 c0:12 a1:11 b1:9 a2:40 | a0 | a1 (+1), b1 (-1), c0 (+2): 4 x 12 = 48, 42 useful     | 48     |
    | 2     | b0:30 a2:40                      | b0   | a2 would pad 2 x 40 = 80, over the budget             | 30     |
    | 3     | a2:40                            | a2   |                                                       | 40     |
    """
    limits = Limits(max_batch_tokens=64, max_batch_size=4, max_queue_tokens=1000, pass_overhead_tokens=8)
    scheduler = scheduler_with(limits, a=(10, 11, 40), b=(30, 9), c=(12,))

    batches = [next_items(scheduler) for _ in range(4)]

    assert batches == [["a0", "a1", "b1", "c0"], ["b0"], ["a2"], []]


def test_calls_take_turns():
    """A call of one text goes in the second batch, however many texts wait before it."""
    limits = Limits(max_batch_tokens=10, max_batch_size=1, max_queue_tokens=10_000)
    scheduler = scheduler_with(limits, big=(10,) * 100, small=(10,))

    batches = [next_items(scheduler) for _ in range(3)]

    assert batches == [["big0"], ["small0"], ["big1"]]


def test_riders_of_equal_length_ride_in_turn():
    """Where lengths do not decide, a batch takes one item of each call before it takes a second of any."""
    limits = Limits(max_batch_tokens=1000, max_batch_size=3, max_queue_tokens=10_000)
    scheduler = scheduler_with(limits, big=(10,) * 50, b=(10,), c=(10,))

    first = next_items(scheduler)

    assert first == ["big0", "b0", "c0"]


def test_padding_dearer_than_a_pass_is_refused():
    """A short text is not padded to a long one when a pass of its own costs less: 16 and 48 tokens pad by 32."""
    limits = Limits(max_batch_tokens=1000, max_batch_size=8, max_queue_tokens=1000, pass_overhead_tokens=31)
    scheduler = scheduler_with(limits, short=(16,), long=(48,))

    batches = [next_items(scheduler) for _ in range(2)]

    assert batches == [["short0"], ["long0"]]


def test_padding_cheaper_than_a_pass_is_taken():
    """The same two texts share a pass when another one would cost as much as the padding."""
    limits = Limits(max_batch_tokens=1000, max_batch_size=8, max_queue_tokens=1000, pass_overhead_tokens=32)
    scheduler = scheduler_with(limits, short=(16,), long=(48,))

    first = next_items(scheduler)

    assert first == ["short0", "long0"]


def test_lead_beyond_the_budget_goes_alone():
    """An item longer than a whole batch may be is served, by itself."""
    limits = Limits(max_batch_tokens=10, max_batch_size=4, max_queue_tokens=1000)
    scheduler = scheduler_with(limits, long=(25,), other=(25,))

    first = next_items(scheduler)

    assert first == ["long0"]


def test_expired_leave_before_they_cost():
    """At its deadline a call is no longer batched: it comes back as expired, and its tokens make room."""
    scheduler = scheduler_with(ROOMY, late=(5, 6), deadline_s=1.0)
    scheduler.admit("on time", tickets_of("on time", 7), deadline_s=2.0)

    batch, expired = scheduler.next_batch(1.0)

    assert [ticket.item for ticket in batch] == ["on time0"]
    assert [ticket.item for ticket in expired] == ["late0", "late1"]
    assert scheduler.tokens == 0


def test_withdrawn_leave_others_alone():
    """Withdrawing a call takes out what still waits of it, nothing else; again, or unknown, it takes nothing."""
    scheduler = scheduler_with(ROOMY, a=(5, 6), b=(7,))

    withdrawn = [ticket.item for ticket in scheduler.withdraw("a")]

    assert withdrawn == ["a0", "a1"]
    assert scheduler.withdraw("a") == scheduler.withdraw("unknown") == []
    assert (scheduler.tokens, len(scheduler)) == (7, 1)
    assert next_items(scheduler) == ["b0"]


def test_full_queue_refuses_whole_calls():
    """A call that would overfill the queue is refused with all its items; what waits is untouched."""
    scheduler = scheduler_with(Limits(100, 8, max_queue_tokens=20), a=(10,))

    with pytest.raises(Overloaded, match="10 tokens wait and this call brings 12 or more; the limit is 20"):
        scheduler.admit("b", tickets_of("b", 6, 6), deadline_s=100.0)

    assert (scheduler.tokens, len(scheduler)) == (10, 1)


def test_empty_queue_takes_a_call_of_any_length():
    """A call longer than the whole queue may be is taken when nothing waits, or it never would be."""
    scheduler = scheduler_with(Limits(100, 8, max_queue_tokens=20), a=(30, 30))

    assert scheduler.tokens == 60


def test_retry_after_is_the_time_the_queue_takes():
    """At 50 tokens/s measured, 20 tokens waiting are served in 0.4 s."""
    scheduler = scheduler_with(Limits(100, 8, max_queue_tokens=20), a=(20,))
    scheduler.served(100, busy_s=2.0)

    with pytest.raises(Overloaded) as refusal:
        scheduler.require_room(1)

    assert refusal.value.retry_after_s == pytest.approx(0.4)


def test_drain_rate_follows_the_recent():
    """Ten times slower from now on: after 20 batches the estimate is within 15 % of the new rate."""
    rate = DrainRate()
    for _ in range(100):
        rate.observe(100, 0.1)
    for _ in range(20):
        rate.observe(100, 1.0)

    assert rate.time_s(1000) == pytest.approx(10.0, rel=0.15)


def test_drain_rate_stays_within_reason():
    """Before the first batch the estimate is a second; it never leaves 0.1 to 60 s."""
    unknown, quick, slow = DrainRate(), DrainRate(), DrainRate()
    quick.observe(1000, 0.0)
    slow.observe(1, 10.0)

    assert [rate.time_s(100) for rate in (unknown, quick, slow)] == [1.0, 0.1, 60.0]


def test_limits_must_be_positive():
    """A limit of zero would admit nothing and is refused at once."""
    with pytest.raises(ValueError, match="limits must be positive"):
        Limits(max_batch_tokens=100, max_batch_size=0, max_queue_tokens=100)


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=40), size=st.integers(1, 5), budget=st.integers(1, 60))
def test_equal_lengths_of_a_call_keep_their_order(lengths: list[int], size: int, budget: int):
    """Texts of one call and one length leave in the order they came."""
    limits = Limits(budget, size, max_queue_tokens=10_000, pass_overhead_tokens=10)
    scheduler = scheduler_with(limits, a=tuple(lengths), b=tuple(reversed(lengths)))

    left: dict[tuple[str, int], list[int]] = {}
    while scheduler:
        for ticket in scheduler.next_batch(0.0)[0]:
            left.setdefault((ticket.call, ticket.tokens), []).append(ticket.index)

    assert all(indexes == sorted(indexes) for indexes in left.values())


class AnyTraffic(RuleBasedStateMachine):
    """Whatever arrives, expires, is withdrawn or served, in any order, the promises hold.

    `patience` counts the batches in which a call's oldest item must go: as many as calls wait, counted when the item
    became the oldest of its call.
    """

    @initialize(
        size=st.integers(1, 6), budget=st.integers(1, 64), queue=st.integers(1, 300), overhead=st.integers(0, 40)
    )
    def begin(self, size: int, budget: int, queue: int, overhead: int):
        self.limits = Limits(budget, size, queue, overhead)
        self.scheduler = Scheduler[int, tuple[int, int]](self.limits)
        self.now_s = 0.0
        self.calls = 0
        self.deadlines: dict[int, float] = {}
        self.waiting: dict[int, dict[int, int]] = {}
        self.patience: dict[int, int] = {}
        self.admitted: Counter[tuple[int, int]] = Counter()
        self.left: Counter[tuple[int, int]] = Counter()

    @rule(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), timeout_s=st.floats(0.0, 10.0))
    def arrive(self, lengths: list[int], timeout_s: float):
        self.calls += 1
        call, before = self.calls, self.scheduler.tokens
        tickets = [Ticket(call, i, (call, i), tokens, self.now_s) for i, tokens in enumerate(lengths)]
        try:
            self.scheduler.admit(call, tickets, deadline_s=self.now_s + timeout_s)
        except Overloaded:
            assert before
            assert before + sum(lengths) > self.limits.max_queue_tokens
            return
        assert not before or before + sum(lengths) <= self.limits.max_queue_tokens
        self.deadlines[call] = self.now_s + timeout_s
        self.waiting[call] = dict(enumerate(lengths))
        self.patience[call] = len(self.waiting)
        self.admitted.update(ticket.item for ticket in tickets)

    @rule(elapsed_s=st.floats(0.0, 5.0))
    def time_passes(self, elapsed_s: float):
        self.now_s += elapsed_s

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject):
        call = data.draw(st.sampled_from(sorted(self.waiting)))
        self.leave(self.scheduler.withdraw(call))
        assert call not in self.waiting

    @rule()
    def serve(self):
        batch, expired = self.scheduler.next_batch(self.now_s)
        self.leave(expired)
        assert not any(self.deadlines[call] <= self.now_s for call in self.waiting)
        assert bool(batch) == bool(self.waiting)
        self.check_cost(batch)
        oldest = {call: min(items) for call, items in self.waiting.items()}
        self.leave(batch)
        self.check_patience(oldest)

    def leave(self, tickets: list[Ticket[int, tuple[int, int]]]):
        for ticket in tickets:
            assert self.waiting[ticket.call].pop(ticket.index) == ticket.tokens
            if not self.waiting[ticket.call]:
                del self.waiting[ticket.call]
            self.left[ticket.item] += 1

    def check_cost(self, batch: list[Ticket[int, tuple[int, int]]]):
        lengths = [ticket.tokens for ticket in batch]
        assert len(lengths) <= self.limits.max_batch_size
        if len(lengths) > 1:
            padded = max(lengths) * len(lengths)
            assert padded <= self.limits.max_batch_tokens
            assert padded - sum(lengths) <= self.limits.pass_overhead_tokens

    def check_patience(self, oldest: dict[int, int]):
        for call, index in oldest.items():
            if call not in self.waiting:
                continue
            if index in self.waiting[call]:
                self.patience[call] -= 1
                assert self.patience[call] > 0, "starved"
            else:
                self.patience[call] = len(self.waiting)

    @invariant()
    def agrees_about_what_waits(self):
        assert self.scheduler.tokens == sum(sum(items.values()) for items in self.waiting.values())
        assert len(self.scheduler) == sum(map(len, self.waiting.values()))

    def teardown(self):
        """At the end every item admitted has left exactly once."""
        while self.scheduler:
            self.serve()
        assert self.left == self.admitted


AnyTraffic.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyTraffic = AnyTraffic.TestCase


def test_lookahead_bounds_the_work_of_a_batch():
    """Near lengths are sought among the next few batches' worth of items, not in the whole queue."""
    limits = Limits(max_batch_tokens=1000, max_batch_size=2, max_queue_tokens=10_000)
    near = 2 * LOOKAHEAD
    scheduler = scheduler_with(limits, a=(10, *[30] * (near - 1), 10))

    first = next_items(scheduler)

    assert first == ["a0", "a1"]
