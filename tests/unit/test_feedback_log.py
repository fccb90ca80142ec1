"""The feedback log against real Valkey servers: what is acknowledged is there, once, and counted."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections import Counter
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from deployments.core.connection import connect
from deployments.core.errors import InvalidInput, KeyConflict, StoreRefused, Unavailable
from deployments.core.feedback_log import (
    COUNTS,
    CURSOR,
    DAY_S,
    LOG,
    FeedbackLog,
    LogEntry,
    LogStats,
    Receipt,
    Submission,
)

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from tests.unit.conftest import StartValkey, ValkeyServer

INTENTS = ("code_generation", "reasoning", "summarization")


def submission(
    key: str = "key", *, original: str = "reasoning", correct: str = "summarization", scope: str = "", **record: object
) -> Submission:
    feedback_type = "confirmation" if original == correct else "correction"
    intents = {"original_intent": original, "correct_intent": correct, "feedback_type": feedback_type}
    return Submission(
        record={"text": "sum it up", "original_confidence": 0.5, **intents, **record},
        text_key="ab" * 32,
        applied=original != correct,
        idempotency_key=key,
        scope=scope,
    )


async def entries(client: Redis) -> list[LogEntry]:
    return [LogEntry.parse(entry_id, fields) for entry_id, fields in await client.xrange(LOG)]


async def recount(client: Redis) -> dict[str, int]:
    """Count the log's entries anew, under the names of the counters."""
    counts: Counter[str] = Counter()
    for entry in await entries(client):
        record = json.loads(entry.record)
        name = [record["feedback_type"], record["original_intent"], record["correct_intent"]]
        counts[f"{int(entry.accepted_at_s // DAY_S)}:{json.dumps(name, separators=(',', ':'))}"] += 1
    return dict(counts)


async def counters(client: Redis) -> dict[str, int]:
    return {name.decode(): int(count) for name, count in (await client.hgetall(COUNTS)).items()}


async def add_entry_of(client: Redis, day: int) -> None:
    """Put a record of a past day into the log, as the script would have written it then."""
    record = submission().record
    entry = {"kind": "feedback", "text_key": "ab", "applied": "1", "record": json.dumps(record)}
    await client.xadd(LOG, entry, id=f"{day * DAY_S * 1000 + 5}-0")
    await client.hincrby(COUNTS, f'{day}:["correction","reasoning","summarization"]', 1)


async def test_an_acknowledged_record_is_an_entry_of_the_log(log: FeedbackLog, client: Redis) -> None:
    [receipt] = await log.append([submission(text="naïve ☃", user_id="u1")])

    [entry] = await entries(client)
    assert receipt == Receipt(entry.feedback_id, duplicate=False, applied=True)
    assert (entry.kind, entry.text_key, entry.applied) == ("feedback", "ab" * 32, True)
    assert json.loads(entry.record) == submission(text="naïve ☃", user_id="u1").record
    assert abs(entry.accepted_at_s - await log.now_s()) < 5


async def test_the_same_key_and_record_again_gives_the_first_receipt(log: FeedbackLog, client: Redis) -> None:
    [first] = await log.append([submission()])

    again = Submission(dict(reversed(submission().record.items())), "ab" * 32, applied=False, idempotency_key="key")
    receipts = await log.append([again, again])

    assert receipts == [Receipt(first.feedback_id, duplicate=True, applied=True)] * 2
    assert (await log.stats()).total == await client.xlen(LOG) == 1


async def test_the_same_key_twice_in_one_group_is_written_once(log: FeedbackLog) -> None:
    first, second = await log.append([submission(), submission()])

    assert (first.duplicate, second.duplicate, first.feedback_id) == (False, True, second.feedback_id)


async def test_the_same_key_with_another_record_conflicts_and_writes_nothing(log: FeedbackLog, client: Redis) -> None:
    await log.append([submission()])
    before = await client.xrange(LOG), await counters(client)

    [outcome] = await log.append([submission(text="another")])

    assert isinstance(outcome, KeyConflict)
    assert (await client.xrange(LOG), await counters(client)) == before


