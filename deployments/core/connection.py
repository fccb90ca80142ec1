"""Connections to Redis or Valkey, with every wait bounded. Which kind of store it is, its URL says: see `store_url`."""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from deployments.core.errors import StartupError
from deployments.core.masters import cluster_nodes, master_pool, sentinels
from deployments.core.store_url import Address, StoreUrl

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.cluster import RedisCluster
    from redis.asyncio.connection import AbstractConnection


def connect(url: str, *, timeout_s: float, max_connections: int = 8, key: str | None = None) -> "Redis":
    """A client of one server, or of the current master that Sentinel names, that connects on first use.

    With a `key`, also of Redis Cluster: of the master that has the key's slot, and so for that slot alone. No reply is
    waited for longer than `timeout_s`. The pool blocks when its connections are busy instead of raising. Retrying is
    the caller's: only it knows whether the operation may run twice.

    Raises:
        StartupError: the URL is malformed, or Redis Cluster's and there is no `key`.
    """
    from redis.asyncio import Redis

    store = StoreUrl.parse(url)
    if store.kind == "server":
        return _server(store, store.nodes[0] if store.nodes else None, store.options, timeout_s, max_connections)
    if store.kind == "cluster" and key is None:
        raise StartupError("one server or Sentinel is needed here, not Redis Cluster")
    own = store.options if store.kind == "cluster" else store.sentinel_options
    asked = [_server(store, node, own, timeout_s, max_connections) for node in store.nodes]
    guides, name = (cluster_nodes(asked), key or "") if store.kind == "cluster" else (sentinels(asked), store.service)
    bounds = {"timeout": timeout_s} | _bounds(timeout_s, max_connections)
    return Redis.from_pool(master_pool(guides, name, tls=store.tls, **store.options, **bounds))


def connect_cluster(url: str, *, timeout_s: float, max_connections: int = 8) -> "RedisCluster":
    """A client of Redis Cluster that finds its nodes on first use; no reply is waited for longer than `timeout_s`.

    It raises when all `max_connections` of a node are busy, and does not look for the nodes again when one is away:
    `prediction_store.ClusterStore` sees to both.

    Raises:
        StartupError: the URL is malformed, or not Redis Cluster's.
    """
    from redis.asyncio.cluster import ClusterNode, RedisCluster

    store = StoreUrl.parse(url)
    if store.kind != "cluster":
        raise StartupError("Redis Cluster is needed here: redis+cluster://")
    return RedisCluster(
        startup_nodes=[ClusterNode(*node) for node in store.nodes],
        ssl=store.tls,
        require_full_coverage=False,  # what is covered can be answered
        reinitialize_steps=0,  # a MOVED is followed and noted; closing every connection at each fifth helps nobody
        **store.options,
        **_bounds(timeout_s, max_connections),
    )


@asynccontextmanager
async def subscribe(url: str, channel: str, *, timeout_s: float) -> AsyncIterator[AsyncIterator[bytes]]:
    """Subscribe over a connection of its own; gives the messages from then on.

    At Sentinel's current master, or at any one node of a cluster, which hears what is published at each. Entering and
    reading raise `redis.exceptions.RedisError` or OSError once the connection is lost or nothing, not even the answer
    to a ping, came for `timeout_s`: what was published since may be missed, so it is never restored silently.
    """
    async with _one_connection(url, timeout_s) as connection:
        async with asyncio.timeout(timeout_s):
            await connection.send_command("SUBSCRIBE", channel)
            await connection.read_response(push_request=True)
        async with aclosing(_messages(connection, timeout_s)) as messages:
            yield messages


async def _messages(connection: "AbstractConnection", timeout_s: float) -> AsyncGenerator[bytes, None]:
    from redis.exceptions import TimeoutError as StoreSilent

    pinged = False
    while True:
        reply: Any = await connection.read_response(timeout=timeout_s / 2, push_request=True)
        if reply is not None:
            pinged = False
        elif pinged:
            raise StoreSilent(f"the subscription was silent for {timeout_s:g} s")
        else:
            await connection.send_command("PING")
            pinged = True
        if isinstance(reply, list) and reply[0] == b"message":
            yield reply[2]


@asynccontextmanager
async def _one_connection(url: str, timeout_s: float) -> "AsyncIterator[AbstractConnection]":
    store = StoreUrl.parse(url)
    async with AsyncExitStack() as stack:
        if store.kind == "cluster":
            clients = [_server(store, node, store.options, timeout_s, 1) for node in store.nodes]
            random.shuffle(clients)
        else:
            clients = [connect(url, timeout_s=timeout_s, max_connections=1)]
        for client in clients:
            stack.push_async_callback(client.aclose)
        yield await _first_open(clients)


async def _first_open(clients: "Sequence[Redis]") -> Any:
    from redis.exceptions import RedisError

    pools: list[Any] = [client.connection_pool for client in clients]
    for pool in pools[:-1]:
        with suppress(RedisError, OSError):
            return await pool.get_connection()
    return await pools[-1].get_connection()


def _server(
    store: StoreUrl, node: Address | None, options: Mapping[str, Any], timeout_s: float, max_connections: int
) -> "Redis":
    from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection, UnixDomainSocketConnection

    where: dict[str, Any] = {"host": node[0], "port": node[1]} if node else {}
    kind = (SSLConnection if store.tls else Connection) if node else UnixDomainSocketConnection
    bounds = _bounds(timeout_s, max_connections)
    return Redis.from_pool(
        BlockingConnectionPool(timeout=timeout_s, connection_class=kind, **where, **options, **bounds)
    )


def _bounds(timeout_s: float, max_connections: int) -> dict[str, Any]:
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.maint_notifications import MaintNotificationsConfig

    return {
        "max_connections": max_connections,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 3,
        # They switch off the pool's check for stale connections: each would fail once after a store's restart.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
