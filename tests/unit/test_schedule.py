"""The scheduler forms good batches, loses nothing and starves no one."""

import math
from collections import Counter
from contextlib import suppress

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deployments.core.errors import DeadlineExceeded, Overloaded
from deployments.core.schedule import (
    LOOKAHEAD,
    OVERDUE_TIMES,
    OVERLOADED_SHARE,
    DrainRate,
    Limits,
    RecentRefusals,
    Scheduler,
    Ticket,
)

ROOMY = Limits(max_batch_tokens=1000, max_batch_size=100, max_queue_tokens=10_000, pass_overhead_tokens=1000)


def tickets_of(call: str, *lengths: int, arrived_s: float = 0.0) -> list[Ticket[str, str]]:
    return [Ticket(call, index, f"{call}{index}", tokens, arrived_s) for index, tokens in enumerate(lengths)]


def scheduler_with(limits: Limits, *, deadline_s: float = 100.0, **calls: tuple[int, ...]) -> Scheduler[str, str]:
    scheduler = Scheduler[str, str](limits)
    for call, lengths in calls.items():
        scheduler.admit(call, tickets_of(call, *lengths), now_s=0.0, deadline_s=deadline_s)
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


def test_what_was_passed_over_rides_before_nearer_newcomers():
    """The odd length `c` waits for one batch, though each batch brings three texts that are nearer to its lead."""
    limits = Limits(max_batch_tokens=1000, max_batch_size=3, max_queue_tokens=10_000)
    scheduler = scheduler_with(limits, a=(10,), b=(10,), c=(16,), d=(10,), e=(10,))

    assert next_items(scheduler, now_s=1.0) == ["a0", "b0", "d0"]
    scheduler.admit("f", tickets_of("f", 16, arrived_s=2.0), now_s=2.0, deadline_s=100.0)
    scheduler.admit("g", tickets_of("g", 16, arrived_s=2.0), now_s=2.0, deadline_s=100.0)
    assert next_items(scheduler, now_s=3.0) == ["c0", "e0", "f0"]


def test_the_second_texts_of_a_call_are_not_passed_over():
    """Or a call of many texts would go before the newcomers."""
    limits = Limits(max_batch_tokens=1000, max_batch_size=3, max_queue_tokens=10_000)
    scheduler = scheduler_with(limits, big=(10,) * 50)

    assert next_items(scheduler, now_s=1.0) == ["big0", "big1", "big2"]
    for call in ("a", "b"):
        scheduler.admit(call, tickets_of(call, 10, arrived_s=2.0), now_s=2.0, deadline_s=100.0)
    assert next_items(scheduler, now_s=3.0) == ["big3", "a0", "b0"]


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
    scheduler.admit("on time", tickets_of("on time", 7), now_s=0.0, deadline_s=2.0)

    batch, dropped = scheduler.next_batch(1.0)

    assert [ticket.item for ticket in batch] == ["on time0"]
    assert [ticket.item for ticket, _ in dropped] == ["late0", "late1"]
    assert all(isinstance(error, DeadlineExceeded) for _, error in dropped)
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
        scheduler.admit("b", tickets_of("b", 6, 6), now_s=0.0, deadline_s=100.0)

    assert (scheduler.tokens, len(scheduler)) == (10, 1)


def test_empty_queue_takes_a_call_of_any_length():
    """A call longer than the whole queue may be is taken when nothing waits, or it never would be."""
    scheduler = scheduler_with(Limits(100, 8, max_queue_tokens=20), a=(30, 30))

    assert scheduler.tokens == 60


def test_retry_after_is_the_time_the_queue_takes():
    """At 50 tokens/s measured, 20 tokens waiting are served in 0.4 s."""
    scheduler = scheduler_with(Limits(100, 8, max_queue_tokens=20, pass_overhead_tokens=0), a=(20,))
    scheduler.served(100, busy_s=2.0)

    with pytest.raises(Overloaded) as refusal:
        scheduler.require_room(1, now_s=0.0)

    assert refusal.value.retry_after_s == pytest.approx(0.4)


