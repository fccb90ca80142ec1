"""The prediction store's policy, against a real Valkey."""

import asyncio
import hashlib
import random
from collections.abc import Sequence
from fnmatch import fnmatchcase

import pytest
from redis.asyncio import Redis

from deployments.core import metrics
from deployments.core.connection import connect, subscribe
from deployments.core.errors import DeadlineExceeded, Unavailable
from deployments.core.feedback_log import FeedbackLog, Submission
from deployments.core.feedback_reader import FeedbackReader
from deployments.core.log_store import LogStore
from deployments.core.prediction_cache import MAX_CORRUPT, MAX_CORRUPT_GROUP, MAX_FAILURES, PredictionCache
from deployments.core.prediction_store import PAGE, ServerStore
from deployments.core.purges import CHANNEL, PURGED, PURGING_ON
from deployments.core.text import PREDICTION_KEYS, prediction_key
from tests.unit.fakes import CountingMetrics, prediction
from tests.unit.stores import becomes_true

ENDLESS = (
    b'{"schema":1,"prediction":{"intent":"a","confidence":1e999,"complexity":"simple","techniques":[],"scores":{},'
    b'"tokens":1,"truncated":false,"model_version":"v1"}}'
)
"""JSON that reads as infinity, which no JSON can carry on."""


@pytest.fixture
def counted() -> CountingMetrics:
    return CountingMetrics()


@pytest.fixture
async def store(valkey_server):
    server = valkey_server()
    client = connect(server.url, timeout_s=1.0)
    yield server, client
    await client.aclose()


def cache(client: Redis, counted: CountingMetrics, **changes: float) -> PredictionCache:
    knobs = {"ttl_s": 100.0, "ttl_jitter": 0.1, "timeout_s": 0.5} | changes
    return PredictionCache(ServerStore(client), recorder=counted, random_source=random.Random(7), **knobs)


async def gone(client: Redis, key: str) -> bool:
    return not await client.exists(key)


async def test_what_was_kept_comes_back_as_it_was(store, counted: CountingMetrics):
    """In the order of the keys, None for what is not there."""
    predictions = cache(store[1], counted)
    await predictions.put_many({"a": prediction("é"), "b": prediction("b", "translation")})

    assert await predictions.get_many(["b", "x", "a"]) == [prediction("b", "translation"), None, prediction("é")]
    assert counted.total(metrics.CACHE_LOOKUPS, result="hit") == 2
    assert counted.total(metrics.CACHE_LOOKUPS, result="miss") == 1


async def test_keeping_says_whether_the_store_has_it(store, counted: CountingMetrics):
    """Whoever warms it must know; nothing is raised."""
    server, client = store
    predictions = cache(client, counted)
    kept = await predictions.put_many({"a": prediction()})
    server.kill()

    assert kept is True
    assert await predictions.put_many({"a": prediction()}) is False


async def test_a_full_store_is_looked_up_in_and_purged_but_takes_nothing(store, counted: CountingMetrics):
    """Where it is told to evict nothing."""
    client = store[1]
    predictions = cache(client, counted)
    await predictions.put_many({"a": prediction("a"), "b": prediction("b")})
    await client.config_set("maxmemory-policy", "noeviction")
    await client.config_set("maxmemory", 1)

    assert await predictions.put_many({"c": prediction()}) is False
    assert await predictions.get_many(["a", "c"]) == [prediction("a"), None]
    assert await predictions.purge(["a"]) == 1
    assert await predictions.get_many(["a", "b"]) == [None, prediction("b")]
    assert not predictions.is_left_alone


async def test_times_to_live_are_spread(store, counted: CountingMetrics):
    """100 s ± 10 %, so that what was kept together does not expire together."""
    client = store[1]
    await cache(client, counted).put_many({str(index): prediction() for index in range(50)})
    lives = [await client.pttl(str(index)) for index in range(50)]

    assert all(89_000 < life <= 110_000 for life in lives)
    assert max(lives) - min(lives) > 10_000


