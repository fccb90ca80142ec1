"""One run, from the first look at the target to the report.

    look at the target → bring the cache to its state → read its counters → workers send → read them again → report

The parent gathers and shows; the workers send. They get ready while the counters come to rest, and nothing is measured
before every one is.
"""

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import aiohttp
import numpy as np

from loadgen.crew import Crew, Ended
from loadgen.display import Display, SilentDisplay
from loadgen.hit_rate import expected_hit_rate
from loadgen.load import Load, LoadError, authorization
from loadgen.machine import command, commit, machine, versions
from loadgen.recording import Recording
from loadgen.report import Machine, Reconciliation, Report, Steadiness
from loadgen.schedule import send_times
from loadgen.server_metrics import PAUSE_S, Counts, Settling, reconcile, scrape
from loadgen.steadiness import steadiness
from loadgen.targets import OWN_FAULT, Outcome, Target, target_of
from loadgen.traffic import Call, calls, distinct_texts

MIN_ACHIEVED = 0.99
MAX_UNSEEN = 0.005
"""With more failures no hit rate is predicted: misses fail more often than hits, so what is left tells little."""
AGREED_REST_S = 1.2
"""A service's replicas report every second: counts that agree and have rested for longer are all."""
WARM_BATCH = 20
WARM_CALLERS = 4
WARM_TRIES = 40
WARM_PAUSE_S = 0.5
STEADY_ARRIVALS = ("poisson", "constant", "closed")


def measure(load: Load, display: Display | None = None) -> Report:
    """Run the load and report; blocks until it is over. Ctrl-C ends it early, with a report of what was seen.

    Raises:
        LoadError: nobody answers at the target, or the cache cannot be brought to the state asked for.
        ValueError: a corpus or trace is missing or malformed.
    """
    shown = display or SilentDisplay()
    try:
        return _Run(load, shown).run()
    finally:
        shown.close()