def test_retry_after_stays_within_reason():
    """However quick or slow the queue, a refused caller comes back after 0.1 to 60 s; before the first batch too."""
    hints = []
    for busy_s in (None, 0.001, 1000.0):
        scheduler = scheduler_with(Limits(100, 8, max_queue_tokens=20), a=(20,))
        if busy_s:
            scheduler.served(20, busy_s=busy_s)
        with pytest.raises(Overloaded) as refusal:
            scheduler.require_room(1, now_s=0.0)
        hints.append(refusal.value.retry_after_s)

    assert hints == [0.1, 0.1, 60.0]


def test_expected_wait_worked_example():
    """By hand: a pass costs 20 tokens; 80 tokens took 0.1 s, so 1,000 are served in a second.

    a has three texts waiting, b one, and a batch of 30 tokens has run for 0.01 of its (30 + 20) / 1000 = 0.05 s.

    | newcomer of | ahead of it                        | tokens + pass | expected wait        |
    |-------------|------------------------------------|---------------|----------------------|
    | 1 text      | a0:10             b0:40            | 50 + 20       | 0.04 + 0.07 = 0.11 s |
    | 2 texts     | a0:10 a1:10       b0:40            | 60 + 20       | 0.04 + 0.08 = 0.12 s |
    | 100 texts   | a0:10 a1:10 a2:10 b0:40            | 70 + 20       | 0.04 + 0.09 = 0.13 s |
    """
    limits = Limits(max_batch_tokens=100, max_batch_size=10, max_queue_tokens=1000, pass_overhead_tokens=20)
    scheduler = scheduler_with(limits, running=(30,))
    scheduler.served(80, busy_s=0.1)
    scheduler.next_batch(0.0)
    for call, lengths in {"a": (10, 10, 10), "b": (40,)}.items():
        scheduler.admit(call, tickets_of(call, *lengths), now_s=0.0, deadline_s=100.0)

    waits_s = [scheduler.wait_s(texts, now_s=0.01) for texts in (1, 2, 100)]

    assert waits_s == pytest.approx([0.11, 0.12, 0.13])
    assert scheduler.delay_s(now_s=0.01) == pytest.approx(0.13)


def scheduler_of_rate(limits: Limits, tokens_per_s: float) -> Scheduler[str, str]:
    scheduler = Scheduler[str, str](limits)
    scheduler.served(1000 - limits.pass_overhead_tokens, busy_s=1000 / tokens_per_s)
    return scheduler


def test_long_call_makes_no_single_text_be_refused():
    """A hundred texts wait for 1 s, the limit is 0.1 s: a single text waits for one of them and is taken.

    Another hundred may wait as long as its own work takes, 1 s; a third would wait for two and is refused.
    """
    limits = Limits(1000, 10, max_queue_tokens=10_000, pass_overhead_tokens=0, max_queue_s=0.1)
    scheduler = scheduler_of_rate(limits, 1000)
    for call, texts in {"big": 100, "small": 1, "big too": 100}.items():
        scheduler.admit(call, tickets_of(call, *[10] * texts), now_s=0.0, deadline_s=100.0)

    with pytest.raises(Overloaded, match=r"would wait for 2\.01 s; the limit is 1\.10"):
        scheduler.admit("big three", tickets_of("big three", *[10] * 100), now_s=0.0, deadline_s=100.0)
    scheduler.admit("small too", tickets_of("small too", 10), now_s=0.0, deadline_s=100.0)

    assert len(scheduler) == 202


