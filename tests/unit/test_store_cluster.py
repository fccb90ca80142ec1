"""Predictions on a real Redis Cluster of six nodes, through the loss of some."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import RedisError

from deployments.core import metrics
from deployments.core.connection import connect, connect_cluster, subscribe
from deployments.core.corrections import Follower
from deployments.core.feedback_log import FeedbackLog, Receipt
from deployments.core.feedback_reader import FeedbackReader
from deployments.core.log_layout import FIRST_ID, LOG
from deployments.core.log_store import LogStore
from deployments.core.metrics import NoMetrics
from deployments.core.prediction_cache import PredictionCache
from deployments.core.prediction_store import PAGE, ClusterStore, PredictionStore, open_store
from deployments.core.text import prediction_key
from tests.unit.conftest import free_port
from tests.unit.fakes import CountingMetrics, prediction
from tests.unit.feedback_rows import submission
from tests.unit.stores import Cluster, becomes_true, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

KEYS = [prediction_key(f"text {n}", (), "v1") for n in range(60)]
KEPT = dict.fromkeys(KEYS, prediction())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Whole at the end of each test."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.close()


@pytest.fixture
async def store(cluster: Cluster) -> AsyncIterator[PredictionStore]:
    store = open_store(cluster.url, timeout_s=1)
    yield store
    await store.aclose()


def cache(store: PredictionStore, recorder: metrics.Metrics | None = None) -> PredictionCache:
    return PredictionCache(store, ttl_s=60, ttl_jitter=0, timeout_s=0.5, recorder=recorder or NoMetrics())


async def back_after_s(predictions: PredictionCache) -> float:
    """Keep and look up predictions of every node until all are hits; give how long it took."""

    async def all_hits() -> bool:
        await predictions.put_many(KEPT)
        return await predictions.get_many(KEYS) == list(KEPT.values())

    return await becomes_true(all_hits)


async def test_keys_of_every_node_are_kept_found_and_purged(store: PredictionStore):
    """In the order asked for, in one call."""
    predictions = cache(store)
    await predictions.put_many({key: prediction(key) for key in KEYS})
    found = await predictions.get_many([*reversed(KEYS), "absent"])

    assert found == [*(prediction(key) for key in reversed(KEYS)), None]
    assert await predictions.purge([*KEYS[:40], "absent"]) == 40
    assert await predictions.get_many(KEYS[39:41]) == [None, prediction(KEYS[40])]
    assert await predictions.ping()


async def test_a_purge_of_all_walks_every_primary_and_leaves_other_programs_keys(
    store: PredictionStore, cluster: Cluster
):
    """Page by page."""
    predictions = cache(store)
    await predictions.purge_all()
    for page in range(4):
        keys = [prediction_key(f"{page} {n}", (), "v1") for n in range(PAGE)]
        await predictions.put_many(dict.fromkeys(keys, prediction()))
    await store.put_many({f"user:{n}": (b"theirs", 60_000) for n in range(30)})

    assert await predictions.purge_all() == 4 * PAGE
    assert await store.delete_many([f"user:{n}" for n in range(30)]) == 30


async def test_times_to_live_are_kept(store: PredictionStore, cluster: Cluster):
    """Each in its milliseconds."""
    await store.put_many({"short": (b"1", 50), "long": (b"2", 60_000)})
    await asyncio.sleep(0.2)

    assert list(await store.get_many(["short", "long"])) == [None, b"2"]


async def test_what_cannot_be_read_is_a_miss_and_deleted(store: PredictionStore, cluster: Cluster):
    """Also a key of another type, which a node tells from an absent one."""
    counted = CountingMetrics()
    predictions = cache(store, counted)
    await predictions.put_many({KEYS[0]: prediction()})
    await store.put_many({KEYS[1]: (b"garbage", 60_000)})
    client = connect_cluster(cluster.url, timeout_s=1)
    await client.delete(KEYS[2])
    await client.lpush(KEYS[2], "x")
    await client.aclose()
    found = await predictions.get_many(KEYS[:3])
    await asyncio.to_thread(until, lambda: not any(map(cluster.has, KEYS[1:3])), "never deleted")

    assert found == [prediction(), None, None]
    assert counted.total(metrics.CACHE_CORRUPT) == 2


async def test_more_calls_than_connections_wait_their_turn(cluster: Cluster):
    """Instead of failing for want of one."""
    store = open_store(cluster.url, timeout_s=2, max_connections=2)
    predictions = PredictionCache(store, ttl_s=60, ttl_jitter=0, timeout_s=5, recorder=NoMetrics())
    await predictions.put_many(KEPT)
    found = await asyncio.gather(*(predictions.get_many(KEYS) for _ in range(40)))
    await store.aclose()

    assert found == [list(KEPT.values())] * 40


async def test_slots_handed_over_are_followed_without_a_miss(store: PredictionStore, cluster: Cluster):
    """What was asked of the old primary is answered by the new one in the same call."""
    predictions = cache(store)
    await predictions.put_many(KEPT)
    old = cluster.primary_of(KEYS[0])
    new = replica_of(cluster, old)
    await asyncio.to_thread(
        until, lambda: cluster.clients[new].execute_command("CLUSTER", "FAILOVER") == "OK", "refused"
    )
    await asyncio.to_thread(until, lambda: cluster.clients[old].role()[0] == "slave", "it never handed over")
    found = await predictions.get_many(KEYS)
    await asyncio.to_thread(until, cluster.whole, "never whole again")

    assert found == list(KEPT.values())
    assert cluster.primary_of(KEYS[0]) == new


@pytest.mark.parametrize("way", ["kill", "pause"])
async def test_after_the_loss_of_a_primary_its_replica_is_found(store: PredictionStore, cluster: Cluster, way: str):
    """Nothing is raised meanwhile, and all are hits again soon after the replica's promotion."""
    predictions = cache(store)
    await back_after_s(predictions)
    lost = cluster.primary_of(KEYS[0])
    replica = replica_of(cluster, lost)
    getattr(cluster.nodes[lost], way)()
    try:
        took_s = await back_after_s(predictions)
    finally:
        cluster.nodes[lost].kill()
        await asyncio.to_thread(cluster.nodes[lost].start)
    after_s = await back_after_s(predictions)
    await asyncio.to_thread(until, cluster.whole, "never whole again")

    assert cluster.primary_of(KEYS[0]) == replica
    assert took_s < 8  # some 2 s of them are the cluster's own, longer where the processor is busy
    assert after_s < 1


