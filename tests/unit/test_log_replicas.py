"""Feedback that is acknowledged when replicas of the log's store have received it, against real servers."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from deployments.core.connection import connect
from deployments.core.errors import NotFound, Unavailable
from deployments.core.feedback_log import FeedbackLog, Receipt
from deployments.core.feedback_reader import FeedbackReader
from deployments.core.log_layout import CURSOR
from deployments.core.log_store import LogStore
from tests.unit.feedback_rows import counters, entries, recount, submission
from tests.unit.stores import becomes_true

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from tests.unit.conftest import StartValkey, ValkeyServer

TIMEOUT_S = 1.0
"""A third of it is what replicas have."""


AT_ONCE = ("--repl-diskless-sync-delay", "0")
"""For a server whose replicas need not wait for others to come."""


@pytest.fixture(scope="module")
def server(valkey_server: StartValkey) -> ValkeyServer:
    """The primary."""
    return valkey_server(*AT_ONCE)


@pytest.fixture(scope="module")
def replica(valkey_server: StartValkey, server: ValkeyServer) -> ValkeyServer:
    """The one replica of `server`."""
    return valkey_server("--replicaof", f"127.0.0.1 {server.port}")


@pytest.fixture
async def at_replica(replica: ValkeyServer, client: Redis) -> AsyncIterator[Redis]:
    """A client of the replica, which has caught up."""
    async with aclosing(connect(replica.url, timeout_s=2)) as own:
        await followed(client)
        yield own


async def followed(client: Redis) -> None:
    """Wait until the server has a replica."""
    await becomes_true(lambda: client.wait(1, 100))


def log_with(client: Redis, replicas: int) -> FeedbackLog:
    return FeedbackLog(LogStore(client, timeout_s=TIMEOUT_S, replicas_acked=replicas))


async def test_what_is_acknowledged_is_at_the_replica(client: Redis, at_replica: Redis):
    """Asked right away; the first group finds no script in the server, and each of its records is written once."""
    log = log_with(client, 1)
    for n in range(20):
        receipts = await log.append([submission(f"{n}-{i}") for i in range(3)])
        found = [entry.feedback_id for entry in await entries(at_replica)]

        assert [receipt.feedback_id for receipt in receipts if isinstance(receipt, Receipt)] == found[-3:]
        assert len(found) == 3 * (n + 1)


async def test_while_the_replica_receives_nothing_nothing_is_acknowledged_however_often_it_is_sent(
    client: Redis, server: ValkeyServer, at_replica: Redis, replica: ValkeyServer
):
    """Sent again by whomever, a record writes nothing more, and is a duplicate once the replica is back."""
    async with aclosing(connect(server.url, timeout_s=2)) as another:
        writers = [log_with(client, 1), log_with(another, 1), log_with(another, 1)]
        await client.script_flush()  # as in a fresh server: the first try writes nothing, and is made again
        replica.pause()
        try:
            outcomes = [each for log in writers for each in await log.append([submission("a"), submission("b")])]
            unasked = await log_with(client, 0).append([submission("c")])
        finally:
            replica.resume()
        confirmed = await writers[1].append([submission(key) for key in "abc"])

    assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
    assert "0 have it" in str(outcomes[0])
    assert "feedback_replicas_acked" in str(outcomes[0])
    assert isinstance(unasked[0], Receipt)
    assert [receipt.duplicate for receipt in confirmed if isinstance(receipt, Receipt)] == [True] * 3
    assert len(await entries(at_replica)) == 3
    assert await counters(at_replica) == await recount(client)


async def test_a_decision_is_confirmed_when_the_replica_has_it(client: Redis, at_replica: Redis, replica: ValkeyServer):
    """Unconfirmed it is done, and asked again it is confirmed: an approval as such, a deletion as one of nothing."""
    log = log_with(client, 1)
    kept, gone = await log.append([submission(key, state="pending") for key in "ab"])
    replica.pause()
    try:
        for _ in range(2):
            with pytest.raises(Unavailable):
                await log.review(kept.feedback_id, "approved")
            with pytest.raises(Unavailable):
                await log.delete(gone.feedback_id)
    finally:
        replica.resume()
    await log.review(kept.feedback_id, "approved")
    with pytest.raises(NotFound):
        await log.delete(gone.feedback_id)

    assert [entry.kind for entry in await entries(at_replica)] == ["feedback", "approval", "deletion"]


async def test_an_erasure_and_the_training_cursor_are_confirmed_when_the_replica_has_them(
    client: Redis, at_replica: Redis, replica: ValkeyServer
):
    """Asked again, an erasure finds nothing left to delete, and is not confirmed for that."""
    store = LogStore(client, timeout_s=TIMEOUT_S, replicas_acked=1)
    log, reader = FeedbackLog(store), FeedbackReader(store)
    (receipt,) = await log.append([submission(user_id="u")])
    replica.pause()
    try:
        for _ in range(2):
            with pytest.raises(Unavailable):
                await reader.erase(log, "u")
            with pytest.raises(Unavailable):
                await reader.acknowledge(receipt.feedback_id)
    finally:
        replica.resume()
    await reader.acknowledge(receipt.feedback_id)

    assert await reader.erase(log, "u") == 0
    assert await at_replica.get(CURSOR) == receipt.feedback_id.encode()
    assert [entry.kind for entry in await entries(at_replica)] == ["deletion"]


async def test_a_store_out_of_memory_still_deletes(client: Redis, at_replica: Redis):
    """The mark that replicas receive needs no more memory than the deletion does."""
    log = log_with(client, 1)
    (receipt,) = await log.append([submission()])
    await client.config_set("maxmemory", 1)
    try:
        (refused,) = await log.append([submission("more")])
        await log.delete(receipt.feedback_id)
    finally:
        await client.config_set("maxmemory", 0)

    assert isinstance(refused, Unavailable)
    assert [entry.kind for entry in await entries(at_replica)] == ["deletion"]


async def test_two_replicas_are_not_one(client: Redis, at_replica: Redis):
    """One has it, which is told."""
    (outcome,) = await log_with(client, 2).append([submission()])

    assert isinstance(outcome, Unavailable)
    assert "1 have it" in str(outcome)
    assert len(await entries(at_replica)) == 1


async def test_no_acknowledged_record_is_lost_with_the_store(valkey_server: StartValkey):
    """What comes while no replica follows is unconfirmed, and gone with the store; the rest is at the replica."""
    primary = valkey_server(*AT_ONCE)
    replica = valkey_server("--replicaof", f"127.0.0.1 {primary.port}")
    async with (
        aclosing(connect(primary.url, timeout_s=2)) as client,
        aclosing(connect(replica.url, timeout_s=2)) as new,
    ):
        await followed(client)
        log = log_with(client, 1)
        outcomes = [outcome for n in range(10) for outcome in await log.append([submission(str(n))])]
        await new.replicaof("NO", "ONE")
        outcomes += await log.append([submission("alone")])
        primary.kill()
        found = {entry.feedback_id for entry in await entries(new)}
    replica.kill()

    confirmed = {each.feedback_id for each in outcomes if isinstance(each, Receipt)}
    assert confirmed  # most: on a busy machine a replica's word may come after the time for it
    assert confirmed <= found
    assert len(found) == 10
