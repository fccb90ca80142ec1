"""What is sent: one frozen description of a load, and the calls it stands for.

The i-th call is a pure function of the description, so that any number of workers can share a run without speaking to
each other. When calls go is `schedule.py`'s matter, what texts look like `texts.py`'s.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError, model_validator

from loadgen.schedule import MAX_BATCH, TraceRow, read_trace, send_times
from loadgen.texts import TextSource, normalised, parse_lengths, vary

MAX_RATE = 100_000
MAX_CALLS = 20_000_000
"""Scheduled calls of a run: their times are held in memory by every worker, 160 MB at this limit."""
MAX_DISTINCT = 1_000_000

CHUNK = 1024
CALLS_STREAM = 2

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Traffic(BaseModel, frozen=True, extra="forbid"):
    """A load: when calls go and what they ask for. Files are read when calls are made, not here.

    Raises:
        ValidationError: a ValueError; `refusal` makes one line of it.
    """

    seed: int = Field(1, ge=0, description="Of arrivals and draws.")
    text_seed: int = Field(1, ge=0, description="Of the generated texts; another seed is other texts.")

    arrivals: Literal["poisson", "constant", "step", "ramp", "diurnal", "pulse", "trace", "closed"] = "poisson"
    rate: float = Field(50.0, gt=0, le=MAX_RATE, description="Calls a second; the highest where it changes.")
    from_rate: Positive | None = Field(
        None, description="The lowest rate of step, ramp, diurnal and pulse; a tenth of `rate` when absent."
    )
    steps: int = Field(5, ge=2, le=1000, description="Equal stretches that `step` climbs in.")
    period_s: float | None = Field(
        None, ge=1, allow_inf_nan=False, description="Of diurnal; the whole measured time when absent."
    )
    connections: int = Field(32, ge=1, le=10_000, description="Closed loop: callers that send again when answered.")
    trace: Path | None = Field(None, description="JSONL rows with `time_s` and `text` or `texts`.")
    trace_speed: Positive = Field(1.0, description="2 replays a trace in half its time.")
    warmup_s: float = Field(5.0, ge=0, allow_inf_nan=False, description="Comes first and is not measured.")
    duration_s: Positive = Field(30.0, description="Measured time.")

    texts: Literal["zipf", "unique", "same"] = "zipf"
    zipf_s: float = Field(1.1, ge=0, le=10, description="P(rank) ∝ rank^-s.")
    distinct: int = Field(
        10_000, ge=1, le=MAX_DISTINCT, description="Different texts of zipf; at most as many as the corpus has."
    )
    corpus: Path | None = Field(
        None, description="Texts instead of generated ones, the most popular first: .jsonl rows with `text`, or lines."
    )
    lengths: str = Field("12:0.7,60:0.25,250:0.05", description="Words of generated texts, each with its share.")
    variants: Share = Field(0.0, description="Share of classified texts sent in other case or other blanks.")

    batch: Share = Field(0.0, description="Share of calls that are batches.")
    batch_size: int = Field(10, ge=1, le=MAX_BATCH, description="Texts of a batch.")
    feedback: Share = Field(0.0, description="Share of calls that are feedback.")
    corrections: Share = Field(0.0, description="Share of the feedback that corrects; the rest confirms.")
    cancel: Share = Field(0.0, description="Share of classification calls whose caller leaves early.")
    cancel_after_s: float = Field(0.005, ge=0, allow_inf_nan=False, description="When such a caller leaves.")

    @property
    def run_s(self) -> float:
        """Warm-up and measured time."""
        return self.warmup_s + self.duration_s

    @property
    def lowest_rate(self) -> float:
        """Where the rate begins: `rate` itself unless the shape climbs."""
        if self.arrivals not in CLIMBING:
            return self.rate
        return self.rate / 10 if self.from_rate is None else self.from_rate

    @model_validator(mode="after")
    def _rates_fit(self) -> Self:
        if self.from_rate is not None and self.arrivals not in CLIMBING:
            raise ValueError(f'from_rate is for {", ".join(CLIMBING)}; arrivals "{self.arrivals}" has one rate')
        if self.from_rate is not None and self.from_rate > self.rate:
            raise ValueError(f"from_rate is {self.from_rate:g}, above rate {self.rate:g}; swap them")
        if self.period_s is not None and self.arrivals != "diurnal":
            raise ValueError(f'period_s is for diurnal; arrivals "{self.arrivals}" repeats nothing')
        if self.arrivals not in ("trace", "closed") and (count := self.rate * self.run_s) > MAX_CALLS:
            raise ValueError(
                f"{self.rate:g}/s for {self.run_s:g} s are {count:,.0f} calls; the limit is {MAX_CALLS:,}; run shorter"
            )
        return self

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.batch + self.feedback > 1:
            raise ValueError(f"batch {self.batch:g} and feedback {self.feedback:g} are over 1 together; lower one")
        if self.corrections and not self.feedback:
            raise ValueError(f"corrections is {self.corrections:g} of no feedback; set feedback too")
        return self

    @model_validator(mode="after")
    def _texts_fit(self) -> Self:
        parse_lengths(self.lengths)
        if self.corpus and self.texts == "unique" and self.arrivals == "closed":
            raise ValueError("the closed loop may ask for more unique texts than a corpus has; leave the corpus out")
        return self

    @model_validator(mode="after")
    def _trace_fits(self) -> Self:
        if (self.arrivals == "trace") != (self.trace is not None):
            raise ValueError(f'arrivals "trace" and a trace file go together; arrivals is "{self.arrivals}"')
        if self.trace and (self.batch or self.feedback or self.cancel or self.variants or self.corpus):
            raise ValueError("a trace is sent as it was recorded; leave batch, feedback, cancel, variants, corpus out")
        return self


CLIMBING = ("step", "ramp", "diurnal", "pulse")

Kind = Literal["classify", "batch", "feedback"]


@dataclass(frozen=True, slots=True)
class Call:
    """One request.

    `at_s` is the intended send time from the run's start, None in the closed loop; `correction` says what kind of
    feedback it is; a caller with `cancel_after_s` leaves that long after sending.
    """

    index: int
    at_s: float | None
    kind: Kind
    texts: tuple[str, ...]
    correction: bool = False
    cancel_after_s: float | None = None


def calls(traffic: Traffic, worker: int = 0, workers: int = 1) -> Iterator[Call]:
    """The calls with index % workers == worker, in order; endless in the closed loop.

    Files are read and checked before this returns. A call costs a few microseconds, more when its text is made first.

    Raises:
        ValueError: a file is missing or malformed, or the corpus has fewer texts than a run of unique ones asks for.
    """
    if not 0 <= worker < workers:
        raise ValueError(f"worker is {worker}; {workers} workers are numbered from 0 to {workers - 1}")
    if traffic.arrivals == "trace":
        return _replayed(read_trace(traffic), worker, workers)
    source = TextSource(traffic)
    times = None if traffic.arrivals == "closed" else send_times(traffic)
    if traffic.texts == "unique" and times is not None:
        _check_enough(_texts_asked(traffic, len(times)), source)
    return _drawn(traffic, source, times, worker, workers)


def distinct_texts(traffic: Traffic) -> Iterator[str]:
    """Every text a run may ask for, once, variants of it aside: what a warm cache holds.

    Raises:
        ValueError: as `calls`; or unique texts, of which none is asked twice.
    """
    if traffic.arrivals == "trace":
        texts = itertools.chain.from_iterable(row.texts for row in read_trace(traffic))
        return iter({normalised(text): text for text in texts}.values())
    if traffic.texts == "unique":
        raise ValueError("unique texts are asked once each, so no cache can be warm for them; choose zipf or same")
    source = TextSource(traffic)
    return map(source.text, range(len(popularity(traffic, source))))


def popularity(traffic: Traffic, source: TextSource) -> NDArray[np.float64]:
    """P(text number), the most popular first: Zipf's law over the different texts, or one text alone."""
    if traffic.texts == "same":
        return np.ones(1)
    distinct = traffic.distinct if source.size is None else min(traffic.distinct, source.size)
    weights = np.power(np.arange(1.0, distinct + 1), -traffic.zipf_s)
    law: NDArray[np.float64] = weights / weights.sum()
    return law


