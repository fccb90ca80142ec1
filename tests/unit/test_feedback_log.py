"""What writes the feedback log, against real Valkey servers: what is acknowledged is there, once, and counted."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from deployments.core.connection import connect
from deployments.core.errors import Conflict, Gone, InvalidInput, KeyConflict, NotFound, Unavailable
from deployments.core.feedback_log import FeedbackLog, Receipt, State, Submission
from deployments.core.feedback_reader import FeedbackReader
from deployments.core.log_layout import COUNTS, DAY_S, LOG, PENDING
from deployments.core.log_store import LogStore
from tests.unit.feedback_rows import INTENTS, add_entry_of, counters, entries, record_of, recount, submission

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from tests.unit.conftest import StartValkey, ValkeyServer


async def test_an_acknowledged_record_is_an_entry_of_the_log(log: FeedbackLog, client: Redis, store: LogStore) -> None:
    [receipt] = await log.append([submission(text="naïve ☃", user_id="u1")])

    [entry] = await entries(client)
    assert receipt == Receipt(entry.feedback_id, duplicate=False, state="applied")
    assert (entry.kind, entry.text_key, entry.state) == ("feedback", "ab" * 32, "applied")
    assert json.loads(entry.correction) == {"intent": "summarization"}
    assert await record_of(client, entry) == submission(text="naïve ☃", user_id="u1").record
    assert abs(entry.accepted_at_s - await store.now_s()) < 5


async def test_the_same_key_and_record_again_gives_the_first_receipt(
    log: FeedbackLog, client: Redis, reader: FeedbackReader
) -> None:
    [first] = await log.append([submission()])

    again = Submission(dict(reversed(submission().record.items())), "ab" * 32, state="pending", idempotency_key="key")
    receipts = await log.append([again, again])

    assert receipts == [Receipt(first.feedback_id, duplicate=True, state="applied")] * 2
    assert (await reader.stats()).agreement.total == await client.xlen(LOG) == 1


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
    receipts = await log.append([submission("bc", by="a"), submission("c", by="ab"), submission("abc")])

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
        writers = [FeedbackLog(LogStore(client, timeout_s=2)), FeedbackLog(LogStore(other, timeout_s=2))]

        outcomes = await asyncio.gather(*(chance.choice(writers).append(batch) for batch in batches))

    receipts = [receipt for outcome in outcomes for receipt in outcome]
    written = await entries(client)
    assert len(written) == len({sent.idempotency_key for batch in batches for sent in batch})
    assert sorted(r.feedback_id for r in receipts if not r.duplicate) == sorted(entry.feedback_id for entry in written)
    assert await counters(client) == await recount(client)


async def test_trim_removes_whole_days_of_entries_and_counters(
    log: FeedbackLog, client: Redis, store: LogStore
) -> None:
    today = int(await store.now_s() // DAY_S)
    for age in (40, 31, 30, 1):
        await add_entry_of(client, today - age)
    await log.append([submission()])

    removed = await asyncio.gather(log.trim(await store.now_s()), log.trim(await store.now_s()))

    assert sorted(removed) == [0, 2]
    assert [today - int(entry.accepted_at_s // DAY_S) for entry in await entries(client)] == [30, 1, 0]
    assert await counters(client) == await recount(client)


async def test_an_idempotency_key_outlives_its_record_by_a_day(log: FeedbackLog, client: Redis) -> None:
    """Days are trimmed some time after they end; a repeated record would be written twice meanwhile."""
    await log.append([submission()])
    [key] = await client.keys(f"{LOG}:key:*")

    expires_at_s = await client.pexpiretime(key) / 1000
    kept = await log.trim(expires_at_s - DAY_S - 1)
    trimmed = await log.trim(expires_at_s - DAY_S)

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


async def test_a_store_that_is_away_is_unavailable_everywhere(
    valkey_server: StartValkey,
) -> None:
    server = valkey_server()
    server.kill()
    async with aclosing(connect(server.url, timeout_s=2)) as client:
        store = LogStore(client, timeout_s=2)
        log, reader = FeedbackLog(store), FeedbackReader(store)

        [outcome] = await log.append([submission()])

        assert isinstance(outcome, Unavailable)
        for call in (reader.stats, store.check_durability, store.now_s, lambda: log.trim(0), lambda: log.delete("1-0")):
            with pytest.raises(Unavailable):
                await call()


async def test_a_store_that_hangs_is_unavailable_in_time_and_a_retry_counts_once(
    server: ValkeyServer, reader: FeedbackReader
) -> None:
    async with aclosing(connect(server.url, timeout_s=60)) as client:
        await client.flushall()
        log = FeedbackLog(LogStore(client, timeout_s=0.2))
        server.pause()
        try:
            async with asyncio.timeout(2):
                [ambiguous] = await log.append([submission()])
        finally:
            server.resume()
        [retried] = await log.append([submission()])

        assert isinstance(ambiguous, Unavailable)
        assert isinstance(retried, Receipt)
        assert (await reader.stats()).agreement.total == await client.xlen(LOG) == 1


async def test_killing_the_store_loses_nothing_acknowledged_and_retries_double_nothing(
    valkey_server: StartValkey,
) -> None:
    server = valkey_server()
    chance = random.Random(11)
    groups = [[submission(f"{n}-{i}", text="x" * chance.randrange(2000)) for i in range(20)] for n in range(60)]
    async with aclosing(connect(server.url, timeout_s=2)) as client:
        log = FeedbackLog(LogStore(client, timeout_s=2))
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


async def test_an_approved_correction_is_an_entry_that_followers_apply(log: FeedbackLog, client: Redis) -> None:
    [receipt] = await log.append([submission(state="pending", correct_complexity="simple")])
    waiting = await client.zcard(PENDING)
    await log.review(receipt.feedback_id, "approved", by="ops")
    await log.review(receipt.feedback_id, "approved", by="ops")

    [first, approval] = await entries(client)
    assert (waiting, await client.zcard(PENDING)) == (1, 0)
    assert (first.applies, approval.applies) == (False, True)
    assert (approval.kind, approval.feedback_id, approval.by) == ("approval", receipt.feedback_id, "ops")
    assert approval.text_key == first.text_key
    assert json.loads(approval.correction) == {"intent": "summarization", "complexity": "simple"}


async def test_a_rejected_correction_is_decided_for_good(log: FeedbackLog, client: Redis) -> None:
    [receipt] = await log.append([submission(state="pending")])
    await log.review(receipt.feedback_id, "rejected")

    with pytest.raises(Conflict, match="rejected already"):
        await log.review(receipt.feedback_id, "approved")
    assert [entry.kind for entry in await entries(client)] == ["feedback", "rejection"]
    assert await client.zcard(PENDING) == 0


@pytest.mark.parametrize("state", ["applied", "recorded"])
async def test_what_does_not_wait_is_not_reviewed(log: FeedbackLog, state: State) -> None:
    [receipt] = await log.append([submission(state=state)])

    with pytest.raises(Conflict, match=f"it is {state}"):
        await log.review(receipt.feedback_id, "approved")


@pytest.mark.parametrize(
    "unknown", ["1-0", "0-0", "stats", "1-", "\N{ARABIC-INDIC DIGIT ONE}-0", "-1", "9" * 30 + "-0"]
)
async def test_what_the_log_does_not_have_is_not_found(log: FeedbackLog, unknown: str) -> None:
    for call in (log.review(unknown, "approved"), log.delete(unknown)):
        with pytest.raises(NotFound):
            await call


async def test_two_who_decide_otherwise_at_once_leave_one_decision(log: FeedbackLog, client: Redis) -> None:
    receipts = await log.append([submission(str(n), state="pending") for n in range(20)])
    calls = [log.review(receipt.feedback_id, verdict) for receipt in receipts for verdict in ("approved", "rejected")]

    outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 20
    assert len(await entries(client)) == 40


async def test_a_deleted_record_leaves_an_entry_that_says_who_and_nothing_of_it(
    log: FeedbackLog, client: Redis, server: ValkeyServer
) -> None:
    secret = "a text that nobody may see again"
    kept, gone = await log.append([submission("1"), submission("2", state="pending", text=secret, user_id="someone")])
    await log.delete(gone.feedback_id, by="ops")

    first, deletion = await entries(client)
    assert first.feedback_id == kept.feedback_id
    assert (deletion.kind, deletion.feedback_id, deletion.by) == ("deletion", gone.feedback_id, "ops")
    assert await counters(client) == await recount(client)
    assert await client.zcard(PENDING) == 0
    await client.bgrewriteaof()
    async with asyncio.timeout(5):
        while (await client.info("persistence"))["aof_rewrite_in_progress"]:  # noqa: ASYNC110 - no event to wait for
            await asyncio.sleep(0.02)
    files = [path.read_bytes() for path in (server.folder / "appendonlydir").iterdir()]
    assert not any(secret.encode() in content or b"someone" in content for content in files)


async def test_the_key_of_a_deleted_record_is_gone_for_as_long_as_it_would_have_lived(
    log: FeedbackLog, client: Redis
) -> None:
    [receipt] = await log.append([submission()])
    [key] = await client.keys(f"{LOG}:key:*")
    before = await client.pexpiretime(key)
    await log.delete(receipt.feedback_id)
    same, other = await log.append([submission(), submission(text="another")])

    assert (type(same), type(other)) == (Gone, Gone)
    assert await client.pexpiretime(key) == before
    with pytest.raises(NotFound):
        await log.delete(receipt.feedback_id)


async def test_a_full_store_lets_go_of_what_is_deleted_and_trimmed(
    log: FeedbackLog, client: Redis, store: LogStore
) -> None:
    await add_entry_of(client, int(await store.now_s() // DAY_S) - 31)
    [receipt] = await log.append([submission()])
    await client.config_set("maxmemory", 1)
    try:
        await log.delete(receipt.feedback_id)
        trimmed = await log.trim(await store.now_s())
    finally:
        await client.config_set("maxmemory", 0)

    assert trimmed == 1
    assert [entry.kind for entry in await entries(client)] == ["deletion"]
    assert await counters(client) == {}


async def test_trimming_leaves_nothing_of_its_days(log: FeedbackLog, client: Redis, store: LogStore) -> None:
    day = int(await store.now_s() // DAY_S) - 31
    await add_entry_of(client, day - 1)
    await add_entry_of(client, day)
    await log.review(f"{day * DAY_S * 1000 + 5}-0", "rejected")
    await log.trim(await store.now_s())

    assert [entry.kind for entry in await entries(client)] == ["rejection"]
    assert await client.keys() == [LOG.encode()]


async def test_an_id_is_the_same_however_it_is_written(log: FeedbackLog, client: Redis) -> None:
    """The store reads `007-0` as `7-0` in a stream, and as another name in a hash."""
    first, second = await log.append([submission(str(n), state="pending", text=f"secret {n}") for n in range(2)])
    await log.delete(f"00{first.feedback_id}")
    await log.review(f"0{second.feedback_id}", "approved")
    await log.delete(second.feedback_id)

    assert [entry.kind for entry in await entries(client)] == ["deletion", "deletion"]
    assert {entry.of for entry in await entries(client)} == {first.feedback_id, second.feedback_id}
    assert not [key for key in await client.keys() if b":records:" in key or b":reviews:" in key]


async def test_deleting_a_record_takes_its_approval_with_it(log: FeedbackLog, client: Redis) -> None:
    """With the hash of the text and what it was corrected to."""
    [receipt] = await log.append([submission(state="pending")])
    await log.review(receipt.feedback_id, "approved")
    await log.delete(receipt.feedback_id)

    assert [entry.kind for entry in await entries(client)] == ["deletion"]


async def test_a_deletion_tells_who_sent_the_record_and_who_approved_it(log: FeedbackLog, client: Redis) -> None:
    receipts = await log.append([submission(str(n), state="pending", by="app") for n in range(2)])
    await log.review(receipts[0].feedback_id, "approved", by="thief")
    for receipt in receipts:
        await log.delete(receipt.feedback_id, by="ops")

    deletions = [fields for _, fields in await client.xrange(LOG)]
    told = [[fields[name] for name in (b"submitted_by", b"approved_by", b"by")] for fields in deletions]
    assert told == [[b"app", b"thief", b"ops"], [b"app", b"", b"ops"]]


async def test_a_deletion_that_the_store_breaks_off_changes_nothing(log: FeedbackLog, client: Redis) -> None:
    """As where the idempotency key is on another node already, while a cluster moves the log."""
    [receipt] = await log.append([submission(state="pending")])
    [key] = await client.keys(f"{LOG}:key:*")
    await client.delete(key)
    await client.lpush(key, "not a string")

    with pytest.raises(Unavailable):
        await log.delete(receipt.feedback_id)

    assert [entry.kind for entry in await entries(client)] == ["feedback"]
    assert await counters(client) == await recount(client)
    assert await client.zcard(PENDING) == 1


async def test_deleting_a_record_leaves_a_key_that_names_another(log: FeedbackLog, client: Redis) -> None:
    """A key may have expired, and be used again, before its record leaves the log."""
    [first] = await log.append([submission()])
    await client.delete(*await client.keys(f"{LOG}:key:*"))
    [second] = await log.append([submission()])
    await log.delete(first.feedback_id)
    [again] = await log.append([submission()])

    assert again == Receipt(second.feedback_id, duplicate=True, state="applied")


@pytest.mark.parametrize(("age_days", "in_time"), [(29, True), (30, False)])
async def test_no_correction_is_approved_that_would_outlive_its_record(
    client: Redis, store: LogStore, age_days: int, in_time: bool
) -> None:
    """It could not be undone then. A record of 30 days ago leaves at midnight, a correction lives for a day."""
    log = FeedbackLog(store, retention_days=30)
    day = int(await store.now_s() // DAY_S) - age_days
    await add_entry_of(client, day)
    reviewing = log.review(f"{day * DAY_S * 1000 + 5}-0", "approved")

    if in_time:
        await reviewing
    else:
        with pytest.raises(Conflict, match="too old"):
            await reviewing
        await log.review(f"{day * DAY_S * 1000 + 5}-0", "rejected")
