"""What counts of feedback say: shares with their intervals, and what changed."""

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deployments.core.feedback_counts import Agreement, Tally, agreement, by
from deployments.core.feedback_patterns import (
    Contest,
    confusions,
    contested,
    difference_interval,
    falling,
    wilson_interval,
)

counts = st.integers(0, 500)
intents = st.sampled_from("abc")


def tally(day: int, original: str, correct: str, count: int) -> Tally:
    kind = "confirmation" if original == correct else "correction"
    return Tally(day, kind, original, correct, "v1", count)


def test_the_worked_example_of_newcombe():
    """56 of 70 against 48 of 80: a difference of 0.2, from 0.0524 to 0.3339 (1998, table II, method 10)."""
    low, high = difference_interval(Agreement(70 - 56, 56), Agreement(80 - 48, 48))

    assert (low, high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_the_worked_example_of_wilson():
    """81 of 263: 0.2553 to 0.3662 (Newcombe, Statistics in Medicine 17, 1998, 857-872, table I, method 3)."""
    assert wilson_interval(Agreement(263 - 81, 81)) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(Agreement(0, 0)) == (0.0, 1.0)


@example(0, 183, 0, 0)
@given(counts, counts, counts, counts)
def test_intervals_hold_what_they_are_of(a: int, b: int, c: int, d: int):
    """And turn about when the two change places."""
    now, before = Agreement(a, b + 1), Agreement(c, d + 1)
    low, high = difference_interval(now, before)
    other_low, other_high = difference_interval(before, now)

    assert 0 <= wilson_interval(now)[0] <= now.rate <= wilson_interval(now)[1] <= 1
    assert low <= now.rate - before.rate <= high
    assert (low, high) == pytest.approx((-other_high, -other_low))


@given(st.lists(st.builds(tally, st.integers(0, 40), intents, intents, st.integers(1, 9))))
def test_sums_lose_and_double_nothing(tallies: list[Tally]):
    """By whatever they are grouped."""
    total = sum(each.count for each in tallies)

    assert agreement(tallies).total == total
    assert sum(group.total for group in by(tallies, "original_intent").values()) == total
    recent = sum(each.count for each in tallies if each.is_correction and each.day > 33)
    assert sum(pair.count for pair in confusions(tallies, today=40, days=7)) == recent


def test_a_confusion_is_told_with_its_days_and_what_was_before():
    """The last two days against the two before them."""
    tallies = [tally(day, "a", "b", count) for day, count in ((6, 9), (7, 4), (8, 1), (9, 2), (10, 3))]
    [confusion] = confusions([*tallies, tally(10, "a", "a", 50)], today=10, days=2)

    assert (confusion.count, confusion.count_before, confusion.by_day) == (5, 5, {9: 2, 10: 3})


def test_an_intent_falls_only_if_chance_does_not_explain_it():
    """The same fall of a fifth: of ten records nothing, of a thousand much."""
    few = [tally(1, "a", "a", 8), tally(1, "a", "b", 2), tally(9, "a", "a", 6), tally(9, "a", "b", 4)]
    many = [tally(each.day, "b" + each.original_intent, "b" + each.correct_intent, 100 * each.count) for each in few]
    found = falling([*few, *many, tally(9, "new", "b", 99)], today=10, days=5)

    assert [each.intent for each in found] == ["ba"]
    assert (found[0].before.rate, found[0].now.rate) == (0.8, 0.6)
    rising = [replace(each, day=10 - each.day) for each in many]
    assert falling(rising, today=10, days=5) == []


def test_the_most_contested_texts_come_first():
    """By turns, and of as many turns the older one."""
    contests = [contest_of("1", "aa"), contest_of("4", "ab"), contest_of("3", "bab"), contest_of("2", "ba")]

    assert [(each.last_feedback_id, each.turns) for each in contested(contests, 5)] == [
        ("3-3", 2),
        ("2-2", 1),
        ("4-2", 1),
    ]
    assert contests[2].intents == ("b", "a")


def contest_of(name: str, intents: str) -> Contest:
    contest = Contest()
    for number, intent in enumerate(intents, 1):
        contest.add(f"{name}-{number}", intent)
    return contest
