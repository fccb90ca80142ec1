"""The feedback log's own store, for backing it up and restoring it beside or without a service."""

from __future__ import annotations

import gzip
import zlib
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING

from deployments.core.connection import connect
from deployments.core.errors import IntentGraphError, StartupError, Unavailable
from deployments.core.feedback_backup import backup
from deployments.core.feedback_restore import Contents, Restored, check, restore
from deployments.core.log_layout import LOG
from deployments.core.log_store import LogStore
from deployments.local.instance import state_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

TIMEOUT_S = 10.0
"""Of one round trip. A page of long records is some MB."""

_REMEDY = "if it needs a password or TLS options, give its URL with them as --store or FEEDBACK_REDIS_URL"
"""Of the service running here only the URL without them is noted."""


def store_url(given: str | None) -> str:
    """The URL given, else that of the service running here.

    Raises:
        StartupError: neither.
    """
    if given:
        return given
    state = state_file().read()
    if state is None or not state.alive or "feedback" not in state.stores:
        raise StartupError("no service runs here; name the log's store with --store or FEEDBACK_REDIS_URL")
    return state.stores["feedback"]


async def write_backup(url: str, file: IO[bytes], told: Callable[[int], None]) -> int:
    """Write a backup of the log into a file; give the number of its entries. `told` hears how many are written.

    Raises:
        StartupError: the store does not answer, or its URL names none.
    """
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    written = 0
    async with _store(url) as store, aclosing(backup(store, made_at)) as lines:
        async for line in lines:
            file.write(line)
            written += 1
            told(written - 1)
    return written - 2  # its first line and its last


def checked(file: Path) -> Contents:
    """Read a backup to its end. Raises StartupError: it cannot be read, or is not as it was made."""
    try:
        return check(_lines(file))
    except StartupError as error:
        raise StartupError(f"{file}: {error}") from None


async def restore_backup(
    url: str, file: Path, contents: Contents, told: Callable[[int], None], *, unsafe: bool = False
) -> Restored:
    """Write the entries of a checked backup to a store; `told` hears how many are there.

    Raises:
        StartupError: the log there is another, or the store does not answer or would not keep it.
    """
    async with _store(url, unsafe=unsafe) as store:
        return await restore(store, contents, _lines(file), told)


@asynccontextmanager
async def _store(url: str, *, unsafe: bool = False) -> AsyncIterator[LogStore]:
    try:
        client = connect(url, timeout_s=TIMEOUT_S, key=LOG)
    except StartupError as error:
        raise StartupError(f"the URL of the log's store names none: {error}") from None
    async with aclosing(client):
        try:
            yield LogStore(client, timeout_s=TIMEOUT_S, unsafe=unsafe)
        except Unavailable as error:
            raise StartupError(f"{error.detail}; {_REMEDY}") from None
        except IntentGraphError as error:
            raise StartupError(error.detail) from None


def _lines(file: Path) -> Iterator[bytes]:
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            yield from lines
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise StartupError("it is no gzip file, or a torn one; take another backup") from None
    except OSError as error:
        raise StartupError(f"it cannot be read ({error.strerror}); check the path") from None