def test_newcomer_that_would_wait_too_long_is_refused():
    """At 1,000 tokens/s and 0.1 s, the ninth text of 12 tokens would find 96 ahead and is taken, the tenth is not.

    Its own work, 0.012 s, is allowed for. It is told when those before it will have been served.
    """
    limits = Limits(1000, 10, max_queue_tokens=10_000, pass_overhead_tokens=0, max_queue_s=0.1)
    scheduler = scheduler_of_rate(limits, 1000)
    for n in range(10):
        scheduler.admit(f"{n}", tickets_of(f"{n}", 12), now_s=0.0, deadline_s=100.0)

    with pytest.raises(Overloaded) as refusal:
        scheduler.admit("late", tickets_of("late", 12), now_s=0.0, deadline_s=100.0)

    assert refusal.value.retry_after_s == pytest.approx(0.12)


@pytest.mark.parametrize(("texts", "tokens", "size"), [(12, 10, 50), (3, 1, 3)])
def test_what_fits_one_batch_is_never_refused(texts: int, tokens: int, size: int):
    """However slow the estimate after a pass held up: 12 texts of 10 tokens, which may be 128, or 3 where 3 is all."""
    limits = Limits(1000, size, max_queue_tokens=10_000, pass_overhead_tokens=0, max_queue_s=0.1)
    scheduler = scheduler_of_rate(limits, tokens)
    for n in range(texts):
        scheduler.admit(f"{n}", tickets_of(f"{n}", tokens), now_s=0.0, deadline_s=100.0)

    with pytest.raises(Overloaded, match=f"would wait for {texts}"):
        scheduler.admit("late", tickets_of("late", tokens), now_s=0.0, deadline_s=100.0)


def test_long_call_leaves_a_single_text_its_place_in_a_batch():
    """However slow the pass that runs: one text goes before this one, of a batch of ten."""
    limits = Limits(1000, 10, max_queue_tokens=10_000, pass_overhead_tokens=0, max_queue_s=0.1)
    scheduler = scheduler_of_rate(limits, 10)
    scheduler.admit("running", tickets_of("running", *[10] * 10), now_s=0.0, deadline_s=100.0)
    scheduler.next_batch(0.0)
    scheduler.admit("big", tickets_of("big", *[10] * 10), now_s=0.0, deadline_s=100.0)

    scheduler.admit("small", tickets_of("small", 10), now_s=0.0, deadline_s=100.0)

    assert "small0" in next_items(scheduler, now_s=10.0)


def arrive(scheduler: Scheduler[str, str], calls: int, now_s: float) -> int:
    """So many calls of 10 tokens come at once; how many are taken."""
    before = len(scheduler)
    for n in range(calls):
        call = f"{now_s}, {n}"
        with suppress(Overloaded):
            scheduler.admit(call, tickets_of(call, 10, arrived_s=now_s), now_s=now_s, deadline_s=math.inf)
    return len(scheduler) - before


def withdraw_all(scheduler: Scheduler[str, str]) -> None:
    for call in {ticket.call for ticket in scheduler._in_turn()}:
        scheduler.withdraw(call)


def most_waiting(scheduler: Scheduler[str, str], arrivals: int, begin_s: float, seconds: float) -> int:
    """So many texts of 10 tokens come every 10 ms and one is served, if they are taken; the most that wait at once."""
    most = 0
    for step in range(round(seconds * 100)):
        now_s = begin_s + step / 100
        arrive(scheduler, arrivals, now_s)
        most = max(most, len(scheduler))
        if scheduler.next_batch(now_s)[0]:
            scheduler.served(10, busy_s=0.01)
    return most


def scheduler_to_overload() -> Scheduler[str, str]:
    """By hand: one text of 10 tokens a batch, 0.01 s each; 0.205 s may be waited for, and one's own 0.01 s.

    So the queue may be filled up to 0.215 s, which is 21 texts, and a newcomer; under overload up to 0.1125 s, 11.
    """
    limits = Limits(1000, 1, max_queue_tokens=10_000, pass_overhead_tokens=0, max_queue_s=0.205)
    return scheduler_of_rate(limits, 1000)


