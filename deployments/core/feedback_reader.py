"""The feedback log: what reads it. Pages of records, counts, and the walks over all of it: erasing, recounting.

A walk reads a page at a time and holds nobody up; what is written meanwhile is in it or not.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from deployments.core.errors import InvalidInput, NotFound
from deployments.core.feedback_counts import LogStats, Tally, differences, stats
from deployments.core.feedback_patterns import Contest, contested
from deployments.core.log_layout import (
    COUNTS,
    CURSOR,
    DAY_S,
    FIRST_ID,
    LOG,
    PENDING,
    LogEntry,
    canonical,
    day_of,
    from_sortable,
    is_id,
    records_key,
    reviews_key,
    sortable,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from deployments.core.feedback_log import FeedbackLog
    from deployments.core.log_store import LogStore

MAX_PAGE_BYTES = 1024 * 1024
"""Of the records in a page: what crosses between replicas must stay well under gRPC's 4 MiB."""
COUNTING_ATTEMPTS = 3
MAX_BROKEN_OFF = 100
_LAST_NUMBER = 10**18 - 1

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record of the log with what is known of it. `record` is JSON, as submitted."""

    entry: LogEntry
    record: str
    state: str

    def to_json(self) -> dict[str, Any]:
        """As callers see it."""
        at = datetime.fromtimestamp(self.entry.accepted_at_s, UTC).isoformat(timespec="milliseconds")
        known = {
            "feedback_id": self.entry.feedback_id,
            "accepted_at": at.replace("+00:00", "Z"),
            "state": self.state,
            "trusted": self.entry.trusted,
            "by": self.entry.by,
            "model_version": json.loads(self.entry.counter)[3],
        }
        submitted: dict[str, Any] = json.loads(self.record)
        return submitted | known


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The log as of one moment; `removed` is how many of its entries there are no more, of all that ever were."""

    counts: Mapping[bytes, bytes]
    cursor: str | None
    newest_id: str
    removed: int


@dataclass(frozen=True, slots=True)
class _Counted:
    """Records after the training cursor up to an entry; `of` is that cursor, and how many entries were removed ever."""

    of: tuple[str, int]
    up_to: str
    records: int


@dataclass(frozen=True, slots=True)
class Page:
    """Records in the order of the log; `next` is the cursor to go on from, None at its end."""

    records: list[StoredRecord]
    next: str | None


