"""How good an artifact is on labelled texts: read them, classify them as the service would, and score the answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from deployments.core.artifact import OUT_OF_SCOPE, Artifact
from deployments.core.classifier import Classifier
from deployments.core.prediction import Prediction
from deployments.training.rows import Row, Split, check_scorable, read_rows
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
    rows = read_rows(data, intents=(*artifact.intent_names, out_of_scope), levels=artifact.complexity_levels)
    chosen = [row for row in rows if split is Split.ALL or row.split is split]
    check_scorable(chosen, out_of_scope, f"{', '.join(map(str, data))} (split: {split.value})")
    return score_rows(Classifier.load(artifact), chosen, out_of_scope, progress=progress)


def score_rows(classifier: Classifier, rows: Sequence[Row], out_of_scope: str, *, progress: bool = False) -> Report:
    """Classify rows and score the answers."""
    return score(rows, predict(classifier, rows, progress=progress), classifier.artifact, out_of_scope)


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