async def test_equal_keys_of_different_scopes_never_meet(log: FeedbackLog, client: Redis) -> None:
    receipts = await log.append([submission("bc", scope="a"), submission("c", scope="ab"), submission("abc")])

    assert [receipt.duplicate for receipt in receipts] == [False, False, False]
    assert await client.xlen(LOG) == 3


@pytest.mark.parametrize("record", [{"original_confidence": float("nan")}, {"text": "\ud800"}, {"text": b"bytes"}])
async def test_a_record_that_is_not_json_fails_alone(
    log: FeedbackLog, client: Redis, record: dict[str, object]
) -> None:
    before, bad, after = await log.append([submission("1"), submission("2", **record), submission("3")])

    assert isinstance(bad, InvalidInput)
    assert [entry.feedback_id for entry in await entries(client)] == [before.feedback_id, after.feedback_id]


async def test_a_submission_the_script_fails_on_fails_alone(log: FeedbackLog, client: Redis) -> None:
    await log.append([submission("broken")])
    [key] = await client.keys(f"{LOG}:key:*")
    await client.delete(key)
    await client.rpush(key, "not a string")

    good, bad = await log.append([submission("good"), submission("broken")])

    assert isinstance(good, Receipt)
    assert isinstance(bad, Unavailable)
    assert (await entries(client))[1].feedback_id == good.feedback_id


@pytest.mark.parametrize("broken", [LOG, COUNTS])
async def test_a_submission_is_written_whole_or_not_at_all(log: FeedbackLog, client: Redis, broken: str) -> None:
    await client.set(broken, "not what the script expects")

    [outcome] = await log.append([submission()])

    assert isinstance(outcome, Unavailable)
    assert await client.keys() == [broken.encode()]


async def test_a_server_that_forgot_the_script_is_taught_again(log: FeedbackLog, client: Redis) -> None:
    await log.append([submission("1")])
    await client.script_flush()

    outcomes = await log.append([submission("2"), submission("1")])

    assert [outcome.duplicate for outcome in outcomes] == [False, True]


async def test_counters_equal_a_recount_with_two_writers_and_retries(client: Redis, server: ValkeyServer) -> None:
    chance = random.Random(7)
    pool = [
        submission(str(n), original=chance.choice(INTENTS), correct=chance.choice(INTENTS), text="x" * n)
        for n in range(300)
    ]
    batches = [chance.choices(pool, k=chance.randrange(1, 40)) for _ in range(40)]
    async with aclosing(connect(server.url, timeout_s=2)) as other:
        writers = [FeedbackLog(client, timeout_s=2), FeedbackLog(other, timeout_s=2)]

        outcomes = await asyncio.gather(*(chance.choice(writers).append(batch) for batch in batches))

    receipts = [receipt for outcome in outcomes for receipt in outcome]
    written = await entries(client)
    assert len(written) == len({sent.idempotency_key for batch in batches for sent in batch})
    assert sorted(r.feedback_id for r in receipts if not r.duplicate) == sorted(entry.feedback_id for entry in written)
    assert await counters(client) == await recount(client)


async def test_stats_count_the_retained_log(log: FeedbackLog) -> None:
    pairs = [("reasoning", "summarization"), ("code_generation", "reasoning"), ("reasoning", "summarization")]
    same = [("reasoning", "reasoning")]
    await log.append([submission(str(n), original=a, correct=b) for n, (a, b) in enumerate([*pairs, *same])])

    assert await log.stats() == LogStats(
        total=4,
        corrections=3,
        confirmations=1,
        pairs=[("reasoning", "summarization", 2), ("code_generation", "reasoning", 1)],
        by_intent={"code_generation": (1, 0), "reasoning": (2, 1)},
        pending=4,
    )


async def test_stats_of_an_empty_log_are_zero(log: FeedbackLog) -> None:
    assert await log.stats() == LogStats(0, 0, 0, [], {}, 0)


