"""A report on the terminal."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from deployments.core.artifact import Artifact
from deployments.training.scores import Report, most_confused

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


def show_left_out(reports: Mapping[str, Report], console: Console) -> None:
    """Print what models trained without a source score on it."""
    table = _table(
        "left out", "rows", "accuracy", "95 % interval", "calibration error", title="trained without the source"
    )
    for source, report in reports.items():
        table.add_row(
            source, f"{report.rows:,}", _number(report.accuracy), _interval(report.interval), _number(report.ece)
        )
    console.print(table)


def show_trained(artifact: Artifact, out: Path, console: Console) -> None:
    """Print what was trained, how good it is, and how to serve it."""
    table = _table(
        "scored on", "rows", "accuracy", "95 % interval", "macro-F1", "calibration error", title=artifact.version
    )
    for name, scores in artifact.scores.items():
        table.add_row(
            name,
            f"{scores['rows']:,}",
            _number(scores["accuracy"]),
            _interval(scores["interval"]),
            _number(scores["macro_f1"]),
            _number(scores["ece"]),
        )
    console.print(table)
    if artifact.abstain_below is not None:
        console.print(f"answers out_of_scope below a confidence of {artifact.abstain_below:g}")
    console.print(f"serve it with: MODEL_ARTIFACT={escape(str(out.absolute()))} intents up")


def _whole(report: Report) -> RenderableType:
    table = _table("score", "value", title=f"{report.model_version} on {report.rows:,} texts")
    table.add_row("accuracy", f"{_number(report.accuracy)} ({_interval(report.interval)})")
    table.add_row("macro-F1", _number(report.macro_f1))
    table.add_row("expected calibration error", _number(report.ece))
    if report.complexity:
        table.add_row(f"complexity, {report.complexity.rows:,} texts", _number(report.complexity.accuracy))
        table.add_row("complexity, macro-F1", _number(report.complexity.macro_f1))
        table.add_row("complexity, told by length alone", _number(report.complexity.length_baseline))
    if report.out_of_scope:
        table.add_row(f"out of scope, {report.out_of_scope.rows:,} texts, AUROC", _number(report.out_of_scope.auroc))
        table.add_row("out of scope, rejected", _number(report.out_of_scope.rejected))
        table.add_row("in scope, kept", _number(report.out_of_scope.kept))
    return table


def _by_intent(report: Report) -> RenderableType:
    table = _table("intent", "rows", "precision", "recall", "F1")
    for name, score in report.by_intent.items():
        table.add_row(name, f"{score.rows:,}", *map(_number, (score.precision, score.recall, score.f1)))
    return table


def _by_source(report: Report) -> RenderableType:
    table = _table("source", "rows", "accuracy", "95 % interval", "accuracy of the rest")
    for name, score in report.by_source.items():
        table.add_row(
            name,
            f"{score.rows:,}",
            _number(score.accuracy),
            _interval(score.interval),
            _number(score.accuracy_of_the_rest),
        )
    return table


def _confusion(report: Report) -> RenderableType:
    if len(report.intents) > MATRIX_LIMIT:
        table = _table("meant", "taken for", "rows", title="most often confused")
        for meant, said, rows in most_confused(report):
            table.add_row(meant, said, str(rows))
        return table
    numbers = [str(number) for number in range(1, len(report.intents) + 1)]
    table = _table("meant, by row; said, by column", *numbers, title="confusion")
    for number, name, row in zip(numbers, report.intents, report.confusion, strict=True):
        table.add_row(f"{number} {name}", *(str(count) if count else "·" for count in row))
    return table


def _reliability(report: Report) -> RenderableType:
    table = _table("confidence", "rows", "right", title="calibration")
    for each in report.reliability:
        table.add_row(_number(each.confidence), f"{each.rows:,}", _number(each.accuracy))
    return table


def _mistakes(report: Report, worst: int) -> RenderableType:
    table = Table("where", "meant", "said", "confidence", "text", title="the surest mistakes", box=None, pad_edge=False)
    for mistake in report.mistakes[:worst]:
        text = " ".join(mistake.text.split())
        shown = text if len(text) <= SHOWN_TEXT else text[: SHOWN_TEXT - 1] + "…"
        table.add_row(mistake.place, mistake.intent, mistake.said, f"{mistake.confidence:.2f}", escape(shown))
    return table


def _table(first: str, *numbers: str, title: str | None = None) -> Table:
    """A table whose first column is text and the others are numbers."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column(first)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _interval(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.3f} to {bounds[1]:.3f}"
