"""The texts of a file, such as yesterday's prompts: rows of JSON, a trace of the load generator, or one text a line."""

from __future__ import annotations

import re
import sys
from collections import Counter
from typing import TYPE_CHECKING

from deployments.core.classification import to_json
from deployments.core.contract import ClassifyRequest
from deployments.core.errors import IntentGraphError, StartupError
from deployments.core.jsonl import LONE_SURROGATE, parse_object, string_field
from deployments.core.parsing import parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

ROW = '{"text": …}'
_BEGINS_A_ROW = re.compile(r'\s*\{\s*["}]')


def most_frequent(file: Path, top: int | None = None) -> list[str]:
    """The distinct texts of a file, most frequent first and those of equal number in its order; at most `top` of them.

    With rows of JSON, a text is a row's `text`, or each of its `texts`; other keys are left alone. A file has such rows
    when its name ends in `.jsonl` or its first line begins like one; else each line is a text. Blank lines are none.
    `-` is standard input.

    Raises:
        StartupError: `file:line` and what is wrong there: not UTF-8, not JSON, no text, or one that the service does
            not take; or the file cannot be read or has no texts.
    """
    counts: Counter[str] = Counter()
    for place, text in _texts(file):
        if text not in counts:
            _check(text, place)
        counts[text] += 1
    if not counts:
        raise StartupError(f"{_name(file)}: no text came in; give rows such as {ROW}, or one text a line")
    return [text for text, _ in counts.most_common(top)]


def _texts(file: Path) -> Iterator[tuple[str, str]]:
    """Each text with its place."""
    has_rows = file.suffix == ".jsonl"
    for index, (place, line) in enumerate(lines(file)):
        has_rows = has_rows or (index == 0 and _BEGINS_A_ROW.match(line) is not None)
        for text in _of_row(line, place) if has_rows else [line]:
            yield place, text


def lines(file: Path) -> Iterator[tuple[str, str]]:
    """Each line that is not blank, with its place. Raises StartupError: it is not UTF-8, or cannot be read."""
    try:
        with file.open("rb") if str(file) != "-" else sys.stdin.buffer as raw:
            for number, line in enumerate(raw, start=1):
                place = f"{_name(file)}:{number}"
                if (text := _decoded(line, place)).strip():
                    yield place, text
    except OSError as error:
        raise StartupError(f"{file}: cannot be read ({error.strerror}); check the path") from error


def _decoded(line: bytes, place: str) -> str:
    try:
        return line.decode().removeprefix("\ufeff").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise StartupError(f"{place}: not UTF-8 (byte {error.start}); convert the file") from error


def _of_row(line: str, place: str) -> Iterable[str]:
    row = parse_object(line, place, example=ROW)
    if "texts" not in row:
        text = string_field(row, "text", place)
        if text is None:
            raise StartupError(f'{place}: no text; add a "text" or remove the line')
        return [text]
    texts = row["texts"]
    if not isinstance(texts, list) or not all(
        isinstance(text, str) and not LONE_SURROGATE.search(text) for text in texts
    ):
        raise StartupError(f'{place}: "texts" is no list of texts; write ["…", "…"]')
    return texts


def _check(text: str, place: str) -> None:
    """Refuse here what the service would refuse, since it cannot say in which line it stands."""
    try:
        parse(ClassifyRequest, to_json({"text": text}))
    except IntentGraphError as error:
        raise StartupError(f"{place}: {error.detail}") from None


def _name(file: Path) -> str:
    return "standard input" if str(file) == "-" else str(file)
