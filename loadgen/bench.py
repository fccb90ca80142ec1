"""The README's numbers: `make bench`, or `python -m loadgen.bench`.

It starts the service of this checkout as a user would, runs the commands of the table one after the other, each as it
stands there, and writes the tables. Everything shares this machine: service, stores and load generator.
"""

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from loadgen import cache
from loadgen.cache import Suite
from loadgen.cli import clear_errors, examples, run_app
from loadgen.load import LoadError
from loadgen.local_service import LocalService
from loadgen.readme import check_marks, stamp, table, write_into
from loadgen.report import Latency, Report

COMMAND_TIMEOUT_S = 600
NOT_BELIEVED = 1
PORT = 8000
STUB_PORT = 9999
SHORT_TEXTS = "--lengths 12:1"
WARM = f"--cache-state warm --distinct 1000 --zipf 0 {SHORT_TEXTS}"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: a figure of what a command's JSON says."""

    what: str
    command: str
    figure: Callable[[str], str]


def _report(figure: Callable[[Report], str]) -> Callable[[str], str]:
    def read(document: str) -> str:
        report = Report.model_validate_json(document)
        return figure(report) + _doubt(report)

    return read


def _phase(phase: cache.Phase, figure: Callable[[Report], str]) -> Callable[[str], str]:
    def read(document: str) -> str:
        report = _report_of(Suite.model_validate_json(document), phase)
        return figure(report) + _doubt(report)

    return read


def _report_of(suite: Suite, phase: cache.Phase) -> Report:
    if phase not in suite.reports:
        raise LoadError(f"the {phase} phase was not measured")
    return suite.reports[phase]


def _doubt(report: Report) -> str:
    doubts = [*report.invalid_because]
    if report.reconciliation and not report.reconciliation.agrees:
        doubts.append(report.reconciliation.note)
    return f" (**invalid**: {'; '.join(doubt.partition(':')[0] for doubt in doubts)})" if doubts else ""


def _latency(report: Report, series: str) -> Latency:
    if (latency := report.summary(series)) is None:
        raise LoadError(f"nothing of {series} was measured by {report.command}")
    return latency


def _p(series: str, *percentiles: str) -> Callable[[Report], str]:
    def figure(report: Report) -> str:
        latency = _latency(report, series)
        return ", ".join(f"{name} {getattr(latency, f'{name}_ms'):.3g} ms" for name in percentiles)

    return figure


def _lag(report: Report) -> str:
    return f"p99 {report.send_lag.p99_ms:.3g} ms" if report.send_lag else "not measured"


def _per_s(report: Report) -> str:
    return f"{report.answered_per_s:,.0f}/s"


def _mix(document: str) -> str:
    suite = Suite.model_validate_json(document)
    report = _report_of(suite, "mixed")
    return (
        f"hit rate {_shown('{:.1%}', suite.hit_rate())} ({_shown('{:.1%}', report.predicted_hit_rate)} predicted), "
        f"{_shown('{:.1%}', suite.compute_saved())} of compute saved, hits "
        f"{_shown('{:.1f}x', suite.mixed_speed_up())} faster, {_shown('{:.0f}/s', suite.mixed_per_s())} sustained"
        f"{_doubt(report)}"
    )


def _shown(form: str, figure: float | None) -> str:
    return "not measured" if figure is None else form.format(figure)


