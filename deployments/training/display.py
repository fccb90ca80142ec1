"""A report on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from deployments.terminal import cells, shortened
from deployments.training.scores import Report, most_confused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.console import Console, RenderableType

    from deployments.core.artifact import Artifact

MATRIX_LIMIT = 20
"""Intents up to which the whole confusion matrix is shown; beyond, the pairs most often confused."""
SHOWN_TEXT = 90


def show(report: Report, console: Console, *, worst: int) -> None:
    """Print a report: the whole first, then by intent and source, confusions, calibration and the surest mistakes."""
    for part in (_whole(report), _by_intent(report), _by_source(report), _confusion(report), _reliability(report)):
        console.print(part)
        console.print()
    if worst and report.mistakes:
        console.print(_mistakes(report, worst))


def show_left_out(reports: Mapping[str, Report | None], console: Console) -> None:
    """Print what models trained without a source score on it; dashes where no other source has its intents."""
    rows = [
        (source, f"{report.rows:,}", _number(report.accuracy), _interval(report.interval), _number(report.ece))
        if report
        else (source, "–", "–", "–", "–")
        for source, report in reports.items()
    ]
    header = ("left out", "rows", "accuracy", "95 % interval", "calibration error")
    console.print(_table(header, rows, title="trained without the source"))


def show_trained(artifact: Artifact, out: Path, console: Console) -> None:
    """Print what was trained, how good it is, and how to serve it."""
    rows = [
        (
            name,
            f"{scores['rows']:,}",
            _number(scores["accuracy"]),
            _interval(scores["interval"]),
            _number(scores["macro_f1"]),
            _number(scores["ece"]),
        )
        for name, scores in artifact.scores.items()
    ]
    header = ("scored on", "rows", "accuracy", "95 % interval", "macro-F1", "calibration error")
    console.print(_table(header, rows, title=artifact.version))
    if artifact.abstain_below is not None:
        console.print(f"answers out_of_scope below a confidence of {artifact.abstain_below:g}{_effect(artifact)}")
    console.print(f"serve it with: MODEL_ARTIFACT={escape(str(out.absolute()))} intents up", soft_wrap=True)


def _effect(artifact: Artifact) -> str:
    """What the threshold does to the rows it was chosen on, when there were any out of scope."""
    found = artifact.scores["validation"]["out_of_scope"]
    return f": rejects {found['rejected']:.1%} of the rows out of scope, keeps {found['kept']:.1%}" if found else ""


def _whole(report: Report) -> RenderableType:
    rows = [
        ("accuracy", f"{_number(report.accuracy)} ({_interval(report.interval)})"),
        ("macro-F1", _number(report.macro_f1)),
        ("expected calibration error", _number(report.ece)),
    ]
    if report.complexity:
        rows += [
            (f"complexity, {report.complexity.rows:,} texts", _number(report.complexity.accuracy)),
            ("complexity, macro-F1", _number(report.complexity.macro_f1)),
            ("complexity, told by length alone", _number(report.complexity.length_baseline)),
        ]
    if report.out_of_scope:
        rows += [
            (f"out of scope, {report.out_of_scope.rows:,} texts, AUROC", _number(report.out_of_scope.auroc)),
            ("out of scope, rejected", _number(report.out_of_scope.rejected)),
            ("in scope, kept", _number(report.out_of_scope.kept)),
        ]
    return _table(("score", "value"), rows, title=f"{report.model_version} on {report.rows:,} texts")


def _by_intent(report: Report) -> RenderableType:
    rows = [
        (name, f"{score.rows:,}", _number(score.precision), _number(score.recall), _number(score.f1))
        for name, score in report.by_intent.items()
    ]
    return _table(("intent", "rows", "precision", "recall", "F1"), rows)


def _by_source(report: Report) -> RenderableType:
    rows = [
        (
            name,
            f"{score.rows:,}",
            _number(score.accuracy),
            _interval(score.interval),
            _number(score.accuracy_of_the_rest),
        )
        for name, score in report.by_source.items()
    ]
    return _table(("source", "rows", "accuracy", "95 % interval", "accuracy of the rest"), rows)


def _confusion(report: Report) -> RenderableType:
    if len(report.intents) > MATRIX_LIMIT:
        pairs = [(meant, said, str(rows)) for meant, said, rows in most_confused(report)]
        return _table(("meant", "taken for", "rows"), pairs, title="most often confused")
    numbers = [str(number) for number in range(1, len(report.intents) + 1)]
    rows = [
        (f"{number} {name}", *(str(count) if count else "·" for count in counts))
        for number, name, counts in zip(numbers, report.intents, report.confusion, strict=True)
    ]
    return _table(("meant, by row; said, by column", *numbers), rows, title="confusion")


def _reliability(report: Report) -> RenderableType:
    rows = [(_number(each.confidence), f"{each.rows:,}", _number(each.accuracy)) for each in report.reliability]
    return _table(("confidence", "rows", "right"), rows, title="calibration")


def _mistakes(report: Report, worst: int) -> RenderableType:
    table = Table("where", "meant", "said", "confidence", "text", title="the surest mistakes", box=None, pad_edge=False)
    for mistake in report.mistakes[:worst]:
        shown = shortened(mistake.text, SHOWN_TEXT)
        table.add_row(*cells(mistake.place, mistake.intent, mistake.said, f"{mistake.confidence:.2f}", shown))
    return table


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> Table:
    """A table whose first column is text and the others are numbers; labels may look like markup."""
    table = Table(title=title and escape(title), title_justify="left", box=None, pad_edge=False)
    table.add_column(header[0])
    for name in header[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*cells(*row))
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _interval(bounds: Sequence[float]) -> str:
    return f"{bounds[0]:.3f} to {bounds[1]:.3f}"
