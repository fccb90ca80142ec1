"""When calls are sent: arrival times by time rescaling, or a recorded trace's own.

What they carry is `traffic.py`'s matter, except for a trace, whose rows hold time and texts together.

A Poisson process of unit rate, put through the inverse of the cumulative rate Λ(t), is a Poisson process of rate Λ'(t)
(E. Çinlar, Introduction to Stochastic Processes, 1975; R. W. Klein and S. D. Roberts, A time-varying Poisson arrival
process generator, Simulation, 1984). So each shape of the load is one function, Λ.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from loadgen.texts import check_sendable, numbered_lines

if TYPE_CHECKING:
    from loadgen.traffic import Traffic

Times = NDArray[np.float64]

MAX_BATCH = 100
"""Texts of a batch: the service's limit."""
ARRIVALS_STREAM = 1
LAST_CALL_S = 0.001
"""A trace's last call is sent within the run, whose end is not."""
SHAPE_KNOTS = 1 << 16
"""Stretches that a smooth shape is cut into for its inversion: 9 ms each in ten minutes, the rate even within one."""
KNOTS_PER_PERIOD = 256
MAX_KNOTS = 1 << 22


def send_times(traffic: "Traffic") -> Times:
    """Seconds from the run's start at which calls are meant to go, sorted, in [0, warm-up + duration).

    Raises:
        ValueError: the closed loop has no schedule, or the trace cannot be replayed.
    """
    match traffic.arrivals:
        case "closed":
            raise ValueError("the closed loop has no schedule: each caller sends again when it is answered")
        case "trace":
            return np.array([row.at_s for row in read_trace(traffic)])
        case "constant":
            times = np.arange(math.ceil(traffic.rate * traffic.run_s)) / traffic.rate
        case _:
            knots = _knots(traffic)
            times = np.interp(_unit_rate_arrivals(traffic), _cumulative(traffic, knots), knots)
    return times[times < traffic.run_s]


def expected_calls(traffic: "Traffic", until_s: float) -> float:
    """How many calls are expected before `until_s`: Λ(until_s). Not for traces and the closed loop."""
    return float(_cumulative(traffic, np.array([until_s]))[0])


@dataclass(frozen=True, slots=True)
class TraceRow:
    """A call of a trace: when it goes in this run, one text or a batch of them."""

    at_s: float
    texts: tuple[str, ...]
    is_batch: bool


def read_trace(traffic: "Traffic") -> list[TraceRow]:
    """The calls of the trace that fall within the run, by time; rows of equal time keep the file's order.

    A row is a JSON object on its own line: `time_s`, and `text` or `texts` (1 to 100, a batch); other keys are left
    alone. Rows may stand in any order. Times count from the earliest row and are divided by `trace_speed`.

    Raises:
        ValueError: names the file, the line and what to do; or says that nothing falls within the measured time.
    """
    if traffic.trace is None:
        raise ValueError('no trace; name one with arrivals "trace"')
    rows = sorted((_row(traffic.trace, *line) for line in numbered_lines(traffic.trace)), key=lambda row: row.at_s)
    if not rows:
        raise ValueError(f'{traffic.trace}: no rows; a row is {{"time_s": 0.25, "text": "…"}} on a line')
    start_s = rows[0].at_s
    moved = (TraceRow((row.at_s - start_s) / traffic.trace_speed, row.texts, row.is_batch) for row in rows)
    kept = [row for row in moved if row.at_s < traffic.run_s]
    if kept[-1].at_s < traffic.warmup_s:
        raise ValueError(
            f"{traffic.trace}: no call of it is measured: the last before {traffic.run_s:g} s is at {kept[-1].at_s:g} s"
            f" and the warm-up takes {traffic.warmup_s:g} s; shorten the warm-up or lower trace_speed"
        )
    return kept


def trace_length_s(trace: Path, speed: float) -> float:
    """Seconds that a whole trace takes at a speed, its last call included.

    Raises:
        ValueError: as `read_trace`.
    """
    times_s = [_row(trace, *line).at_s for line in numbered_lines(trace)]
    if not times_s:
        raise ValueError(f'{trace}: no rows; a row is {{"time_s": 0.25, "text": "…"}} on a line')
    return (max(times_s) - min(times_s)) / speed + LAST_CALL_S


