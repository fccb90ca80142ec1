"""The feedback log: what writes to it. Each write is one script, whole or not at all, and on disk when it is answered.

Written by `FeedbackLog`, read by `feedback_reader.FeedbackReader`, followed by `corrections.Follower`; how it lies in
its store is `log_layout`'s. Who may submit what, and whether a correction is applied, is decided before a `Submission`
is made; gathering submissions into groups, and counting outcomes for the dashboards, is the caller's too.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from deployments.core.errors import (
    Conflict,
    Gone,
    IntentGraphError,
    InvalidInput,
    KeyConflict,
    NotFound,
    Unavailable,
)
from deployments.core.log_layout import (
    COUNTS,
    DAY_S,
    LOG,
    PENDING,
    canonical,
    day_of,
    is_id,
    records_key,
    reviews_key,
    sortable,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deployments.core.log_store import LogStore

State = Literal["applied", "pending", "recorded"]
"""Of a record as it is accepted: a correction that holds, one that waits for approval, or a confirmation."""
Verdict = Literal["approved", "rejected"]

_APPEND = "append_feedback.lua"
_CORRECTED = {"intent": "correct_intent", "complexity": "correct_complexity", "techniques": "correct_techniques"}

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Submission:
    """A validated feedback record on its way to the log.

    `record` is JSON-able and exactly what the caller sent: its digest decides whether a repeated `idempotency_key` is
    a duplicate or a conflict, so nothing that differs between two tries (a time of arrival) belongs in it. It has at
    least `text`, `original_intent`, `correct_intent` and `feedback_type`. `trusted` says whether one may learn from it.
    `by` names the caller: idempotency keys of different callers never meet.
    """

    record: Mapping[str, object]
    text_key: str
    state: State
    idempotency_key: str
    model_version: str = ""
    trusted: bool = True
    by: str = ""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The record is on disk. For a duplicate, `feedback_id` and `state` are those of the first submission."""

    feedback_id: str
    duplicate: bool
    state: State

    @property
    def applied(self) -> bool:
        """Whether the record changes what the service answers."""
        return self.state == "applied"


