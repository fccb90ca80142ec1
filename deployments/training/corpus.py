"""The rows of one training, each where it belongs, checked before anything costs time. No torch."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from deployments.core.artifact import OUT_OF_SCOPE, sha256_of
from deployments.core.errors import StartupError
from deployments.training.labels import SHIPPED_LABELS, Labels, labels_of, read_labels
from deployments.training.rows import Row, check_classes, check_scorable, read_rows
from deployments.training.sampling import split_validation

RESERVED_NAMES = ("test", "validation")


@dataclass(frozen=True, slots=True)
class Corpus:
    """What is trained on, validated on (the best epoch, the temperature, the threshold) and only scored.

    `out_of_scope` holds rows labelled `out_of_scope_label`: they ask for none of the intents, are never trained on, and
    set the threshold below which the artifact abstains. `test` holds the rows marked so, `evaluation` those of each
    file to be scored besides, by the file's name. No text is in two of them. `hashes` are the files' sha256, by name.
    """

    labels: Labels
    training: list[Row]
    validation: list[Row]
    out_of_scope: list[Row]
    out_of_scope_label: str
    test: list[Row]
    evaluation: dict[str, list[Row]]
    hashes: list[tuple[str, str]]
    abstains: bool

    @classmethod
    def read(
        cls,
        data: Sequence[Path],
        *,
        validation_share: float,
        labels: Path | Labels | None = None,
        evaluation: Sequence[Path] = (),
        out_of_scope: str | None = None,
        abstain: bool = False,
    ) -> Self:
        """Read and check every file of a training.

        Args:
            data: Files of rows.
            validation_share: Share of the rows to validate on.
            labels: A label file or what was read of one; the labels found in the data when None.
            evaluation: Files that are only scored; a text of theirs is not trained on, whatever `data` says.
            out_of_scope: The label of rows that ask for none of the intents; `out_of_scope` when None.
            abstain: Whether the artifact abstains even without such rows.

        Raises:
            StartupError: A row is wrong (`file:line`), labels and rows do not fit, or nothing is left to train or to
                validate on.
        """
        stranger = out_of_scope or OUT_OF_SCOPE
        hashes = [(path.name, sha256_of(_file(path))) for path in data]
        given = read_labels(labels) if isinstance(labels, Path) else labels
        allowed = (*given.intent_names, stranger) if given else None
        levels = (given or read_labels(SHIPPED_LABELS)).complexity_levels
        rows = read_rows(data, intents=allowed, levels=levels)
        scored = _read_evaluation(evaluation, allowed, levels, stranger)
        only_scored = {row.key: row for its_rows in scored.values() for row in its_rows}
        usable = [row for row in rows if not row.is_test and row.key not in only_scored]
        strangers = [row for row in usable if row.intent == stranger]
        in_scope = [row for row in usable if row.intent != stranger]
        _check_trainable(in_scope, data, stranger)
        known = given or labels_of(row.intent for row in in_scope)
        _check_labels(known, in_scope, labels, stranger, abstains=abstain or bool(strangers))
        if out_of_scope and not any(row.intent == stranger for row in (*rows, *only_scored.values())):
            raise StartupError(f"no row has the label {out_of_scope!r} of --out-of-scope; correct it or leave it out")
        training, validation = split_validation(in_scope, validation_share)
        if not validation:
            raise StartupError(f"{data[0]}: every intent has a single row; add rows, so that some can be validated on")
        return cls(
            known,
            training,
            validation,
            strangers,
            stranger,
            [row for row in rows if row.is_test and row.intent in {*known.intent_names, stranger}],
            scored,
            hashes,
            abstain or bool(strangers),
        )

    @property
    def sources(self) -> list[str]:
        """Where the rows that are trained or validated on come from, sorted."""
        return sorted({row.source for row in (*self.training, *self.validation)})

    def without(self, source: str, validation_share: float) -> tuple[Self, list[Row]]:
        """Leave a source out: what is trained on then, and the rows of that source whose intents are still known.

        Raises:
            StartupError: There is no such source, or without it fewer than two intents are left.
        """
        rows = [*self.training, *self.validation]
        rest = [row for row in rows if row.source != source]
        left_out = [row for row in rows if row.source == source]
        if not left_out:
            raise StartupError(f"no source {source!r} in the data; there are {', '.join(self.sources)}")
        names = {row.intent for row in rest}
        training, validation = split_validation(rest, validation_share)
        if len(names) < 2 or not validation:  # noqa: PLR2004
            raise StartupError(f"without source {source!r} fewer than two intents are left; leave out another")
        labels = replace(self.labels, intents=tuple(each for each in self.labels.intents if each.name in names))
        smaller = replace(
            self,
            labels=labels,
            training=training,
            validation=validation,
            out_of_scope=[],
            test=[],
            evaluation={},
            abstains=False,
        )
        return smaller, [row for row in left_out if row.intent in names]


def _file(path: Path) -> Path:
    if not path.is_file():
        raise StartupError(f"{path}: cannot be read (no such file); name a JSONL file")
    return path


def _read_evaluation(
    paths: Sequence[Path], intents: Sequence[str] | None, levels: Sequence[str], out_of_scope: str
) -> dict[str, list[Row]]:
    """Read the files that are only scored, each by its name."""
    names = Counter([*RESERVED_NAMES, *(path.name for path in paths)])
    scored = {}
    for path in paths:
        if names[path.name] > 1:
            raise StartupError(f"{path}: its scores need a name of their own; rename the file")
        scored[path.name] = read_rows([path], intents=intents, levels=levels)
        check_scorable(scored[path.name], out_of_scope, str(path))
    return scored


def _check_trainable(rows: Sequence[Row], data: Sequence[Path], out_of_scope: str) -> None:
    if not rows:
        files = ", ".join(map(str, data))
        raise StartupError(f"{files}: no row to train on; all are test, scored or {out_of_scope}; add others")
    check_classes(rows)


def _check_labels(
    labels: Labels, rows: Sequence[Row], given: Path | Labels | None, out_of_scope: str, *, abstains: bool
) -> None:
    """Refuse intents that nothing teaches, and a name with two meanings."""
    reserved = {out_of_scope} | ({OUT_OF_SCOPE} if abstains else set())
    twice = [name for name in labels.intent_names if name in reserved]
    if twice:
        raise StartupError(f"intent {twice[0]!r} is what an artifact that abstains answers; rename it")
    untaught = sorted(set(labels.intent_names) - {row.intent for row in rows})
    if untaught:
        raise StartupError(f"{given}: intent {untaught[0]!r} has no row to train on; add rows or remove the label")
