"""Records for the tests of the feedback log, and what is really in its store."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

from deployments.core.feedback_log import State, Submission
from deployments.core.log_layout import COUNTS, DAY_S, LOG, PENDING, LogEntry, day_of, records_key, sortable

if TYPE_CHECKING:
    from redis.asyncio import Redis

INTENTS = ("code_generation", "reasoning", "summarization")


def submission(
    key: str = "key",
    *,
    original: str = "reasoning",
    correct: str = "summarization",
    by: str = "",
    state: State | None = None,
    **record: object,
) -> Submission:
    feedback_type = "confirmation" if original == correct else "correction"
    intents = {"original_intent": original, "correct_intent": correct, "feedback_type": feedback_type}
    return Submission(
        record={"text": "sum it up", "original_confidence": 0.5, **intents, **record},
        text_key="ab" * 32,
        state=state or ("recorded" if original == correct else "applied"),
        idempotency_key=key,
        model_version="v1",
        by=by,
    )


async def entries(client: Redis) -> list[LogEntry]:
    return [LogEntry.parse(entry_id, fields) for entry_id, fields in await client.xrange(LOG)]


async def record_of(client: Redis, entry: LogEntry) -> object:
    return json.loads(await client.hget(records_key(day_of(entry.entry_id)), entry.entry_id))


async def recount(client: Redis) -> dict[str, int]:
    """Count the log's records anew, under the names of the counters."""
    counts: Counter[str] = Counter()
    for entry in await entries(client):
        if entry.kind != "feedback":
            continue
        record = await record_of(client, entry)
        name = [record["feedback_type"], record["original_intent"], record["correct_intent"], "v1"]
        counts[f"{int(entry.accepted_at_s // DAY_S)}:{json.dumps(name, separators=(',', ':'))}"] += 1
    return dict(counts)


async def counters(client: Redis) -> dict[str, int]:
    return {name.decode(): int(count) for name, count in (await client.hgetall(COUNTS)).items()}


async def add_entry_of(client: Redis, day: int) -> None:
    """Put a record of a past day into the log, as the script would have written it then."""
    counter = '["correction","reasoning","summarization","v1"]'
    entry = {
        "kind": "feedback",
        "text_key": "ab",
        "state": "pending",
        "correction": "{}",
        "key": "k",
        "counter": counter,
    }
    entry_id = f"{day * DAY_S * 1000 + 5}-0"
    await client.xadd(LOG, entry, id=entry_id)
    await client.hset(records_key(day), entry_id, json.dumps(submission().record))
    await client.hincrby(COUNTS, f"{day}:{counter}", 1)
    await client.zadd(PENDING, {sortable(entry_id): 0})
