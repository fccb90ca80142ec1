"""The circuit breaker: a part that does not answer is left alone until it does."""

import asyncio

import pytest

from deployments.core import metrics
from deployments.core.circuit_breaker import CircuitBreaker
from tests.unit.fakes import CountingMetrics


class Part:
    """Answers probes as it is told; `pauses_s` are what the breaker waited between them."""

    def __init__(self) -> None:
        self.answers = False
        self.probes = 0
        self.pauses_s: list[float] = []
        self.counted = CountingMetrics()
        self._turn = asyncio.Event()
        self.breaker = CircuitBreaker(
            "store", self.probe, failures=3, recorder=self.counted, sleep=self._sleep, jitter=lambda: 1.0
        )

    async def probe(self) -> bool:
        self.probes += 1
        return self.answers

    async def _sleep(self, pause_s: float) -> None:
        self.pauses_s.append(pause_s)
        self._turn.clear()
        await self._turn.wait()

    async def pass_pause(self) -> None:
        await self.turns()
        self._turn.set()
        await self.turns()

    @staticmethod
    async def turns() -> None:
        for _ in range(3):
            await asyncio.sleep(0)


async def test_it_opens_at_the_third_failure_in_a_row_and_not_before():
    """An answer between them begins the count anew."""
    part = Part()
    states = []
    for went_well in (False, False, True, False, False, False):
        part.breaker.succeeded() if went_well else part.breaker.failed("TimeoutError")
        states.append(part.breaker.is_open)

    assert states == [False, False, False, False, False, True]


async def test_it_closes_when_a_probe_is_answered_and_counts_anew():
    """Callers' requests are no probes; one failure afterwards does not open it."""
    part = Part()
    for _ in range(3):
        part.breaker.failed("TimeoutError")
    await part.pass_pause()
    after_a_failed_probe = part.breaker.is_open
    part.answers = True
    await part.pass_pause()
    part.breaker.failed("TimeoutError")

    assert (after_a_failed_probe, part.breaker.is_open, part.probes) == (True, False, 2)


async def test_probes_come_ever_more_seldom_and_at_least_once_a_second():
    """The pause doubles up to its cap."""
    part = Part()
    for _ in range(3):
        part.breaker.failed("TimeoutError")
    for _ in range(6):
        await part.pass_pause()

    assert part.pauses_s == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]


async def test_it_is_seen_from_outside_and_logged_once(caplog: pytest.LogCaptureFixture):
    """A gauge while it lasts, a line when it begins and one when it ends."""
    part = Part()
    for _ in range(9):
        part.breaker.failed("TimeoutError")
    while_open = part.counted.total(metrics.BREAKER_OPEN, part="store")
    part.answers = True
    await part.pass_pause()

    assert while_open == 1
    assert part.counted.last(metrics.BREAKER_OPEN, part="store") == 0
    assert [record.message for record in caplog.records] == [
        "the store does not answer (TimeoutError); it is not asked until it does",
        "the store answers again",
    ]
