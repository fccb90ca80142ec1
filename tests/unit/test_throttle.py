"""The share let through follows what becomes of those who were."""

import gc
import heapq
import random
import weakref
from dataclasses import dataclass, field

import pytest

from deployments.core.errors import Overloaded
from deployments.core.throttle import FORGETS_IN_S, LEAST_SHARE, LOWER, MOST_SHARE, RAISE, Throttle

REFUSAL = Overloaded("it would wait for 2 s", retry_after_s=2.0)
WAIT_S = 0.3
REFUSED_IN_S = 0.03


@dataclass
class Queue:
    """Another side with a queue of `WAIT_S`, which refuses what would wait longer; steady traffic, a fake clock."""

    now_s: float = 0.0
    held_back: int = 0
    refused: int = 0
    accepted: int = 0
    _free_s: float = 0.0
    _outcomes: list[tuple[float, bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.throttle = Throttle(lambda: self.now_s, random.Random(1).random)

    def run(self, seconds: float, *, per_s: float, capacity_per_s: float) -> "Queue":
        """Send for so long; what is counted is of this stretch."""
        self.held_back = self.refused = self.accepted = 0
        for _ in range(round(seconds * per_s)):
            self.now_s += 1 / per_s
            while self._outcomes and self._outcomes[0][0] <= self.now_s:
                _, accepted = heapq.heappop(self._outcomes)
                self.throttle.accepted() if accepted else self.throttle.refused(REFUSAL)
            try:
                self.throttle.enter()
            except Overloaded:
                self.held_back += 1
            else:
                self._take(capacity_per_s)
        return self

    def _take(self, capacity_per_s: float) -> None:
        if self._free_s - self.now_s > WAIT_S:
            self.refused += 1
            heapq.heappush(self._outcomes, (self.now_s + REFUSED_IN_S, False))
            return
        self.accepted += 1
        self._free_s = max(self._free_s, self.now_s) + 1 / capacity_per_s
        heapq.heappush(self._outcomes, (self._free_s, True))


def throttle_with(*random_shares: float) -> Throttle:
    """One at a standing clock that draws these shares."""
    return Throttle(lambda: 0.0, iter(random_shares).__next__)


def test_nobody_is_held_back_while_all_are_accepted():
    """Not at the start of a load either, whatever its height and however late its first answer."""
    queue = Queue().run(10, per_s=99, capacity_per_s=100)

    assert (queue.held_back, queue.refused) == (0, 0)


def test_the_first_refusals_hold_nobody_back():
    """Three are taken as chance."""
    throttle = throttle_with(0.999, 0.999)
    for _ in range(3):
        throttle.refused(REFUSAL)

    throttle.enter()
    assert throttle.share == 1
    throttle.refused(REFUSAL)
    assert throttle.share < 1
    with pytest.raises(Overloaded):
        throttle.enter()


def test_a_worked_example():
    """After six refusals 1.5 · 0.9^6 = 0.797 are let through, after two accepted ones · 1.02² = 0.829."""
    throttle = throttle_with(0.79, 0.8, 0.82, 0.83)
    for _ in range(6):
        throttle.refused(REFUSAL)

    assert throttle.share == pytest.approx(MOST_SHARE * LOWER**6)
    throttle.enter()
    with pytest.raises(Overloaded, match="it would wait for 2 s") as held_back:
        throttle.enter()
    assert held_back.value.retry_after_s == 2.0
    for _ in range(2):
        throttle.accepted()
    assert throttle.share == pytest.approx(MOST_SHARE * LOWER**6 * RAISE**2)
    throttle.enter()
    with pytest.raises(Overloaded):
        throttle.enter()


@pytest.mark.parametrize("capacity_per_s", [20, 100, 2000])
@pytest.mark.parametrize("factor", [2, 4, 10])
def test_under_overload_most_is_refused_here_and_all_that_can_be_is_accepted(capacity_per_s: float, factor: float):
    """The other side stays busy, and has to refuse three in ten of those who must be refused, at most."""
    queue = Queue()
    for seconds in (5, 20):
        queue.run(seconds, per_s=factor * capacity_per_s, capacity_per_s=capacity_per_s)

    assert queue.accepted >= 0.97 * 20 * capacity_per_s
    assert queue.refused <= 0.3 * (queue.refused + queue.held_back)


@pytest.mark.parametrize("capacity_per_s", [20, 100, 2000])
def test_an_overload_that_is_over_is_soon_forgotten(capacity_per_s: float):
    """Two seconds after it nobody is held back or refused."""
    queue = Queue()
    queue.run(30, per_s=2 * capacity_per_s, capacity_per_s=capacity_per_s)
    queue.run(2, per_s=0.8 * capacity_per_s, capacity_per_s=capacity_per_s)
    queue.run(10, per_s=0.8 * capacity_per_s, capacity_per_s=capacity_per_s)

    assert (queue.held_back, queue.refused) == (0, 0)


def test_new_capacity_is_found():
    """When the other side can do twice as much, it is asked for it within two seconds."""
    queue = Queue()
    queue.run(30, per_s=400, capacity_per_s=100)
    queue.run(2, per_s=400, capacity_per_s=200)

    assert queue.run(10, per_s=400, capacity_per_s=200).accepted >= 0.97 * 2000


def test_one_that_refuses_everything_is_still_asked():
    """A few requests find out when it accepts again."""
    throttle = Throttle(lambda: 0.0)
    for _ in range(100):
        throttle.refused(REFUSAL)

    assert throttle.share == pytest.approx(LEAST_SHARE)
    for _ in range(152):
        throttle.accepted()
    assert throttle.share == 1


def test_what_was_long_ago_holds_nobody_back():
    """Also when nothing was sent since."""
    now_s = 0.0
    throttle = Throttle(lambda: now_s, lambda: 0.999)
    for _ in range(100):
        throttle.refused(REFUSAL)

    assert throttle.share == pytest.approx(LEAST_SHARE)
    now_s = 2 * FORGETS_IN_S
    assert throttle.share == 1
    throttle.enter()


def test_a_refusal_is_not_kept():
    """Its words and time are: raised, its stack holds the request that met it, texts and all."""
    refusal = Overloaded("full", retry_after_s=7.0)
    gone = weakref.ref(refusal)
    throttle = Throttle(random_share=lambda: 2.0)
    throttle.refused(refusal)
    del refusal
    gc.collect()

    assert gone() is None
    with pytest.raises(Overloaded, match="full") as held_back:
        throttle.enter()
    assert held_back.value.retry_after_s == 7