def test_half_the_wait_must_do_under_overload():
    """A burst is waited out; not when it goes on; another one is when the model was idle for half a second."""
    scheduler = scheduler_to_overload()

    burst = most_waiting(scheduler, 2, 0.0, 0.3)
    most_waiting(scheduler, 2, 0.3, 0.7)
    overload = most_waiting(scheduler, 2, 1.0, 10.0)
    most_waiting(scheduler, 0, 11.0, 0.6)
    another_burst = most_waiting(scheduler, 2, 11.6, 0.3)

    assert (burst, overload, another_burst) == (22, 12, 22)


@pytest.mark.parametrize(("calls", "taken"), [(28, 22), (29, 12)])
def test_overload_begins_where_more_than_one_of_ten_is_refused(calls: int, taken: int):
    """Of 28 at once six are refused, of 29 seven; twenty before them count as accepted.

    When they are gone the thirteenth newcomer decides, for twelve are taken in any case: 6 / 60 and 7 / 61.
    """
    scheduler = scheduler_to_overload()
    assert arrive(scheduler, calls, 0.0) == 22
    withdraw_all(scheduler)

    assert arrive(scheduler, 30, 0.0) == taken


def test_queue_that_refuses_nobody_is_no_overload():
    """However long it stands: here 15 wait, and each that is served is followed by another."""
    scheduler = scheduler_to_overload()
    arrive(scheduler, 15, 0.0)
    most_waiting(scheduler, 1, 0.01, 10.0)

    assert len(scheduler) + arrive(scheduler, 30, 10.01) == 22


def test_overload_is_not_over_when_the_model_was_idle_for_a_moment():
    """All who come after it find that moment, and count it once."""
    scheduler = scheduler_to_overload()
    most_waiting(scheduler, 2, 0.0, 2.0)
    most_waiting(scheduler, 0, 2.0, 0.2)

    assert arrive(scheduler, 30, 2.2) == 12


@pytest.mark.parametrize("has_ended", [False, True])
def test_model_is_not_idle_during_a_pass(has_ended: bool):
    """Though nothing waits: one that began a second ago and should have ended, or has ended just now."""
    scheduler = scheduler_to_overload()
    most_waiting(scheduler, 2, 0.0, 2.0)
    scheduler.next_batch(2.0)
    withdraw_all(scheduler)
    if has_ended:
        scheduler.served(1000, busy_s=1.0)

    assert arrive(scheduler, 30, 3.0) == 12


def overloaded_scheduler(size: int) -> Scheduler[str, str]:
    """1,000 tokens a second; newcomers may wait for 0.1 s and their own work, for half of the latest were refused."""
    limits = Limits(1000, size, max_queue_tokens=10_000, pass_overhead_tokens=0, max_queue_s=0.2)
    scheduler = scheduler_of_rate(limits, 1000)
    scheduler.admit("running", tickets_of("running", 10), now_s=0.0, deadline_s=100.0)
    scheduler.next_batch(0.0)
    for _ in range(20):
        scheduler._refusals.observe(0.0, refused=True)
    return scheduler


def dropped_items(scheduler: Scheduler[str, str], now_s: float) -> list[str]:
    """What is refused when the next batch is formed."""
    dropped = scheduler.next_batch(now_s)[1]
    assert all(isinstance(error, Overloaded) for _, error in dropped)
    return [ticket.item for ticket, _ in dropped]


@pytest.mark.parametrize(("now_s", "overdue"), [(0.164, []), (0.166, ["a0", "b0"])])
def test_overdue_make_room_under_overload(now_s: float, overdue: list[str]):
    """By hand: a text of 10 tokens may wait for 0.1 + 0.01 s, and not for 1.5 times that, 0.165 s.

    Of five that wait, two to a batch, three came later.
    """
    scheduler = overloaded_scheduler(size=2)
    for call, arrived_s in {"a": 0.0, "b": 0.0, "c": 0.1, "d": 0.1, "e": 0.1}.items():
        scheduler.admit(call, tickets_of(call, 10, arrived_s=arrived_s), now_s=arrived_s, deadline_s=100.0)

    assert dropped_items(scheduler, now_s) == overdue