SUITE = "python -m loadgen.cache"
ROWS = (
    Row(
        "the load generator alone, 2,000/s at `python -m loadgen.stub`: how late it sends",
        f"python -m loadgen --target http://127.0.0.1:{STUB_PORT} --rate 2000 {SHORT_TEXTS}",
        _report(_lag),
    ),
    Row("hits, 200/s", SUITE, _phase("warm", _p("hit", "p50", "p99"))),
    Row("hits, 32 callers (closed loop)", SUITE, _phase("concurrent", _per_s)),
    Row(
        "hits, one caller (closed loop)",
        f"python -m loadgen --arrivals closed --connections 1 --duration 10 {WARM}",
        _report(_p("hit", "p50")),
    ),
    Row("misses of mixed length, 10/s", SUITE, _phase("cold", _p("miss", "p50", "p95"))),
    Row(
        "misses of 12 words, 32 callers (closed loop)",
        f"python -m loadgen --arrivals closed --connections 32 --duration 15 --texts unique {SHORT_TEXTS}",
        _report(_per_s),
    ),
    Row(
        "misses of 12 words, one caller (closed loop)",
        f"python -m loadgen --arrivals closed --connections 1 --duration 10 --texts unique {SHORT_TEXTS}",
        _report(_p("miss", "p50")),
    ),
    Row("realistic mix: Zipf 1.1 over 10,000 texts, 120/s, from a cold cache", SUITE, _mix),
    Row(
        "feedback on disk, 32 callers (closed loop)",
        f"python -m loadgen --arrivals closed --connections 32 --duration 10 --feedback 1 {SHORT_TEXTS}",
        _report(_per_s),
    ),
    Row(
        "feedback on disk, 200/s",
        f"python -m loadgen --rate 200 --duration 15 --feedback 1 {SHORT_TEXTS}",
        _report(_p("feedback", "p50", "p99")),
    ),
)


def run_bench() -> dict[str, str]:
    """Run every command once and give the tables, by their mark.

    Raises:
        LoadError: the service does not start, or a command fails.
    """
    documents: dict[str, str] = {}
    with _stub():
        documents[ROWS[0].command] = _run(ROWS[0].command)
    with LocalService(PORT) as service:
        _tell(f"the service answers after {service.started_in_s:.1f} s")
        for command in dict.fromkeys(row.command for row in ROWS[1:]):
            documents[command] = _run(command)
        return {
            "bench": numbers(documents, service.started_in_s),
            "suite": promises(Suite.model_validate_json(documents[SUITE])),
        }


def numbers(documents: Mapping[str, str], started_in_s: float) -> str:
    """The table of numbers from the commands' JSON documents."""
    heading = f"{stamp()}; service, stores and load generator share it."
    measured = [(row.what, row.figure(documents[row.command]), f"`{row.command}`") for row in ROWS]
    start = ("`intents up` until it answers", f"{started_in_s:.1f} s", "`intents up --detach`")
    return f"{heading}\n\n{table(('what', 'measured', 'command'), [*measured, start])}"


def promises(suite: Suite) -> str:
    """The table of the cache suite."""
    return table(cache.HEAD, cache.rows(suite))


def _run(command: str) -> str:
    """Run a command of the table as it stands; its JSON."""
    _tell(f"$ {command}")
    program, *arguments = shlex.split(command)
    assert program == "python"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        result = subprocess.run(  # noqa: S603 — the commands are the table's
            [sys.executable, *arguments, "--out", str(out)],
            stdout=subprocess.DEVNULL,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        if not out.exists() or result.returncode not in (0, NOT_BELIEVED):
            raise LoadError(f"`{command}` failed with exit code {result.returncode}")
        return out.read_text(encoding="utf-8")


@contextmanager
def _stub() -> Iterator[None]:
    command = [sys.executable, "-m", "loadgen.stub", "--port", str(STUB_PORT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 — the command is our own
        try:
            assert process.stdout
            if not process.stdout.readline():
                raise LoadError(f"`{shlex.join(command)}` did not start; is port {STUB_PORT} taken?")
            yield
        finally:
            process.terminate()


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


@app.command(epilog=examples("make bench", "python -m loadgen.bench --readme README.md"))
def main(
    readme: Annotated[
        Path | None, typer.Option(help="Also put the tables into this file, between their marks.")
    ] = None,
) -> None:
    """Start the service, measure the README's numbers, stop it, and print the tables; about 8 minutes."""
    with clear_errors():
        if readme:
            for mark in ("bench", "suite"):
                check_marks(readme, mark)
        for mark, written in run_bench().items():
            sys.stdout.write(f"{written}\n\n")
            if readme:
                write_into(readme, mark, written)


if __name__ == "__main__":
    run_app(app, "python -m loadgen.bench")
