"""Where predictions are kept: bytes by key, on one server, on the master Sentinel names, or on Redis Cluster.

What the bytes are, how long they live and what a failure means is `prediction_cache`'s. Everything here raises what the
client raises, and is bounded in time by its caller.
"""

import asyncio
import contextvars
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from deployments.core.connection import connect, connect_cluster
from deployments.core.store_url import StoreUrl

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.cluster import ClusterNode, RedisCluster

PAGE = 1000
"""Keys of one step of a walk: the store serves nobody else for 2 ms, far below the 20 ms a look-up has."""

logger = logging.getLogger(__name__)


class PredictionStore(Protocol):
    """Bytes by key, each call one round trip (to each node at once) but for `delete_matching`."""

    async def get_many(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        """The value of each key, in order; None where there is none.

        What is no string is None too, or, where the store tells it apart at no cost, no byte at all.
        """

    async def put_many(self, values: Mapping[str, tuple[bytes, int]]) -> None:
        """Keep each value under its key for so many milliseconds, whatever was there."""

    async def delete_many(self, keys: Sequence[str]) -> int:
        """Delete what is under `keys`; give how much there was."""

    def delete_matching(self, pattern: str) -> AsyncGenerator[int, None]:
        """Delete what is under keys that match a glob of SCAN, page by page; give how much there was in each."""

    async def ping(self) -> None:
        """Raise unless the store, each primary of a cluster, answers."""

    async def publish(self, channel: str, message: bytes) -> None:
        """Send a message to whoever subscribed to `channel`, see `connection.subscribe`."""

    async def aclose(self) -> None:
        """Close the connections."""


def open_store(url: str, *, timeout_s: float, max_connections: int = 8) -> PredictionStore:
    """The store that `url` names; it connects on first use, and waits for no reply longer than `timeout_s`.

    Raises:
        StartupError: the URL is malformed.
    """
    if StoreUrl.parse(url).kind != "cluster":
        return ServerStore(connect(url, timeout_s=timeout_s, max_connections=max_connections))
    # A connection cut off in mid-reply is a moment late in coming back: twice as many as there are round trips.
    dial = partial(connect_cluster, url, timeout_s=timeout_s, max_connections=2 * max_connections)
    return ClusterStore(dial, max_round_trips=max_connections)


class ServerStore:
    """One server, or Sentinel's current master."""

    def __init__(self, client: "Redis") -> None:
        self._client = client

    async def get_many(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        """By MGET: the hot path, and the cheapest there is."""
        values: Any = await self._client.mget(keys)
        return values  # type: ignore[no-any-return] # `redis` leaves its type open

    async def put_many(self, values: Mapping[str, tuple[bytes, int]]) -> None:
        """By one pipeline."""
        pipeline = self._client.pipeline(transaction=False)
        for key, (value, ttl_ms) in values.items():
            pipeline.set(key, value, px=ttl_ms)
        await pipeline.execute()

    async def delete_many(self, keys: Sequence[str]) -> int:
        """By UNLINK."""
        return int(await self._client.unlink(*keys))

    async def delete_matching(self, pattern: str) -> AsyncGenerator[int, None]:
        """By SCAN."""
        cursor = 0
        while True:
            cursor, keys = await self._client.scan(cursor, match=pattern, count=PAGE)
            yield await self._client.unlink(*keys) if keys else 0
            if not cursor:
                return

    async def ping(self) -> None:
        """By PING."""
        await self._client.ping()

    async def publish(self, channel: str, message: bytes) -> None:
        """By PUBLISH."""
        await self._client.publish(channel, message)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


class ClusterStore:
    """Redis Cluster: a pipeline to each primary concerned, all at once; when one fails the whole call has failed.

    After each failure the nodes and their slots are asked for again, in the background, and where no known node
    answers, of those the URL names: what was promoted in the place of a lost primary is found by the next calls.

    Args:
        connect: makes a client, which must not retry.
        max_round_trips: Most calls that may be under way; the others wait.
    """

    def __init__(self, connect: "Callable[[], RedisCluster]", *, max_round_trips: int) -> None:
        self._connect = connect
        self._client = connect()
        self._turns = asyncio.Semaphore(max_round_trips)
        self._looking: asyncio.Task[None] | None = None

    async def get_many(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        """By GET."""
        async with self._turn():
            replies = await self._send(("GET", key) for key in keys)
            return [b"" if _holds_no_string(reply) else _answer(reply) for reply in replies]

    async def put_many(self, values: Mapping[str, tuple[bytes, int]]) -> None:
        """By SET."""
        await self._ask(("SET", key, value, "PX", ttl_ms) for key, (value, ttl_ms) in values.items())

    async def delete_many(self, keys: Sequence[str]) -> int:
        """By UNLINK."""
        return sum(await self._ask(("UNLINK", key) for key in keys))

    async def delete_matching(self, pattern: str) -> AsyncGenerator[int, None]:
        """By SCAN on one primary after the other; slots that move meanwhile may be missed."""
        for primary in await self._primaries():
            cursor: Any = 0
            while True:
                scan = ("SCAN", cursor, "MATCH", pattern, "COUNT", PAGE)
                ((cursor, keys),) = await self._ask([scan], node=primary)
                yield await self.delete_many(keys) if keys else 0
                if not cursor:
                    break

    async def ping(self) -> None:
        """By PING to each primary."""
        await asyncio.gather(*(self._ask([("PING",)], node=primary) for primary in await self._primaries()))

    async def publish(self, channel: str, message: bytes) -> None:
        """By PUBLISH to one primary, which tells the others."""
        await self._ask([("PUBLISH", channel, message)])

    async def aclose(self) -> None:
        """Close the connections."""
        if self._looking:
            self._looking.cancel()
        await _close(self._client)

    async def _primaries(self) -> "Sequence[ClusterNode]":
        async with self._turn():
            await self._client.initialize()
            return self._client.get_primaries()

    async def _ask(self, commands: Iterable[tuple[Any, ...]], *, node: "ClusterNode | None" = None) -> list[Any]:
        async with self._turn():
            return [_answer(reply) for reply in await self._send(commands, node=node)]

    async def _send(self, commands: Iterable[tuple[Any, ...]], *, node: "ClusterNode | None" = None) -> list[Any]:
        """Give the reply to each command, in order; some may be exceptions."""
        pipeline = self._client.pipeline()
        where = {"target_nodes": node} if node else {}
        for command in commands:
            pipeline.execute_command(*command, **where)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        async with self._turns:
            try:
                yield
            except BaseException:  # also its caller's time being over: a frozen node shows itself in no other way
                self._look_again()
                raise

    def _look_again(self) -> None:
        if self._looking is None or self._looking.done():
            # In nobody's context: Serve cancels what an ended request left.
            self._looking = asyncio.create_task(self._find_nodes(), context=contextvars.Context())

    async def _find_nodes(self) -> None:
        lost = self._client
        try:
            await lost.nodes_manager.initialize()
        except Exception as error:  # noqa: BLE001 — whatever it is, the nodes that the URL names are the remedy
            logger.debug("no known node of the cluster answers (%s); starting again", type(error).__name__)
            self._client = self._connect()
            await _close(lost)


def _answer(reply: Any) -> Any:
    if isinstance(reply, Exception):
        raise reply
    return reply


def _holds_no_string(reply: Any) -> bool:
    return isinstance(reply, Exception) and str(reply).startswith("WRONGTYPE")


async def _close(client: "RedisCluster") -> None:
    await client.nodes_manager.aclose()  # `aclose` alone leaves those of a client that is to look again
    await client.aclose()
