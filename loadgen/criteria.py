"""What a run must hold to pass, as text: `hit.p99<10ms`, `error_rate<=0.1%`, `answered_per_s>=100`. For CI.

A figure that the run did not bring forth fails its criterion, with the reason: nothing passes because it was not
measured. Whether the run itself is valid is for the caller to ask.
"""

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from loadgen.distribution import Distribution
from loadgen.report import GROUPS, SERIES, Report, members

SUBJECTS = (*SERIES, *GROUPS, "send_lag")
SHARES = ("error_rate", "hit_rate", "shed_rate")
RATES = ("answered_per_s", "texts_per_s", "goodput_per_s")
GRAMMAR = f"""\
SERIES.STATISTIC OPERATOR VALUE, as in hit.p99<10ms, miss.p95<=0.2s, all.count>=1000; or FIGURE OPERATOR VALUE, as in
error_rate<0.001, hit_rate>=60%, answered_per_s>=100
  SERIES     {" ".join(SUBJECTS)}
  STATISTIC  mean max count p50 p95 p99 p99.9 (any percentile; p999 is p99.9)
  FIGURE     {" ".join((*SHARES, *RATES))}
  OPERATOR   < <= > >=
  VALUE      a latency in ms, us or s; a share as 0.001 or 0.1%; a rate or a count as a plain number"""

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_TEXT = re.compile(
    r"\s*(?P<name>[\w-]+)(\.(?P<statistic>[\w.]+))?\s*(?P<operator><=|>=|<|>)\s*(?P<value>\d+(\.\d+)?)\s*(?P<unit>[a-z%]*)\s*",
    re.ASCII,
)
_PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d+)?)", re.ASCII)
_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}
_WHOLE = 100.0

_Measured = tuple[float | None, str]
"""A figure with what it was read from, or None with the reason."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether a criterion held; `measured` in milliseconds, as a share, a rate or a count, None where there is none."""

    held: bool
    measured: float | None
    text: str

    @property
    def line(self) -> str:
        """The verdict as commands print it."""
        return f"{'holds' if self.held else 'FAILS'}: {self.text}"


@dataclass(frozen=True, slots=True)
class Criterion:
    """A limit for one figure of a report; `limit` in the figure's unit: milliseconds, a share, a rate or a count."""

    text: str
    name: str
    statistic: str | None
    operator: str
    limit: float

    def check(self, report: Report) -> Outcome:
        """Hold the limit against a run."""
        measured, of_what = self._measure(report)
        if measured is None or not math.isfinite(measured):
            reason = of_what if measured is None else f"the report holds {measured}, no number"
            return Outcome(held=False, measured=None, text=f"{self.text}: {reason}")
        held = _OPERATORS[self.operator](measured, self.limit)
        return Outcome(held, measured, f"{self.text}: measured {self._shown(measured)}{of_what}")

    def _measure(self, report: Report) -> _Measured:
        if not sum(report.calls.values()):
            return None, "no call was measured"
        if self.statistic is None:
            return _figure(report, self.name)
        distribution = _distribution(report, self.name)
        if self.statistic == "count":
            return (distribution.count if distribution else 0), ""
        if distribution is None:
            return None, f"no call of {self.name} was measured"
        return _latency_ms(distribution, self.statistic), f" over {distribution.count:,} calls"

    def _shown(self, measured: float) -> str:
        """With digits enough that what misses its limit by little does not look like it."""
        if self.name in SHARES:
            return f"{measured * 100:.4f} %"
        if self.name in RATES:
            return f"{measured:,.2f}/s"
        return f"{measured:,.0f}" if self.statistic == "count" else f"{measured:,.3f} ms"


def parse(text: str) -> Criterion:
    """Read a criterion.

    Raises:
        ValueError: not one; the message says why, gives the grammar and the known names.
    """
    match = _TEXT.fullmatch(text)
    if not match:
        raise _wrong(text, "it does not read as a criterion")
    name, statistic = match["name"], match["statistic"]
    if statistic is None and name not in (*SHARES, *RATES):
        reason = (
            f"{name} needs a statistic: {name}.p99" if name in SUBJECTS else _unknown("figure", name, SHARES + RATES)
        )
        raise _wrong(text, reason)
    if statistic is not None and name not in SUBJECTS:
        raise _wrong(
            text, f"{name} has no statistics" if name in SHARES + RATES else _unknown("series", name, SUBJECTS)
        )
    if statistic is not None and not _is_statistic(statistic):
        raise _wrong(
            text, _unknown("statistic", statistic, ("mean", "max", "count", "p50", "p90", "p95", "p99", "p999"))
        )
    limit = _limit(text, name, statistic, float(match["value"]), match["unit"])
    return Criterion(text.strip(), name, statistic, match["operator"], limit)


def _limit(text: str, name: str, statistic: str | None, value: float, unit: str) -> float:
    if name in SHARES:
        share = value / _WHOLE if unit == "%" else value
        if unit not in ("", "%") or share > 1:
            raise _wrong(text, f"{name} is a share: write 0.05 or 5%")
        return share
    if statistic is None or statistic == "count":
        if unit:
            raise _wrong(text, f"a {'rate' if statistic is None else 'count'} has no unit, not even {unit!r}")
        return value
    if unit not in _MS:
        raise _wrong(text, f"a latency needs its unit: ms, us or s{f', not {unit!r}' if unit else ''}")
    return value * _MS[unit]


def _is_statistic(name: str) -> bool:
    if name in ("mean", "max", "count", "p999"):
        return True
    percentile = _PERCENTILE.fullmatch(name)
    return bool(percentile and float(percentile[1]) > 0)


def _latency_ms(distribution: Distribution, statistic: str) -> float:
    if statistic == "mean":
        return distribution.mean_ms
    if statistic == "max":
        return distribution.max_ms
    return distribution.percentile_ms(99.9 if statistic == "p999" else float(statistic[1:]))


def _distribution(report: Report, name: str) -> Distribution | None:
    if name == "send_lag":
        return Distribution.of([report.send_lag.histogram]) if report.send_lag else None
    return Distribution.of(report.latency[series].histogram for series in members(name) if series in report.latency)


def _figure(report: Report, name: str) -> _Measured:
    if name == "hit_rate":
        return report.hit_rate, "" if report.hit_rate is not None else "no answer told its cache state"
    if name in RATES:
        return (report.texts_per_s if name == "texts_per_s" else report.answered_per_s), ""
    finished = sum(report.calls.values()) - report.calls.get("cancelled", 0)
    if not finished:
        return None, "every call was cancelled"
    return (report.error_rate if name == "error_rate" else report.calls.get("shed", 0) / finished), ""


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"no {kind} is called {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def _wrong(text: str, reason: str) -> ValueError:
    return ValueError(f"{text!r}: {reason}\n{GRAMMAR}")
