"""What the service does while its prediction store fails: `python -m loadgen.cache_faults`.

    without a cache │ warm → well → the fault → well again │ warm → … │ without a cache

An open loop over few texts, for each fault some runs with it and as many without a cache (`Cache-Control: no-store`) in
turn, because machines have their phases: the slowest calls of two runs alike may differ by half. A pair of runs has the
same arrivals and is compared in the same seconds, because a burst makes the slowest calls; other pairs have others. A
store that fails may cost model calls and nothing else: no request fails, the slowest are hardly slower than without any
cache, and hits come back soon after the store does. The service is started here, with one model replica and on stores
of this command's own: a fault is done to them.
"""

import contextlib
import itertools
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, Self

import typer
import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator
from rich.console import Console

from loadgen.cli import NOT_BELIEVED, built, clear_errors, examples, run_app
from loadgen.criteria import Outcome
from loadgen.display import Display, SilentDisplay, View, display_for
from loadgen.distribution import Distribution
from loadgen.faulty_proxy import Mode, ProxyThread
from loadgen.kept import check_keeping, keep
from loadgen.load import Load, LoadError
from loadgen.local_service import started_or
from loadgen.machine import command
from loadgen.peers.processes import interrupted_by_any_signal
from loadgen.readme import stamp, table
from loadgen.recording import MAX_WINDOWS
from loadgen.report import ANSWERED_SERIES, FAILED_SERIES, GROUPS, Report, Window
from loadgen.run import measure
from loadgen.terminal import milliseconds, percent, print_line, print_table
from loadgen.valkey import FEEDBACK, Valkey
from loadgen.valkey_groups import Group, behind_sentinel, cluster

MARK = "cache-faults"
SHORT_TEXTS = "12:1"
MAX_OVER_P99_MS = 25.0
MAX_RESUME_S = 5.0
RESUMED_SHARE = 0.2
"""Hits of a second's answers that are a resumption: a store that came back empty fills no faster than texts come."""
DELAY_S = 0.05


class Store(Protocol):
    """What the service is given for its predictions."""

    @property
    def url(self) -> str:
        """The service's REDIS_URL."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to a store, and how that ends: both are given the store that `store` starts in a folder.

    One that `ends_itself` lasts no set time: `end` does nothing but wait for it, from the beginning on. Without
    `local_tier` the replicas hold nothing in memory but what waits to be written, so nearly every hit is the store's:
    one that lost what the memory still has would otherwise not be seen to take writes again.
    """

    name: str
    store: Callable[[Path], AbstractContextManager[Store]]
    begin: Callable[[Any], None]
    end: Callable[[Any], None]
    ends_itself: bool = False
    local_tier: bool = True


def plain(folder: Path) -> Valkey:
    """One server, asked directly."""
    return Valkey(folder / "predictions", folder / "predictions.log")


@contextlib.contextmanager
def behind_proxy(folder: Path) -> Iterator[ProxyThread]:
    """One server that is always well, asked through a proxy that is not."""
    with plain(folder) as server, ProxyThread(server.port, delay_s=DELAY_S) as proxy:
        yield proxy


def _turned(mode: Mode) -> Callable[[ProxyThread], None]:
    return lambda proxy: proxy.turn(mode)


FAULTS = (
    Fault("killed", plain, Valkey.kill, Valkey.start),
    Fault("frozen", plain, Valkey.freeze, Valkey.thaw),
    Fault("wrong-password", plain, Valkey.change_password, Valkey.take_password_back),
    Fault("memory-full", plain, Valkey.fill, Valkey.make_room, local_tier=False),
    Fault("50-ms-slower", behind_proxy, _turned(Mode.DELAY), _turned(Mode.PASS)),
    Fault("connections-reset", behind_proxy, _turned(Mode.RESET), _turned(Mode.PASS)),
    Fault("replies-of-garbage", behind_proxy, _turned(Mode.GARBAGE), _turned(Mode.PASS)),
    Fault("sentinel-failover", behind_sentinel, Group.kill_primary, Group.wait_promoted, ends_itself=True),
    Fault("cluster-node", cluster, Group.kill_primary, Group.wait_promoted, ends_itself=True),
)
"""Those of one store and tier stand together: the service is started once for each."""


