"""Replicas over time under a pulse of load: `python -m loadgen.scaling`.

    a quarter of the time quiet → a quarter busy → half of it quiet again

Unique texts, so that each needs the model. Replicas are counted as Serve's dashboard shows them, in the run's own time;
the rest of the table is what the callers saw of the calls that were due in each stretch.
"""

import json
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import typer
from rich.console import Console

from loadgen.cli import DEFAULT_URL, INTERRUPTED, NOT_BELIEVED, built, check_places, clear_errors, examples, run_app
from loadgen.display import Display, View, display_for
from loadgen.distribution import Distribution
from loadgen.load import Load, LoadError
from loadgen.readme import check_marks, stamp, table, write_into
from loadgen.recording import MAX_WINDOWS
from loadgen.report import ANSWERED_SERIES, FAILED_SERIES, Report, Window
from loadgen.run import measure
from loadgen.traffic import Traffic

MARK = "scaling"
DASHBOARD_PATH = "/api/serve/applications/"
POLL_S = 0.5
TIMEOUT_S = 5.0
HEAD = ("from, s", "calls/s", "replicas", "starting", "p50, ms", "p99, ms", "failed")


@dataclass(frozen=True, slots=True)
class Seen:
    """Replicas by state at a second of the run, such as `{"RUNNING": 1, "STARTING": 1}`."""

    at_s: float
    states: Counter[str]


class ReplicaWatch:
    """Counts a deployment's replicas while its block runs, and shows a run's progress on the way."""

    def __init__(self, dashboard: str, application: str, deployment: str, display: Display) -> None:
        self._url = dashboard.rstrip("/") + DASHBOARD_PATH
        self._application = application
        self._deployment = deployment
        self._display = display
        self._latest = self._ask()  # the first one here: a wrong address must be said before anything is sent
        self._stop = threading.Event()
        self._asking = threading.Thread(target=self._ask_on, daemon=True)
        self.seen: list[Seen] = []

    def __enter__(self) -> Self:
        self._asking.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._asking.join()

    def tell(self, line: str) -> None:
        """See `Display`."""
        self._display.tell(line)

    def update(self, view: View) -> None:
        """See `Display`; the run's clock is the view's."""
        self.seen.append(Seen(view.elapsed_s, self._latest))
        self._display.update(view)

    def close(self) -> None:
        """See `Display`."""
        self._display.close()

    def _ask_on(self) -> None:
        while not self._stop.wait(POLL_S):
            try:
                self._latest = self._ask()
            except LoadError as error:
                self._display.tell(str(error))

    def _ask(self) -> Counter[str]:
        try:
            with urllib.request.urlopen(self._url, timeout=TIMEOUT_S) as answer:  # noqa: S310 — the user's own address
                return replica_states(json.load(answer), self._application, self._deployment)
        except (OSError, ValueError) as error:
            raise LoadError(f"{self._url} does not tell of replicas: {error}") from None


def replica_states(details: Any, application: str, deployment: str) -> Counter[str]:
    """Replicas by state in an answer of Serve's dashboard.

    Raises:
        LoadError: it knows no such application or deployment.
    """
    try:
        replicas = details["applications"][application]["deployments"][deployment]["replicas"]
    except KeyError as missing:
        raise LoadError(f"Serve's dashboard knows no {missing}; see --application and --deployment") from None
    return Counter(replica["state"] for replica in replicas)


def rows(report: Report, seen: Sequence[Seen], every_s: float) -> Iterator[tuple[str, ...]]:
    """The table, a row for each stretch of `every_s` of the measured time."""
    start_s = report.warmup_s
    while start_s < report.warmup_s + report.measured_s:
        windows = [each for each in report.windows if start_s <= each.start_s < start_s + every_s]
        states = [each.states for each in seen if start_s <= each.at_s < start_s + every_s]
        answered = Distribution.of(_histograms(windows, ANSWERED_SERIES))
        failed = Distribution.of(_histograms(windows, FAILED_SERIES))
        calls = sum(each.count for each in (answered, failed) if each)
        yield (
            f"{start_s - report.warmup_s:.0f}",
            f"{calls / sum(report.length_s(window) for window in windows):.0f}" if windows else "0",
            _between(state["RUNNING"] for state in states),
            _between(state["STARTING"] for state in states),
            f"{answered.percentile_ms(50):.0f}" if answered else "-",
            f"{answered.percentile_ms(99):.0f}" if answered else "-",
            str(failed.count if failed else 0),
        )
        start_s += every_s


