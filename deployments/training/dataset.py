"""Labelled texts: reading and checking them, keeping a part aside, and drawing batches. No torch.

A row is a JSON object on its own line: `text`, `intent`, optionally `complexity`, `source` (where the text came from;
the file's name when missing) and `split` (`test`: never trained on, whatever file names it).
"""

import hashlib
import json
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from deployments.core.artifact import LABEL_PATTERN
from deployments.core.errors import StartupError

LABEL: Final = re.compile(LABEL_PATTERN)
LONE_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")

# How far the draw leans from "as many as there are" (1) towards "each the same" (0), over intents and over the sources
# of an intent. At 1/4 a source of 340 rows is drawn 1.4 times as often as one of 85, not four times.
TEMPER: Final = 0.25
POOL_BATCHES = 16


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


def read_rows(
    paths: Sequence[Path], *, intents: Collection[str] | None = None, levels: Collection[str] | None = None
) -> list[Row]:
    """Read rows from JSONL files; the same text with the same labels counts once, and as test where one says so.

    Args:
        paths: Files to read, in order.
        intents: The labels allowed; any when None.
        levels: The complexity levels allowed; any when None.

    Raises:
        StartupError: `file:line`, what is wrong there and what to do: no text, an unknown label, broken JSON, the same
            text with two labels, or no rows at all.
    """
    known: dict[str, Row] = {}
    for path in paths:
        for row in _read_file(path):
            _check_known(row, "intent", row.intent, intents)
            _check_known(row, "complexity", row.complexity, levels)
            earlier = known.get(row.text)
            known[row.text] = _merged(earlier, row) if earlier else row
    if not known:
        raise StartupError(f'{", ".join(map(str, paths))}: no rows; a row is {{"text": …, "intent": …}} on a line')
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


def split_validation(rows: Sequence[Row], share: float) -> tuple[list[Row], list[Row]]:
    """Split rows into those to train on and those to validate on.

    Stratified by intent and source, and decided by each text's hash: the same text falls on the same side whatever
    stands around it in the files. Groups too small to spare a row give none.
    """
    taken: set[str] = set()
    for group in _groups(rows).values():
        ordered = sorted(group, key=lambda row: hashlib.sha256(row.text.encode()).digest())
        taken.update(row.text for row in ordered[: round(len(group) * share)])
    return [row for row in rows if row.text not in taken], [row for row in rows if row.text in taken]


def sampling_weights(rows: Sequence[Row]) -> list[float]:
    """Weigh each row so that neither a large intent nor one source's style stands for the rest; they sum to 1.

    An intent is drawn in proportion to its size to the power `TEMPER`, a source within it likewise.
    """
    intents = Counter(row.intent for row in rows)
    groups = Counter((row.intent, row.source) for row in rows)
    within: defaultdict[str, float] = defaultdict(float)
    for (intent, _), size in groups.items():
        within[intent] += math.pow(size, TEMPER)
    total = sum(math.pow(size, TEMPER) for size in intents.values())

    def weight(row: Row) -> float:
        size = groups[row.intent, row.source]
        of_intent = math.pow(intents[row.intent], TEMPER) / total
        of_source = math.pow(size, TEMPER) / within[row.intent]
        return of_intent * of_source / size

    return [weight(row) for row in rows]


def draw_batches(
    lengths: Sequence[int], weights: Sequence[float], batch_size: int, chance: random.Random
) -> list[list[int]]:
    """Draw one epoch: indices of rows, as many as there are rows, in batches of near lengths and in random order.

    Sorting by length within a pool of some batches saves most of the padding and keeps batches mixed.
    """
    drawn = _systematic_draw(weights, chance)
    pool = batch_size * POOL_BATCHES
    batches: list[list[int]] = []
    for start in range(0, len(drawn), pool):
        near = sorted(drawn[start : start + pool], key=lengths.__getitem__)
        batches += [near[at : at + batch_size] for at in range(0, len(near), batch_size)]
    chance.shuffle(batches)
    return batches


def _systematic_draw(weights: Sequence[float], chance: random.Random) -> list[int]:
    """Draw len(weights) indices so that each comes within one of its expected count (systematic resampling)."""
    order = list(range(len(weights)))
    chance.shuffle(order)
    drawn: list[int] = []
    reached, mark = 0.0, chance.random()
    for index in order:
        reached += weights[index] * len(weights)
        while mark < reached:
            drawn.append(index)
            mark += 1
    chance.shuffle(drawn)
    return drawn


def _groups(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    groups: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.intent, row.source].append(row)
    return groups


def _read_file(path: Path) -> Iterator[Row]:
    try:
        lines = path.read_text("utf-8").split("\n")
    except OSError as error:
        raise StartupError(f"{path}: cannot be read ({error.strerror}); name a JSONL file") from error
    except UnicodeDecodeError as error:
        raise StartupError(f"{path}: not UTF-8 (byte {error.start}); convert the file") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _parse_row(line, f"{path}:{number}", path.stem)


def _parse_row(line: str, place: str, source: str) -> Row:
    try:
        fields: Any = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise StartupError(f"{place}: not JSON ({error}); put one object on the line") from error
    if not isinstance(fields, dict):
        raise StartupError(f'{place}: a JSON object is expected; write {{"text": …, "intent": …}}')
    text, intent, complexity, split = (
        _string(fields, name, place) for name in ("text", "intent", "complexity", "split")
    )
    if not text or not text.strip():
        raise StartupError(f'{place}: no text; add a non-blank "text" or remove the line')
    if not intent:
        raise StartupError(f'{place}: no intent; add an "intent" or remove the line')
    if not LABEL.fullmatch(intent):
        raise StartupError(f"{place}: intent {intent!r}: a label has 1 to 64 characters and no blanks; rename it")
    if split not in {None, Split.TRAIN, Split.TEST}:
        raise StartupError(f'{place}: "split" is {split!r}; write train or test, or leave it out')
    source = _string(fields, "source", place) or source
    return Row(text, intent, complexity, source, place, Split(split or Split.TRAIN))


def _string(fields: dict[str, Any], name: str, place: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise StartupError(f"{place}: {name!r} is {value!r}; write a string")
    if value and LONE_SURROGATE.search(value):
        raise StartupError(f"{place}: {name!r} holds half a surrogate pair (\\ud800 to \\udfff); remove it")
    return value


def _check_known(row: Row, kind: str, label: str | None, known: Collection[str] | None) -> None:
    if known is not None and label is not None and label not in known:
        raise StartupError(f"{row.place}: unknown {kind} {label!r}; known: {', '.join(known)}")
