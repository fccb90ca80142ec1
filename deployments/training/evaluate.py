"""How good an artifact is on labelled texts.

`python -m deployments.training.evaluate --artifact DIR --data FILE…` prints a table, or JSON with `--json`.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from deployments.core.artifact import DEFAULT_ARTIFACT, Artifact
from deployments.core.classifier import Classifier
from deployments.core.prediction import Prediction
from deployments.training.calibration import calibration_error
from deployments.training.dataset import Row, read_rows

BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class Report:
    """Scores of an artifact, each 0..1; `recall` by intent, `complexity_accuracy` over the rows that have a level."""

    rows: int
    accuracy: float
    macro_f1: float
    ece: float
    complexity_accuracy: float | None
    recall: dict[str, float]


def evaluate(artifact: Artifact, data: Sequence[Path]) -> Report:
    """Classify every row of `data` with `artifact` and score the answers.

    Raises:
        StartupError: The artifact cannot be loaded, or a row is wrong (`file:line`).
    """
    rows = read_rows(data, intents=artifact.intent_names, levels=artifact.complexity_levels)
    return score(rows, predict(Classifier.load(artifact), rows))


def predict(classifier: Classifier, rows: Sequence[Row]) -> list[Prediction]:
    """Classify rows in batches of near lengths, order kept."""
    tokens = classifier.tokenise([row.text for row in rows])
    order = sorted(range(len(rows)), key=lambda index: len(tokens[index].ids))
    answers: dict[int, Prediction] = {}
    for start in range(0, len(order), BATCH_SIZE):
        batch = order[start : start + BATCH_SIZE]
        answers.update(zip(batch, classifier.forward([tokens[index] for index in batch]), strict=True))
    return [answers[index] for index in range(len(rows))]


def score(rows: Sequence[Row], predictions: Sequence[Prediction]) -> Report:
    """Compare predictions with the rows' labels; there is at least one row."""
    meant = Counter(row.intent for row in rows)
    said = Counter(prediction.intent for prediction in predictions)
    right = [row.intent == prediction.intent for row, prediction in zip(rows, predictions, strict=True)]
    hits = Counter(row.intent for row, is_right in zip(rows, right, strict=True) if is_right)
    levels = [
        row.complexity == prediction.complexity
        for row, prediction in zip(rows, predictions, strict=True)
        if row.complexity
    ]
    return Report(
        rows=len(rows),
        accuracy=round(sum(right) / len(right), 4),
        # F1 = 2·hits / (rows that are + rows that are said to be), averaged over the intents that occur.
        macro_f1=round(sum(2 * hits[name] / (meant[name] + said[name]) for name in meant) / len(meant), 4),
        ece=round(calibration_error([prediction.confidence for prediction in predictions], right), 4),
        complexity_accuracy=round(sum(levels) / len(levels), 4) if levels else None,
        recall={name: round(hits[name] / meant[name], 4) for name in sorted(meant)},
    )


def main(
    data: Annotated[list[Path], typer.Option(help="JSONL files with text, intent and optionally complexity.")],
    artifact: Annotated[Path, typer.Option(help="Folder of the artifact.")] = DEFAULT_ARTIFACT,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Score an artifact on labelled texts."""
    loaded = Artifact.load(artifact)
    report = evaluate(loaded, data)
    if as_json:
        typer.echo(json.dumps({"model_version": loaded.version} | asdict(report)))
    else:
        _print_table(loaded.version, report)


def _print_table(version: str, report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{version} on {report.rows} texts")
    table.add_column("score")
    table.add_column("value", justify="right")
    for name, value in asdict(report).items():
        if isinstance(value, float):
            table.add_row(name, f"{value:.4f}")
    for name, value in report.recall.items():
        table.add_row(f"recall of {name}", f"{value:.4f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
