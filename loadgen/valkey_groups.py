"""Stores of several Valkey servers for a measurement, which replace a primary that is gone by themselves.

They end with the measurement however that ends (`valkey`). Nobody else reaches them: they have no passwords.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis, RedisError

from loadgen.load import LoadError
from loadgen.peers.processes import LOOPBACK, POLL_S, free_port
from loadgen.valkey import PREDICTIONS, Valkey

SERVICE = "predictions"
"""The name Sentinel knows the master by."""
SILENT_MS = 1000
"""A server that is silent for so long is gone: short for a run of seconds, long for cores that a load keeps busy."""
FAILOVER_TIMEOUT_MS = 3000
COMMAND_S = 1.0
FORMED_S = 30.0
PROMOTED_S = 20.0
PRIMARIES = 3
SLOTS = 16_384


@dataclass(slots=True)
class Group:
    """Servers with a primary that can be killed; `asked` know by `primary_port` which one it is.

    Of a cluster's primaries it is the one of the first slot.
    """

    url: str
    servers: Sequence[Valkey]
    asked: Sequence[Valkey]
    primary_port: Callable[["Redis"], int]
    _lost: Valkey | None = field(default=None, init=False)

    def primary(self) -> Valkey:
        """The primary now, by the first that knows one.

        Raises:
            LoadError: nobody does.
        """
        named = next(self._named(), None)
        for server in self.servers:
            if server.port == named:
                return server
        raise LoadError(f"nobody at {self.url} knows its primary")

    def kill_primary(self) -> None:
        """End it at once; it does not come back.

        Raises:
            LoadError: nobody knows it.
        """
        self._lost = self.primary()
        self._lost.kill()

    def wait_promoted(self, timeout_s: float = PROMOTED_S) -> None:
        """Wait until somebody knows another primary than the one that was killed.

        Raises:
            LoadError: nobody does in time.
        """
        assert self._lost
        lost = self._lost.port
        told = f"{self.url} has no other primary than the one at {self._lost.url}, which was killed"
        _wait_until(lambda: any(port != lost for port in self._named()), timeout_s, told)

    def _named(self) -> Iterator[int]:
        """What each says that can be asked."""
        for server in self.asked:
            with contextlib.suppress(RedisError), _client(server) as client:
                yield self.primary_port(client)


@contextlib.contextmanager
def behind_sentinel(folder: Path) -> Iterator[Group]:
    """A primary, its replica and three Sentinels."""
    primary = _server(folder / "primary")
    replica = _server(folder / "replica", "--replicaof", f"{LOOPBACK} {primary.port}")
    sentinels = [_Sentinel(folder / f"sentinel-{number}", primary) for number in range(3)]
    with _running([primary, replica]):
        # Before any Sentinel asks: each looks for replicas every 10 s only.
        _wait_until(lambda: _follows(replica), FORMED_S, "the replica does not follow its primary")
        with _running(sentinels):
            _wait_until(lambda: all(map(_watches, sentinels)), FORMED_S, "the Sentinels do not find each other")
            url = f"redis+sentinel://{_hosts(sentinels)}/{SERVICE}/0"
            yield Group(url, [primary, replica], sentinels, _master_port)


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Group]:
    """Three primaries and a replica of each."""
    nodes = [_node(folder / f"node-{number}") for number in range(2 * PRIMARIES)]
    with _running(nodes):
        _form(nodes)
        yield Group(f"redis+cluster://{_hosts(nodes)}", nodes, nodes, _first_slots_port)


@contextlib.contextmanager
def _running(servers: Sequence[Valkey]) -> Iterator[None]:
    """Servers that start at the same time, and end even when one of them does not start."""
    with contextlib.ExitStack() as ends:
        for server in servers:
            ends.callback(server.kill)
            server.launch()
        for server in servers:
            server.wait_ready()
        yield


def _server(folder: Path, *settings: str) -> Valkey:
    return Valkey(folder, folder.with_suffix(".log"), (*PREDICTIONS, "--repl-diskless-sync-delay", "0", *settings))


class _Sentinel(Valkey):
    """Watches a primary, by a configuration that it rewrites itself."""

    def __init__(self, folder: Path, primary: Valkey) -> None:
        super().__init__(folder, folder.with_suffix(".log"), ())
        self._primary = primary

    def _arguments(self) -> list[str]:
        path = self._folder / "sentinel.conf"
        path.write_text(
            f"port {self.port}\nbind {LOOPBACK}\ndir {self._folder}\n"
            f"sentinel monitor {SERVICE} {LOOPBACK} {self._primary.port} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} {SILENT_MS}\n"
            f"sentinel failover-timeout {SERVICE} {FAILOVER_TIMEOUT_MS}\n"
        )
        return [str(path), "--sentinel"]


def _watches(sentinel: Valkey) -> bool:
    with _client(sentinel) as client:
        masters: Any = client.sentinel_masters()
    state = masters[SERVICE]
    return (state["num-other-sentinels"], state["num-slaves"], state["flags"]) == (2, 1, "master")


def _master_port(client: "Redis") -> int:
    address: Any = client.sentinel_get_master_addr_by_name(SERVICE)
    return int(address[1])


def _node(folder: Path) -> Valkey:
    bus = ("--cluster-port", str(free_port()), "--cluster-node-timeout", str(SILENT_MS))
    return _server(folder, "--cluster-enabled", "yes", *bus)


def _form(nodes: Sequence[Valkey]) -> None:
    """Make a cluster of nodes that know nothing of each other, the first half primaries."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(_client(node)) for node in nodes]
        primaries, replicas = clients[:PRIMARIES], clients[PRIMARIES:]
        for number, client in enumerate(clients):
            _told(client, "SET-CONFIG-EPOCH", number + 1)  # or they take seconds to agree on one
            bus = client.config_get("cluster-port")["cluster-port"]
            _told(clients[0], "MEET", LOOPBACK, nodes[number].port, bus)
        for number, client in enumerate(primaries):
            _told(client, "ADDSLOTSRANGE", _first_slot(number), _first_slot(number + 1) - 1)
        _wait_until(lambda: all(map(_knows_all, clients)), FORMED_S, "the cluster's nodes do not meet")
        for primary, replica in zip(primaries, replicas, strict=True):
            _told(replica, "REPLICATE", _told(primary, "MYID"))
        _wait_until(lambda: all(map(_is_whole, clients)), FORMED_S, "the cluster does not become whole")
    _wait_until(lambda: all(map(_follows, nodes[PRIMARIES:])), FORMED_S, "a replica does not follow its primary")