def test_overdue_caller_is_told_why():
    """How long it waited, what the limit is, and when the queue will have been served."""
    scheduler = overloaded_scheduler(size=1)
    for call in "abc":
        scheduler.admit(call, tickets_of(call, 10), now_s=0.0, deadline_s=100.0)

    ((_, error), _) = scheduler.next_batch(0.3)[1]

    assert error.detail == "this call has waited for 0.30 s; the limit is 0.17; retry in 0.1 s"


def test_overdue_are_served_where_they_fit_one_batch():
    """Refusing them would serve nobody else: of four that fit two to a batch, two go."""
    scheduler = overloaded_scheduler(size=2)
    for call in "abcd":
        scheduler.admit(call, tickets_of(call, 10), now_s=0.0, deadline_s=100.0)

    batch, dropped = scheduler.next_batch(0.3)

    assert [ticket.item for ticket, _ in dropped] == ["a0", "b0"]
    assert [ticket.item for ticket in batch] == ["c0", "d0"]


def test_overdue_are_served_where_there_is_no_overload():
    """A pass was held up, and nobody was refused: all are answered, late."""
    limits = Limits(1000, 2, max_queue_tokens=10_000, pass_overhead_tokens=0, max_queue_s=0.2)
    scheduler = scheduler_of_rate(limits, 1000)
    for call in "abcd":
        scheduler.admit(call, tickets_of(call, 10), now_s=0.0, deadline_s=100.0)

    assert dropped_items(scheduler, 10.0) == []


def test_large_call_is_overdue_later():
    """Its own ten texts take 0.1 s: it may wait for 0.3 s for the first of them, and for the others as it must."""
    scheduler = overloaded_scheduler(size=1)
    for call, lengths in {"big": [10] * 10, "a": [10], "b": [10]}.items():
        scheduler.admit(call, tickets_of(call, *lengths), now_s=0.0, deadline_s=100.0)

    assert dropped_items(scheduler, 0.25) == ["a0", "b0"]
    scheduler.admit("c", tickets_of("c", 10, arrived_s=0.45), now_s=0.45, deadline_s=100.0)
    assert dropped_items(scheduler, 0.5) == []


def test_large_call_that_nothing_was_served_of_is_refused_as_a_whole():
    """All of its ten texts make room for the one that came later."""
    scheduler = overloaded_scheduler(size=1)
    scheduler.admit("big", tickets_of("big", *[10] * 10), now_s=0.0, deadline_s=100.0)
    scheduler.admit("late", tickets_of("late", 10, arrived_s=0.3), now_s=0.3, deadline_s=100.0)

    assert dropped_items(scheduler, 0.31) == [f"big{index}" for index in range(10)]


def test_overdue_call_is_counted_among_the_refused_once():
    """It was counted as accepted when it came: of 23 calls and twenty before them 21 are refused, and not 20."""
    scheduler = overloaded_scheduler(size=1)
    for call in ("a", "b"):
        scheduler.admit(call, tickets_of(call, 10), now_s=0.0, deadline_s=100.0)
    before = scheduler._refusals.share(0.2)

    assert dropped_items(scheduler, 0.2) == ["a0"]
    assert scheduler._refusals.share(0.2) - before == pytest.approx(1 / (20 + 23 * math.exp(-0.1)))


def test_recent_refusals_worked_example():
    """Ten calls, all refused, beside twenty before them; then time, and idle time, that leave 1/e of what was."""
    refusals = RecentRefusals(max_queue_s=0.2)
    for _ in range(10):
        refusals.observe(5.0, refused=True)

    at_once = refusals.share(5.0)
    later = refusals.share(7.0)
    refusals.forget_idle(0.1)
    after_idle = refusals.share(7.0)
    for _ in range(10):
        refusals.observe(7.0, refused=False)
    after_accepted = refusals.share(7.0)

    left = [10 / math.e, 10 / math.e**2]
    assert [at_once, later, after_idle, after_accepted] == pytest.approx(
        [10 / 30, left[0] / (20 + left[0]), left[1] / (20 + left[1]), left[1] / (30 + left[1])]
    )


