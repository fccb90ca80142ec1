"""Putting a backup of the feedback log back: first the whole file is checked, then its entries are written.

Entries keep their ids, and what the log's own scripts would have written with them is written with them, a batch whole
or not at all. So a restore that was broken off leaves a log that is a beginning of the file's, and goes on from there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import TYPE_CHECKING

from deployments.core.errors import StartupError
from deployments.core.feedback_backup import BackupEntry, Header, Trailer, to_bytes
from deployments.core.log_layout import COUNTS, CURSOR, FIRST_ID, LOG, PENDING, day_of, is_id, sortable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from deployments.core.log_store import LogStore

MAX_BATCH = 200
MAX_BATCH_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Contents:
    """What a whole backup has."""

    header: Header
    ids: list[str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Restored:
    """How many entries were written, and how many an attempt before this one had."""

    written: int
    before: int


def check(lines: Iterable[bytes]) -> Contents:
    """Read a backup to its end.

    Raises:
        StartupError: what is wrong with it: another file, another version, torn, or changed.
    """
    reading = iter(lines)
    first = next(reading, b"")
    header = Header.parse(first)
    _require_cursor(header)
    digest = hashlib.sha256(first)
    ids: list[str] = []
    trailer: Trailer | None = None
    for line in reading:
        if trailer is not None:
            raise StartupError("it goes on after its end; take another backup")
        trailer = Trailer.parse(line)
        if trailer is None:
            digest.update(line)
            ids.append(_entry_id(line, len(ids)))
    _require_whole(trailer, Trailer(len(ids), digest.hexdigest()))
    _require_order(ids)
    return Contents(header, ids)


def _require_cursor(header: Header) -> None:
    cursor = header.training_cursor
    if cursor is not None and not (isinstance(cursor, str) and is_id(cursor)):
        raise StartupError(f"its training cursor {cursor!r} is no id; take another backup")


def _entry_id(line: bytes, before: int) -> str:
    if not line.endswith(b"\n"):
        raise StartupError(f"it is torn after {before:,} entries; take another backup")
    try:
        return _entry(line).entry_id
    except ValueError as error:
        raise StartupError(f"its line {before + 2:,} is damaged ({error}); take another backup") from None


def _entry(line: bytes) -> BackupEntry:
    """Read a line whose parts are strings. Raises ValueError: it is no entry, or not such a one."""
    try:
        entry = BackupEntry.parse(line)
    except (AttributeError, TypeError):  # of a part that is no string
        raise ValueError("it is no entry") from None
    parts = [*entry.fields.values(), *([] if entry.record is None else [entry.record])]
    parts += [entry.key.value] if entry.key else []
    if not all(isinstance(part, str) for part in parts):
        raise ValueError(f"entry {entry.entry_id!r} holds what is no string")
    if entry.key and not isinstance(entry.key.expires_at_ms, int):
        raise ValueError(f"entry {entry.entry_id!r} has a key that expires at no time")
    return entry


def _require_whole(says: Trailer | None, found: Trailer) -> None:
    if says is None:
        raise StartupError(f"it is torn after {found.entries:,} entries; take another backup")
    if says != found:
        raise StartupError("it was changed after it was made: its SHA-256 is another; take another backup")


def _require_order(ids: list[str]) -> None:
    ordered = [sortable(entry_id) for entry_id in (FIRST_ID, *ids)]
    if any(later <= earlier for earlier, later in pairwise(ordered)):
        raise StartupError("its entries are not in the order of a log; take another backup")


async def restore(
    store: LogStore,
    contents: Contents,
    lines: Iterable[bytes],
    told: Callable[[int], None],
    *,
    max_batch: int = MAX_BATCH,
) -> Restored:
    """Write the entries of a checked backup, whose `lines` are read again; `told` hears how many are there.

    Raises:
        StartupError: the log has other entries, or another program writes to it.
        StoreRefused: the store would not keep it.
        Unavailable: the store does not answer; started again, it goes on.
    """
    await store.require_durable()
    before = done = await _already_there(store, contents.ids)
    last_id = contents.ids[done - 1] if done else FIRST_ID
    again = islice(lines, 1 + done, None)
    for batch in _batches(_same_entries(again, contents.ids[done:]), max_batch):
        told(done)
        await _write(store, last_id, batch)
        done += len(batch)
        last_id = batch[-1].entry_id
    if contents.header.training_cursor:
        await store.ask(store.client.set(CURSOR, contents.header.training_cursor, nx=True))
    return Restored(done - before, before)


async def _already_there(store: LogStore, ids: list[str]) -> int:
    """How many of the entries an earlier attempt wrote. Raises StartupError: the log is no beginning of theirs."""
    count = 0
    async for page in store.raw_entries(FIRST_ID):
        if [entry_id.decode() for entry_id, _ in page] != ids[count : count + len(page)]:
            raise StartupError(f"the log there has other entries; {_REMEDY}")
        count += len(page)
    left: int = await store.ask(store.client.exists(LOG, COUNTS, PENDING, CURSOR))
    if left and not count:
        raise StartupError(f"the log there is empty, but something of it is left; {_REMEDY}")
    return count


_REMEDY = (
    "restore into an empty store, or stop its service and empty it, which loses all it has: `redis-cli -u URL FLUSHDB`"
)


def _same_entries(lines: Iterable[bytes], ids: Sequence[str]) -> Iterator[tuple[BackupEntry, int]]:
    """Each entry with the bytes of its line. Raises StartupError: they are not those that were checked."""
    reading = iter(lines)
    for entry_id in ids:
        line = next(reading, b"")
        try:
            entry = _entry(line)
        except ValueError:
            raise StartupError(_CHANGED) from None
        if entry.entry_id != entry_id:
            raise StartupError(_CHANGED)
        yield entry, len(line)


_CHANGED = "the backup was changed while it was read; leave it as it is and restore again"


def _batches(entries: Iterable[tuple[BackupEntry, int]], max_batch: int) -> Iterator[list[BackupEntry]]:
    batch: list[BackupEntry] = []
    size = 0
    for entry, size_bytes in entries:
        batch.append(entry)
        size += size_bytes
        if len(batch) == max_batch or size > MAX_BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


async def _write(store: LogStore, last_id: str, batch: list[BackupEntry]) -> None:
    arguments: list[str | bytes] = [last_id, *(to_bytes(argument) for entry in batch for argument in _arguments(entry))]
    newest: bytes = await store.run("restore_feedback.lua", (LOG, COUNTS, PENDING), arguments)
    if newest.decode() != batch[-1].entry_id:
        raise StartupError(f"another program wrote to the log meanwhile; {_REMEDY}")


def _arguments(entry: BackupEntry) -> Iterator[str]:
    about = entry.record_id
    yield from (entry.entry_id, about, sortable(about), str(day_of(about)), entry.record or "")
    yield from (entry.key.value, str(entry.key.expires_at_ms)) if entry.key else ("", "")
    yield str(2 * len(entry.fields))
    for name, value in entry.fields.items():
        yield from (name, value)