@pytest.mark.parametrize(
    "value", [b"", b"garbage", b"{}", b'{"schema":2,"prediction":{}}', b"\xff", b"[1]", b"null", ENDLESS]
)
async def test_a_foreign_or_damaged_value_is_a_miss_counted_and_deleted(store, counted: CountingMetrics, value: bytes):
    """Whatever stands under the key; what stands beside it stays."""
    await store[1].set("a", value)
    predictions = cache(store[1], counted)
    await predictions.put_many({"b": prediction()})

    assert await predictions.get_many(["a", "b", "absent"]) == [None, prediction(), None]
    await becomes_true(lambda: gone(store[1], "a"))
    assert await predictions.get_many(["a", "b"]) == [None, prediction()]
    assert counted.total(metrics.CACHE_CORRUPT) == 1


class Liar:
    """A store whose replies to look-ups are sound, but to another question."""

    def __init__(self, reply: object) -> None:
        self._reply = reply

    async def mget(self, _keys: object) -> object:
        return self._reply


@pytest.mark.parametrize("reply", [None, b"OK", 7, [], [None], [None] * 3, [7, 8]])
async def test_a_reply_to_another_question_is_all_misses(counted: CountingMetrics, reply: object):
    """Nothing of it is taken for a prediction, and there is one result a key."""
    assert await cache(Liar(reply), counted).get_many(["a", "b"]) == [None, None]


async def test_a_value_of_another_schema_version_is_a_miss(store, counted: CountingMetrics):
    """Whatever else is right about it."""
    predictions = cache(store[1], counted)
    await predictions.put_many({"a": prediction()})
    written = await store[1].get("a")
    await store[1].set("a", written.replace(b'"schema":1', b'"schema":2'))

    assert written.startswith(b'{"schema":1')
    assert await predictions.get_many(["a"]) == [None]


class Unreadable:
    """A store whose values are no predictions, and which deletes none before it may."""

    def __init__(self) -> None:
        self.may_delete = asyncio.Event()
        self.deleted: list[str] = []

    async def get_many(self, keys: Sequence[str]) -> list[bytes]:
        return [b"garbage"] * len(keys)

    async def delete_many(self, keys: Sequence[str]) -> int:
        await self.may_delete.wait()
        self.deleted += keys
        return len(keys)

    async def all_deleted(self) -> bool:
        return len(self.deleted) >= MAX_CORRUPT


async def test_deleting_what_cannot_be_read_keeps_no_look_up_waiting_and_is_bounded(counted: CountingMetrics):
    """One round trip at a time; what is too much is left to its next look-up."""
    unreadable = Unreadable()
    predictions = PredictionCache(unreadable, ttl_s=1, ttl_jitter=0, timeout_s=0.5, recorder=counted)
    for group in range(20):
        assert (
            await predictions.get_many([f"{group} {n}" for n in range(MAX_CORRUPT_GROUP)]) == [None] * MAX_CORRUPT_GROUP
        )
    unreadable.may_delete.set()
    await becomes_true(unreadable.all_deleted)

    assert counted.total(metrics.CACHE_CORRUPT) == 20 * MAX_CORRUPT_GROUP
    assert MAX_CORRUPT <= len(set(unreadable.deleted)) <= MAX_CORRUPT + MAX_CORRUPT_GROUP
    assert len(set(unreadable.deleted)) == len(unreadable.deleted)


async def test_a_store_that_does_not_delete_what_cannot_be_read_fails_no_look_up(store, counted: CountingMetrics):
    """It is counted, and a miss again."""
    await store[1].set("a", b"garbage")
    await store[1].execute_command("ACL", "SETUSER", "default", "-unlink")
    predictions = cache(store[1], counted)
    found = await predictions.get_many(["a"])

    async def counted_once() -> bool:
        return counted.total(metrics.CACHE_ERRORS, operation="delete") == 1

    await becomes_true(counted_once)

    assert found == await predictions.get_many(["a"]) == [None]


async def test_a_wrong_password_is_a_miss_and_never_shown(
    valkey_server, counted: CountingMetrics, caplog: pytest.LogCaptureFixture
):
    """Nothing is raised, and the log names what failed alone."""
    server = valkey_server("--requirepass", "right")
    client = connect(server.url.replace("//", "//:hunter2@"), timeout_s=1)
    predictions = cache(client, counted)
    await predictions.put_many({"a": prediction()})

    assert await predictions.get_many(["a"]) == [None]
    assert not await predictions.ping()
    assert "AuthenticationError" in caplog.text
    assert "hunter2" not in caplog.text
    await client.aclose()


