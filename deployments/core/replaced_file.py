"""A file that is replaced at once: whoever reads it finds it whole, as it was before or as it is now."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def replacing(file: Path, *, keep_access: bool = False) -> Iterator[IO[bytes]]:
    """A draft beside the file, put in its place, on disk, when the block ends without an error; else it goes.

    It is its writer's, mode 0600; with `keep_access` it has owner, group and mode of the file it replaces, if there is
    one, so that another user who could read that one can read this one. The links to it are not followed.

    Raises:
        OSError: it cannot be written; PermissionError also where this user may not give it to its owner.
    """
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "wb") as draft:
            if keep_access and file.exists():
                _give_access_of(file.stat(), descriptor)
            yield draft
            draft.flush()
            os.fsync(descriptor)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(file.parent)


def _give_access_of(replaced: os.stat_result, descriptor: int) -> None:
    os.fchown(descriptor, replaced.st_uid, replaced.st_gid)
    os.fchmod(descriptor, replaced.st_mode & 0o777)


def _sync_folder(folder: Path) -> None:
    """A file's name is its folder's content: without this a crash may bring the file before back."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