class FeedbackLog:
    """Writes records, decides about them, removes them. Any number of these may do so at once.

    `retention_days` is how many whole days a record is kept after the day it came. A correction lives for
    `correction_ttl_s` from its acceptance, and never longer than its record.
    """

    def __init__(self, store: LogStore, *, retention_days: int = 30, correction_ttl_s: float = DAY_S) -> None:
        self._store = store
        self._retention_days = retention_days
        self._correction_ttl_s = correction_ttl_s

    async def append(self, submissions: Sequence[Submission]) -> list[Receipt | IntentGraphError]:
        """Write a group of submissions in one round trip with one fsync; each is whole or absent by itself.

        Gives one outcome a submission, in order: a `Receipt`, or the error to answer with. `Unavailable` (503) means
        unconfirmed, perhaps written: the same submission may be sent again and is counted once. `KeyConflict` (422):
        the key was used with another record. `Gone` (410): its record was deleted. Never raises for the store's sake.
        """
        try:
            await self._store.require_writable()
        except Unavailable as error:
            return [Unavailable(error.detail) for _ in submissions]
        calls = [_script_arguments(submission, self._retention_days) for submission in submissions]
        replies = iter(await self._run_append([call for call in calls if not isinstance(call, IntentGraphError)]))
        return [call if isinstance(call, IntentGraphError) else _outcome(next(replies)) for call in calls]

    async def _run_append(self, calls: Sequence[tuple[bytes, ...]]) -> Sequence[Any]:
        """Run the script once a call; a reply is what the script gave, or the exception in its place."""
        from redis.exceptions import RedisError

        try:
            async with asyncio.timeout(self._store.timeout_s):
                replies = await self._store.run_each(_APPEND, 4, calls)
        except (RedisError, OSError, Unavailable) as error:  # TimeoutError is an OSError
            replies = [error] * len(calls)
            self._store.doubt()
        failures = [reply for reply in replies if isinstance(reply, Exception)]
        if failures:
            _logger.warning("%d of %d records not confirmed, first: %r", len(failures), len(calls), str(failures[0]))
        return replies

    async def review(self, feedback_id: str, verdict: Verdict, *, by: str = "") -> None:
        """Decide about a correction that waits; deciding the same again changes nothing.

        Raises:
            NotFound: no such record.
            Conflict: it does not wait for approval, the other was decided, or it would outlive its record.
            Unavailable: not confirmed, perhaps done; it may be asked again.
        """
        known = _known(feedback_id)
        day = day_of(known)
        approved_by_s = (day + self._retention_days + 1) * DAY_S - self._correction_ttl_s
        arguments = known, sortable(known), verdict, by, str(int(approved_by_s))
        outcome, now = await self._store.run("review_feedback.lua", (LOG, PENDING, reviews_key(day)), arguments)
        match outcome:
            case b"unknown":
                raise NotFound(f"no feedback {known}; it was never recorded, or is deleted")
            case b"decided":
                raise Conflict(f"feedback {known} is {now.decode()} already; to undo an approval, delete it")
            case b"too late":
                raise Conflict(f"feedback {known} is too old: it leaves the log before a correction's life is over")
            case b"not pending":
                raise Conflict(f"feedback {known} waits for no approval: it is {now.decode()}")

    async def delete(self, feedback_id: str, *, by: str = "") -> None:
        """Remove a record and what it changed; what is left of it is an entry that says who did.

        Raises:
            NotFound: no such record.
            Unavailable: not confirmed, perhaps done; asked again it may be `NotFound`.
        """
        known = _known(feedback_id)
        day = day_of(known)
        keys = LOG, COUNTS, PENDING, records_key(day), reviews_key(day)
        if not await self._store.run("delete_feedback.lua", keys, (known, sortable(known), str(day), by)):
            raise NotFound(f"no feedback {known}; it was never recorded, or is deleted")

    async def trim(self, now_s: float) -> int:
        """Remove the days that are older than the retention, with all that belongs to them; give how many entries.

        `now_s` is the store's time (`LogStore.now_s`): a wrong clock on this machine must not empty the log. Safe to
        run again and from several places at once. Blocks the store for about 0.3 s a million entries. Raises
        `Unavailable`.
        """
        first_kept = int(now_s // DAY_S) - self._retention_days
        removed: int = await self._store.run("trim_feedback.lua", (LOG, COUNTS, PENDING), (str(first_kept),))
        return removed


def _known(feedback_id: str) -> str:
    """The id as the store writes it. Raises NotFound for what is none."""
    if not is_id(feedback_id):
        raise NotFound(f"no feedback {feedback_id[:64]!r}; an id is two numbers, such as 1767225600000-0")
    return canonical(feedback_id)


def _script_arguments(submission: Submission, retention_days: int) -> tuple[bytes, ...] | InvalidInput:
    """Encode here what would otherwise fail in the client, and there fail the whole group."""
    try:
        record = _json(submission.record)
        return (
            LOG.encode(),
            COUNTS.encode(),
            f"{LOG}:key:{_sha256(_json([submission.by, submission.idempotency_key]))}".encode(),
            PENDING.encode(),
            _sha256(record).encode(),
            str(retention_days).encode(),
            submission.state.encode(),
            submission.text_key.encode(),
            _correction(submission.record),
            b"1" if submission.trusted else b"0",
            submission.by.encode(),
            _counter(submission),
            record,
        )
    except (KeyError, TypeError, ValueError) as error:
        return InvalidInput(f"the record cannot be written: {error}")


def _correction(record: Mapping[str, object]) -> bytes:
    """What followers of the log must know of a correction, without its text; empty of a confirmation."""
    if record["feedback_type"] != "correction":
        return b""
    return _json({name: record[field] for name, field in _CORRECTED.items() if record.get(field) is not None})


def _counter(submission: Submission) -> bytes:
    named = [submission.record[name] for name in ("feedback_type", "original_intent", "correct_intent")]
    return _json([*named, submission.model_version])


def _json(value: object) -> bytes:
    """Encode as JSON in UTF-8, equal values equally. Raises ValueError or TypeError for what JSON cannot carry."""
    return _encoder.encode(value).encode()


_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))


def _sha256(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()


def _outcome(reply: Any) -> Receipt | IntentGraphError:
    """Read a reply of the script. Whatever is not its own word is unconfirmed: never an acknowledgement."""
    if isinstance(reply, Exception):
        why = reply.detail if isinstance(reply, IntentGraphError) else type(reply).__name__
        return Unavailable(f"the feedback log did not confirm the record ({why}); send it again with the same key")
    if reply[0] == b"gone":
        return Gone("the record that was sent with this idempotency key is deleted; use a new key for a new record")
    status, entry_id, state = reply
    if status == b"conflict":
        return KeyConflict("the idempotency key was used before with another record; use a new key for a new record")
    return Receipt(entry_id.decode(), duplicate=status == b"duplicate", state=state.decode())