async def test_a_key_of_another_type_is_a_miss(store, counted: CountingMetrics):
    """MGET gives nil for it, and the prediction takes its place."""
    await store[1].lpush("a", "x")
    predictions = cache(store[1], counted)
    await predictions.put_many({"a": prediction()})

    assert await predictions.get_many(["a"]) == [prediction()]


async def test_a_frozen_store_costs_its_budget_and_no_more(store, counted: CountingMetrics):
    """Then the look-up is a counted miss."""
    server, client = store
    predictions = cache(client, counted, timeout_s=0.05)
    await predictions.ping()
    server.pause()
    try:
        found = await asyncio.wait_for(predictions.get_many(["a", "b"]), 0.5)
    finally:
        server.resume()

    assert found == [None, None]
    assert counted.total(metrics.CACHE_LOOKUPS, result="error") == 2
    assert counted.total(metrics.CACHE_ERRORS, operation="get") == 1


async def test_a_killed_store_is_all_misses_and_hits_come_back_with_it(store, counted: CountingMetrics):
    """No error reaches the caller, and no restart is needed."""
    server, client = store
    predictions = cache(client, counted)
    await predictions.put_many({"a": prediction()})
    server.kill()
    await predictions.put_many({"b": prediction()})

    assert await predictions.get_many(["a"]) == [None]
    assert not await predictions.ping()
    server.start()
    await predictions.put_many({"a": prediction()})
    assert await predictions.get_many(["a"]) == [prediction()]


FOREIGN = ("ig", "ig:", "ig:{log}", "ig:{log}:v1", f"ig:{{{'0' * 63}}}:v1", f"ig:{{{'g' * 64}}}:v1", "user:{1}:name")
"""Keys another program might have in the same store."""


def keys_of(texts: range, version: str = "v1") -> list[str]:
    return [prediction_key(f"text {index}", (), version) for index in texts]


async def test_a_purge_deletes_the_named_keys_and_no_other(store, counted: CountingMetrics):
    """And counts those that were there."""
    predictions = cache(store[1], counted)
    first, second = keys_of(range(2))
    await predictions.put_many({first: prediction(), second: prediction()})

    assert await predictions.purge([first, "never kept", first]) == 1
    assert await predictions.get_many([first, second]) == [None, prediction()]


async def test_a_purge_of_all_deletes_every_prediction_of_every_version(store, counted: CountingMetrics):
    """Many pages of the store's keys; again, there is nothing left."""
    predictions = cache(store[1], counted)
    for version in ("v1", "2026.11-d0f6a01f"):
        for page in range(5):
            await predictions.put_many(
                dict.fromkeys(keys_of(range(page * PAGE, (page + 1) * PAGE), version), prediction())
            )

    assert await predictions.purge_all() == 10 * PAGE
    assert await store[1].dbsize() == 0
    assert await predictions.purge_all() == 0


async def test_a_purge_of_all_leaves_other_programs_keys(store, counted: CountingMetrics):
    """The store may be shared, also by many thousands of them."""
    client, predictions = store[1], cache(store[1], counted)
    foreign = dict.fromkeys(FOREIGN, "theirs") | {f"session:{index}": "theirs" for index in range(5 * PAGE)}
    await client.mset(foreign)
    await predictions.put_many(dict.fromkeys(keys_of(range(PAGE)), prediction()))

    assert await predictions.purge_all() == PAGE
    assert await client.exists(*foreign) == len(foreign)


async def test_a_purge_of_all_leaves_the_feedback_log_in_the_same_store(store, counted: CountingMetrics):
    """Entries, counters, idempotency keys and the training cursor."""
    client, predictions = store[1], cache(store[1], counted)
    log_store = LogStore(client, timeout_s=2)
    log, reader = FeedbackLog(log_store), FeedbackReader(log_store)
    record = {"text": "a", "original_intent": "x", "correct_intent": "y", "feedback_type": "correction"}
    submission = Submission(record, hashlib.sha256(b"a").hexdigest(), state="applied", idempotency_key="k")
    (receipt,) = await log.append([submission])
    await client.set("{ig:log}:cursor", "0-0")
    before, stats = await client.keys(), await reader.stats()
    await predictions.put_many(dict.fromkeys(keys_of(range(10)), prediction()))

    assert await predictions.purge_all() == 10
    assert (sorted(await client.keys()), await reader.stats()) == (sorted(before), stats)
    assert [(again.feedback_id, again.duplicate) for again in await log.append([submission])] == [
        (receipt.feedback_id, True)
    ]


