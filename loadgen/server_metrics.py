"""The server's own counts, from `/metrics`, held against the client's: every text must be found on both sides.

What a client cannot know (a call that timed out, broke or was cancelled may have been served and counted or not) widens
the range of counts that agree; nothing else does.
"""

import time
from collections import Counter
from collections.abc import Callable

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from loadgen.recording import Tally
from loadgen.report import HIT_SERIES, Counted, Reconciliation

REQUESTS = "intent_classification_requests_total"
FEEDBACK = "intent_feedback_submissions_total"
TEXT_STATUSES = ("cache_hit", "success", "overloaded", "unavailable", "error")
GIVE_UP_S = 20.0
PAUSE_S = 0.3

Counts = Counter[tuple[str, str]]
"""Count by counter and its `status`."""


async def scrape(session: aiohttp.ClientSession, url: str) -> Counts | None:
    """The counters now, empty where there are none yet; None where nothing readable is to be had."""
    try:
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=10)) as response:
            return parse(await response.text()) if response.ok else None
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return None


def parse(exposition: str) -> Counts:
    """Read the counters from Prometheus's text format."""
    counts: Counts = Counter()
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if sample.name in (REQUESTS, FEEDBACK):
                counts[sample.name, sample.labels["status"]] += round(sample.value)
    return counts


class Settling:
    """Waits for counts that arrive late: they have, once they agree or have not moved for a while."""

    def __init__(self, settle_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._settle_s = settle_s
        self._clock = clock
        self._started_s = self._moved_s = clock()
        self._last: Counts | None = None
        self.rested_s = 0.0

    def settled(self, counts: Counts) -> bool:
        """Whether these counts, read just now, can be taken as all."""
        now_s = self._clock()
        if counts != self._last:
            self._last, self._moved_s = counts, now_s
        self.rested_s = now_s - self._moved_s
        return self.rested_s >= self._settle_s or now_s - self._started_s >= GIVE_UP_S


def reconcile(before: Counts, after: Counts, tally: Tally) -> Reconciliation:
    """Hold the server's counts between two scrapes against the client's."""
    served = Counter({key: after[key] - before[key] for key in after | before})
    rows = [*_texts(served, tally), *_feedback(served, tally)]
    agrees = all(row.agrees for row in rows)
    note = _open(tally) if agrees else _doubt(served, rows)
    return Reconciliation(agrees=agrees, counts=rows, note=note)


def _texts(served: Counts, tally: Tally) -> list[Counted]:
    hits = sum(tally.answered[state] for state in (*HIT_SERIES, "correction"))
    misses = tally.answered["miss"] + tally.answered["bypass"]
    unknown = tally.answered["unknown"]  # answered over a handle, which does not say from where
    refused, open_texts = tally.refused_texts, tally.open_texts

    def row(name: str, statuses: tuple[str, ...], low: int, spread: int) -> Counted:
        server = sum(served[REQUESTS, status] for status in statuses)
        return Counted(name=name, server=server, low=low, high=low + spread)

    answered = row("texts answered", ("cache_hit", "success"), hits + misses + unknown, open_texts)
    apart = () if unknown else (
        row("from cache", ("cache_hit",), hits, open_texts),
        row("by the model", ("success",), misses, open_texts),
    )  # fmt: skip
    every = hits + misses + unknown + refused["shed"] + refused["server_error"]
    return [
        row("texts in all", TEXT_STATUSES, every, open_texts),
        answered,
        *apart,
        row("overloaded (429)", ("overloaded",), refused["shed"], open_texts),
        row("unavailable or failed (5xx)", ("unavailable", "error"), refused["server_error"], open_texts),
        row("refused requests (4xx)", ("validation_error",), tally.refused_calls["rejected"], tally.open_calls),
    ]


def _feedback(served: Counts, tally: Tally) -> list[Counted]:
    def row(name: str, statuses: tuple[str, ...], low: int) -> Counted:
        server = sum(served[FEEDBACK, status] for status in statuses)
        return Counted(name=name, server=server, low=low, high=low + tally.open_feedback)

    rows = [
        row("feedback recorded", ("recorded", "duplicate"), tally.feedback["feedback"]),
        row("feedback unavailable (5xx)", ("unavailable",), tally.feedback["server_error"]),
        row("feedback refused (4xx)", ("rejected",), tally.feedback["rejected"] + tally.feedback["shed"]),
    ]
    return [each for each in rows if each.server or each.high]


def _doubt(served: Counts, rows: list[Counted]) -> str:
    if any(count < 0 for count in served.values()):
        return "the server's counters went back: it was started again during the run"
    if all(row.server >= row.low for row in rows):
        return "the server counted more: somebody else called it, or earlier counts came later than --settle allows"
    return "the server counted less than it answered: its counters arrive later than --settle, or some were lost"


def _open(tally: Tally) -> str:
    open_calls = tally.open_calls + tally.open_feedback
    return f"{open_calls:,} calls ended without an answer, counted or not: the ranges hold them" if open_calls else ""