def _told(client: "Redis", *command: object) -> Any:
    execute: Callable[..., Any] = client.execute_command
    return execute("CLUSTER", *command)


def _first_slot(primary: int) -> int:
    return SLOTS * primary // PRIMARIES


def _knows_all(client: "Redis") -> bool:
    return str(_told(client, "NODES")).count(" connected") == 2 * PRIMARIES


def _is_whole(client: "Redis") -> bool:
    replicas = str(_told(client, "NODES")).count("slave ")
    return "cluster_state:ok" in _told(client, "INFO") and replicas == PRIMARIES


def _first_slots_port(client: "Redis") -> int:
    shards = _told(client, "SLOTS")
    return next(int(primary[1]) for first, _, primary, *_ in shards if first == 0)


def _follows(replica: Valkey) -> bool:
    with _client(replica) as client:
        return bool(client.info("replication").get("master_link_status") == "up")


def _hosts(servers: Sequence[Valkey]) -> str:
    return ",".join(f"{LOOPBACK}:{server.port}" for server in servers)


@contextlib.contextmanager
def _client(server: Valkey) -> Iterator[Redis]:
    with contextlib.closing(
        Redis.from_url(server.url, decode_responses=True, socket_timeout=COMMAND_S, retry=None)
    ) as client:
        yield client


def _wait_until(condition: Callable[[], bool], timeout_s: float, told: str) -> None:
    """Wait until a condition on servers holds; it does not while they do not answer.

    Raises:
        LoadError: it takes longer; `told` says what does.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(RedisError):
            if condition():
                return
        time.sleep(POLL_S)
    raise LoadError(f"{told}, after {timeout_s:g} s")