class FeedbackReader:
    """Reads the log. Every call raises `Unavailable` when the store does not answer."""

    def __init__(self, store: LogStore) -> None:
        self._store = store
        self._counted = _Counted(("", 0), FIRST_ID, 0)
        self._erasing: dict[str, str] = {}  # user → up to where a walk came that was broken off

    async def page(self, after: str, limit: int, state: str | None = None) -> Page:
        """Up to `limit` records after the cursor `after`, of one state if that is given.

        A page may hold fewer, even none, where more follow: long records, entries that are no records, other states.
        Raises InvalidInput for what is no cursor.
        """
        _require_id(after)
        entries, last = await (self._next_pending(after, limit) if state == "pending" else self._next(after, limit))
        records, cut_at = _fitting(await self._records([entry for entry in entries if entry.kind == "feedback"]))
        return Page([record for record in records if state in (None, record.state)], cut_at or last)

    async def _next(self, after: str, limit: int) -> tuple[list[LogEntry], str | None]:
        """The next entries, and the cursor to go on from if there may be more."""
        entries = await self._store.entries(f"({after}", count=limit)
        return entries, entries[-1].entry_id if len(entries) == limit else None

    async def _next_pending(self, after: str, limit: int) -> tuple[list[LogEntry], str | None]:
        """The same of those that wait for approval, from their index."""
        client = self._store.client
        members: Any = await self._store.ask(client.zrangebylex(PENDING, f"({sortable(after)}", "+", 0, limit))
        if not members:
            return [], None
        ids = [from_sortable(member.decode()) for member in members]
        pipeline = client.pipeline(transaction=True)
        for entry_id in ids:
            pipeline.xrange(LOG, entry_id, entry_id)
        found = await self._store.ask(pipeline.execute())
        return [LogEntry.parse(*each) for entries in found for each in entries], ids[-1] if len(ids) == limit else None

    async def _records(self, entries: Sequence[LogEntry]) -> list[StoredRecord]:
        """The records of entries, in their order; one that was deleted meanwhile is left out."""
        if not entries:
            return []
        days: dict[int, list[LogEntry]] = defaultdict(list)
        for entry in entries:
            days[day_of(entry.entry_id)].append(entry)
        pipeline = self._store.client.pipeline(transaction=True)
        for day, of_day in days.items():
            ids = [entry.entry_id for entry in of_day]
            pipeline.hmget(records_key(day), ids)
            pipeline.hmget(reviews_key(day), ids)
        replies = iter(await self._store.ask(pipeline.execute()))
        return [
            StoredRecord(entry, record.decode(), review.split()[0].decode() if review else entry.state)
            for of_day in days.values()
            for entry, record, review in zip(of_day, next(replies), next(replies), strict=True)
            if record is not None
        ]

    async def stats(self) -> LogStats:
        """Count the retained log, exact as of one moment.

        Costs one round trip; with a training cursor, also what came on its day since that was counted last.
        """
        now = await self._snapshot()
        tallies = _tallies(now.counts)
        if now.cursor is None or now.newest_id == FIRST_ID:
            return stats(tallies, untrained=sum(tally.count for tally in tallies))
        return stats(tallies, await self._untrained(tallies, now.cursor, now))

    async def _untrained(self, tallies: Sequence[Tally], cursor: str, now: _Snapshot) -> int:
        """Count what came after the cursor: later days by their counters, the cursor's own day entry by entry.

        Of that day it goes on from where it counted before, unless the cursor moved or something was removed since.
        """
        day = day_of(cursor)
        last = now.newest_id if day_of(now.newest_id) == day else f"{(day + 1) * DAY_S * 1000 - 1}-{_LAST_NUMBER}"
        of = cursor, now.removed
        known = self._counted if self._counted.of == of else _Counted(of, cursor, 0)
        if sortable(known.up_to) < sortable(last):
            pages = self._store.all_entries(known.up_to, last)
            known = _Counted(of, last, known.records + sum([_feedbacks(page) async for page in pages]))
            self._counted = known
        return known.records + sum(tally.count for tally in tallies if tally.day > day)

    async def tallies(self) -> list[Tally]:
        """The counters."""
        counts: Any = await self._store.ask(self._store.client.hgetall(COUNTS))
        return _tallies(counts)

    async def acknowledge(self, feedback_id: str) -> None:
        """Move the training cursor to an entry: what came up to it was trained on, and `0-0` is nothing.

        Raises InvalidInput for what is no id, NotFound for one that the log has not come to.
        """
        _require_id(feedback_id)
        cursor = canonical(feedback_id)
        newest = await self._store.newest_id() or FIRST_ID
        if sortable(cursor) > sortable(newest):
            raise NotFound(f"the log has not come to {cursor}; its last entry is {newest}")
        await self._store.do("SET", CURSOR, cursor)

    async def pending(self) -> int:
        """How many corrections wait for approval."""
        return int(await self._store.ask(self._store.client.zcard(PENDING)))

    async def erase(self, log: FeedbackLog, user_id: str, *, by: str = "") -> int:
        """Delete every record of a user that is in the log now; give how many.

        Broken off by its caller, it goes on from there when it is asked again.
        """
        last = await self._store.newest_id() or FIRST_ID
        named = json.dumps(user_id, ensure_ascii=False)
        deleted = 0
        async for page in self._store.all_entries(self._erasing.get(user_id, FIRST_ID), last):
            for stored in await self._records([entry for entry in page if entry.kind == "feedback"]):
                if named in stored.record and json.loads(stored.record).get("user_id") == user_id:
                    deleted += await _deleted(log, stored.entry.feedback_id, by)
            self._erasing[user_id] = page[-1].entry_id
            if len(self._erasing) > MAX_BROKEN_OFF:
                del self._erasing[next(iter(self._erasing))]
        await self._store.do("EXISTS", LOG)  # confirms what an earlier try deleted and too few replicas had received
        self._erasing.pop(user_id, None)
        return deleted

    async def contested(self, limit: int) -> list[tuple[Contest, str]]:
        """Texts that were corrected back and forth, each with its text, the most turns first. Walks the whole log."""
        contests: dict[str, Contest] = defaultdict(Contest)
        async for page in self._store.all_entries(FIRST_ID):
            for entry in page:
                if entry.kind == "feedback" and entry.correction:
                    contests[entry.text_key].add(entry.entry_id, json.loads(entry.correction)["intent"])
        found = contested(contests.values(), limit)
        return [(each, text) for each in found if (text := await self._text(each.last_feedback_id)) is not None]

    async def _text(self, feedback_id: str) -> str | None:
        record = await self._store.ask(self._store.client.hget(records_key(day_of(feedback_id)), feedback_id))
        return str(json.loads(record)["text"]) if record else None

    async def recount(self) -> dict[str, tuple[int, int]]:
        """Hold the counters against the log, and put right those that differ; give what each said and should say.

        What is deleted while it counts would look like a difference: then it counts again, and at last gives up.
        """
        for _ in range(COUNTING_ATTEMPTS):
            now = await self._snapshot()
            recounted: Counter[str] = Counter()
            async for page in self._store.all_entries(FIRST_ID, now.newest_id):
                recounted.update(f"{day_of(entry.entry_id)}:{entry.counter}" for entry in page if entry.counter)
            if now.removed == (await self._snapshot()).removed:
                counted = {name.decode(): int(count) for name, count in now.counts.items()}
                return await self._repair(differences(counted, recounted))
        _logger.warning("the feedback log was not recounted: records are being deleted")
        return {}

    async def _snapshot(self) -> _Snapshot:
        pipeline = self._store.client.pipeline(transaction=True)
        pipeline.hgetall(COUNTS)
        pipeline.get(CURSOR)
        pipeline.xrevrange(LOG, count=1)
        pipeline.xinfo_stream(LOG)  # an error if there is no log yet
        counts, cursor, newest, about = await self._store.ask(pipeline.execute(raise_on_error=False))
        return _Snapshot(
            counts=counts,
            cursor=cursor.decode() if cursor else None,
            newest_id=newest[0][0].decode() if newest else FIRST_ID,
            removed=about["entries-added"] - about["length"] if newest else 0,
        )

    async def _repair(self, wrong: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        for counter, (says, should) in wrong.items():
            arguments = counter, str(says), str(should)
            repaired = await self._store.run("repair_feedback_count.lua", (COUNTS,), arguments)
            done = "put right" if repaired else "left, since it was counted meanwhile; it is looked at again at a start"
            _logger.error("counter %s of the feedback log said %d instead of %d: %s", counter, says, should, done)
        return dict(wrong)


async def _deleted(log: FeedbackLog, feedback_id: str, by: str) -> int:
    try:
        await log.delete(feedback_id, by=by)
    except NotFound:  # by somebody else
        return 0
    return 1


def _fitting(records: Sequence[StoredRecord]) -> tuple[list[StoredRecord], str | None]:
    """As many as fit a page, one at least, and the id of the last of them if there are more."""
    fitting: list[StoredRecord] = []
    size = 0
    for stored in records:
        size += len(stored.record.encode())
        if fitting and size > MAX_PAGE_BYTES:
            return fitting, fitting[-1].entry.entry_id
        fitting.append(stored)
    return fitting, None


def _tallies(counts: Mapping[bytes, bytes]) -> list[Tally]:
    return [Tally.parse(field, count) for field, count in counts.items()]


def _feedbacks(entries: Iterable[LogEntry]) -> int:
    return sum(entry.kind == "feedback" for entry in entries)


def _require_id(cursor: str) -> None:
    if not is_id(cursor):
        raise InvalidInput(f"{cursor[:64]!r} is no cursor; send the `next` of a page, or a feedback id")
