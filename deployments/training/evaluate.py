"""How good an artifact is on labelled texts: read them, classify them as the service would, and score the answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from deployments.core.artifact import OUT_OF_SCOPE, Artifact
from deployments.core.classifier import Classifier
from deployments.core.errors import StartupError
from deployments.core.prediction import Prediction
from deployments.training.dataset import Row, Split, read_rows
from deployments.training.scores import Report, score

BATCH_SIZE: Final = 32


def evaluate(
    artifact: Artifact,
    data: Sequence[Path],
    *,
    split: Split = Split.ALL,
    out_of_scope: str = OUT_OF_SCOPE,
    progress: bool = False,
) -> Report:
    """Classify every row of `data` with `artifact` and score the answers.

    Args:
        artifact: What to score.
        data: JSONL files of rows.
        split: Only rows marked `"split": "test"`, only the others, or all.
        out_of_scope: The label of rows that ask for none of the artifact's intents.
        progress: Show a progress bar.

    Raises:
        StartupError: The artifact cannot be loaded, a row is wrong (`file:line`), or no row is left to score.
    """
    rows = read_rows(data, intents={*artifact.intent_names, out_of_scope}, levels=artifact.complexity_levels)
    chosen = [row for row in rows if split is Split.ALL or row.split is split]
    check_scorable(chosen, out_of_scope, f"{', '.join(map(str, data))} (split: {split.value})")
    return score_rows(artifact, chosen, out_of_scope, progress=progress)


def check_scorable(rows: Sequence[Row], out_of_scope: str, place: str) -> None:
    """Refuse to score nothing.

    Raises:
        StartupError: No row has an intent.
    """
    if all(row.intent == out_of_scope for row in rows):
        raise StartupError(f"{place}: no rows with an intent to score; add the file that has them")


def score_rows(artifact: Artifact, rows: Sequence[Row], out_of_scope: str, *, progress: bool = False) -> Report:
    """Classify rows with `artifact` and score the answers."""
    return score(rows, predict(Classifier.load(artifact), rows, progress=progress), artifact, out_of_scope)


def predict(classifier: Classifier, rows: Sequence[Row], *, progress: bool = False) -> list[Prediction]:
    """Classify rows in batches of near lengths, order kept."""
    from rich.console import Console
    from rich.progress import track

    tokens = classifier.tokenise([row.text for row in rows])
    order = sorted(range(len(rows)), key=lambda index: len(tokens[index].ids))
    console = Console(stderr=True)
    shown = progress and console.is_terminal
    answers: dict[int, Prediction] = {}
    for start in track(range(0, len(order), BATCH_SIZE), "scoring ", console=console, disable=not shown):
        batch = order[start : start + BATCH_SIZE]
        answers.update(zip(batch, classifier.forward([tokens[index] for index in batch]), strict=True))
    return [answers[index] for index in range(len(rows))]
