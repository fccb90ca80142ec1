"""The autoscaling policy: more replicas when texts would wait, fewer when the rest can do the work, else as many."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.autoscaling import BUSY_SHARE, QUEUE_DELAY_MS, QueueDelayPolicy

NOW_S = 1_000.0
POLICY = QueueDelayPolicy(target_delay_ms=50, drain_s=1, max_busy_share=0.6)


@dataclass(frozen=True)
class Told:
    """What one replica told, and how long ago."""

    delay_ms: float = 0.0
    busy: float = 0.0
    ago_s: float = 0.5


@dataclass
class Context:
    """The part of Serve's `AutoscalingContext` that a policy may read here."""

    told: list[Told | None]
    target: int | None = None
    fewest: int = 1
    most: int = 100
    current_time: float = NOW_S
    config: Any = field(default_factory=lambda: SimpleNamespace(look_back_period_s=5.0))

    def __post_init__(self) -> None:
        self.running_replicas = [f"replica {number}" for number in range(len(self.told))]
        self.current_num_replicas = len(self.told)
        self.target_num_replicas = self.target or len(self.told)
        self.capacity_adjusted_min_replicas, self.capacity_adjusted_max_replicas = self.fewest, self.most
        told = {name: each for name, each in zip(self.running_replicas, self.told, strict=True) if each}
        self.aggregated_metrics = {
            QUEUE_DELAY_MS: {name: each.delay_ms for name, each in told.items()},
            BUSY_SHARE: {name: each.busy for name, each in told.items()},
        }
        self.raw_metrics = {
            metric: {
                name: [SimpleNamespace(timestamp=NOW_S - told[name].ago_s, value=value)]
                for name, value in values.items()
            }
            for metric, values in self.aggregated_metrics.items()
        }


def wanted(*told: Told | None, **change: Any) -> int:
    replicas, state = POLICY(Context(list(told), **change))

    assert state == {}
    return replicas


@pytest.mark.parametrize(
    ("replicas", "delay_ms", "more"),
    [
        (1, 50.0, 1),  # at the target
        (1, 51.0, 2),  # just beyond: one more
        (10, 51.0, 11),
        (10, 150.0, 11),  # a tenth of a second beyond, to be gone in a second: a tenth more
        (10, 550.0, 15),
        (10, 1_050.0, 20),
    ],
)
def test_replicas_are_added_in_proportion_to_the_wait_beyond_the_target(replicas: int, delay_ms: float, more: int):
    """Worked by hand: n · (1 + (delay - target) / drain), rounded up."""
    assert wanted(*[Told(delay_ms, busy=1.0)] * replicas) == more


def test_the_wait_is_the_mean_over_replicas():
    """One unlucky replica is no shortage: the next calls go to the other."""
    assert wanted(Told(80, 1.0), Told(0, 1.0)) == 2
    assert wanted(Told(120, 1.0), Told(0, 1.0)) == 3


@pytest.mark.parametrize(
    ("busy", "fewer"),
    [
        ((0.3, 0.3), 1),  # the one left would be busy for 0.6 of the time
        ((0.35, 0.3), 2),
        ((0.2, 0.2, 0.1), 1),
        ((0.4, 0.4, 0.3), 2),
        ((0.5, 0.4, 0.4), 3),
        ((0.0, 0.0, 0.0), 1),
    ],
)
def test_replicas_are_taken_away_only_when_those_left_can_do_the_work(busy: tuple[float, ...], fewer: int):
    """An empty queue alone says nothing: two replicas at 0.7 would be one at 1.4."""
    assert wanted(*(Told(0, share) for share in busy)) == fewer


def test_between_the_bounds_nothing_changes():
    """Some wait, not too long; or nobody waits and all are needed."""
    assert wanted(Told(40, 0.1), Told(40, 0.1)) == 2
    assert wanted(Told(0, 1.0), Told(0, 1.0)) == 2
    assert wanted(Told(0, 1.0)) == 1


def test_a_replica_added_because_texts_waited_is_not_taken_away_under_the_same_load():
    """The load of 1.2 replicas: one is overrun, two are busy for 0.6 of the time each, which one could not take."""
    assert wanted(Told(200, 1.0)) == 2
    assert wanted(Told(5, 0.6), Told(5, 0.6)) == 2


def test_without_any_word_nothing_changes():
    """Neither at the start nor when all have fallen silent; what was decided stands."""
    assert wanted(target=3) == 3
    assert wanted(None, target=2) == 2
    assert wanted(Told(9_000, 1.0, ago_s=6), Told(0, 0, ago_s=60)) == 2


def test_a_silent_replica_is_left_out_when_texts_wait():
    """Its last word, however old, is kept by Serve: a hung replica must not make the queue look short."""
    assert wanted(Told(550, 1.0), Told(0, 0.0, ago_s=6)) == 2
    assert wanted(Told(1_550, 1.0), Told(0, 0.0, ago_s=6)) == 3


def test_nothing_is_taken_away_while_a_replica_is_silent():
    """It may be needed: how busy it is is not known."""
    assert wanted(Told(0, 0.1), None) == 2
    assert wanted(Told(0, 0.1), Told(0, 0.1, ago_s=6)) == 2


def test_replicas_that_are_starting_count_as_decided():
    """The backlog of the one that runs asks for two, and two there will be: no third."""
    assert wanted(Told(1_000, 1.0), target=2) == 2
    assert wanted(Told(60, 1.0), target=3) == 3
    assert wanted(Told(40, 1.0), target=2) == 2


@pytest.mark.parametrize(("delay_ms", "bound"), [(1e9, 4), (0.0, 2)])
def test_the_configured_bounds_hold(delay_ms: float, bound: int):
    """Whatever waits."""
    assert wanted(*[Told(delay_ms)] * 3, fewest=2, most=4) == bound


@pytest.mark.parametrize("name", ["target_delay_ms", "drain_s", "max_busy_share"])
def test_an_argument_that_is_not_above_0_is_refused(name: str):
    """At the deployment, not at the first decision."""
    with pytest.raises(ValueError, match=f"{name}=0"):
        QueueDelayPolicy(**{name: 0})
