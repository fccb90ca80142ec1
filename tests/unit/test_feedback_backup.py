"""The form of a backup, and the feedback log's round trip through one, against a real Valkey server."""

from __future__ import annotations

import hashlib
import json
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis as BlockingRedis

from deployments.core.connection import connect
from deployments.core.corrections import Follower
from deployments.core.errors import Gone, StartupError, StoreRefused
from deployments.core.feedback_backup import BackupEntry, Header, IdempotencyKey, Trailer, backup
from deployments.core.feedback_log import FeedbackLog, Receipt
from deployments.core.feedback_reader import FeedbackReader
from deployments.core.feedback_restore import Restored, check, restore
from deployments.core.log_layout import DAY_S, FIRST_ID, LOG
from deployments.core.log_store import LogStore
from tests.unit.fakes import CountingMetrics
from tests.unit.feedback_rows import add_entry_of, submission
from tests.unit.test_corrections import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis.asyncio import Redis

    from tests.unit.conftest import StartValkey, ValkeyServer

MADE_AT = "2026-01-01T00:00:00Z"
part = st.binary(max_size=40).map(lambda value: value.decode(errors="surrogateescape"))
ids = st.builds("{}-{}".format, st.integers(0, 10**15), st.integers(0, 10**6))
keys = st.builds(IdempotencyKey, part, st.integers(0, 2**53))


@settings(max_examples=50)
@given(ids, st.dictionaries(part, part).map(lambda fields: fields | {"kind": "", "key": f"{LOG}:key:"}), part, keys)
def test_an_entry_is_the_same_after_its_line(
    entry_id: str, fields: dict[str, str], record: str, key: IdempotencyKey
) -> None:
    """Whatever bytes it has, in UTF-8 or not."""
    entry = BackupEntry(entry_id, fields, record, key)
    line = entry.to_line()

    assert BackupEntry.parse(line) == entry
    assert line.count(b"\n") == 1


async def lines_of(store: LogStore) -> list[bytes]:
    return [line async for line in backup(store, MADE_AT)]


async def put_back(store: LogStore, lines: Sequence[bytes]) -> Restored:
    return await restore(store, check(lines), lines, lambda _done: None)


async def everything(client: Redis) -> dict[bytes, tuple[Any, int]]:
    """All that is in a store, with when it expires."""
    reads = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"stream": client.xrange,
        b"zset": lambda key: client.zrange(key, 0, -1),
    }
    return {
        key: (await reads[await client.type(key)](key), await client.pexpiretime(key))
        async for key in client.scan_iter(count=1000)
    }


