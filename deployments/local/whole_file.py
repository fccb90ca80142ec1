"""A file that is there whole or as it was before."""

from __future__ import annotations

import gzip
import sys
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from deployments.core.errors import StartupError
from deployments.core.replaced_file import replacing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def written_whole(file: Path) -> Iterator[IO[bytes]]:
    """A file to write: beside its place, and put there, on disk, when the block ends without an error.

    Compressed if its name ends in `.gz`; for its owner only, since it holds what people wrote. `-` is standard output,
    which, like a pipe or a device, is written as it goes.

    Raises:
        StartupError: it cannot be written.
    """
    try:
        if str(file) == "-":
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        elif file.exists() and not file.is_file():
            with file.open("wb") as open_file:
                yield open_file
        else:
            with replacing(file.resolve()) as draft, _packed(draft, file) as packed:
                yield packed
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StartupError(f"{file}: cannot be written ({error.strerror}); choose another place") from error


@contextmanager
def _packed(draft: IO[bytes], file: Path) -> Iterator[IO[bytes]]:
    if file.suffix != ".gz":
        yield draft
        return
    with gzip.GzipFile(fileobj=draft, mode="wb", filename=file.stem) as packed:
        yield packed  # type: ignore[misc]
