"""What a command keeps of what it found: everything as JSON, and its table in a README."""

from pathlib import Path

from pydantic import BaseModel

from loadgen.cli import check_places
from loadgen.readme import check_marks, write_into
from loadgen.report import write_whole


def check_keeping(out: Path | None, readme: Path | None, mark: str) -> None:
    """Refuse before a measurement what would lose it afterwards.

    Raises:
        ValueError: the README has no such marks.
        OSError: there is no such file or folder.
    """
    check_places(out)
    if readme:
        check_marks(readme, mark)


def keep(found: BaseModel, out: Path | None, readme: Path | None, mark: str, markdown: str) -> None:
    """Write the files that were asked for."""
    if out:
        write_whole(out, found.model_dump_json(indent=1) + "\n")
    if readme:
        write_into(readme, mark, markdown)