class Plan(BaseModel):
    """How much and how long: calls a second, and the seconds of each stretch of a fault's run.

    `repeats` counts the pairs of runs; of a fault that ends itself there is one, since its store is another afterwards.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate: float = Field(100.0, gt=0)
    texts: int = Field(500, ge=1)
    warmup_s: int = Field(3, ge=0)
    before_s: int = Field(5, ge=2)
    fault_s: int = Field(10, ge=2)
    after_s: int = Field(8, ge=7)
    max_lag_ms: float = Field(25.0, gt=0)
    repeats: int = Field(3, ge=1)

    @model_validator(mode="after")
    def _in_seconds(self) -> Self:
        if (total_s := self.before_s + self.fault_s + self.after_s) > MAX_WINDOWS:
            raise ValueError(f"a fault's run takes {total_s} s; over {MAX_WINDOWS} s it is not kept second by second")
        return self

    def load(self, url: str, seed: int, *, kept: bool) -> Load:
        """Few texts that nobody has sent, as often each, for the length of a fault's run; `kept`: sent once before.

        `seed`: that of the arrivals.
        """
        traffic = {
            "seed": seed,
            "rate": self.rate,
            "zipf_s": 0,
            "distinct": self.texts,
            "text_seed": secrets.randbelow(2**31),
            "lengths": SHORT_TEXTS,
            "warmup_s": self.warmup_s,
            "duration_s": self.before_s + self.fault_s + self.after_s,
        }
        state = "warm" if kept else "as-is"
        return Load.model_validate(
            {
                "target": url,
                "traffic": traffic,
                "cache_state": state,
                "no_store": not kept,
                "max_lag_ms": self.max_lag_ms,
                "settle_s": 0,
            }
        )


class Stretch(BaseModel):
    """A part of a run. Latencies are those of the answered, None where none was; `failed` counts by kind, without 429.

    `hit_share` is of the answered; `shed_share`, the 429s, of all.
    """

    answered_per_s: float
    hit_share: float
    shed_share: float
    failed: dict[str, int]
    p50_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True, slots=True)
class Trial:
    """A run in which a fault was done, and its likes without a cache.

    The fault's times count from the run's start; a window that saw both belongs to the fault.
    """

    uncached: Sequence[Report]
    report: Report
    begun_s: float
    ended_s: float

    @property
    def before(self) -> list[Window]:
        """The windows until the fault."""
        return [each for each in self.report.windows if each.start_s + each.length_s <= self.begun_s]

    @property
    def after(self) -> list[Window]:
        """The windows after the fault."""
        return [each for each in self.report.windows if each.start_s >= self.ended_s]

    @property
    def during(self) -> list[Window]:
        """The windows of the fault."""
        return self.report.windows[self._meanwhile]

    @property
    def uncached_meanwhile(self) -> list[Window]:
        """The same seconds without a cache."""
        return [window for each in self.uncached for window in each.windows[self._meanwhile]]

    @property
    def _meanwhile(self) -> slice:
        return slice(len(self.before), len(self.report.windows) - len(self.after))


class Seen(BaseModel):
    """One fault, all its trials together, and what there was without a cache in the same seconds.

    `resumed_s`: from the fault's end to that of the first second with hits again, in the slowest trial; None where
    there was none in one.
    """

    name: str
    uncached: Stretch
    before: Stretch
    during: Stretch
    after: Stretch
    resumed_s: float | None
    doubts: list[str]


class Found(BaseModel):
    """Everything that was measured."""

    command: str
    stamp: str
    plan: Plan
    faults: list[Seen]


class FaultSwitch(SilentDisplay):
    """Passes on what a display is told, and lets a fault begin and end when the run is so far; both take a moment.

    Whatever ends the run ends the fault, unless nothing but waiting would.
    """

    def __init__(self, display: Display, fault: Fault, store: Store, *, begin_s: float, end_s: float) -> None:
        self._display = display
        self._fault = fault
        self._store = store
        self._due_s = (begin_s, end_s)
        self.begun_s: float | None = None
        self.ended_s: float | None = None

    def tell(self, line: str) -> None:
        """See `Display`."""
        self._display.tell(line)

    def update(self, view: View) -> None:
        """See `Display`."""
        self._display.update(view)
        if self.begun_s is None and view.elapsed_s >= self._due_s[0]:
            self.begun_s = view.elapsed_s
            self._fault.begin(self._store)
        elif self.begun_s is not None and self.ended_s is None and view.elapsed_s >= self._due_s[1]:
            self.ended_s = view.elapsed_s + self._end()

    def close(self) -> None:
        """See `Display`."""
        if self.begun_s is not None and self.ended_s is None and not self._fault.ends_itself:
            self._end()
        self._display.close()

    def _end(self) -> float:
        """End the fault; how many seconds that took."""
        started_s = time.monotonic()
        self._fault.end(self._store)
        return time.monotonic() - started_s


def run_plan(plan: Plan, faults: Sequence[Fault], settings: Mapping[str, object], display: Display) -> Found:
    """Measure under each fault, and without a cache before and after it; blocks until it is over.

    `settings` are the service's `args:`.

    Raises:
        LoadError: a store or the service does not start, or nothing is answered.
        KeyboardInterrupt: as it says.
    """
    found: list[Seen] = []
    for (store_of, local_tier), alike in itertools.groupby(faults, key=lambda fault: (fault.store, fault.local_tier)):
        tier = {} if local_tier else {"local_tier_bytes": 0}
        with tempfile.TemporaryDirectory(prefix="intents-") as folder, _stores(store_of, Path(folder)) as (store, log):
            urls = {"redis_url": store.url, "feedback_redis_url": log.url}
            with started_or(None, **settings, **urls, **tier) as (url, _):
                for fault in alike:
                    trials = [
                        _trial(plan, fault, store, url, number, display)
                        for number in range(1 if fault.ends_itself else plan.repeats)
                    ]
                    found.append(seen(fault.name, trials))
    return Found(command=command(), stamp=stamp(), plan=plan, faults=found)


@contextlib.contextmanager
def _stores(store_of: Callable[[Path], AbstractContextManager[Store]], folder: Path) -> Iterator[tuple[Store, Valkey]]:
    """The store that faults are done to, and the feedback log's, which nothing happens to."""
    with store_of(folder) as store, Valkey(folder / "feedback", folder / "feedback.log", FEEDBACK) as log:
        yield store, log