class _Run:
    """The state of one run."""

    def __init__(self, load: Load, display: Display) -> None:
        self._load = load.freshened()
        calls(load.traffic)  # reads its files: what is wrong with them is said before anything is sent
        self._display = display
        self._recording = Recording(load.traffic.warmup_s, load.traffic.duration_s)

    def run(self) -> Report:
        started_at = datetime.now(UTC).isoformat(timespec="seconds")
        stamp = machine()
        intent = asyncio.run(self._prepare())
        crew = Crew(self._load, intent, self._recording, self._display, self._expected_hit_rate(None))
        with crew.started():  # they get ready while the counters come to rest
            before = asyncio.run(self._counts_before())
            ended, elapsed_s = crew.run()
        try:
            reconciliation = None if before is None else asyncio.run(self._reconcile(before))
        except KeyboardInterrupt:  # it gives up the counts, never the run that they are held against
            ended, reconciliation = "interrupted", _UNCOUNTED
        return self._report(started_at, stamp, ended, elapsed_s, crew.unsent, reconciliation)

    async def _prepare(self) -> str:
        """Bring the target's cache to its state; gives an intent that it answers with."""
        target = target_of(self._load)
        await target.open()
        try:
            intent = await target.probe()
            await self._bring_cache_to_state(target)
        finally:
            await target.close()
        return intent

    async def _counts_before(self) -> Counts | None:
        """The server's counters before anything is measured."""
        counts = await self._settled_counts(lambda _counts: False) if self._load.counters_url else None
        if counts is None and self._load.metrics_url:
            raise LoadError(f"no counters can be read at {self._load.metrics_url}")
        return counts

    async def _bring_cache_to_state(self, target: Target) -> None:
        if self._load.start == "cold":
            self._display.tell(f"purged {await target.purge():,} predictions")
        if self._load.start == "warm":
            await self._warm(target)

    async def _warm(self, target: Target) -> None:
        texts = list(distinct_texts(self._load.traffic))
        batches = (tuple(texts[start : start + WARM_BATCH]) for start in range(0, len(texts), WARM_BATCH))
        warmed = 0

        async def send_from(remaining: Iterator[tuple[str, ...]]) -> None:
            nonlocal warmed
            for batch in remaining:
                outcome = await _until_taken(target, Call(0, None, "batch", batch))
                if outcome.series != "answered":
                    raise LoadError(f"warming the cache failed: {outcome.series} {outcome.detail}")
                if warmed // 1000 != (warmed := warmed + len(batch)) // 1000:
                    self._display.tell(f"warmed {warmed:,} of {len(texts):,} texts")

        await asyncio.gather(*(send_from(batches) for _ in range(WARM_CALLERS)))

    async def _settled_counts(self, complete: Callable[[Counts], bool]) -> Counts | None:
        """The server's counters once they are complete, or rest; None where they cannot be read."""
        assert self._load.counters_url
        settling = Settling(self._load.settle_s)
        headers = {} if self._load.metrics_url else authorization()  # a key is for the service alone
        async with aiohttp.ClientSession(headers=headers) as session:
            while (counts := await scrape(session, self._load.counters_url)) is not None:
                # What agrees may not be all yet: it must also have rested, if not for so long.
                if settling.settled(counts) or (complete(counts) and settling.rested_s >= AGREED_REST_S):
                    return counts
                await asyncio.sleep(PAUSE_S)
        return None

    async def _reconcile(self, before: Counts) -> Reconciliation | None:
        """The server's counts against the client's; None where the server counts nothing that is known here."""
        tally = self._recording.tally
        # Calls nobody knows the end of may still be counted: only a rest tells that they were.
        certain = not (tally.open_texts or tally.open_feedback)
        after = await self._settled_counts(lambda counts: certain and reconcile(before, counts, tally).agrees)
        if after is None:
            return Reconciliation(agrees=False, counts=[], note="the server's counters could not be read afterwards")
        return reconcile(before, after, tally) if after else None

    def _expected_hit_rate(self, texts: tuple[int, int] | None) -> float | None:
        """The hit rate to expect; `texts`: how many there were in warm-up and measured time, once that is known."""
        if self._load.start == "as-is":
            return None
        warmup_texts, measured_texts = texts or (None, None)
        return expected_hit_rate(
            self._load.traffic,
            "warm" if self._load.start == "warm" else "cold",
            warmup_texts=warmup_texts,
            measured_texts=measured_texts,
        )

    def _report(
        self,
        started_at: str,
        stamp: Machine,
        ended: Ended,
        elapsed_s: float,
        unsent: int,
        reconciliation: Reconciliation | None,
    ) -> Report:
        traffic, recording = self._load.traffic, self._recording
        closed = traffic.arrivals == "closed"
        measured_s = max(0.0, min(elapsed_s - traffic.warmup_s, traffic.duration_s))
        asked = None if closed else self._asked(traffic.warmup_s + measured_s)
        calls = recording.calls
        finished = sum(calls.values()) - calls.get("cancelled", 0)
        error_rate = recording.failed / finished if finished else 0.0
        per_s = 1 / measured_s if measured_s else 0.0
        windows = recording.windows
        asked_texts = recording.asked_texts["warm-up"], recording.asked_texts["measured"]
        doubts = list(self._doubts(ended, asked, unsent))
        return Report(
            started_at=started_at,
            command=command(),
            machine=stamp,
            versions=versions(),
            commit=commit(),
            settings=self._load.model_dump(mode="json"),
            target=self._load.target,
            loop="closed" if closed else "open",
            ended=ended,
            valid=not doubts,
            invalid_because=doubts,
            warmup_s=traffic.warmup_s,
            measured_s=measured_s,
            asked_per_s=None if asked is None else asked * per_s,
            sent_per_s=recording.sent * per_s,
            answered_per_s=recording.answered * per_s,
            texts_per_s=recording.answered_texts * per_s,
            send_lag=None if closed else recording.send_lag,
            calls=calls,
            texts=dict(recording.texts),
            hit_rate=recording.hit_rate,
            predicted_hit_rate=None if error_rate > MAX_UNSEEN else self._expected_hit_rate(asked_texts),
            error_rate=error_rate,
            latency=recording.latency,
            windows=windows,
            steadiness=steadiness(windows) if traffic.arrivals in STEADY_ARRIVALS else _UNSTEADY_BY_DESIGN,
            failures=dict(recording.details.most_common(5)),
            reconciliation=reconciliation,
        )

    def _asked(self, until_s: float) -> int:
        """Calls that were to be sent in the measured time, up to `until_s`."""
        times = send_times(self._load.traffic)
        return int(np.searchsorted(times, until_s) - np.searchsorted(times, self._load.traffic.warmup_s))

    def _doubts(self, ended: Ended, asked: int | None, unsent: int) -> Iterator[str]:
        """Why the figures are not to be believed."""
        if ended.endswith("died"):
            yield f"the {ended}"
        sent = self._recording.sent
        if not sent:
            yield "no call was measured"
        elif not self._recording.answered:
            yield "nothing was answered within the measured time"
        yield from (detail for detail in self._recording.details if detail.startswith(OWN_FAULT))
        if unsent:
            yield f"{unsent:,} calls were not sent: {self._load.max_in_flight:,} were under way already"
        if asked and sent < MIN_ACHIEVED * asked:
            yield f"{sent:,} of {asked:,} calls were sent in time: {sent / asked:.1%}, under {MIN_ACHIEVED:.0%}"
        lag = self._recording.send_lag
        if asked is not None and lag and lag.p99_ms > self._load.max_lag_ms:
            yield (
                f"p99 send lag {lag.p99_ms:.2f} ms is over {self._load.max_lag_ms:g} ms:"
                " the load generator was late itself; ask for less, or give it more --workers or a quieter machine"
            )


async def _until_taken(target: Target, call: Call) -> Outcome:
    """Send a call again while it is refused with 429, for 20 s: warming is not to overload, it can wait."""
    for _ in range(WARM_TRIES):
        outcome = await target.send(call)
        if outcome.series != "shed":
            break
        await asyncio.sleep(WARM_PAUSE_S)
    return outcome


_UNCOUNTED = Reconciliation(agrees=False, counts=[], note="interrupted before the server's counters were read")
_UNSTEADY_BY_DESIGN = Steadiness(steady=False, findings=["the rate changes by design"])
