"""Stores of more than one server for tests: Redis Cluster, Sentinel, a server with TLS; each of real processes."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from redis import Redis
from redis.exceptions import RedisError

from tests.service import wait_for
from tests.unit.conftest import ValkeyServer, free_port

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from pathlib import Path

PASSWORD = "p@ss/word#1"
QUOTED = "p%40ss%2Fword%231"
SENTINEL_PASSWORD = "other"
SERVICE = "predictions"
FORM_TIMEOUT_S = 30


def started(makers: Iterable[Callable[[], Any]]) -> list[Any]:
    """Start servers at the same time."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(lambda make: make(), makers))


def until(condition: Callable[[], bool], told: str) -> None:
    """Wait until a condition on servers holds; it does not while they do not answer."""

    def holds() -> bool:
        with suppress(RedisError, OSError, KeyError):
            return condition()
        return False

    wait_for(holds, FORM_TIMEOUT_S, lambda: told)


async def becomes_true(question: Callable[[], Awaitable[Any]], timeout_s: float = FORM_TIMEOUT_S) -> float:
    """Ask until it is so; give how long it took."""
    started_s = time.monotonic()
    while not await question():
        assert time.monotonic() - started_s < timeout_s, "it never was"
        await asyncio.sleep(0.02)
    return time.monotonic() - started_s


def server(folder: Path, *args: str) -> ValkeyServer:
    """A server with a password, in a folder it makes."""
    folder.mkdir(parents=True)
    own = ("--requirepass", PASSWORD, "--primaryauth", PASSWORD, "--repl-diskless-sync-delay", "0")
    return ValkeyServer(folder, (*own, *args))


def client_of(server: ValkeyServer, password: str = PASSWORD) -> Redis:
    """A client for what a test asks a server itself."""
    return Redis(port=server.port, password=password, decode_responses=True, socket_timeout=1)


class Cluster:
    """Three primaries and a replica of each."""

    def __init__(self, folder: Path) -> None:
        self.nodes: list[ValkeyServer] = started(partial(_cluster_node, folder / str(n)) for n in range(6))
        self.clients = [client_of(node) for node in self.nodes]
        self.url = f"redis+cluster://:{QUOTED}@{','.join(f'127.0.0.1:{node.port}' for node in self.nodes)}"
        self._form()

    def _form(self) -> None:
        for n, client in enumerate(self.clients):
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", n + 1)  # or they take seconds to agree on one
        for n, client in enumerate(self.clients[:3]):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", _first_slot(n), _first_slot(n + 1) - 1)
        for node, client in zip(self.nodes, self.clients, strict=True):
            bus = client.config_get("cluster-port")["cluster-port"]
            self.clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        until(lambda: all(_nodes(client).count(" connected") == 6 for client in self.clients), "the nodes never met")
        for n, client in enumerate(self.clients[3:]):
            client.execute_command("CLUSTER", "REPLICATE", self.clients[n].execute_command("CLUSTER", "MYID"))
        until(self.whole, "the cluster was never whole")

    def whole(self) -> bool:
        """Whether every node sees three primaries that serve and three replicas, each in step."""
        return all(
            "cluster_state:ok" in client.execute_command("CLUSTER", "INFO")
            and _nodes(client).count("slave ") == 3
            and client.info("replication").get("master_link_status", "up") == "up"
            for client in self.clients
        )

    def primary_of(self, key: str) -> int:
        """The index of the node that answers for a key now."""
        slot = self.clients[0].execute_command("CLUSTER", "KEYSLOT", key)
        shards = self.clients[0].execute_command("CLUSTER", "SLOTS")
        port = next(primary[1] for first, last, primary, *_ in shards if first <= slot <= last)
        return [node.port for node in self.nodes].index(port)

    def has(self, key: str) -> bool:
        """Whether there is anything under a key."""
        return bool(self.clients[self.primary_of(key)].exists(key))

    def close(self) -> None:
        """End all nodes."""
        _end(self.nodes, self.clients)


def _first_slot(primary: int) -> int:
    return 16384 * primary // 3


def _nodes(client: Redis) -> str:
    return str(client.execute_command("CLUSTER", "NODES"))


def _cluster_node(folder: Path) -> ValkeyServer:
    arguments = {
        "--cluster-enabled": "yes",
        "--cluster-port": str(free_port()),
        "--cluster-node-timeout": "500",
        "--cluster-replica-validity-factor": "0",
    }
    return server(folder, *(part for pair in arguments.items() for part in pair))


class Sentinel(ValkeyServer):
    """A Sentinel that watches a primary, from a configuration it rewrites itself."""

    def __init__(self, folder: Path, primary: ValkeyServer) -> None:
        folder.mkdir(parents=True)
        self._primary = primary
        super().__init__(folder, ())

    def command(self) -> list[str]:
        """Its configuration as it left it, or a first one."""
        path = self.folder / "sentinel.conf"
        if not path.exists():
            path.write_text(
                f"port {self.port}\nbind 127.0.0.1\ndir {self.folder}\nrequirepass {SENTINEL_PASSWORD}\n"
                f"sentinel sentinel-pass {SENTINEL_PASSWORD}\n"
                f"sentinel monitor {SERVICE} 127.0.0.1 {self._primary.port} 2\n"
                f'sentinel auth-pass {SERVICE} "{PASSWORD}"\n'
                f"sentinel down-after-milliseconds {SERVICE} 400\nsentinel failover-timeout {SERVICE} 3000\n"
            )
        return [str(self.program), str(path), "--sentinel"]


class SentinelTrio:
    """A primary, its replica and three Sentinels."""

    def __init__(self, folder: Path, *args: str) -> None:
        self.primary = server(folder / "primary", *args)
        self.replica = server(folder / "replica", *args, "--replicaof", f"127.0.0.1 {self.primary.port}")
        replica = client_of(self.replica)
        until(lambda: replica.info("replication")["master_link_status"] == "up", "the replica never followed")
        self.sentinels: list[Sentinel] = started(partial(Sentinel, folder / str(n), self.primary) for n in range(3))
        self.clients = [client_of(sentinel, SENTINEL_PASSWORD) for sentinel in self.sentinels]
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        self.url = f"redis+sentinel://:{QUOTED}@{hosts}/{SERVICE}/0?sentinel_password={SENTINEL_PASSWORD}"
        until(lambda: all(map(self._ready, self.clients)), "the Sentinels never found each other")

    @staticmethod
    def _ready(client: Redis) -> bool:
        state = client.sentinel_masters()[SERVICE]
        return (state["num-other-sentinels"], state["num-slaves"], state["flags"]) == (2, 1, "master")

    def close(self) -> None:
        """End everything."""
        _end([*self.sentinels, self.replica, self.primary], self.clients)


def _end(servers: Iterable[ValkeyServer], clients: Iterable[Redis]) -> None:
    for client in clients:
        client.close()
    for each in servers:
        each.kill()
