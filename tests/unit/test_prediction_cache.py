"""The prediction store's policy, against a real Valkey."""

import asyncio
import random

import pytest
from redis.asyncio import Redis

from deployments.core import metrics
from deployments.core.connection import connect
from deployments.core.prediction_cache import PredictionCache
from tests.unit.fakes import CountingMetrics, prediction


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
    return PredictionCache(client, recorder=counted, random_source=random.Random(7), **knobs)


async def test_what_was_kept_comes_back_as_it_was(store, counted: CountingMetrics):
    """In the order of the keys, None for what is not there."""
    predictions = cache(store[1], counted)
    await predictions.put_many({"a": prediction("é"), "b": prediction("b", "translation")})

    assert await predictions.get_many(["b", "x", "a"]) == [prediction("b", "translation"), None, prediction("é")]
    assert counted.total(metrics.CACHE_LOOKUPS, result="hit") == 2
    assert counted.total(metrics.CACHE_LOOKUPS, result="miss") == 1


async def test_times_to_live_are_spread(store, counted: CountingMetrics):
    """100 s ± 10 %, so that what was kept together does not expire together."""
    client = store[1]
    await cache(client, counted).put_many({str(index): prediction() for index in range(50)})
    lives = [await client.pttl(str(index)) for index in range(50)]

    assert all(89_000 < life <= 110_000 for life in lives)
    assert max(lives) - min(lives) > 10_000


@pytest.mark.parametrize("value", [b"", b"garbage", b"{}", b'{"schema":2,"prediction":{}}', b"\xff", b"[1]", b"null"])
async def test_a_foreign_or_damaged_value_is_a_miss(store, counted: CountingMetrics, value: bytes):
    """Whatever stands under the key."""
    await store[1].set("a", value)

    assert await cache(store[1], counted).get_many(["a"]) == [None]


async def test_a_value_of_another_schema_version_is_a_miss(store, counted: CountingMetrics):
    """Whatever else is right about it."""
    predictions = cache(store[1], counted)
    await predictions.put_many({"a": prediction()})
    written = await store[1].get("a")
    await store[1].set("a", written.replace(b'"schema":1', b'"schema":2'))

    assert written.startswith(b'{"schema":1')
    assert await predictions.get_many(["a"]) == [None]


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