def refusal(error: ValidationError) -> str:
    """What is wrong with a description, in one line for a terminal."""
    return "; ".join(
        str(each["ctx"]["error"])
        if each["type"] == "value_error"
        else f"{'.'.join(map(str, each['loc']))} is {each['input']!r}: {each['msg'][0].lower()}{each['msg'][1:]}"
        for each in error.errors(include_url=False)
    )


class _Draws:
    """What chance decides of one chunk of calls: the same whichever worker draws it, and however long the run."""

    def __init__(self, traffic: Traffic, chunk: int) -> None:
        self._rng = np.random.default_rng(np.random.SeedSequence(traffic.seed, spawn_key=(CALLS_STREAM, chunk)))
        kind, correction, cancel = self._rng.random((3, CHUNK))
        is_batch = kind < traffic.batch
        is_feedback = ~is_batch & (kind < traffic.batch + traffic.feedback)
        sizes = np.where(is_batch, traffic.batch_size, 1)
        self.kinds: list[Kind] = np.select([is_batch, is_feedback], ["batch", "feedback"], "classify").tolist()
        self.corrects: list[bool] = (is_feedback & (correction < traffic.corrections)).tolist()
        self.cancels: list[bool] = (~is_feedback & (cancel < traffic.cancel)).tolist()
        self.texts = int(sizes.sum())
        self.starts: list[int] = np.concatenate(([0], np.cumsum(sizes))).tolist()

    def numbers(self, cumulative: NDArray[np.float64]) -> list[int]:
        """Text numbers by popularity: the inverse of its cumulative distribution."""
        drawn: list[int] = np.searchsorted(cumulative, self._rng.random(self.texts), side="right").tolist()
        return drawn

    def forms(self, variants: float) -> list[int | None]:
        """Which variant of each text is sent; None: as it is."""
        if not variants:
            return [None] * self.texts
        is_varied = self._rng.random(self.texts) < variants
        forms = self._rng.integers(1 << 16, size=self.texts)
        return [form if varied else None for form, varied in zip(forms.tolist(), is_varied.tolist(), strict=True)]


