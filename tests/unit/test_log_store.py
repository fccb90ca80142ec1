"""The log's store against real Valkey servers: one that would lose what it acknowledges is refused."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from deployments.core.connection import connect
from deployments.core.errors import StoreRefused, Unavailable
from deployments.core.feedback_log import FeedbackLog, Receipt
from deployments.core.log_store import LogStore
from tests.unit.feedback_rows import submission

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from tests.unit.conftest import StartValkey, ValkeyServer


async def test_a_store_that_keeps_what_it_acknowledges_is_accepted(
    store: LogStore, caplog: pytest.LogCaptureFixture
) -> None:
    await store.check_durability()

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
            await LogStore(client, timeout_s=2).check_durability()

    server.kill()
    assert remedy in str(refused.value)
    assert "\n" not in str(refused.value)
    assert str(refused.value).count("it is") == 1


async def test_a_store_that_hides_its_settings_is_checked_as_far_as_it_shows(
    client: Redis, server: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    await client.acl_setuser("guest", enabled=True, nopass=True, categories=["+@all"], commands=["-config"], keys=["*"])
    async with aclosing(connect(server.url.replace("//", "//guest:x@"), timeout_s=2)) as guest:
        store = LogStore(guest, timeout_s=2)
        with caplog.at_level(logging.WARNING):
            await store.check_durability()
        await client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            with pytest.raises(StoreRefused, match="maxmemory-policy noeviction"):
                await store.check_durability()
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
        store = LogStore(client, timeout_s=2)
        log = FeedbackLog(store)
        with pytest.raises(Unavailable):
            await store.require_durable()
        await asyncio.to_thread(server.start)
        [refused] = await log.append([submission()])
        total = await client.dbsize()

    server.kill()
    assert isinstance(refused, Unavailable)
    assert "`appendonly yes`" in refused.detail
    assert total == 0


async def test_a_store_replaced_by_one_that_loses_records_acknowledges_none(valkey_server: StartValkey) -> None:
    durable = valkey_server()
    async with aclosing(connect(durable.url, timeout_s=2)) as client:
        log = FeedbackLog(LogStore(client, timeout_s=2))
        [first] = await log.append([submission()])
        await client.config_set("appendfsync", "everysec")
        await client.script_flush()
        [second] = await log.append([submission()])

    durable.kill()
    assert isinstance(first, Receipt)
    assert isinstance(second, Unavailable)


async def test_nothing_is_deleted_on_a_store_that_came_back_as_one_that_loses_it(valkey_server: StartValkey) -> None:
    server = valkey_server()
    async with aclosing(connect(server.url, timeout_s=2)) as client:
        log = FeedbackLog(LogStore(client, timeout_s=2))
        [receipt] = await log.append([submission()])
        server.kill()
        with pytest.raises(Unavailable):
            await log.delete(receipt.feedback_id)
        server.start()
        await client.config_set("appendfsync", "everysec")

        with pytest.raises(Unavailable, match="appendfsync always"):
            await log.delete(receipt.feedback_id)
    server.kill()


async def test_a_store_that_was_replaced_unseen_is_checked_before_it_decides_anything(
    valkey_server: StartValkey,
) -> None:
    """The client connects again by itself where it finds its connection closed: no call need fail."""
    server = valkey_server()
    async with aclosing(connect(server.url, timeout_s=2)) as client, aclosing(connect(server.url, timeout_s=2)) as ops:
        log = FeedbackLog(LogStore(client, timeout_s=2))
        [receipt] = await log.append([submission(state="pending")])
        server.kill()
        server.start()
        await ops.config_set("appendfsync", "everysec")

        with pytest.raises(Unavailable, match="appendfsync always"):
            await log.review(receipt.feedback_id, "approved")
        with pytest.raises(Unavailable, match="appendfsync always"):
            await log.delete(receipt.feedback_id)
        assert [entry.kind for entry in await LogStore(ops, timeout_s=2).entries("-")] == ["feedback"]
    server.kill()


async def test_an_unsafe_log_takes_any_store_and_says_so(
    valkey_server: StartValkey, caplog: pytest.LogCaptureFixture
) -> None:
    server = valkey_server("--appendonly", "no")
    async with aclosing(connect(server.url, timeout_s=2)) as client:
        [receipt] = await FeedbackLog(LogStore(client, timeout_s=2, unsafe=True)).append([submission()])

    server.kill()
    assert isinstance(receipt, Receipt)
    assert "feedback may be lost" in caplog.text