def _histograms(windows: Iterable[Window], series: Sequence[str]) -> Iterator[str]:
    return (window.series[each] for window in windows for each in series if each in window.series)


def _between(counts: Iterable[int]) -> str:
    """How many there were: one number, or from the first to the last where that changed."""
    numbers = list(counts)
    if not numbers:
        return "-"
    return str(numbers[0]) if len(set(numbers)) == 1 else f"{numbers[0]} → {numbers[-1]}"


def markdown(report: Report, seen: Sequence[Seen], every_s: float) -> str:
    """The table with what it was measured on and by."""
    failures = "".join(f"; {count}x {detail}" for detail, count in report.failures.items())
    doubts = "".join(f" **Invalid**: {doubt}." for doubt in report.invalid_because)
    what = (
        f"{stamp()}; service, stores and load generator share it. `{report.command}`: "
        f"{sum(report.calls.values()):,} calls, {report.error_rate:.2%} failed{failures}.{doubts}"
    )
    return f"{what}\n\n{table(HEAD, rows(report, seen, every_s))}"


app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


@app.command(
    epilog=examples(
        "python -m loadgen.scaling",
        "python -m loadgen.scaling --rate 300 --from-rate 20 --duration 400 --every 20 --out scaling.json",
    )
)
def main(  # noqa: PLR0913, PLR0917 — one parameter for each option
    target: Annotated[str, typer.Option("--target", "--url", help="Address of the service.")] = DEFAULT_URL,
    dashboard: Annotated[str, typer.Option(help="Address of Ray's dashboard.")] = "http://127.0.0.1:8265",
    application: Annotated[str, typer.Option(help="Serve application.")] = "intents",
    deployment: Annotated[str, typer.Option(help="Deployment whose replicas are counted.")] = "Model",
    rate: Annotated[float, typer.Option(help="Calls a second of the busy quarter.")] = 150.0,
    from_rate: Annotated[float, typer.Option(help="Calls a second of the quiet rest.")] = 10.0,
    duration: Annotated[float, typer.Option(help="Seconds measured.")] = 200.0,
    every: Annotated[float, typer.Option(min=1, help="Seconds of a row.")] = 10.0,
    lengths: Annotated[str, typer.Option(help="Mix of texts, words:share.")] = "12:1",
    max_lag_ms: Annotated[float, typer.Option(help="Invalid when the p99 of the send lag is over it.")] = 1.0,
    out: Annotated[Path | None, typer.Option(help="Write the report as JSON.")] = None,
    readme: Annotated[Path | None, typer.Option(help="Also put the table into this file, between its marks.")] = None,
) -> None:
    """Put a pulse of load on a service and show how many replicas served it."""
    with clear_errors():
        check_places(out)
        if readme:
            check_marks(readme, MARK)
        traffic = built(
            Traffic,
            arrivals="pulse",
            rate=rate,
            from_rate=from_rate,
            warmup_s=5.0,
            duration_s=duration,
            texts="unique",
            lengths=lengths,
        )
        if every < duration / MAX_WINDOWS:
            raise ValueError(
                f"--every is {every:g}; a run of {duration:g} s is recorded by {duration / MAX_WINDOWS:g} s"
            )
        load = built(Load, target=target, traffic=traffic, max_lag_ms=max_lag_ms)
        with ReplicaWatch(dashboard, application, deployment, display_for(Console(stderr=True))) as watch:
            report = measure(load, watch)
        if out:
            report.write(out)
        found = markdown(report, watch.seen, every)
        if readme and report.ended == "complete":
            write_into(readme, MARK, found)
    sys.stdout.write(found + "\n")
    if report.ended == "interrupted":
        sys.exit(INTERRUPTED)
    sys.exit(0 if report.valid and report.ended == "complete" else NOT_BELIEVED)


if __name__ == "__main__":  # worker processes import this file under another name
    run_app(app, "python -m loadgen.scaling")