def _drawn(
    traffic: Traffic, source: TextSource, times: NDArray[np.float64] | None, worker: int, workers: int
) -> Iterator[Call]:
    cumulative = None if traffic.texts == "unique" else _cumulative(popularity(traffic, source))
    asked = 0
    for chunk in itertools.count():
        draws = _Draws(traffic, chunk)
        numbers = range(asked, asked + draws.texts) if cumulative is None else draws.numbers(cumulative)
        forms = draws.forms(traffic.variants)
        asked += draws.texts
        for place in range((worker - chunk * CHUNK) % workers, CHUNK, workers):
            index = chunk * CHUNK + place
            if times is not None and index >= len(times):
                return
            kind = draws.kinds[place]
            yield Call(
                index,
                None if times is None else float(times[index]),
                kind,
                tuple(
                    _sent(source.text(numbers[i]), None if kind == "feedback" else forms[i])
                    for i in range(draws.starts[place], draws.starts[place + 1])
                ),
                draws.corrects[place],
                traffic.cancel_after_s if draws.cancels[place] else None,
            )


def _sent(text: str, form: int | None) -> str:
    return text if form is None else vary(text, form)


def _replayed(rows: list[TraceRow], worker: int, workers: int) -> Iterator[Call]:
    for index in range(worker, len(rows), workers):
        row = rows[index]
        yield Call(index, row.at_s, "batch" if row.is_batch else "classify", row.texts)


def _cumulative(law: NDArray[np.float64]) -> NDArray[np.float64]:
    cumulative = np.cumsum(law)
    cumulative[-1] = 1.0  # rounding may leave it below a draw
    return cumulative


def _texts_asked(traffic: Traffic, count: int) -> int:
    """Texts that the first `count` calls carry."""
    full, rest = divmod(count, CHUNK)
    return sum(_Draws(traffic, chunk).texts for chunk in range(full)) + _Draws(traffic, full).starts[rest]


def _check_enough(asked: int, source: TextSource) -> None:
    if source.size is not None and asked > source.size:
        raise ValueError(
            f"the run asks for {asked:,} unique texts and the corpus has {source.size:,} different ones; "
            "run shorter or slower, or leave the corpus out"
        )