def _trial(plan: Plan, fault: Fault, store: Store, url: str, number: int, display: Display) -> Trial:
    """A run with the fault, and one without a cache before or after it in turn; both for one that ends itself."""
    seed = number * len(FAULTS) + FAULTS.index(fault)
    bare = plan.load(url, seed, kept=False)
    uncached: list[Report] = []
    if number % 2 == 0:
        display.tell(f"{fault.name}, {number + 1}: without a cache")
        uncached.append(_measured(bare, display))
    display.tell(f"{fault.name}, {number + 1}")
    switch = switched(plan, fault, store, display)
    report = _measured(plan.load(url, seed, kept=True), switch)
    if switch.begun_s is None or switch.ended_s is None:
        raise LoadError(f"{fault.name}: the run ended early: {report.ended}; {'; '.join(report.invalid_because)}")
    if number % 2 or fault.ends_itself:
        display.tell(f"{fault.name}, {number + 1}: without a cache")
        uncached.append(_measured(bare, display))
    return Trial(uncached, report, switch.begun_s, switch.ended_s)


def switched(plan: Plan, fault: Fault, store: Store, display: Display) -> FaultSwitch:
    """A fault that begins and ends when the plan has it."""
    begin_s = plan.warmup_s + plan.before_s
    end_s = begin_s if fault.ends_itself else begin_s + plan.fault_s
    return FaultSwitch(display, fault, store, begin_s=begin_s, end_s=end_s)


def _measured(load: Load, display: Display) -> Report:
    report = measure(load, display)
    if report.ended == "interrupted":
        raise KeyboardInterrupt
    return report


def seen(name: str, trials: Sequence[Trial]) -> Seen:
    """Read a fault's trials."""
    resumed = [resumed_s(trial.after, trial.ended_s) for trial in trials]
    doubts = [
        f"{name}, without a cache: {doubt}"
        for trial in trials
        for each in trial.uncached
        for doubt in each.invalid_because
    ]
    return Seen(
        name=name,
        uncached=_together(trial.uncached_meanwhile for trial in trials),
        before=_together(trial.before for trial in trials),
        during=_together(trial.during for trial in trials),
        after=_together(trial.after for trial in trials),
        resumed_s=None if None in resumed else max(each for each in resumed if each is not None),
        doubts=doubts + [f"{name}: {doubt}" for trial in trials for doubt in trial.report.invalid_because],
    )