async def test_a_purge_of_all_that_runs_out_of_time_says_so(store, counted: CountingMetrics):
    """It must not look done; what it deleted stays deleted, and the rest is still there."""
    predictions = cache(store[1], counted)
    await predictions.put_many(dict.fromkeys(keys_of(range(3 * PAGE)), prediction()))

    with pytest.raises(DeadlineExceeded, match="perhaps not all; send it again"):
        await predictions.purge_all(timeout_s=0)
    assert 0 < await store[1].dbsize() < 3 * PAGE
    assert counted.total(metrics.CACHE_ERRORS, operation="purge") == 0


async def test_a_frozen_store_is_left_alone_until_it_answers_again(store, counted: CountingMetrics):
    """After three look-ups in a row nobody waits for it any more, and hits come back without anybody's doing."""
    server, client = store
    predictions = cache(client, counted)
    (key,) = keys_of(range(1))
    await predictions.put_many({key: prediction()})
    server.pause()
    try:
        waited = [await predictions.get_many([key]) for _ in range(MAX_FAILURES)]
        async with asyncio.timeout(0.4):  # less than one of them would wait
            left_alone = [await predictions.get_many([key]) for _ in range(100)]
            kept, healthy = await predictions.put_many({key: prediction()}), await predictions.ping()
    finally:
        server.resume()

    async def hits_again() -> bool:
        return await predictions.get_many([key]) == [prediction()]

    await becomes_true(hits_again)
    assert waited + left_alone == [[None]] * (MAX_FAILURES + 100)
    assert (kept, healthy) == (False, False)
    assert counted.total(metrics.CACHE_ERRORS, operation="get") == MAX_FAILURES
    assert counted.last(metrics.BREAKER_OPEN, part="prediction store") == 0


async def test_a_purge_is_announced_to_the_local_tiers(store, counted: CountingMetrics):
    """After it was done, so that what they ask for from then on is what is left; also one that found nothing.

    One that takes several steps says at each but the first that it goes on.
    """
    server, client = store
    predictions = cache(client, counted)
    async with subscribe(server.url, CHANNEL, timeout_s=2) as purges:
        await predictions.purge(keys_of(range(1)))
        await predictions.purge_all()
        async with asyncio.timeout(2):
            assert [await anext(purges) for _ in range(3)] == [PURGED, PURGED, PURGING_ON]


async def test_a_purge_while_the_store_is_away_or_frozen_is_an_error(store, counted: CountingMetrics):
    """Told to the operator and counted, within seconds; then it works again by itself."""
    server, client = store
    predictions = cache(client, counted)
    (key,) = keys_of(range(1))
    await predictions.put_many({key: prediction()})
    server.pause()
    try:
        with pytest.raises(Unavailable, match="did not purge"):
            await asyncio.wait_for(predictions.purge_all(), 5)
    finally:
        server.resume()
    server.kill()

    with pytest.raises(Unavailable):
        await predictions.purge([key])
    assert counted.total(metrics.CACHE_ERRORS, operation="purge") == 2
    server.start()
    await predictions.put_many({key: prediction()})
    assert await predictions.purge([key]) == 1


async def test_a_store_that_forbids_purging_is_told(store, counted: CountingMetrics):
    """An access list may keep SCAN from this user: nothing was deleted, and the message names no text and no URL."""
    client = store[1]
    await client.execute_command("ACL", "SETUSER", "default", "-scan")
    try:
        with pytest.raises(Unavailable, match=r"did not purge \(NoPermissionError\)"):
            await cache(client, counted).purge_all()
    finally:
        await client.execute_command("ACL", "SETUSER", "default", "+scan")


def test_the_glob_of_a_purge_is_every_prediction_key_and_no_other():
    """The two are written apart and must not part."""
    assert all(fnmatchcase(key, PREDICTION_KEYS) for key in keys_of(range(20), "2026.11-d0f6a01f"))
    assert not any(fnmatchcase(key, PREDICTION_KEYS) for key in FOREIGN)