def test_recent_refusals_where_no_wait_is_too_long():
    """Nothing is forgotten, and no number lost."""
    refusals = RecentRefusals(math.inf)
    refusals.observe(5.0, refused=True)
    refusals.forget_idle(1e300)

    assert refusals.share(1e300) == pytest.approx(1 / 21)


def test_turns_decide_who_may_wait_behind_a_long_call():
    """A hundred texts take 1 s, five times the limit, but one of them goes before the newcomers, 21 texts in all."""
    scheduler = scheduler_to_overload()
    scheduler.admit("big", tickets_of("big", *[10] * 100), now_s=0.0, deadline_s=math.inf)

    assert arrive(scheduler, 30, 0.0) == 21


def test_a_call_counts_once_among_the_refused_however_many_texts_it_brings():
    """Of five calls one is refused, of a hundred texts as two others are; twenty count as accepted."""
    limits = Limits(1000, 10, max_queue_tokens=10_000, pass_overhead_tokens=0, max_queue_s=0.1)
    scheduler = scheduler_of_rate(limits, 1000)
    for call, texts in {"big": 100, "small": 1, "big too": 100, "big three": 100, "small too": 1}.items():
        with suppress(Overloaded):
            scheduler.admit(call, tickets_of(call, *[10] * texts), now_s=0.0, deadline_s=100.0)

    assert len(scheduler) == 202
    assert scheduler._refusals.share(0.0) == pytest.approx(1 / 25)


def test_what_finds_no_room_says_nothing_about_the_wait():
    """Thirty are refused for the queue's tokens, none for its time."""
    limits = Limits(1000, 10, max_queue_tokens=100, pass_overhead_tokens=0, max_queue_s=10.0)
    scheduler = scheduler_of_rate(limits, 1000)

    assert arrive(scheduler, 40, 0.0) == 10
    assert scheduler._refusals.share(0.0) == 0


def test_who_finds_nothing_waiting_is_taken():
    """However long the pass that runs, and though no batch has room for its 200 tokens beside another text."""
    limits = Limits(1000, 10, max_queue_tokens=10_000, pass_overhead_tokens=0, max_queue_s=0.1)
    scheduler = scheduler_of_rate(limits, 10)
    scheduler.admit("running", tickets_of("running", 500), now_s=0.0, deadline_s=100.0)
    scheduler.next_batch(0.0)

    scheduler.admit("newcomer", tickets_of("newcomer", 200), now_s=0.0, deadline_s=100.0)

    assert scheduler.tokens == 200


def test_nothing_is_refused_for_its_wait_before_the_first_batch():
    """While nobody knows how quick the model is, only memory bounds the queue."""
    limits = Limits(1000, 10, max_queue_tokens=10_000, max_queue_s=0.001)
    scheduler = scheduler_with(limits, a=(10,) * 100, b=(10,) * 100)

    assert len(scheduler) == 200


def test_no_pass_takes_longer_than_half_a_newcomers_wait():
    """At 5,000 tokens/s and 0.2 s a batch has 500 tokens, its overhead of 5 among them; at first it has all it may."""
    limits = Limits(1000, 200, max_queue_tokens=10_000, pass_overhead_tokens=5, max_queue_s=0.2)
    scheduler = scheduler_with(limits, a=(10,) * 200)
    at_first = next_items(scheduler)
    scheduler.served(4995, busy_s=1.0)

    assert (len(at_first), len(next_items(scheduler))) == (100, 49)


@pytest.mark.parametrize(("overhead", "texts"), [(0, 12), (40, 32)])
def test_batching_goes_on_however_slow_the_model(overhead: int, texts: int):
    """Where no pass ends in time, a batch still has 128 tokens, or eight times its overhead."""
    limits = Limits(1000, 50, max_queue_tokens=10_000, pass_overhead_tokens=overhead, max_queue_s=0.2)
    scheduler = scheduler_with(limits, a=(10,) * 70)
    scheduler.served(1000, busy_s=1000.0)

    assert len(next_items(scheduler)) == texts