def _together(parts: Iterable[Sequence[Window]]) -> Stretch:
    return stretch([window for part in parts for window in part])


def stretch(windows: Sequence[Window]) -> Stretch:
    """What callers saw in these windows."""
    answered, hits = _of(windows, ANSWERED_SERIES), _count(windows, GROUPS["hit"])
    failed = Counter({series: _count(windows, [series]) for series in FAILED_SERIES})
    shed, count = failed.pop("shed"), answered.count if answered else 0
    asked = count + shed + failed.total()
    return Stretch(
        answered_per_s=count / sum(window.length_s for window in windows) if windows else 0.0,
        hit_share=hits / count if count else 0.0,
        shed_share=shed / asked if asked else 0.0,
        failed={series: number for series, number in failed.items() if number},
        p50_ms=answered.percentile_ms(50) if answered else None,
        p99_ms=answered.percentile_ms(99) if answered else None,
    )


def resumed_s(after: Sequence[Window], ended_s: float) -> float | None:
    """Seconds from a fault's end to that of the first window with hits again.

    That is a fifth of its answers, and one from the store itself unless every text was answered nearer by.
    """
    for window in after:
        hits, answered = _count([window], GROUPS["hit"]), _count([window], ANSWERED_SERIES)
        from_store = _count([window], ["hit-redis"])
        if answered and hits >= RESUMED_SHARE * answered and (from_store or hits == answered):
            return window.start_s + window.length_s - ended_s
    return None


def _of(windows: Sequence[Window], names: Sequence[str]) -> Distribution | None:
    return Distribution.of(window.series[name] for window in windows for name in names if name in window.series)


def _count(windows: Sequence[Window], names: Sequence[str]) -> int:
    distribution = _of(windows, names)
    return distribution.count if distribution else 0


def outcomes(found: Found) -> Iterator[Outcome]:
    """What a fault may do, and whether it did no more."""
    for fault in found.faults:
        yield from _outcomes(fault)


def _outcomes(fault: Seen) -> Iterator[Outcome]:
    failed = Counter[str]()
    for part in (fault.before, fault.during, fault.after):
        failed.update(part.failed)
    told = ", ".join(f"{series} {count:,}" for series, count in failed.items()) or "none"
    yield Outcome(not failed.total(), failed.total(), f"{fault.name}: failed requests beside 429: {told}")
    p99_ms, uncached_ms = fault.during.p99_ms, fault.uncached.p99_ms
    limit_ms = None if uncached_ms is None else uncached_ms + MAX_OVER_P99_MS
    yield Outcome(
        p99_ms is not None and limit_ms is not None and p99_ms <= limit_ms,
        p99_ms,
        f"{fault.name}: p99 {_shown(p99_ms)} ms meanwhile; at most {_shown(limit_ms)} ms, "
        f"{MAX_OVER_P99_MS:g} ms over the one without a cache",
    )
    again = "never" if fault.resumed_s is None else f"after {fault.resumed_s:.1f} s"
    yield Outcome(
        fault.resumed_s is not None and fault.resumed_s <= MAX_RESUME_S,
        fault.resumed_s,
        f"{fault.name}: hits again {again}; within {MAX_RESUME_S:g} s of its end",
    )


HEAD = (
    "fault",
    "hits before",
    "meanwhile",
    "after",
    "answers/s meanwhile",
    "p50, ms",
    "p99, ms",
    "p99 without a cache, ms",
    "429",
    "failed",
    "hits again within, s",
)


def rows(found: Found) -> Iterator[tuple[str, ...]]:
    """The table, a row for each fault, under `HEAD`."""
    for fault in found.faults:
        during, parts = fault.during, (fault.before, fault.during, fault.after)
        yield (
            fault.name,
            *(percent(part.hit_share) for part in parts),
            f"{during.answered_per_s:,.1f}",
            *(_shown(latency_ms) for latency_ms in (during.p50_ms, during.p99_ms, fault.uncached.p99_ms)),
            percent(during.shed_share),
            str(sum(sum(part.failed.values()) for part in parts)),
            "never" if fault.resumed_s is None else f"{fault.resumed_s:.1f}",
        )


