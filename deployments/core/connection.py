"""Connections to Redis or Valkey, with every wait bounded."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from redis.asyncio import Redis


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
