"""A backup of the feedback log: the form of its file, and how it is read from a store. `feedback_restore` puts it back.

    {"format": "intentgraph feedback log", "version": 1, "made_at": …, "last_id": …, "training_cursor": …}
    {"id": …, "fields": {…}, "record": …, "key": [value, ms]}     a line an entry, in the order of the log
    {"entries": …, "sha256": …}                                   of all bytes before this line

`fields` are those of the stream, whatever the kind. What the scripts wrote with an entry stands beside them: `record`,
the JSON that was submitted, as a string; `key`, the value of the idempotency key and when it expires, ms since 1970.
Counters, what waits and what was decided follow from these. Bytes that are not UTF-8 come out as they went in.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from dataclasses import fields as fields_of
from typing import TYPE_CHECKING, Any

from deployments.core.errors import StartupError
from deployments.core.log_layout import CURSOR, FIRST_ID, LOG, day_of, is_id, records_key

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from deployments.core.log_store import LogStore, RawEntry

FORMAT = "intentgraph feedback log"
VERSION = 1

_REVIEWS = ("approval", "rejection")
_OF_A_RECORD = ("feedback", "approval")
"""Entries that go with their record: an approval without it would bring back what was deleted."""
_KEYS = f"{LOG}:key:"


@dataclass(frozen=True, slots=True)
class Header:
    """What a backup is of. `last_id` is the last entry there was when it began."""

    made_at: str
    last_id: str
    training_cursor: str | None

    def to_line(self) -> bytes:
        """As the first line."""
        return _line({"format": FORMAT, "version": VERSION} | asdict(self))

    @classmethod
    def parse(cls, line: bytes) -> Header:
        """Read the first line. Raises StartupError: it is none, or one of another version."""
        try:
            given = _object(line)
        except ValueError:
            given = {}
        if given.get("format") != FORMAT:
            raise StartupError("it is no backup of a feedback log; `intents feedback backup` makes one")
        if given.get("version") != VERSION:
            raise StartupError(f"it has version {given.get('version')!r}; this program reads version {VERSION}")
        return cls(*(given.get(each.name) for each in fields_of(cls)))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """The value of one, and when it expires: ms since 1970."""

    value: str
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class BackupEntry:
    """An entry of the log with what belongs to it alone."""

    entry_id: str
    fields: Mapping[str, str]
    record: str | None = None
    key: IdempotencyKey | None = None

    def to_line(self) -> bytes:
        """As a line of the file."""
        written: dict[str, object] = {"id": self.entry_id, "fields": self.fields}
        if self.record is not None:
            written["record"] = self.record
        if self.key is not None:
            written["key"] = [self.key.value, self.key.expires_at_ms]
        return _line(written)

    @classmethod
    def parse(cls, line: bytes) -> BackupEntry:
        """Read a line of the file. Raises ValueError: it is no entry, or a feedback without what belongs to it."""
        given = _object(line)
        key = given.get("key")
        try:
            entry = cls(given["id"], given["fields"], given.get("record"), IdempotencyKey(*key) if key else None)
        except (KeyError, TypeError):
            raise ValueError("it is no entry") from None
        if not entry._is_whole():
            raise ValueError(f"entry {entry.entry_id!r} is not whole")
        return entry

    @property
    def record_id(self) -> str:
        """The record it is, or decides about."""
        return _about(self.entry_id, self.fields)

    def _is_whole(self) -> bool:
        if not (isinstance(self.entry_id, str) and is_id(self.entry_id) and isinstance(self.fields, dict)):
            return False
        kind = self.fields.get("kind")
        if kind == "feedback" and (self.record is None or not self.fields.keys() >= {"state", "counter", "key"}):
            return False
        if kind in _REVIEWS and not is_id(self.fields.get("of", "")):
            return False
        return self.key is None or self.fields.get("key", "").startswith(_KEYS)


@dataclass(frozen=True, slots=True)
class Trailer:
    """The last line: by it a whole file is told from a torn one."""

    entries: int
    sha256: str

    def to_line(self) -> bytes:
        """As the last line."""
        return _line(asdict(self))

    @classmethod
    def parse(cls, line: bytes) -> Trailer | None:
        """Read a line; None for one that is no last line."""
        try:
            return cls(**_object(line))
        except (TypeError, ValueError):
            return None


async def backup(store: LogStore, made_at: str) -> AsyncGenerator[bytes]:
    """The lines of a backup, read a page at a time while others write.

    Entries that come after it began are left out, and records that are deleted before they are read. Raises
    `Unavailable`.
    """
    header = await _header(store, made_at)
    digest, count = hashlib.sha256(header.to_line()), 0
    yield header.to_line()
    async for page in store.raw_entries(FIRST_ID, header.last_id):
        for entry in await _with_what_belongs(store, page):
            line = entry.to_line()
            digest.update(line)
            count += 1
            yield line
    yield Trailer(count, digest.hexdigest()).to_line()


async def _header(store: LogStore, made_at: str) -> Header:
    pipeline = store.client.pipeline(transaction=True)
    pipeline.xrevrange(LOG, count=1)
    pipeline.get(CURSOR)
    newest, cursor = await store.ask(pipeline.execute())
    return Header(made_at, newest[0][0].decode() if newest else FIRST_ID, cursor.decode() if cursor else None)


async def _with_what_belongs(store: LogStore, page: Sequence[RawEntry]) -> list[BackupEntry]:
    """The entries of a page with record and idempotency key, as of one moment; without those of deleted records."""
    entries = [(entry_id.decode(), {_text(name): _text(raw[name]) for name in raw}) for entry_id, raw in page]
    pipeline = store.client.pipeline(transaction=True)
    for entry_id, fields in entries:
        key: Any = to_bytes(fields.get("key", _KEYS))
        about = _about(entry_id, fields)
        pipeline.hget(records_key(day_of(about)), about)
        pipeline.get(key)
        pipeline.pexpiretime(key)
    replies = iter(await store.ask(pipeline.execute()))
    return [
        BackupEntry(
            entry_id,
            fields,
            record=_text(record) if record is not None and fields.get("kind") == "feedback" else None,
            key=_own_key(entry_id, fields, value, expires_at_ms),
        )
        for (entry_id, fields), record, value, expires_at_ms in zip(entries, replies, replies, replies, strict=True)
        if record is not None or fields.get("kind") not in _OF_A_RECORD
    ]


def _about(entry_id: str, fields: Mapping[str, str]) -> str:
    return fields.get("of", entry_id) if fields.get("kind") in _REVIEWS else entry_id


def _own_key(
    entry_id: str, fields: Mapping[str, str], value: bytes | None, expires_at_ms: int
) -> IdempotencyKey | None:
    """The idempotency key if it still speaks of this entry: once expired, it may have been used again."""
    if value is None or expires_at_ms < 0:
        return None
    is_own = value == b"gone" if fields.get("kind") == "deletion" else value.startswith(f"{entry_id} ".encode())
    return IdempotencyKey(_text(value), expires_at_ms) if is_own else None


def _text(value: bytes) -> str:
    return value.decode(errors="surrogateescape")


def to_bytes(text: str) -> bytes:
    """What a part of an entry is in the store."""
    return text.encode(errors="surrogateescape")


def _line(value: Mapping[str, object]) -> bytes:
    return to_bytes(json.dumps(value, ensure_ascii=False, separators=(",", ":"))) + b"\n"


def _object(line: bytes) -> dict[str, Any]:
    try:
        given = json.loads(_text(line))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(given, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 — what is read is wrong, not the call
    return given
