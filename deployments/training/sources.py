"""Leave one source out: does a model know the task, or the style of the place its rows came from?

Where one source serves one intent, a model can tell them apart by style and still score well on rows of the same
sources. Trained without a source and scored on it, it cannot.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from deployments.training.corpus import Corpus
from deployments.training.recipe import Recipe
from deployments.training.rows import Row
from deployments.training.scores import Report
from deployments.training.train import build


def leave_one_source_out(
    corpus: Corpus, recipe: Recipe, *, sources: Sequence[str] = (), progress: bool = False
) -> Iterator[tuple[str, Report | None]]:
    """Train without each source in turn, and score on its rows; as long as a training for each.

    Args:
        corpus: All rows.
        recipe: How to train each time.
        sources: The sources to leave out; every one when empty.
        progress: Show progress bars.

    Returns:
        Each source with the scores on its rows; None when no other source has any of its intents.

    Raises:
        StartupError: A source has no rows, or nothing to tell apart is left without it; before anything is trained.
    """
    rounds = [(source, *corpus.without(source, recipe.validation_share)) for source in sources or corpus.sources]
    return (
        (source, _score_left_out(rest, left_out, recipe, progress=progress) if left_out else None)
        for source, rest, left_out in rounds
    )


def _score_left_out(rest: Corpus, left_out: Sequence[Row], recipe: Recipe, *, progress: bool) -> Report:
    from deployments.training.evaluate import score_rows

    with tempfile.TemporaryDirectory(prefix="intents-") as folder:
        classifier = build(rest, Path(folder), recipe, progress=progress)
        return score_rows(classifier, left_out, rest.out_of_scope_label, progress=progress)
