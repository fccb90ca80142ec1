"""Connections to Redis or Valkey, with every wait bounded."""

import asyncio
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis
    from redis.asyncio.client import PubSub


def connect(url: str, *, timeout_s: float, max_connections: int = 8) -> "Redis":
    """A client for `url` that connects on first use; no reply is waited for longer than `timeout_s`.

    The pool blocks when its connections are busy instead of raising. Retrying is the caller's: only it knows whether
    the operation may run twice.
    """
    from redis.asyncio import BlockingConnectionPool, Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.maint_notifications import MaintNotificationsConfig

    pool = BlockingConnectionPool.from_url(
        url,
        timeout=timeout_s,
        max_connections=max_connections,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        protocol=3,
        # They switch off the pool's check for stale connections: each would fail once after a store's restart.
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )
    return Redis.from_pool(pool)


@asynccontextmanager
async def subscribe(url: str, channel: str, *, timeout_s: float) -> "AsyncIterator[AsyncIterator[bytes]]":
    """The messages of a channel, over a connection of its own."""
    client = connect(url, timeout_s=timeout_s)
    async with aclosing(client), client.pubsub(ignore_subscribe_messages=True) as subscription:
        await subscription.subscribe(channel)
        yield _messages(subscription, timeout_s)


async def _messages(subscription: "PubSub", timeout_s: float) -> "AsyncIterator[bytes]":
    while True:
        message = await subscription.get_message(timeout=timeout_s / 2)
        if message is None:
            async with asyncio.timeout(timeout_s):
                await subscription.ping()
        elif message["type"] == "message":
            yield message["data"]
