"""A client of the master that Sentinel names, found anew with every connection.

redis-py's own asks the Sentinels one after the other, so a silent one would cost each connection a look-up's whole time
budget, and its pool raises where it should wait. What a client owes Sentinel: https://redis.io/docs/latest/develop/reference/sentinel-clients/
"""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import BlockingConnectionPool, Redis


class Sentinels:
    """Knows the master's address by asking all Sentinels at once."""

    def __init__(self, clients: "Sequence[Redis]") -> None:
        self._clients = clients

    async def discover_master(self, service: str) -> tuple[str, int]:
        """The address the first Sentinel to know one gives.

        Raises:
            redis.exceptions.ConnectionError: none does.
        """
        from redis.exceptions import ConnectionError as StoreAway
        from redis.exceptions import RedisError

        asked = [asyncio.create_task(_master(client, service)) for client in self._clients]
        try:
            for answer in asyncio.as_completed(asked):
                with suppress(RedisError, OSError):
                    if address := await answer:
                        return address
        finally:
            for task in asked:
                task.cancel()
        raise StoreAway(f"none of {len(asked)} Sentinels names a master for this service")

    async def aclose(self) -> None:
        """Close the connections to the Sentinels."""
        for client in self._clients:
            await client.aclose()


async def _master(client: Any, service: str) -> tuple[str, int] | None:
    address = await client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
    return (address[0].decode(), int(address[1])) if address else None


def master_pool(sentinels: Sentinels, service: str, *, tls: bool, **options: Any) -> "BlockingConnectionPool":
    """A pool of connections to the current master; closing it closes `sentinels` too.

    A connection is dropped when it finds a replica at its other end: at the start, when a Sentinel has not heard of a
    failover, and when a write is answered READONLY. Once a new address is known the idle connections to the old go.
    """
    from redis.asyncio import BlockingConnectionPool, SSLConnection
    from redis.asyncio.sentinel import SentinelConnectionPool, SentinelManagedConnection
    from redis.exceptions import ConnectionError as StoreAway
    from redis.exceptions import NoPermissionError

    class MasterConnection(SentinelManagedConnection):
        async def connect_to(self, address: tuple[str, int]) -> None:
            await super().connect_to(address)  # type: ignore[no-untyped-call]
            with suppress(NoPermissionError):  # an access list may keep ROLE from this user
                await self.send_command("ROLE")
                role: Any = await self.read_response()
                if role[0] != b"master":
                    await self.disconnect(nowait=True)
                    raise StoreAway("Sentinel named a server that is no master")

    class SecureMasterConnection(MasterConnection, SSLConnection):
        pass

    class MasterPool(SentinelConnectionPool, BlockingConnectionPool):
        async def aclose(self) -> None:
            await super().aclose()
            await sentinels.aclose()

    kind = SecureMasterConnection if tls else MasterConnection
    return MasterPool(service, sentinels, connection_class=kind, **options)  # type: ignore[no-untyped-call]
