"""The feedback log on a store that takes nothing more: its disk is full, its memory is, or it has become a replica.

What holds for each: nothing is acknowledged meanwhile, nothing acknowledged before is lost, and no script is done in
half. What callers of the whole service see is in the tests of faults.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from deployments.core.connection import connect
from deployments.core.errors import Unavailable
from deployments.core.feedback_log import FeedbackLog, Receipt
from deployments.core.log_store import LogStore
from tests.unit.feedback_rows import counters, entries, recount, submission

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from redis.asyncio import Redis

    from deployments.core.feedback_log import Submission
    from tests.unit.conftest import StartValkey, ValkeyServer


def groups(name: str) -> list[list[Submission]]:
    return [[submission(f"{name}-{n}-{i}", text="x" * 1000) for i in range(5)] for n in range(10)]


@pytest.mark.parametrize("room_bytes", [0, 100, 30_000])
async def test_a_full_disk_ends_the_server_and_what_it_acknowledged_is_there_when_there_is_room(
    valkey_server: StartValkey, room_bytes: int
):
    """Valkey ends rather than go on without its file; a write cut in the middle is dropped whole at its next start."""
    server = valkey_server()
    async with aclosing(connect(server.url, timeout_s=2)) as client:
        log = FeedbackLog(LogStore(client, timeout_s=2))
        before = [receipt for group in groups("before") for receipt in await log.append(group)]
        server.fill_disk(room_bytes=room_bytes)
        outcomes = [o for done in await asyncio.gather(*map(log.append, groups("full"))) for o in done]
        server.wait_ended()
        server.start()
        found = {entry.feedback_id for entry in await entries(client)}
        retried = [receipt for group in groups("full") for receipt in await log.append(group)]

        acknowledged = {outcome.feedback_id for outcome in outcomes if isinstance(outcome, Receipt)}
        assert any(isinstance(outcome, Unavailable) for outcome in outcomes)
        assert bool(acknowledged) == (room_bytes > 10_000)
        assert {receipt.feedback_id for receipt in before} | acknowledged <= found
        assert all(isinstance(receipt, Receipt) for receipt in retried)
        assert len(await entries(client)) == len(before) + len(outcomes)
        assert await counters(client) == await recount(client)


@asynccontextmanager
async def full_disk(server: ValkeyServer, _client: Redis) -> AsyncIterator[None]:
    server.fill_disk(room_bytes=10)
    yield
    server.wait_ended()
    server.start()


@asynccontextmanager
async def full_memory(_server: ValkeyServer, client: Redis) -> AsyncIterator[None]:
    await client.config_set("maxmemory", 1)
    yield
    await client.config_set("maxmemory", 0)


@asynccontextmanager
async def read_only(_server: ValkeyServer, client: Redis) -> AsyncIterator[None]:
    await client.replicaof("127.0.0.1", 1)  # of a primary that never answers, with the data it has
    yield
    await client.replicaof("NO", "ONE")


async def contents(client: Redis) -> dict[bytes, object]:
    """Everything in the store."""
    reads = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"stream": client.xrange,
        b"zset": lambda key: client.zrange(key, 0, -1),
    }
    return {key: await reads[await client.type(key)](key) for key in await client.keys()}


ACTS: dict[str, Callable[[FeedbackLog, str], Awaitable[None]]] = {
    "approve": lambda log, feedback_id: log.review(feedback_id, "approved"),
    "reject": lambda log, feedback_id: log.review(feedback_id, "rejected"),
    "delete": lambda log, feedback_id: log.delete(feedback_id),
}


@pytest.mark.parametrize("fault", [full_disk, full_memory, read_only])
@pytest.mark.parametrize("act", ACTS)
async def test_what_an_operator_does_is_done_whole_or_not_at_all(
    valkey_server: StartValkey, act: str, fault: Callable[..., AbstractAsyncContextManager[None]]
):
    """Refused, it changed nothing and can be done again. A deletion needs no memory: it makes room."""
    server = valkey_server()
    async with aclosing(connect(server.url, timeout_s=2)) as client:
        log = FeedbackLog(LogStore(client, timeout_s=2))
        receipts = await log.append([submission(str(n), state="pending") for n in range(3)])
        before = await contents(client)
        refused = False
        async with fault(server, client):
            try:
                await ACTS[act](log, receipts[1].feedback_id)
            except Unavailable:
                refused = True
        after = await contents(client)
        if refused:
            await ACTS[act](log, receipts[1].feedback_id)

        assert refused == ((act, fault) != ("delete", full_memory))
        assert (after == before) == refused
        assert await contents(client) != before
        assert await counters(client) == await recount(client)
    server.kill()
