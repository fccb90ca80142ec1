"""Stores behind Sentinel: the master it names, through failovers, against real servers."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from deployments.core.connection import connect, subscribe
from deployments.core.corrections import Follower
from deployments.core.feedback_log import FeedbackLog, Receipt, Submission
from deployments.core.log_store import LogStore
from deployments.core.masters import Guides, master_pool
from deployments.core.metrics import NoMetrics
from deployments.core.prediction_cache import PredictionCache
from deployments.core.prediction_store import PredictionStore, open_store
from tests.unit.conftest import DURABLE, StartValkey, ValkeyServer
from tests.unit.fakes import prediction
from tests.unit.stores import SERVICE, SentinelTrio, becomes_true, client_of, until

if TYPE_CHECKING:
    from collections.abc import Iterator

RECORD = {"text": "a", "original_intent": "x", "correct_intent": "y", "feedback_type": "correction"}


@pytest.fixture
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelTrio]:
    """Each test loses its master, so each has its own."""
    trio = SentinelTrio(tmp_path_factory.mktemp("trio"), *DURABLE)
    yield trio
    trio.close()


def cache(store: PredictionStore) -> PredictionCache:
    return PredictionCache(store, ttl_s=60, ttl_jitter=0, timeout_s=0.1, recorder=NoMetrics())


async def kept(predictions: PredictionCache, key: str = "a") -> bool:
    await predictions.put_many({key: prediction()})
    return await predictions.get_many([key]) == [prediction()]


def promoted(trio: SentinelTrio) -> None:
    """Wait until the Sentinels have decided for the replica."""
    address = ("127.0.0.1", trio.replica.port)
    until(lambda: trio.clients[0].sentinel_get_master_addr_by_name(SERVICE) == address, "no failover")


async def test_predictions_go_to_the_new_master_after_the_old_one_fell_silent(trio: SentinelTrio):
    """Nothing is raised; with one Sentinel silent too, hits are back within two seconds of the others' decision."""
    store = open_store(trio.url, timeout_s=1)
    predictions = cache(store)
    before = await becomes_true(lambda: kept(predictions))
    async with subscribe(trio.url, "purges", timeout_s=1) as messages:
        await store.publish("purges", b"all")
        heard = await asyncio.wait_for(anext(messages), 2)
        trio.primary.pause()
        trio.sentinels[1].pause()
        with pytest.raises(RedisError):
            await asyncio.wait_for(anext(messages), 2)
    await asyncio.to_thread(promoted, trio)
    took_s = await becomes_true(lambda: kept(predictions))
    trio.primary.resume()
    after = [await kept(predictions, str(n)) for n in range(20)]
    async with subscribe(trio.url, "purges", timeout_s=1) as messages:
        await store.publish("purges", b"again")
        heard += await asyncio.wait_for(anext(messages), 2)
    await store.aclose()

    assert before < 1
    assert heard == b"allagain"
    assert took_s < 2
    assert after == [True] * 20
    assert client_of(trio.replica).exists("a", "19") == 2


async def test_the_log_and_who_follows_it_go_on_at_the_new_master(trio: SentinelTrio):
    """Appends fail while there is none, and each that is acknowledged afterwards shows in the overlay."""
    follower = Follower(lambda: connect(trio.url, timeout_s=1), metrics=NoMetrics())
    async with aclosing(connect(trio.url, timeout_s=1)) as client:
        log = FeedbackLog(LogStore(client, timeout_s=1))
        await follower.start(5)

        async def recorded(name: str) -> bool:
            (outcome,) = await log.append([Submission(RECORD, name, state="applied", idempotency_key=name)])
            return isinstance(outcome, Receipt)

        async def shown(name: str) -> bool:
            return follower.get(name) is not None

        await becomes_true(lambda: recorded("before"))
        await becomes_true(lambda: shown("before"))
        trio.primary.kill()
        away = await recorded("away")
        await asyncio.to_thread(promoted, trio)
        took_s = await becomes_true(lambda: recorded("after"))
        await becomes_true(lambda: shown("after"))
        await follower.close()

    assert not away
    assert took_s < 2
    assert await shown("after")


class Naming(Guides):
    """Names the server it is told to."""

    def __init__(self, server: ValkeyServer) -> None:
        super().__init__([], self.discover_master, "")
        self.server = server
        self.closed = False

    async def aclose(self) -> None:
        self.closed = True

    async def discover_master(self, service: str) -> tuple[str, int]:
        return "127.0.0.1", self.server.port


@pytest.fixture
def two(valkey_server: StartValkey) -> tuple[ValkeyServer, ValkeyServer]:
    """A primary and a replica of it."""
    primary = valkey_server()
    replica = valkey_server("--replicaof", f"127.0.0.1 {primary.port}")
    return primary, replica


def master_client(sentinels: Guides) -> Redis:
    return Redis.from_pool(master_pool(sentinels, SERVICE, tls=False, protocol=3, timeout=1, max_connections=1))


async def test_a_replica_that_is_named_a_master_is_not_used(two: tuple[ValkeyServer, ValkeyServer]):
    """A Sentinel may not have heard of the failover; the next connection asks again."""
    sentinels = Naming(two[1])
    async with aclosing(master_client(sentinels)) as client:
        with pytest.raises(RedisError, match="no master"):
            await client.get("a")
        sentinels.server = two[0]

        assert await client.set("a", "b")
        assert not sentinels.closed
    assert sentinels.closed  # with the client: who follows the log makes one for each connection


async def test_a_connection_that_answers_readonly_is_dropped(two: tuple[ValkeyServer, ValkeyServer]):
    """The master was demoted under it, and is asked for anew."""
    other, demoted = two
    sentinels = Naming(demoted)
    server = Redis(port=demoted.port)
    await server.replicaof("NO", "ONE")
    async with aclosing(master_client(sentinels)) as client, aclosing(server):
        await client.set("a", "b")
        await server.replicaof("127.0.0.1", other.port)
        sentinels.server = other
        with pytest.raises(RedisError, match="now a slave"):
            await client.set("a", "c")

        assert await client.set("a", "d")


async def test_a_user_who_may_not_ask_for_the_role_is_served(two: tuple[ValkeyServer, ValkeyServer]):
    """Managed services forbid what is dangerous."""
    async with aclosing(Redis(port=two[0].port)) as server:
        await server.execute_command("ACL", "SETUSER", "default", "-role")
    async with aclosing(master_client(Naming(two[0]))) as client:
        assert await client.set("a", "b")


@pytest.mark.parametrize("change", [("sentinel_password=other", "sentinel_password=wrong"), (SERVICE, "unknown")])
async def test_without_a_master_to_ask_for_all_are_misses(
    valkey_server: StartValkey, change: tuple[str, str], caplog: pytest.LogCaptureFixture
):
    """Nothing is raised, and no password shown, whatever keeps Sentinel from naming one."""
    silent, away = valkey_server("--requirepass", "other"), valkey_server()
    away.kill()
    url = f"redis+sentinel://:hunter2@127.0.0.1:{silent.port},127.0.0.1:{away.port}/{SERVICE}?sentinel_password=other"
    store = open_store(url.replace(*change), timeout_s=1)
    predictions = cache(store)

    assert not await kept(predictions)
    assert not await predictions.ping()
    assert not any(secret in caplog.text for secret in ("hunter2", "other", "wrong"))
    await store.aclose()
