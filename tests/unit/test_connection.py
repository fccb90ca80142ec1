"""Connections to a store, against a real Valkey."""

import asyncio

import pytest
from redis.exceptions import RedisError

from deployments.core.connection import connect


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
