"""A client of the master that Sentinel or Redis Cluster names, found anew with every connection.

redis-py's own asks the Sentinels one after the other, so a silent one would cost each connection a look-up's whole time
budget, and its pool raises where it should wait. What a client owes Sentinel: https://redis.io/docs/latest/develop/reference/sentinel-clients/
What lies in one slot of Redis Cluster needs no cluster client, only the node that has the slot: transactions and
blocking reads are then those of one server.
"""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from redis.asyncio import BlockingConnectionPool, Redis

    Ask = Callable[[Any, str], Awaitable[tuple[str, int] | None]]


class Guides:
    """Servers that know the master's address: all of them are asked at once.

    `ask(client, name)` gives the address that one of them knows; `called` is what they are, for messages.
    """

    def __init__(self, clients: "Sequence[Redis]", ask: "Ask", called: str) -> None:
        self._clients = clients
        self._ask = ask
        self._called = called

    async def discover_master(self, name: str) -> tuple[str, int]:
        """The address the first to know one gives.

        Raises:
            redis.exceptions.ConnectionError: none does.
        """
        from redis.exceptions import ConnectionError as StoreAway
        from redis.exceptions import RedisError

        asked = [asyncio.ensure_future(self._ask(client, name)) for client in self._clients]
        try:
            for answer in asyncio.as_completed(asked):
                with suppress(RedisError, OSError):
                    if address := await answer:
                        return address
        finally:
            for task in asked:
                task.cancel()
        raise StoreAway(f"none of {len(asked)} {self._called} names a master")

    async def aclose(self) -> None:
        """Close the connections to them."""
        for client in self._clients:
            await client.aclose()


def sentinels(clients: "Sequence[Redis]") -> Guides:
    """The Sentinels, which know the master of a service."""
    return Guides(clients, _master_of_service, "Sentinels")


async def _master_of_service(client: Any, service: str) -> tuple[str, int] | None:
    address = await client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
    return (address[0].decode(), int(address[1])) if address else None


def cluster_nodes(clients: "Sequence[Redis]") -> Guides:
    """Nodes of Redis Cluster, which know the master of a key's slot."""
    return Guides(clients, _master_of_slot, "nodes of the cluster")


async def _master_of_slot(client: Any, key: str) -> tuple[str, int] | None:
    from redis.crc import key_slot

    slot = key_slot(key.encode())
    for first, last, (host, port, *_), *_replicas in await client.execute_command("CLUSTER", "SLOTS"):
        if first <= slot <= last:
            # An empty host is the one that was asked: it does not know how it is called.
            return host.decode() or client.connection_pool.connection_kwargs["host"], int(port)
    return None


def master_pool(guides: Guides, name: str, *, tls: bool, **options: Any) -> "BlockingConnectionPool":
    """A pool of connections to the current master; closing it closes `guides` too.

    A connection is dropped when it finds no master at its other end: at the start, when who was asked has not heard of
    a failover, and when a command is answered READONLY or MOVED. Once a new address is known the idle connections to
    the old go.
    """
    from redis.asyncio import BlockingConnectionPool, SSLConnection
    from redis.asyncio.sentinel import SentinelConnectionPool, SentinelManagedConnection
    from redis.exceptions import ConnectionError as StoreAway
    from redis.exceptions import MovedError, NoPermissionError

    class MasterConnection(SentinelManagedConnection):
        async def connect_to(self, address: tuple[str, int]) -> None:
            await super().connect_to(address)  # type: ignore[no-untyped-call]
            with suppress(NoPermissionError):  # an access list may keep ROLE from this user
                await self.send_command("ROLE")
                role: Any = await self.read_response()
                if role[0] != b"master":
                    await self.disconnect(nowait=True)
                    raise StoreAway("the server that was named is no master")

        async def read_response(self, *args: Any, **options: Any) -> Any:
            try:
                return await super().read_response(*args, **options)
            except MovedError as error:
                await self.disconnect()
                raise StoreAway("the slot is at another node now") from error

    class SecureMasterConnection(MasterConnection, SSLConnection):
        pass

    class MasterPool(SentinelConnectionPool, BlockingConnectionPool):
        async def aclose(self) -> None:
            await super().aclose()
            await guides.aclose()

    kind = SecureMasterConnection if tls else MasterConnection
    return MasterPool(name, guides, connection_class=kind, **options)  # type: ignore[no-untyped-call]
