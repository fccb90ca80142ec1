"""What the commands write into a README: tables in Markdown, between marks, with the machine they were measured on."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from loadgen.machine import machine, versions


def stamp() -> str:
    """The day and the machine: `2026-11-25, AMD EPYC, 2 cores, 8 GiB, Python 3.11.9, Ray 2.60.0, torch 2.13.0+cpu`."""
    here, found = machine(), versions()
    return (
        f"{time.strftime('%Y-%m-%d')}, {here.processor}, {here.cores} cores, {here.memory_gib:.0f} GiB, "
        f"Python {found['python']}, Ray {found['ray']}, torch {found['torch']}"
    )


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write_into(document: Path, mark: str, text: str) -> None:
    """Put a text between its marks, `<!-- mark -->` and `<!-- /mark -->`.

    Raises:
        ValueError: the file has no such marks.
    """
    before, after = _around(document, mark)
    document.write_text(f"{before}<!-- {mark} -->\n{text}\n<!-- /{mark} -->{after}", encoding="utf-8")


def check_marks(document: Path, mark: str) -> None:
    """Refuse before a measurement what would lose it afterwards.

    Raises:
        ValueError: the file has no such marks.
        OSError: there is no such file.
    """
    _around(document, mark)


def _around(document: Path, mark: str) -> tuple[str, str]:
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    before, found, rest = document.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{document} has no {begin} and {end} to put the table between")
    return before, after