async def test_the_log_lies_in_one_slot_and_follows_it(cluster: Cluster):
    """Every script, page and follower; after the primary's loss the replica takes what is sent again, once."""
    for client in cluster.clients:
        client.config_set("appendfsync", "always")
        client.config_set("appendonly", "yes")
    follower = Follower(lambda: connect(cluster.url, timeout_s=1, key=LOG), metrics=NoMetrics())
    async with aclosing(connect(cluster.url, timeout_s=1, key=LOG)) as client:
        log_store = LogStore(client, timeout_s=1)
        log, reader = FeedbackLog(log_store), FeedbackReader(log_store)
        await follower.start(5)

        async def recorded(key: str, **given: object) -> bool:
            (outcome,) = await log.append([submission(key, **given)])
            return isinstance(outcome, Receipt)

        await recorded("1", text="one")
        await recorded("2", text="two", state="pending", user_id="ann")
        await recorded("3", text="three", state="pending")
        (first, second, third) = (await reader.page(FIRST_ID, 10)).records
        await log.review(second.entry.feedback_id, "approved")
        await log.delete(third.entry.feedback_id)
        erased = await reader.erase(log, "ann")
        trimmed = await log.trim(await log_store.now_s())
        await becomes_true(lambda: _is(follower.held == 1))
        lost = cluster.primary_of(LOG)
        await asyncio.to_thread(until, lambda: cluster.clients[lost].wait(1, 500) == 1, "never replicated")
        cluster.nodes[lost].kill()
        away = await recorded("4")
        took_s = await becomes_true(lambda: recorded("4"))
        await becomes_true(lambda: _is(follower.connected and follower.held == 2))
        left = (await reader.page(FIRST_ID, 10)).records
        await follower.close()
    await asyncio.to_thread(cluster.nodes[lost].start)
    await asyncio.to_thread(until, cluster.whole, "never whole again")

    assert (erased, trimmed, away) == (1, 0, False)
    assert [record.entry.feedback_id for record in left[:-1]] == [first.entry.feedback_id]
    assert took_s < 8


async def _is(value: bool) -> bool:
    return value


async def test_where_no_known_node_answers_those_of_the_url_are_asked(cluster: Cluster):
    """A cluster that came up again at other addresses is found by the names it is known by."""
    nowhere = f"redis+cluster://127.0.0.1:{free_port()}"
    urls = iter([nowhere, cluster.url])
    store = ClusterStore(lambda: connect_cluster(next(urls), timeout_s=1), max_round_trips=2)
    predictions = cache(store)
    first = await predictions.get_many(KEYS)
    await back_after_s(predictions)
    await store.aclose()

    assert first == [None] * len(KEYS)


async def test_a_message_published_anywhere_is_heard_by_who_subscribed_at_any_node(
    store: PredictionStore, cluster: Cluster
):
    """Three times, since where one subscribes is chance."""
    for _ in range(3):
        async with subscribe(cluster.url, "purges", timeout_s=1) as messages:
            await store.publish("purges", b"all")

            assert await asyncio.wait_for(anext(messages), 2) == b"all"


async def test_a_subscription_takes_a_node_that_answers_and_is_lost_with_it(cluster: Cluster):
    """The others of its URL may be away."""
    replica = replica_of(cluster, cluster.primary_of(KEYS[0]))
    host = f"127.0.0.1:{cluster.nodes[replica].port}"
    url = cluster.url.rpartition("@")[0] + f"@127.0.0.1:{free_port()},{host}"
    async with subscribe(url, "purges", timeout_s=1) as messages:
        cluster.nodes[replica].kill()

        with pytest.raises(RedisError):
            await asyncio.wait_for(anext(messages), 2)
    await asyncio.to_thread(cluster.nodes[replica].start)
    await asyncio.to_thread(until, cluster.whole, "never whole again")


async def test_a_wrong_password_is_a_miss_and_never_shown(cluster: Cluster, caplog: pytest.LogCaptureFixture):
    """Nor is the one that would have been right."""
    store = open_store(cluster.url.replace("word", "hunter2"), timeout_s=1)
    predictions = cache(store)
    await predictions.put_many(KEPT)

    assert await predictions.get_many(KEYS[:2]) == [None, None]
    assert not await predictions.ping()
    assert "hunter2" not in caplog.text
    await store.aclose()


def replica_of(cluster: Cluster, primary: int) -> int:
    """The index of its replica."""
    ((_, port, _),) = cluster.clients[primary].role()[2]
    return [node.port for node in cluster.nodes].index(int(port))