@settings(deadline=None)
@given(
    lines=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    newcomer=st.integers(1, 30),
    size=st.integers(1, 8),
    length=st.integers(1, 20),
    overhead=st.integers(0, 40),
    batches_before=st.integers(0, 6),
    share=st.floats(0.0, 1.0),
)
def test_expected_wait_bounds_the_real_one(
    lines: list[int], newcomer: int, size: int, length: int, overhead: int, batches_before: int, share: float
):
    """Texts of one length, a server of a steady rate, a newcomer at any moment of a pass, nobody after it.

    Its last text is in a pass after its expected wait and the time of its own texts, or before.
    """
    limits = Limits(size * length, size, 100_000, pass_overhead_tokens=overhead)
    scheduler = scheduler_of_rate(limits, 1000)
    for call, texts in enumerate(lines):
        scheduler.admit(f"{call}", tickets_of(f"{call}", *[length] * texts), now_s=0.0, deadline_s=math.inf)
    now_s = pass_s = 0.0
    for _ in range(batches_before):
        now_s, pass_s = now_s + pass_s, serve_one(scheduler, now_s + pass_s, overhead)
    arrival_s = now_s + share * pass_s
    own_s = (newcomer * length + math.ceil(newcomer / size) * overhead) / 1000

    bound_s = scheduler.wait_s(newcomer, arrival_s) + own_s
    scheduler.admit("new", tickets_of("new", *[length] * newcomer), now_s=arrival_s, deadline_s=math.inf)
    started_s = now_s
    while "new" in {ticket.call for ticket in scheduler._in_turn()}:
        started_s, now_s = now_s + pass_s, now_s + pass_s
        pass_s = serve_one(scheduler, now_s, overhead)

    assert started_s - arrival_s <= bound_s + 1e-9


def serve_one(scheduler: Scheduler[str, str], now_s: float, overhead: int) -> float:
    """Take the next batch; give its time at 1,000 tokens/s."""
    batch, _ = scheduler.next_batch(now_s)
    return (sum(ticket.tokens for ticket in batch) + overhead) / 1000 if batch else 0.0


def test_drain_rate_follows_the_recent():
    """Ten times slower from now on: after 20 batches the estimate is within 15 % of the new rate."""
    rate = DrainRate(math.inf)
    for _ in range(100):
        rate.observe(100, 0.1)
    for _ in range(20):
        rate.observe(100, 1.0)

    assert rate.time_s(1000) == pytest.approx(10.0, rel=0.15)
    assert rate.tokens_in(10.0) == pytest.approx(1000, rel=0.15)


def test_drain_rate_is_what_was_expected_until_there_is_a_batch():
    """Expected are 1,000 tokens a second; the first batch says a hundred, and the expectation counts no more."""
    rate = DrainRate(1000.0)
    assert (rate.time_s(100), rate.tokens_in(0.1)) == (0.1, 100.0)

    rate.observe(100, 1.0)

    assert (rate.time_s(100), rate.tokens_in(0.1)) == (1.0, 10.0)


def test_newcomer_of_a_model_that_has_served_nothing_waits_as_long_as_another():
    """A replica that has just started and is sent what others refuse: 0.1 s may be waited for, and its own work."""
    limits = Limits(20, 1, max_queue_tokens=10_000, pass_overhead_tokens=0, max_queue_s=0.1, tokens_per_s=1000.0)
    scheduler = Scheduler[str, str](limits)
    for number in range(12):
        scheduler.admit(str(number), tickets_of(str(number), 10), now_s=0.0, deadline_s=100.0)

    with pytest.raises(Overloaded, match=r"would wait for 0\.12 s; the limit is 0\.11"):
        scheduler.admit("late", tickets_of("late", 10), now_s=0.0, deadline_s=100.0)