async def fill(log: FeedbackLog, client: Redis, store: LogStore) -> list[Receipt]:
    """A log of two days with records in every state and entries of every kind, and of one that is not known yet."""
    await add_entry_of(client, int(await store.now_s() // DAY_S) - 1)
    states = ("applied", "pending", "pending", "pending", "recorded", "applied", "pending")
    receipts = await log.append(
        [
            submission(str(n), text=f"Grüße {n}\n", state=state, correct="reasoning" if state == "recorded" else "x")
            for n, state in enumerate(states)
        ]
    )
    await log.review(receipts[1].feedback_id, "approved", by="ann")
    await log.review(receipts[2].feedback_id, "rejected")
    await log.review(receipts[6].feedback_id, "approved")
    await log.delete(receipts[5].feedback_id, by="bob")
    await log.delete(receipts[6].feedback_id)
    await client.xadd(LOG, {b"kind": b"future", b"\xff": b"\xfe"})
    await FeedbackReader(store).acknowledge(receipts[2].feedback_id)
    return receipts


async def test_a_restored_log_is_the_log(log: FeedbackLog, client: Redis, store: LogStore) -> None:
    """Every key of the store, its value and when it expires."""
    await fill(log, client, store)
    before = await everything(client)
    lines = await lines_of(store)
    await client.flushall()
    restored = await put_back(store, lines)

    assert restored == Restored(written=len(lines) - 2, before=0)
    assert await everything(client) == before
    assert len(before) == 14  # so the comparison is of something
    assert await FeedbackReader(store).recount() == {}


async def test_a_retry_after_a_restore_is_a_duplicate_and_one_of_a_deleted_record_is_gone(
    log: FeedbackLog, client: Redis, store: LogStore
) -> None:
    """As if nothing had happened."""
    receipts = await log.append([submission("kept"), submission("deleted")])
    await log.delete(receipts[1].feedback_id)
    lines = await lines_of(store)
    await client.flushall()
    await put_back(store, lines)
    kept, deleted = await log.append([submission("kept"), submission("deleted")])

    assert kept == Receipt(receipts[0].feedback_id, duplicate=True, state="applied")
    assert isinstance(deleted, Gone)


async def test_an_empty_log_is_backed_up_and_restored(client: Redis, store: LogStore) -> None:
    """It is a file all the same."""
    lines = await lines_of(store)

    assert len(lines) == 2
    assert await put_back(store, lines) == Restored(0, 0)
    assert await everything(client) == {}


async def test_what_comes_or_is_deleted_while_a_backup_runs_is_not_in_it(
    log: FeedbackLog, client: Redis, store: LogStore
) -> None:
    """The new record wholly, the deleted one too."""
    receipts = await log.append([submission(str(n)) for n in range(3)])
    reading = backup(store, MADE_AT)
    lines = [await anext(reading)]
    await log.append([submission("new")])
    await client.hdel(f"{LOG}:records:{int(await store.now_s() // DAY_S)}", receipts[1].feedback_id)
    lines += [line async for line in reading]
    await client.flushall()
    await put_back(store, lines)

    found = await FeedbackReader(store).page(FIRST_ID, 10)
    assert [record.entry.entry_id for record in found.records] == [receipts[n].feedback_id for n in (0, 2)]


async def test_a_key_that_was_used_again_for_a_newer_record_is_not_an_old_ones(
    log: FeedbackLog, client: Redis, store: LogStore
) -> None:
    """Else a restore would know a duplicate of a record that it has not."""
    [receipt] = await log.append([submission("k")])
    await log.delete(receipt.feedback_id)
    [key] = [key async for key in client.scan_iter(match=f"{LOG}:key:*")]
    await client.set(key, f"9999999999999-0 applied {'0' * 64}", px=60_000)

    [deletion] = (await lines_of(store))[1:-1]
    assert BackupEntry.parse(deletion).key is None


async def test_a_key_that_expired_since_the_backup_is_not_restored(
    log: FeedbackLog, client: Redis, store: LogStore
) -> None:
    """It would stay for ever."""
    [receipt] = await log.append([submission("k")])
    header, line, _ = await lines_of(store)
    entry = BackupEntry.parse(line)
    old = replace(entry, key=IdempotencyKey(entry.key.value, 1))
    await client.flushall()
    await put_back(store, sealed(header, old.to_line()))

    assert await client.exists(entry.fields["key"]) == 0
    assert (await log.append([submission("k")]))[0].feedback_id != receipt.feedback_id


def sealed(*lines: bytes) -> list[bytes]:
    """A file of these lines with the right end."""
    return [*lines, Trailer(len(lines) - 1, hashlib.sha256(b"".join(lines)).hexdigest()).to_line()]


async def test_a_restore_that_was_broken_off_goes_on(log: FeedbackLog, client: Redis, store: LogStore) -> None:
    """And one that is done does nothing more."""
    await fill(log, client, store)
    before = await everything(client)
    lines = await lines_of(store)
    await client.flushall()

    def breaking_off(done: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await restore(store, check(lines), lines, breaking_off, max_batch=2)
    assert await client.xlen(LOG) == 6
    assert await put_back(store, lines) == Restored(written=len(lines) - 8, before=6)
    assert await put_back(store, lines) == Restored(written=0, before=len(lines) - 2)
    assert await everything(client) == before


async def test_a_log_with_other_entries_is_left_alone(log: FeedbackLog, client: Redis, store: LogStore) -> None:
    """Older, newer or between: a restore writes only to a beginning of what the file has."""
    await log.append([submission(str(n)) for n in range(3)])
    lines = await lines_of(store)
    await log.append([submission("new")])
    untouched = await everything(client)
    with pytest.raises(StartupError, match="has other entries; restore into an empty store"):
        await put_back(store, lines)
    assert await everything(client) == untouched

    await client.delete(LOG)
    with pytest.raises(StartupError, match="something of it is left"):
        await put_back(store, lines)


async def test_a_restore_stops_when_another_program_writes_to_the_log(
    log: FeedbackLog, client: Redis, store: LogStore, server: ValkeyServer
) -> None:
    """Entries cannot be put before those that are there; what is there stays."""
    await log.append([submission(str(n)) for n in range(4)])
    lines = await lines_of(store)
    await client.flushall()

    def read_while_another_writes() -> Iterator[bytes]:
        for number, line in enumerate(lines):
            if number == 3:
                add_entry(server)
            yield line

    with pytest.raises(StartupError, match="another program wrote to the log meanwhile"):
        await restore(store, check(lines), read_while_another_writes(), lambda _done: None, max_batch=2)
    assert await client.xlen(LOG) == 3


def add_entry(server: ValkeyServer) -> None:
    with BlockingRedis(port=server.port) as other:
        other.xadd(LOG, {"kind": "other"})


CHANGED = {
    "damaged": lambda lines: [*lines[:2], b"x\n", *lines[3:]],
    "shorter": lambda lines: lines[:3],
    "torn": lambda lines: [*lines[:2], lines[2][:-9]],
    "of other entries": lambda lines: [*lines[:2], lines[2].replace(b'"id":"', b'"id":"9'), *lines[3:]],
}


@pytest.mark.parametrize("name", CHANGED)
async def test_a_backup_that_changes_after_it_was_checked_is_told(
    log: FeedbackLog, client: Redis, store: LogStore, name: str
) -> None:
    """In one line; with the file as it was, it goes on."""
    await log.append([submission(str(n)) for n in range(4)])
    lines = await lines_of(store)
    await client.flushall()
    with pytest.raises(StartupError, match="the backup was changed while it was read"):
        await restore(store, check(lines), CHANGED[name](lines), lambda _done: None, max_batch=1)
    assert (await put_back(store, lines)).before in {1, 2}
    assert await client.xlen(LOG) == 4


async def test_a_store_that_would_not_keep_it_is_refused(valkey_server: StartValkey) -> None:
    """Before anything is written."""
    careless = valkey_server("--appendfsync", "everysec")
    async with aclosing(connect(careless.url, timeout_s=2)) as client:
        store = LogStore(client, timeout_s=2)
        with pytest.raises(StoreRefused, match="appendfsync always"):
            await put_back(store, await lines_of(store))


FOREIGN = {
    "empty": ([], "is no backup"),
    "another file": ([b'{"text": "a", "intent": "b"}\n'], "is no backup"),
    "no JSON": ([b"\xff\x00\n"], "is no backup"),
    "a newer version": ([b'{"format":"intentgraph feedback log","version":2}\n'], "version 2; this program reads"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_backup_is_refused(name: str) -> None:
    """With what it is instead."""
    lines, said = FOREIGN[name]
    with pytest.raises(StartupError, match=said):
        check(lines)


def whole() -> list[bytes]:
    """A backup of two entries."""
    entries = [BackupEntry(f"{n}-0", {"kind": "deletion", "of": "1-0"}) for n in (5, 6)]
    return sealed(Header(MADE_AT, "6-0", None).to_line(), *(entry.to_line() for entry in entries))


def with_cursor(cursor: object) -> list[bytes]:
    return sealed(Header(MADE_AT, "6-0", cursor).to_line(), *whole()[1:-1])  # type: ignore[arg-type]


def with_entry(**parts: object) -> list[bytes]:
    entry = {"id": "5-0", "fields": {"kind": "deletion", "of": "1-0"}} | parts
    return sealed(whole()[0], json.dumps(entry).encode() + b"\n")


DAMAGED = {
    "a cursor that is no id": (lambda _: with_cursor("x"), "its training cursor 'x' is no id"),
    "a cursor that is a number": (lambda _: with_cursor(5), "its training cursor 5 is no id"),
    "a field that is a number": (lambda _: with_entry(fields={"kind": "deletion", "of": 1}), "holds what is no string"),
    "a record that is none": (lambda _: with_entry(record=[]), "holds what is no string"),
    "a key that is a number": (lambda _: with_entry(fields={"key": 1}, key=["gone", 1]), "it is no entry"),
    "a decision about a number": (lambda _: with_entry(fields={"kind": "approval", "of": 1}), "it is no entry"),
    "the value of a key a number": (
        lambda _: with_entry(fields={"key": f"{LOG}:key:"}, key=[1, 1]),
        "holds what is no string",
    ),
    "a key that expires at a word": (
        lambda _: with_entry(fields={"key": f"{LOG}:key:"}, key=["gone", "soon"]),
        "a key that expires at no time",
    ),
    "without its end": (lambda lines: lines[:-1], "torn after 2 entries"),
    "torn within a line": (lambda lines: [*lines[:2], lines[2][:-9]], "torn after 1 entries"),
    "torn after its header": (lambda lines: lines[:1], "torn after 0 entries"),
    "a line less": (lambda lines: [lines[0], *lines[2:]], "SHA-256 is another"),
    "a line changed": (lambda lines: [lines[0], lines[1].replace(b"5-0", b"4-0"), *lines[2:]], "SHA-256 is another"),
    "a header changed": (lambda lines: [lines[0].replace(b"6-0", b"7-0"), *lines[1:]], "SHA-256 is another"),
    "garbage in a line": (lambda lines: [lines[0], b"x\n", *lines[2:]], "line 2 is damaged"),
    "twice": (lambda lines: [*lines, *lines], "goes on after its end"),
    "out of order": (lambda lines: sealed(lines[0], lines[2], lines[1]), "not in the order of a log"),
    "half an entry": (
        lambda lines: sealed(lines[0], BackupEntry("5-0", {"kind": "feedback"}).to_line()),
        "entry '5-0' is not whole",
    ),
    "a key of another's": (
        lambda lines: sealed(lines[0], BackupEntry("5-0", {"key": "other"}, key=IdempotencyKey("gone", 1)).to_line()),
        "entry '5-0' is not whole",
    ),
    "an approval of nothing": (
        lambda lines: sealed(lines[0], BackupEntry("5-0", {"kind": "approval"}).to_line()),
        "entry '5-0' is not whole",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_backup_that_is_not_as_it_was_made_is_refused(name: str) -> None:
    """Before anything is written; as it was made it is taken."""
    change, said = DAMAGED[name]
    assert check(whole()).ids == ["5-0", "6-0"]
    with pytest.raises(StartupError, match=said):
        check(change(whole()))


async def test_a_follower_of_an_empty_log_sees_what_is_restored(
    log: FeedbackLog, client: Redis, store: LogStore, server: ValkeyServer
) -> None:
    """Entries keep their ids, and all of them come after where it waits."""
    await log.append([submission("1", correct="summarization")])
    lines = await lines_of(store)
    await client.flushall()
    follower = Follower(lambda: connect(server.url, timeout_s=1), metrics=CountingMetrics())
    await follower.start(2)
    await put_back(store, lines)
    await until(lambda: follower.held == 1)
    await follower.close()

    assert follower.get("ab" * 32).intent == "summarization"


async def test_a_follower_keeps_what_it_knew_of_a_log_that_is_replaced_until_it_connects_again(
    log: FeedbackLog, client: Redis, store: LogStore, server: ValkeyServer
) -> None:
    """Restored entries are before where it waits; hence the advice to restart services."""
    await log.append([submission("1", correct="summarization")])
    lines = await lines_of(store)
    await log.append([submission("2", correct="code_generation")])
    followers = [Follower(lambda: connect(server.url, timeout_s=1), metrics=CountingMetrics()) for _ in range(2)]
    await followers[0].start(2)
    await client.flushall()
    await put_back(store, lines)
    [after] = await log.append([submission("3", text="another")])
    await until(lambda: followers[0].held == 3)
    await followers[1].start(2)
    held = [follower.held for follower in followers]
    for follower in followers:
        await follower.close()

    assert after.duplicate is False
    assert held == [3, 2]
