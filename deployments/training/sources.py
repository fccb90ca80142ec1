"""Leave one source out: does a model know the task, or the style of the place its rows came from?

Where one source serves one intent, a model can tell them apart by style and still score well on rows of the same
sources. Trained without a source and scored on it, it cannot.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from deployments.core.errors import StartupError
from deployments.training.corpus import Corpus
from deployments.training.evaluate import score_rows
from deployments.training.recipe import Recipe
from deployments.training.scores import Report
from deployments.training.train import build


def leave_one_source_out(
    corpus: Corpus, recipe: Recipe, *, sources: Sequence[str] = (), progress: bool = False
) -> Iterator[tuple[str, Report]]:
    """Train without each source in turn, and score on its rows; as long as a training for each.

    Args:
        corpus: All rows.
        recipe: How to train each time.
        sources: The sources to leave out; every one when empty.
        progress: Show progress bars.

    Raises:
        StartupError: A source has no rows, or nothing to tell apart is left without it.
    """
    for source in _checked(corpus, sources):
        rest, left_out = corpus.without(source)
        with tempfile.TemporaryDirectory(prefix="intents-") as folder:
            artifact = build(rest, Path(folder), recipe, progress=progress)
            yield source, score_rows(artifact, left_out, corpus.out_of_scope_label, progress=progress)


def _checked(corpus: Corpus, sources: Sequence[str]) -> list[str]:
    unknown = sorted(set(sources) - set(corpus.sources))
    if unknown:
        raise StartupError(f"no source {unknown[0]!r} in the data; there are {', '.join(corpus.sources)}")
    chosen = list(sources) or corpus.sources
    for source in chosen:
        rest, _ = corpus.without(source)
        if len({row.intent for row in rest.training}) < 2:  # noqa: PLR2004
            raise StartupError(f"without source {source!r} fewer than two intents are left; leave out another")
    return chosen