def _unit_rate_arrivals(traffic: "Traffic") -> Times:
    """Arrivals of a Poisson process of rate 1, up to Λ(end); a longer run begins with the shorter one's."""
    expected = expected_calls(traffic, traffic.run_s)
    rng = np.random.default_rng(np.random.SeedSequence(traffic.seed, spawn_key=(ARRIVALS_STREAM,)))
    size = math.ceil(expected + 5 * math.sqrt(expected)) + 1
    arrivals = np.cumsum(rng.exponential(size=size))
    while arrivals[-1] < expected:
        arrivals = np.append(arrivals, arrivals[-1] + np.cumsum(rng.exponential(size=size)))
    return arrivals[arrivals < expected]


def _cumulative(traffic: "Traffic", times_s: Times) -> Times:
    """Λ: the calls expected before each time. The warm-up runs at the shape's first and lowest rate."""
    low, high = traffic.lowest_rate, traffic.rate
    warm = np.minimum(times_s, traffic.warmup_s)
    shaped = np.maximum(times_s - traffic.warmup_s, 0.0)
    length = traffic.duration_s
    match traffic.arrivals:
        case "step" | "pulse":
            knots, rates = _stretches(traffic)
            counts = np.concatenate(([0.0], np.cumsum(rates * np.diff(knots))))
            climbed = np.interp(shaped, knots, counts)
        case "ramp":
            climbed = low * shaped + (high - low) * shaped**2 / (2 * length)
        case "diurnal":
            turn = 2 * math.pi / (traffic.period_s or length)
            climbed = (high + low) / 2 * shaped - (high - low) / 2 * np.sin(turn * shaped) / turn
        case _:
            climbed = high * shaped
    return low * warm + climbed


def _stretches(traffic: "Traffic") -> tuple[Times, Times]:
    """Where stretches of one rate begin and end, counted from the warm-up's end, and the rate of each.

    A pulse is a quarter of the time at its lowest, a quarter at its highest, and half at its lowest again.
    """
    if traffic.arrivals == "pulse":
        low, high = traffic.lowest_rate, traffic.rate
        return traffic.duration_s * np.array([0.0, 0.25, 0.5, 1.0]), np.array([low, high, low])
    ends = np.linspace(0.0, traffic.duration_s, traffic.steps + 1)
    return ends, np.linspace(traffic.lowest_rate, traffic.rate, traffic.steps)


def _knots(traffic: "Traffic") -> Times:
    """Times between which the rate may be taken as even."""
    match traffic.arrivals:
        case "step" | "pulse":
            shaped = _stretches(traffic)[0]
        case "ramp":
            shaped = np.linspace(0.0, traffic.duration_s, SHAPE_KNOTS + 1)
        case "diurnal":
            periods = traffic.duration_s / (traffic.period_s or traffic.duration_s)
            count = min(max(SHAPE_KNOTS, math.ceil(KNOTS_PER_PERIOD * periods)), MAX_KNOTS)
            shaped = np.linspace(0.0, traffic.duration_s, count + 1)
        case _:
            shaped = np.array([0.0, traffic.duration_s])
    after = traffic.warmup_s + shaped
    return np.concatenate(([0.0], after)) if traffic.warmup_s else after


def _row(path: Path, number: int, line: str) -> TraceRow:
    place = f"{path} line {number}"
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place}: not JSON ({error})") from None
    return TraceRow(_time(row, place), _texts(row, place), "texts" in row)


def _time(row: Any, place: str) -> float:
    match row:
        case {"time_s": bool()}:
            pass
        case {"time_s": int() | float() as time_s} if math.isfinite(time_s):
            return float(time_s)
    raise ValueError(f'{place}: no time; a row is {{"time_s": 0.25, "text": "…"}}, its time in seconds')


def _texts(row: Any, place: str) -> tuple[str, ...]:
    match row:
        case {"text": _, "texts": _}:
            raise ValueError(f'{place}: has both "text" and "texts"; keep one of them')
        case {"text": str(text)}:
            check_sendable(text, place)
            return (text,)
        case {"texts": [*texts]} if all(isinstance(text, str) for text in texts):
            if not 1 <= len(texts) <= MAX_BATCH:
                raise ValueError(f"{place}: a batch of {len(texts)} texts; 1 to {MAX_BATCH} are allowed; split it")
            for text in texts:
                check_sendable(text, place)
            return tuple(texts)
    raise ValueError(f'{place}: no texts; a row has "text", a string, or "texts", a list of strings')
