"""The hit rate to expect, from what is asked and the cache's state, without looking at what was drawn.

In a cache that begins empty and forgets nothing, the ask after k others is a hit with probability
Σ_i p_i (1 - (1 - p_i)^k) (L. Breslau, P. Cao, L. Fan, G. Phillips and S. Shenker, Web Caching and Zipf-like
Distributions: Evidence and Implications, INFOCOM 1999: unlimited cache, finite stream of requests). Averaged over the n
asks that follow the w of the warm-up:

    1 - Σ_i [(1 - p_i)^w - (1 - p_i)^(w + n)] / n

Here the step is a call instead of a text, since the texts of a batch are looked up together: a text twice in one batch
is two misses. This assumes that nothing expires or is evicted, that a prediction is kept before its text is asked
again, and that a correction is in force before that too. A cancelled call asks like any other: that nobody waits for
its answer changes no other's. Feedback asks for nothing; a correction answers later asks of that text, in its case, and
counts as a hit. Corrections of earlier runs are not known here.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from loadgen.schedule import expected_calls, read_trace
from loadgen.texts import CASE_SHARE, TextSource, normalised
from loadgen.traffic import Traffic, popularity

Law = NDArray[np.float64]
CacheState = Literal["cold", "warm"]


def expected_hit_rate(
    traffic: Traffic,
    cache_state: CacheState,
    *,
    warmup_texts: float | None = None,
    measured_texts: float | None = None,
) -> float | None:
    """Share of the measured texts that the cache, or a correction, answers; None where that cannot be told.

    Args:
        traffic: What is sent.
        cache_state: `cold`: none of its texts were asked before; `warm`: all were.
        warmup_texts: Texts asked during the warm-up; what the schedule leads to expect when absent.
        measured_texts: The same of the measured time. Without both, the closed loop has no answer.

    Raises:
        ValueError: a file is missing or malformed.
    """
    if traffic.arrivals == "trace":
        return _replayed(traffic, cache_state, _counted(warmup_texts, measured_texts))
    texts_per_call = _texts_per_call(traffic)
    asked = _counted(warmup_texts, measured_texts) or _scheduled(traffic, texts_per_call)
    if asked is None or not asked[1]:
        return None
    if traffic.texts == "unique":
        return 0.0
    if cache_state == "warm":
        return 1.0
    calls_before, calls = asked[0] / texts_per_call, asked[1] / texts_per_call
    law = popularity(traffic, TextSource(traffic))
    misses = texts_per_call * float(law @ _misses(traffic, law, calls_before, calls))
    return max(0.0, 1 - misses / asked[1])  # below 0 where less than one average call was counted


def _counted(warmup_texts: float | None, measured_texts: float | None) -> tuple[float, float] | None:
    return None if warmup_texts is None or measured_texts is None else (warmup_texts, measured_texts)


def _scheduled(traffic: Traffic, texts_per_call: float) -> tuple[float, float] | None:
    if traffic.arrivals == "closed":
        return None
    before, until = expected_calls(traffic, traffic.warmup_s), expected_calls(traffic, traffic.run_s)
    return before * texts_per_call, (until - before) * texts_per_call


def _texts_per_call(traffic: Traffic) -> float:
    """On average; feedback asks for none."""
    return 1 - traffic.feedback + traffic.batch * (traffic.batch_size - 1)


def _misses(traffic: Traffic, law: Law, calls_before: float, calls: float) -> Law:
    """For each text, the probability of a miss should a call ask for it, summed over the measured calls."""
    with np.errstate(divide="ignore"):  # of the logarithm, where a text is certain to be asked for
        in_batch = -np.expm1(traffic.batch_size * np.log1p(-law))
    asked = (1 - traffic.batch - traffic.feedback) * law + traffic.batch * in_batch
    corrected = traffic.feedback * traffic.corrections * law
    other_case = traffic.variants * CASE_SHARE
    unknown = _geometric(asked + corrected, calls_before, calls)
    return (1 - other_case) * unknown + other_case * _geometric(asked, calls_before, calls)


def _geometric(ended: Law, first: float, count: float) -> Law:
    """Σ (1 - ended)^k over `count` values of k from `first` on."""
    with np.errstate(divide="ignore"):
        return np.power(1 - ended, first) * -np.expm1(count * np.log1p(-ended)) / ended


def _replayed(traffic: Traffic, cache_state: CacheState, asked: tuple[float, float] | None) -> float | None:
    """What the trace's own sequence gives; counted texts, when given, say where it was cut."""
    rows = read_trace(traffic)
    warmup = sum(len(row.texts) for row in rows if row.at_s < traffic.warmup_s)
    first, count = asked or (warmup, sum(len(row.texts) for row in rows) - warmup)
    if not count:
        return None
    if cache_state == "warm":
        return 1.0
    known: set[str] = set()
    hits: list[bool] = []
    for row in rows:
        keys = [normalised(text) for text in row.texts]
        hits.extend(key in known for key in keys)
        known.update(keys)
    return float(np.mean(hits[int(first) : int(first + count)]))
