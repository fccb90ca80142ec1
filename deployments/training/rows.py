"""Labelled texts: reading them and checking every one. No torch.

A row is a JSON object on its own line: `text`, `intent`, optionally `complexity`, `source` (where the text came from;
the file's name when missing) and `split` (`test`: never trained on, whatever file names it). Texts that the model
cannot tell apart (white space, ASCII case) are one text.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Final

from deployments.core.artifact import LABEL_PATTERN, NORMALISATION
from deployments.core.errors import StartupError
from deployments.core.jsonl import parse_object, string_field
from deployments.core.text import normalise

LABEL: Final = re.compile(LABEL_PATTERN)
LISTED_LABELS: Final = 20
"""Known labels up to which a message lists all of them."""


class Split(StrEnum):
    """Which rows: those that may be trained on, those that must not, or all."""

    ALL = "all"
    TRAIN = "train"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class Row:
    """A labelled text and where it stands (`file:line`)."""

    text: str
    intent: str
    complexity: str | None
    source: str
    place: str
    split: Split = Split.TRAIN

    @property
    def is_test(self) -> bool:
        """Whether it must never be trained on."""
        return self.split is Split.TEST

    @property
    def key(self) -> str:
        """What the model sees of the text: equal keys mean equal answers."""
        return normalise(self.text, NORMALISATION)


def read_rows(
    paths: Sequence[Path], *, intents: Sequence[str] | None = None, levels: Sequence[str] | None = None
) -> list[Row]:
    """Read rows from JSONL files; the same text with the same labels counts once, and as test where one says so.

    Args:
        paths: Files to read, in order.
        intents: The labels allowed; any when None.
        levels: The complexity levels allowed; any when None.

    Raises:
        StartupError: `file:line`, what is wrong there and what to do: no text, an unknown label, broken JSON, the same
            text with two labels, or a file without rows.
    """
    known: dict[str, Row] = {}
    stems = Counter(path.stem for path in paths)
    for path in paths:
        source = path.stem if stems[path.stem] == 1 else str(path.with_suffix(""))
        for row in _read_file(path, source):
            _check_known(row, "intent", row.intent, intents)
            _check_known(row, "complexity", row.complexity, levels)
            earlier = known.get(row.key)
            known[row.key] = _merged(earlier, row) if earlier else row
    return list(known.values())


def _merged(earlier: Row, row: Row) -> Row:
    """Make one row of two with the same text; refuse labels that differ."""
    for kind, before, now in (
        ("intent", earlier.intent, row.intent),
        ("complexity", earlier.complexity, row.complexity),
    ):
        if before and now and before != now:
            raise StartupError(
                f"{row.place}: this text has {kind} {now!r} here and {before!r} at {earlier.place}; keep one"
            )
    split = Split.TEST if earlier.is_test or row.is_test else Split.TRAIN
    return replace(earlier, complexity=earlier.complexity or row.complexity, split=split)


def check_classes(rows: Sequence[Row]) -> None:
    """Refuse data from which nothing can be told apart.

    Raises:
        StartupError: All rows have the same intent.
    """
    names = {row.intent for row in rows}
    if len(names) < 2:  # noqa: PLR2004
        raise StartupError(f"{rows[0].place}: every row has intent {rows[0].intent!r}; a classifier needs at least two")


def check_scorable(rows: Sequence[Row], out_of_scope: str, place: str) -> None:
    """Refuse to score nothing.

    Raises:
        StartupError: No row has an intent.
    """
    if all(row.intent == out_of_scope for row in rows):
        raise StartupError(f"{place}: no row has an intent to score; texts out of scope need others to be told from")


def _read_file(path: Path, source: str) -> Iterator[Row]:
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except OSError as error:
        raise StartupError(f"{path}: cannot be read ({error.strerror}); name a JSONL file") from error
    except UnicodeDecodeError as error:
        raise StartupError(f"{path}: not UTF-8 (byte {error.start}); convert the file") from error
    if not any(line.strip() for line in lines):
        raise StartupError(f'{path}: no rows; a row is {{"text": …, "intent": …}} on a line')
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _parse_row(line, f"{path}:{number}", source)


def _parse_row(line: str, place: str, source: str) -> Row:
    fields = parse_object(line, place, example='{"text": …, "intent": …}')
    text, intent, complexity, split = (
        string_field(fields, name, place) for name in ("text", "intent", "complexity", "split")
    )
    if not text or not text.strip():
        raise StartupError(f'{place}: no text; add a non-blank "text" or remove the line')
    if not intent:
        raise StartupError(f'{place}: no intent; add an "intent" or remove the line')
    if not LABEL.fullmatch(intent):
        raise StartupError(f"{place}: intent {intent!r}: a label has 1 to 64 characters and no blanks; rename it")
    if split not in {None, Split.TRAIN, Split.TEST}:
        raise StartupError(f'{place}: "split" is {split!r}; write train or test, or leave it out')
    source = string_field(fields, "source", place) or source
    return Row(text, intent, complexity, source, place, Split(split or Split.TRAIN))


def _check_known(row: Row, kind: str, label: str | None, known: Sequence[str] | None) -> None:
    if known is None or label is None or label in known:
        return
    near = known if len(known) <= LISTED_LABELS else get_close_matches(label, known, n=5, cutoff=0)
    listed = f"known: {', '.join(near)}" + (f" and {len(known) - len(near)} more" if len(near) < len(known) else "")
    raise StartupError(f"{row.place}: unknown {kind} {label!r}; correct it or add the label ({listed})")
