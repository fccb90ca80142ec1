"""How busy a worker is."""

import pytest

from deployments.core.busy import BusyShare


class Clock:
    """Seconds that pass only when told."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_share_is_that_of_the_time_since_it_was_last_taken(clock: Clock):
    """Worked by hand: 1 s of 4, then nothing."""
    busy = BusyShare(clock)
    with busy:
        clock.now_s += 1
    clock.now_s += 3

    assert busy.take() == 0.25
    clock.now_s += 2
    assert busy.take() == 0


def test_work_under_way_counts_and_is_not_counted_twice(clock: Clock):
    """A worker that never stops is busy at every look, not only when it ends."""
    busy = BusyShare(clock)
    clock.now_s += 1
    with busy:
        clock.now_s += 1
        assert busy.take() == 0.5
        clock.now_s += 2
        assert busy.take() == 1.0
        clock.now_s += 1
    clock.now_s += 1
    assert busy.take() == 0.5


def test_work_that_fails_has_taken_its_time_too(clock: Clock):
    """The worker was not free meanwhile."""
    busy = BusyShare(clock)

    def fail() -> None:
        with busy:
            clock.now_s += 1
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    clock.now_s += 1

    assert busy.take() == 0.5


def test_no_time_no_share(clock: Clock):
    """Taken twice at one moment."""
    assert BusyShare(clock).take() == 0