def _shown(latency_ms: float | None) -> str:
    return "-" if latency_ms is None else milliseconds(latency_ms)


def _doubts(found: Found) -> list[str]:
    return [doubt for fault in found.faults for doubt in fault.doubts]


def render(found: Found, console: Console) -> None:
    """Print the faults and what they are held against."""
    print_table(console, HEAD, rows(found))
    for doubt in _doubts(found):
        print_line(console, f"INVALID: {doubt}", "red")
    for outcome in outcomes(found):
        print_line(console, outcome.line, "green" if outcome.held else "bold red")


def markdown(found: Found) -> str:
    """The same for a README."""
    lines = [f"- {outcome.line}" for outcome in outcomes(found)]
    lines += [f"- **invalid**: {doubt}" for doubt in _doubts(found)]
    heading = (
        f"{found.stamp}; one model replica; service, stores and load generator share it; "
        f"{found.plan.rate:g} calls/s over {found.plan.texts:,} texts. `{found.command}`"
    )
    return "\n".join([heading, "", table(HEAD, rows(found)), "", *lines])


app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


@app.command(
    epilog=examples(
        "python -m loadgen.cache_faults",
        "python -m loadgen.cache_faults --readme README.md",
        "python -m loadgen.cache_faults --fault killed --fault frozen --rate 50 --duration 5",
    )
)
def main(  # noqa: PLR0913, PLR0917 — one parameter for each option
    fault: Annotated[
        list[str] | None, typer.Option(help="; ".join(each.name for each in FAULTS) + "; all when absent.")
    ] = None,
    rate: Annotated[float, typer.Option(help="Calls a second.")] = 100.0,
    texts: Annotated[int, typer.Option(help="How many texts there are.")] = 500,
    duration: Annotated[int, typer.Option(help="Seconds of each fault that does not end by itself.")] = 10,
    repeats: Annotated[int, typer.Option(help="Runs of each such fault, and as many without a cache.")] = 3,
    max_lag_ms: Annotated[float, typer.Option(help="A run is invalid when the p99 of its send lag is over it.")] = 25.0,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the service as `args:` has it, such as log_level=DEBUG."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write everything as JSON.")] = None,
    readme: Annotated[Path | None, typer.Option(help="Also put the table into this file, between its marks.")] = None,
) -> None:
    """Do to the prediction store what may happen to it, and see what callers notice; about half an hour."""
    with clear_errors(), interrupted_by_any_signal():
        check_keeping(out, readme, MARK)
        plan: Plan = built(Plan, rate=rate, texts=texts, fault_s=duration, max_lag_ms=max_lag_ms, repeats=repeats)
        display = display_for(Console(stderr=True))
        result = run_plan(plan, chosen(fault), parsed(settings or ()), display)
        keep(result, out, readme, MARK, markdown(result))
        render(result, Console())
    held = all(outcome.held for outcome in outcomes(result)) and not _doubts(result)
    sys.exit(0 if held else NOT_BELIEVED)


def chosen(names: Sequence[str] | None) -> list[Fault]:
    """The faults of these names in the order of `FAULTS`, all without names.

    Raises:
        ValueError: there is no such fault.
    """
    if unknown := set(names or ()) - {each.name for each in FAULTS}:
        known = ", ".join(repr(each.name) for each in FAULTS)
        raise ValueError(f"no fault {', '.join(map(repr, sorted(unknown)))}; there are {known}")
    return [each for each in FAULTS if not names or each.name in names]


def parsed(settings: Sequence[str]) -> dict[str, object]:
    """Settings from `name=value`, the value as YAML reads it.

    Raises:
        ValueError: one has no value, or none that is YAML.
    """
    pairs = [each.partition("=") for each in settings]
    if bare := [name for name, equals, _ in pairs if not equals]:
        raise ValueError(f"--set {bare[0]} has no value; write {bare[0]}=VALUE")
    try:
        return {name: yaml.safe_load(value) for name, _, value in pairs}
    except yaml.YAMLError as error:
        raise ValueError(f"a value of --set is no YAML: {' '.join(str(error).split())}") from None


if __name__ == "__main__":  # worker processes import this file under another name
    run_app(app, "python -m loadgen.cache_faults")
