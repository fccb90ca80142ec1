"""The feedback log: a stream on a store that keeps what it acknowledges.

Written by `FeedbackLog.append`, followed by `core.corrections.Follower`. Who may submit what, and whether a correction
is applied, is decided before a `Submission` is made; gathering submissions into groups, and counting outcomes for the
dashboards, is the caller's too.

Keys, all in the hash slot of `{ig:log}`, so that one script may write them on Redis Cluster:

| key                     | type   | holds                                                                            |
|-------------------------|--------|----------------------------------------------------------------------------------|
| `{ig:log}`              | stream | entries, see below; an id is the feedback id, orders the log and is its cursor   |
| `{ig:log}:counts`       | hash   | `<day>:["<feedback_type>","<original_intent>","<correct_intent>"]` → records     |
| `{ig:log}:key:<sha256>` | string | `<id> <applied> <digest of the record>` for that scope and idempotency key       |
| `{ig:log}:cursor`       | string | id of the last entry that was trained on; absent: none was                       |

`day` is days since 1970 of the entry's id, which is the store's clock: an entry and its count always leave together.
An idempotency key expires at the moment its record may be trimmed.

| field of an entry | holds                                                                                          |
|-------------------|------------------------------------------------------------------------------------------------|
| `kind`            | `feedback`; readers ignore other kinds, so that a newer writer never stops an older reader     |
| `text_key`        | the text's correction key                                                                      |
| `applied`         | `1` if the record changes what the service answers, else `0`                                   |
| `scope`, `key`    | who submitted it, and the name of its idempotency key                                          |
| `record`          | the record as submitted, JSON                                                                  |
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections import Counter
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, TypeVar

from deployments.core.errors import IntentGraphError, InvalidInput, KeyConflict, StoreRefused, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping, Sequence

    from redis.asyncio import Redis

LOG = "{ig:log}"
COUNTS = f"{LOG}:counts"
CURSOR = f"{LOG}:cursor"
DAY_S = 86_400

_PAGE = 1000
_REQUIRED = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",  # `yes` suspends `always` while the file is rewritten
    "maxmemory-policy": "noeviction",
}

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Submission:
    """A validated feedback record on its way to the log.

    `record` is JSON-able and exactly what the caller sent: its digest decides whether a repeated `idempotency_key` is
    a duplicate or a conflict, so nothing that differs between two tries (a time of arrival) belongs in it. It has at
    least `text`, `original_intent`, `correct_intent` and `feedback_type`. `applied` says whether it changes answers.
    Idempotency keys of different `scope`s never meet.
    """

    record: Mapping[str, object]
    text_key: str
    applied: bool
    idempotency_key: str
    scope: str = ""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The record is on disk. For a duplicate, `feedback_id` and `applied` are those of the first submission."""

    feedback_id: str
    duplicate: bool
    applied: bool


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry as read back; `record` is still JSON, since most readers need it for few entries."""

    feedback_id: str
    kind: str
    text_key: str
    applied: bool
    record: str

    @classmethod
    def parse(cls, entry_id: bytes, fields: Mapping[bytes, bytes]) -> LogEntry:
        """Read an entry of any kind. Raises ValueError for bytes that are not UTF-8."""
        return cls(
            feedback_id=entry_id.decode(),
            kind=fields.get(b"kind", b"").decode(),
            text_key=fields.get(b"text_key", b"").decode(),
            applied=fields.get(b"applied") == b"1",
            record=fields.get(b"record", b"").decode(),
        )

    @property
    def accepted_at_s(self) -> float:
        """When the store took it, in seconds since 1970 on the store's clock."""
        return _milliseconds(self.feedback_id) / 1000


@dataclass(frozen=True, slots=True)
class LogStats:
    """Counts over the retained log.

    `pairs` lists corrections as (original intent, correct intent, count), most frequent first; `by_intent` maps an
    original intent to (corrections, confirmations); `pending` counts the records after the training cursor.
    """

    total: int
    corrections: int
    confirmations: int
    pairs: list[tuple[str, str, int]]
    by_intent: dict[str, tuple[int, int]]
    pending: int