@pytest.mark.parametrize(
    "limit", ["max_batch_tokens", "max_batch_size", "max_queue_tokens", "max_queue_s", "tokens_per_s"]
)
def test_limits_must_be_positive(limit: str):
    """A limit of zero would admit nothing and is refused at once."""
    with pytest.raises(ValueError, match="limits must be positive"):
        Limits(**{"max_batch_tokens": 100, "max_batch_size": 8, "max_queue_tokens": 100} | {limit: 0})  # type: ignore[arg-type]


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
        size=st.integers(1, 6),
        budget=st.integers(1, 64),
        queue=st.integers(1, 300),
        overhead=st.integers(0, 40),
        queue_s=st.floats(0.01, 10.0),
    )
    def begin(self, size: int, budget: int, queue: int, overhead: int, queue_s: float):
        self.limits = Limits(budget, size, queue, overhead, queue_s)
        self.scheduler = Scheduler[int, tuple[int, int]](self.limits)
        self.now_s = 0.0
        self.calls = 0
        self.deadlines: dict[int, float] = {}
        self.waiting: dict[int, dict[int, int]] = {}
        self.texts: dict[int, int] = {}
        self.patience: dict[int, int] = {}
        self.admitted: Counter[tuple[int, int]] = Counter()
        self.left: Counter[tuple[int, int]] = Counter()

    @rule(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), timeout_s=st.floats(0.0, 10.0))
    def arrive(self, lengths: list[int], timeout_s: float):
        self.calls += 1
        call, before = self.calls, self.scheduler.tokens
        tickets = [Ticket(call, i, (call, i), tokens, self.now_s) for i, tokens in enumerate(lengths)]
        wait_s = self.scheduler.wait_s(len(lengths), self.now_s)
        ahead = [tokens for items in self.waiting.values() for _, tokens in sorted(items.items())[: len(lengths)]]
        texts_fit = len(ahead + lengths) <= self.limits.max_batch_size
        fits = texts_fit and sum(ahead + lengths) <= self.scheduler._budget
        try:
            self.scheduler.admit(call, tickets, now_s=self.now_s, deadline_s=self.now_s + timeout_s)
        except Overloaded:
            assert before
            too_long = wait_s > OVERLOADED_SHARE * self.limits.max_queue_s
            assert (too_long and not fits) or before + sum(lengths) > self.limits.max_queue_tokens
            return
        assert not before or before + sum(lengths) <= self.limits.max_queue_tokens
        own_s = self.scheduler._drain.time_s(sum(lengths))
        in_time = wait_s <= self.limits.max_queue_s + own_s
        assert not before or in_time or fits
        self.deadlines[call] = self.now_s + timeout_s
        self.waiting[call] = dict(enumerate(lengths))
        self.texts[call] = len(lengths)
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

    @rule(busy_s=st.floats(0.001, 1.0))
    def serve(self, busy_s: float = 0.1):
        untouched = {call for call, items in self.waiting.items() if len(items) == self.texts[call]}
        batch, dropped = self.scheduler.next_batch(self.now_s)
        self.leave([ticket for ticket, _ in dropped])
        for ticket, error in dropped:
            if isinstance(error, Overloaded):
                assert ticket.call in untouched
                assert self.now_s - ticket.arrived_s > OVERDUE_TIMES * OVERLOADED_SHARE * self.limits.max_queue_s
                assert batch
            else:
                assert self.deadlines[ticket.call] <= self.now_s
        assert not any(self.deadlines[call] <= self.now_s for call in self.waiting)
        assert bool(batch) == bool(self.waiting)
        self.check_cost(batch)
        oldest = {call: min(items) for call, items in self.waiting.items()}
        self.leave(batch)
        self.check_patience(oldest)
        if batch:
            self.scheduler.served(sum(ticket.tokens for ticket in batch), busy_s=busy_s)

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
