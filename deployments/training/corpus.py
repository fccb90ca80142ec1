"""The rows of one training, each where it belongs, checked before anything costs time."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from deployments.core.errors import StartupError
from deployments.training.dataset import Row, check_classes, read_rows, split_validation
from deployments.training.evaluate import check_scorable
from deployments.training.labels import SHIPPED_LABELS, Labels, labels_of, read_labels


@dataclass(frozen=True, slots=True)
class Corpus:
    """What is trained on, validated on (the best epoch, the temperature, the threshold) and only scored.

    `out_of_scope` holds rows labelled `out_of_scope_label`: they ask for none of the intents, are never trained on, and
    set the threshold below which the artifact abstains. `test` holds the rows marked so, `evaluation` those of each
    file to be scored besides.
    """

    labels: Labels
    files: tuple[Path, ...]
    training: list[Row]
    validation: list[Row]
    out_of_scope: list[Row]
    out_of_scope_label: str
    test: list[Row]
    evaluation: dict[Path, list[Row]]

    @classmethod
    def read(
        cls,
        data: Sequence[Path],
        *,
        labels: Path | None,
        evaluation: Sequence[Path],
        out_of_scope: str,
        validation_share: float,
    ) -> Self:
        """Read and check every file of a training.

        Raises:
            StartupError: A row is wrong (`file:line`), the label file is, a test text is trained on under another name,
                or there are fewer than two intents.
        """
        known, rows = _rows_and_labels(data, labels, out_of_scope)
        allowed = {*known.intent_names, out_of_scope}
        scored = {path: read_rows([path], intents=allowed, levels=known.complexity_levels) for path in evaluation}
        for path, its_rows in scored.items():
            check_scorable(its_rows, out_of_scope, str(path))
        usable = [row for row in rows if not row.is_test]
        in_scope = [row for row in usable if row.intent != out_of_scope]
        if not in_scope:
            raise StartupError(f"{', '.join(map(str, data))}: no rows to train on; all are test or {out_of_scope}")
        check_classes(in_scope)
        training, validation = split_validation(in_scope, validation_share)
        return cls(
            known,
            tuple(data),
            training,
            validation or training,
            [row for row in usable if row.intent == out_of_scope],
            out_of_scope,
            [row for row in rows if row.is_test],
            scored,
        )

    @property
    def sources(self) -> list[str]:
        """Where the rows that are trained or validated on come from, sorted."""
        return sorted({row.source for row in (*self.training, *self.validation)})

    def without(self, source: str) -> tuple[Self, list[Row]]:
        """Leave a source out: what is trained on then, and the rows left out of training and validation."""
        left_out = {row.text: row for row in (*self.training, *self.validation) if row.source == source}
        rest = replace(
            self,
            training=[row for row in self.training if row.source != source],
            validation=[row for row in self.validation if row.source != source],
            test=[],
            evaluation={},
        )
        return rest, list(left_out.values())


def _rows_and_labels(data: Sequence[Path], labels: Path | None, out_of_scope: str) -> tuple[Labels, list[Row]]:
    """Read the rows against the label file, or find the labels in the rows."""
    if labels:
        known = read_labels(labels)
        allowed: Collection[str] = {*known.intent_names, out_of_scope}
        return known, read_rows(data, intents=allowed, levels=known.complexity_levels)
    rows = read_rows(data, levels=read_labels(SHIPPED_LABELS).complexity_levels)
    return labels_of(row.intent for row in rows if row.intent != out_of_scope), rows