class FeedbackLog:
    """Appends records, counts them, trims them. Any number of writers may do so at once: each write is one script.

    Args:
        client: a client of the log's store that answers in bytes (`decode_responses=False`). It should not retry by
            itself: a retry within the client is safe, but is reported as a duplicate.
        timeout_s: bound of each round trip.
        retention_days: whole days a record is kept after the day it came.
        unsafe: acknowledge records also on a store that may lose them.
    """

    def __init__(self, client: Redis, *, timeout_s: float, retention_days: int = 30, unsafe: bool = False) -> None:
        self._client = client
        self._unsafe = unsafe
        self._known_durable = False
        self._timeout_s = timeout_s
        self._retention_days = retention_days
        self._append_source = _script("append_feedback.lua")
        self._append_sha = hashlib.sha1(self._append_source.encode(), usedforsecurity=False).hexdigest()
        self._trim_source = _script("trim_feedback.lua")

    async def append(self, submissions: Sequence[Submission]) -> list[Receipt | IntentGraphError]:
        """Write a group of submissions in one round trip with one fsync; each is whole or absent by itself.

        Gives one outcome a submission, in order: a `Receipt`, or the error to answer with. `Unavailable` (503) means
        unconfirmed, perhaps written: the same submission may be sent again and is counted once. `KeyConflict` (422):
        the key was used with another record. Never raises for the store's sake.
        """
        try:
            await self.require_durable()
        except (StoreRefused, Unavailable) as error:
            return [Unavailable(str(error)) for _ in submissions]
        calls = [_script_arguments(submission, self._retention_days) for submission in submissions]
        replies = iter(await self._run_script([call for call in calls if not isinstance(call, IntentGraphError)]))
        return [call if isinstance(call, IntentGraphError) else _outcome(next(replies)) for call in calls]

    async def require_durable(self) -> None:
        """Check the store before its first acknowledgement, and again when another server may have taken its place.

        Raises `StoreRefused`, unless the log is told to be `unsafe`, and `Unavailable`.
        """
        if self._known_durable:
            return
        try:
            await self.check_durability()
        except StoreRefused as refusal:
            if not self._unsafe:
                raise
            _logger.warning("feedback may be lost: %s", refusal)
        self._known_durable = True

    async def _run_script(self, calls: Sequence[tuple[bytes, ...]]) -> Sequence[Any]:
        """Run the script once a call; a reply is what the script gave, or the exception in its place."""
        from redis.exceptions import NoScriptError, RedisError

        try:
            async with asyncio.timeout(self._timeout_s):
                replies = await self._run_transaction(calls)
                if any(isinstance(reply, NoScriptError) for reply in replies):  # the server is fresh: nothing ran
                    self._known_durable = False
                    await self.require_durable()
                    await self._client.script_load(self._append_source)
                    replies = await self._run_transaction(calls)
        except (RedisError, OSError, StoreRefused, Unavailable) as error:  # TimeoutError is an OSError
            replies = [error] * len(calls)
            self._known_durable = False
        failures = [reply for reply in replies if isinstance(reply, Exception)]
        if failures:
            _logger.warning("%d of %d records not confirmed, first: %r", len(failures), len(calls), str(failures[0]))
        return replies

    async def _run_transaction(self, calls: Sequence[tuple[bytes, ...]]) -> list[Any]:
        """One round trip, one fsync.

        MULTI is there for the fsync alone: the server reads some 16 KiB at a time and syncs after each, so that 128
        records of 1 kB cost five fsyncs in a plain pipeline and one here. A call that fails inside still fails alone.
        """
        pipeline = self._client.pipeline(transaction=True)
        for call in calls:
            pipeline.evalsha(self._append_sha, 3, *call)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies

    async def stats(self) -> LogStats:
        """Count the retained log, exact as of one moment.

        Costs one round trip; with a training cursor, also the entries after it on its own day. Raises `Unavailable`.
        """
        pipeline = self._client.pipeline(transaction=True)
        pipeline.hgetall(COUNTS)
        pipeline.get(CURSOR)
        pipeline.xrevrange(LOG, count=1)
        counts, cursor, newest = await self._ask(pipeline.execute())
        tallies = [(*_parse_counter(field), int(count)) for field, count in counts.items()]
        return _stats(tallies, await self._pending(tallies, cursor, newest))

    async def _pending(
        self, tallies: Sequence[tuple[int, str, str, str, int]], cursor: bytes | None, newest: Sequence[Any]
    ) -> int:
        """Count what came after the cursor: later days by their counters, the cursor's own day entry by entry."""
        if cursor is None:
            return sum(count for *_, count in tallies)
        if not newest:
            return 0
        cursor_day, newest_id = _day(cursor.decode()), newest[0][0].decode()
        later = sum(count for day, *_, count in tallies if day > cursor_day)
        day_end = str((cursor_day + 1) * DAY_S * 1000 - 1)
        return later + await self._count_between(
            cursor.decode(), newest_id if _day(newest_id) == cursor_day else day_end
        )

    async def _count_between(self, after: str, last: str) -> int:
        count = 0
        while page := await self._page(f"({after}", last):
            count += sum(fields.get(b"kind") == b"feedback" for _, fields in page)
            after = page[-1][0].decode()
        return count

    async def _page(self, first: str, last: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
        page: Any = await self._ask(self._client.xrange(LOG, min=first, max=last, count=_PAGE))
        return list(page)

    async def trim(self, now_s: float) -> int:
        """Remove the days that are older than the retention, entries and counters in one script; give how many entries.

        `now_s` is the store's time (`await log.now_s()`): a wrong clock on this machine must not empty the log. Safe to
        run again and from several places at once. Blocks the store for about 0.3 s a million entries. Raises
        `Unavailable`.
        """
        first_kept = int(now_s // DAY_S) - self._retention_days
        removed: int = await self._ask(self._client.eval(self._trim_source, 2, LOG, COUNTS, str(first_kept)))
        return removed

    async def now_s(self) -> float:
        """Tell the store's time, seconds since 1970. Raises `Unavailable`."""
        return seconds(await self._ask(self._client.time()))

    async def check_durability(self) -> None:
        """Raise `StoreRefused` unless the store keeps what it acknowledges; the message names each setting to change.

        Where the server does not show its settings (managed services forbid CONFIG), what INFO tells is checked and a
        warning names the rest. Raises `Unavailable` if the store is away.
        """
        found = await self._settings()
        wrong = [
            f"`{name} {wanted}` (it is {found[name]})"
            for name, wanted in _REQUIRED.items()
            if name in found and found[name] != wanted
        ]
        if wrong:
            raise StoreRefused(f"the feedback store would lose acknowledged records; set {', '.join(wrong)} on it")
        unseen = [f"`{name} {wanted}`" for name, wanted in _REQUIRED.items() if name not in found]
        if unseen:
            _logger.warning("the feedback store hides its settings; make sure of %s", ", ".join(unseen))

    async def _settings(self) -> Mapping[str, str]:
        from redis.exceptions import ResponseError

        try:
            shown = await self._ask(self._client.config_get(*_REQUIRED), let_through=ResponseError)
        except ResponseError:
            return await self._settings_from_info()
        return {str(name): str(value) for name, value in shown.items()}

    async def _settings_from_info(self) -> Mapping[str, str]:
        from redis.exceptions import ResponseError

        try:
            info = await self._ask(self._client.info(), let_through=ResponseError)
        except ResponseError:
            return {}
        return {"appendonly": "yes" if info["aof_enabled"] else "no", "maxmemory-policy": str(info["maxmemory_policy"])}

    async def _ask(self, request: Awaitable[_T], *, let_through: type[Exception] | tuple[()] = ()) -> _T:
        """Await one round trip in bounded time; turn the store's failures, but `let_through`, into `Unavailable`."""
        from redis.exceptions import RedisError

        try:
            async with asyncio.timeout(self._timeout_s):
                return await request
        except let_through:
            raise
        except (RedisError, OSError) as error:
            raise Unavailable(f"the feedback log does not answer ({type(error).__name__})") from error


def seconds(time: tuple[int, int]) -> float:
    """Join the two halves of the store's TIME: seconds and microseconds."""
    return time[0] + time[1] / 1_000_000


def _script(name: str) -> str:
    return resources.files("deployments.core").joinpath(name).read_text(encoding="utf-8")


def _script_arguments(submission: Submission, retention_days: int) -> tuple[bytes, ...] | InvalidInput:
    """Encode here what would otherwise fail in the client, and there fail the whole group."""
    try:
        record = _json(submission.record)
        return (
            LOG.encode(),
            COUNTS.encode(),
            f"{LOG}:key:{_sha256(_json([submission.scope, submission.idempotency_key]))}".encode(),
            _sha256(_json(submission.record, sort_keys=True)).encode(),
            str(retention_days).encode(),
            b"1" if submission.applied else b"0",
            submission.text_key.encode(),
            submission.scope.encode(),
            _json([submission.record[name] for name in ("feedback_type", "original_intent", "correct_intent")]),
            record,
        )
    except (KeyError, TypeError, ValueError) as error:
        return InvalidInput(f"the record cannot be written: {error}")


def _json(value: object, *, sort_keys: bool = False) -> bytes:
    """Encode as JSON in UTF-8. Raises ValueError for NaN and lone surrogates, TypeError for what JSON has not."""
    encoder = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    return json.dumps(value, sort_keys=sort_keys, **encoder).encode()  # type: ignore[arg-type]


def _sha256(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()


def _outcome(reply: Any) -> Receipt | IntentGraphError:
    """Read a reply of the script. Whatever is not its own word is unconfirmed: never an acknowledgement."""
    if isinstance(reply, Exception):
        return Unavailable(
            f"the feedback log did not confirm the record ({type(reply).__name__}); send it again with the same key"
        )
    status, entry_id, applied = reply
    if status == b"conflict":
        return KeyConflict("the idempotency key was used before with another record; use a new key for a new record")
    return Receipt(entry_id.decode(), duplicate=status == b"duplicate", applied=applied == b"1")


def _milliseconds(entry_id: str) -> int:
    return int(entry_id.partition("-")[0])


def _day(entry_id: str) -> int:
    return _milliseconds(entry_id) // (DAY_S * 1000)


def _parse_counter(field: bytes) -> tuple[int, str, str, str]:
    """Split a counter's name into day, feedback type, original and correct intent."""
    day, _, name = field.decode().partition(":")
    feedback_type, original, correct = json.loads(name)
    return int(day), feedback_type, original, correct


def _stats(tallies: Sequence[tuple[int, str, str, str, int]], pending: int) -> LogStats:
    pairs: Counter[tuple[str, str]] = Counter()
    corrections: Counter[str] = Counter()
    confirmations: Counter[str] = Counter()
    for _, feedback_type, original, correct, count in tallies:
        if feedback_type == "correction":
            pairs[original, correct] += count
            corrections[original] += count
        else:
            confirmations[original] += count
    return LogStats(
        total=corrections.total() + confirmations.total(),
        corrections=corrections.total(),
        confirmations=confirmations.total(),
        pairs=sorted(((*pair, count) for pair, count in pairs.items()), key=lambda row: (-row[2], row[:2])),
        by_intent={
            intent: (corrections[intent], confirmations[intent]) for intent in sorted(corrections | confirmations)
        },
        pending=pending,
    )