async def test_pending_counts_what_came_after_the_training_cursor(log: FeedbackLog, client: Redis) -> None:
    today = int(await log.now_s() // DAY_S)
    await add_entry_of(client, today - 2)
    await add_entry_of(client, today - 1)
    receipts = await log.append([submission("1"), submission("2"), submission("3")])
    await client.xadd(LOG, {"kind": "undo", "of": receipts[0].feedback_id})
    ids = [entry_id for entry_id, _ in await client.xrange(LOG)]

    pending = []
    for cursor in ids:
        await client.set(CURSOR, cursor)
        pending.append((await log.stats()).pending)

    assert pending == [4, 3, 2, 1, 0, 0]


async def test_trim_removes_whole_days_of_entries_and_counters(log: FeedbackLog, client: Redis) -> None:
    today = int(await log.now_s() // DAY_S)
    for age in (40, 31, 30, 1):
        await add_entry_of(client, today - age)
    await log.append([submission()])

    removed = await asyncio.gather(log.trim(await log.now_s()), log.trim(await log.now_s()))

    assert sorted(removed) == [0, 2]
    assert [today - int(entry.accepted_at_s // DAY_S) for entry in await entries(client)] == [30, 1, 0]
    assert await counters(client) == await recount(client)


async def test_an_idempotency_key_expires_when_its_record_may_be_trimmed(log: FeedbackLog, client: Redis) -> None:
    await log.append([submission()])
    [key] = await client.keys(f"{LOG}:key:*")

    expires_at_s = await client.pexpiretime(key) / 1000
    kept = await log.trim(expires_at_s - 1)
    trimmed = await log.trim(expires_at_s)

    assert (kept, trimmed) == (0, 1)


async def test_a_full_store_acknowledges_nothing_and_writes_nothing(log: FeedbackLog, client: Redis) -> None:
    await log.append([submission("before")])
    await client.config_set("maxmemory", 1)
    try:
        outcomes = await log.append([submission("new"), submission("before")])
        length = await client.xlen(LOG)
    finally:
        await client.config_set("maxmemory", 0)
    [retried] = await log.append([submission("new")])

    assert [type(outcome) for outcome in outcomes] == [Unavailable, Unavailable]
    assert length == 1
    assert retried.duplicate is False


async def test_a_read_only_store_acknowledges_nothing(log: FeedbackLog, client: Redis) -> None:
    await log.append([submission("before")])
    await client.replicaof("127.0.0.1", 1)  # of a primary that never answers: read-only, with the data it has
    try:
        outcomes = await log.append([submission("new"), submission("before")])
    finally:
        await client.replicaof("NO", "ONE")

    assert [type(outcome) for outcome in outcomes] == [Unavailable, Unavailable]


async def test_a_store_that_is_away_is_unavailable_everywhere(valkey_server: StartValkey) -> None:
    server = valkey_server()
    server.kill()
    async with aclosing(connect(server.url, timeout_s=2)) as client:
        log = FeedbackLog(client, timeout_s=2)

        [outcome] = await log.append([submission()])

        assert isinstance(outcome, Unavailable)
        for call in (log.stats, log.check_durability, log.now_s, lambda: log.trim(0)):
            with pytest.raises(Unavailable):
                await call()


async def test_a_store_that_hangs_is_unavailable_in_time_and_a_retry_counts_once(server: ValkeyServer) -> None:
    async with aclosing(connect(server.url, timeout_s=60)) as client:
        await client.flushall()
        log = FeedbackLog(client, timeout_s=0.2)
        server.pause()
        try:
            async with asyncio.timeout(2):
                [ambiguous] = await log.append([submission()])
        finally:
            server.resume()
        [retried] = await log.append([submission()])

        assert isinstance(ambiguous, Unavailable)
        assert isinstance(retried, Receipt)
        assert (await log.stats()).total == await client.xlen(LOG) == 1


async def test_killing_the_store_loses_nothing_acknowledged_and_retries_double_nothing(
    valkey_server: StartValkey,
) -> None:
    server = valkey_server()
    chance = random.Random(11)
    groups = [[submission(f"{n}-{i}", text="x" * chance.randrange(2000)) for i in range(20)] for n in range(60)]
    async with aclosing(connect(server.url, timeout_s=2)) as client:
        log = FeedbackLog(client, timeout_s=2)
        answered = 0

        async def append(group: list[Submission]) -> list[object]:
            nonlocal answered
            outcome = await log.append(group)
            answered += 1
            if answered == len(groups) // 3:  # others are on their way
                server.kill()
            return outcome

        outcomes = await asyncio.gather(*(append(group) for group in groups))
        server.start()
        found = {entry.feedback_id for entry in await entries(client)}
        for group in groups:
            assert all(isinstance(outcome, Receipt) for outcome in await log.append(group))

        acknowledged = [o.feedback_id for group in outcomes for o in group if isinstance(o, Receipt)]
        assert 0 < len(acknowledged) < sum(map(len, groups))
        assert set(acknowledged) <= found
        assert await client.xlen(LOG) == sum(map(len, groups))
        assert await counters(client) == await recount(client)


async def test_a_store_that_keeps_what_it_acknowledges_is_accepted(
    log: FeedbackLog, caplog: pytest.LogCaptureFixture
) -> None:
    await log.check_durability()

    assert not caplog.records


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        (("--appendonly", "no"), "`appendonly yes` (it is no)"),
        (("--appendfsync", "everysec"), "`appendfsync always` (it is everysec)"),
        (("--no-appendfsync-on-rewrite", "yes"), "`no-appendfsync-on-rewrite no` (it is yes)"),
        (("--maxmemory-policy", "volatile-ttl"), "`maxmemory-policy noeviction` (it is volatile-ttl)"),
    ],
)
async def test_a_store_that_would_lose_records_is_refused_with_the_remedy(
    valkey_server: StartValkey, wrong: tuple[str, str], remedy: str
) -> None:
    server = valkey_server(*wrong)
    async with aclosing(connect(server.url, timeout_s=2)) as client:
        with pytest.raises(StoreRefused) as refused:
            await FeedbackLog(client, timeout_s=2).check_durability()

    server.kill()
    assert remedy in str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(refused.value).count("it is") == 1


async def test_a_store_that_hides_its_settings_is_checked_as_far_as_it_shows(
    client: Redis, server: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    await client.acl_setuser("guest", enabled=True, nopass=True, categories=["+@all"], commands=["-config"], keys=["*"])
    async with aclosing(connect(server.url.replace("//", "//guest:x@"), timeout_s=2)) as guest:
        log = FeedbackLog(guest, timeout_s=2)
        with caplog.at_level(logging.WARNING):
            await log.check_durability()
        await client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            with pytest.raises(StoreRefused, match="maxmemory-policy noeviction"):
                await log.check_durability()
        finally:
            await client.config_set("maxmemory-policy", "noeviction")

    [warning] = caplog.messages
    assert "`appendfsync always`" in warning
    assert "`appendonly" not in warning


async def test_a_store_that_was_away_at_start_is_checked_before_its_first_acknowledgement(
    valkey_server: StartValkey,
) -> None:
    server = valkey_server("--appendonly", "no")
    server.kill()
    async with aclosing(connect(server.url, timeout_s=2)) as client:
        log = FeedbackLog(client, timeout_s=2)
        with pytest.raises(Unavailable):
            await log.require_durable()
        await asyncio.to_thread(server.start)
        [refused] = await log.append([submission()])
        total = (await log.stats()).total

    server.kill()
    assert isinstance(refused, Unavailable)
    assert "`appendonly yes`" in refused.detail
    assert total == 0


async def test_a_store_replaced_by_one_that_loses_records_acknowledges_none(valkey_server: StartValkey) -> None:
    durable = valkey_server()
    async with aclosing(connect(durable.url, timeout_s=2)) as client:
        log = FeedbackLog(client, timeout_s=2)
        [first] = await log.append([submission()])
        await client.config_set("appendfsync", "everysec")
        await client.script_flush()
        [second] = await log.append([submission()])

    durable.kill()
    assert isinstance(first, Receipt)
    assert isinstance(second, Unavailable)


async def test_an_unsafe_log_takes_any_store_and_says_so(
    valkey_server: StartValkey, caplog: pytest.LogCaptureFixture
) -> None:
    server = valkey_server("--appendonly", "no")
    async with aclosing(connect(server.url, timeout_s=2)) as client:
        [receipt] = await FeedbackLog(client, timeout_s=2, unsafe=True).append([submission()])

    server.kill()
    assert isinstance(receipt, Receipt)
    assert "feedback may be lost" in caplog.text
