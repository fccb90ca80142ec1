"""Connections to a store, against a real Valkey."""

import asyncio

import pytest
from redis.exceptions import RedisError

from deployments.core.connection import connect, connect_cluster, subscribe
from deployments.core.errors import StartupError


async def test_after_a_restart_of_the_store_no_request_fails_on_an_old_connection(valkey_server):
    """Each pooled connection is found stale before it is used, not by failing a caller."""
    server = valkey_server()
    client = connect(server.url, timeout_s=1.0)
    await asyncio.gather(*(client.ping() for _ in range(8)))
    server.kill()
    await asyncio.to_thread(server.start)  # the loop sees the connections close meanwhile

    assert await asyncio.gather(*(client.ping() for _ in range(8))) == [True] * 8
    await client.aclose()


async def test_a_frozen_store_is_given_up_in_time(valkey_server):
    """The reply is waited for no longer than the timeout."""
    server = valkey_server()
    client = connect(server.url, timeout_s=0.1)
    await client.ping()
    server.pause()
    try:
        with pytest.raises((RedisError, OSError)):
            await asyncio.wait_for(client.ping(), 1)
    finally:
        server.resume()
    await client.aclose()


@pytest.mark.parametrize(("dial", "url"), [(connect, "redis+cluster://h"), (connect_cluster, "redis://h")])
def test_a_url_of_another_kind_is_refused(dial, url: str):
    """A client of one server cannot speak with a cluster, nor the other way round."""
    with pytest.raises(StartupError):
        dial(url, timeout_s=1)


async def test_a_socket_on_this_machine_is_a_store_too(valkey_server, tmp_path):
    """By the path of it."""
    valkey_server("--unixsocket", str(tmp_path / "s"))
    client = connect(f"unix://{tmp_path}/s?db=1", timeout_s=1)

    assert await client.ping()
    await client.aclose()


async def test_a_subscription_gives_what_is_published_from_then_on(server, client):
    """In order, and only of its channel."""
    async with subscribe(server.url, "a", timeout_s=1) as messages:
        for channel, message in (("a", b"1"), ("b", b"2"), ("a", b"3")):
            await client.publish(channel, message)

        assert [await anext(messages), await anext(messages)] == [b"1", b"3"]


async def test_a_quiet_subscription_stays(server, client):
    """A ping now and then keeps it: no message is not silence."""
    async with subscribe(server.url, "a", timeout_s=0.2) as messages:
        waiting = asyncio.create_task(anext(messages))
        await asyncio.sleep(0.7)  # longer than silence may last
        await client.publish("a", b"late")

        assert await asyncio.wait_for(waiting, 1) == b"late"


@pytest.mark.parametrize("way", ["kill", "pause"])
async def test_a_subscription_that_is_lost_says_so_and_does_not_come_back_by_itself(valkey_server, way: str):
    """At once when the server ends, within the timeout when it falls silent."""
    server = valkey_server()
    async with subscribe(server.url, "a", timeout_s=0.4) as messages:
        getattr(server, way)()
        try:
            async with asyncio.timeout(1):
                with pytest.raises(RedisError):
                    await anext(messages)
        finally:
            server.kill()
        await asyncio.to_thread(server.start)

        assert [message async for message in messages] == []


async def test_a_subscription_where_nobody_answers_is_refused(valkey_server):
    """Whether away or silent, in bounded time."""
    server = valkey_server()
    server.pause()
    try:
        with pytest.raises((RedisError, OSError)):
            async with asyncio.timeout(2), subscribe(server.url, "a", timeout_s=0.2):
                pass
    finally:
        server.kill()
    with pytest.raises((RedisError, OSError)):
        async with subscribe(server.url, "a", timeout_s=0.2):
            pass
