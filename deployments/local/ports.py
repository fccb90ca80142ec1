"""TCP ports of this machine: is one free, who holds it, and give me one nobody uses."""

from __future__ import annotations

import contextlib
import errno
import itertools
import random
import socket

import psutil

LOOPBACK = "127.0.0.1"
DRAWN = range(20_000, 30_000)
"""Below what Linux gives to outgoing connections (32768 on), between Ray's workers (10002-19999) and Serve's replicas
(30000 on). A port from above may be gone when a store comes back to it: even a client that calls the dead store can get
it, by connecting to itself."""

_DRAW = random.SystemRandom()
_TAKEN = (errno.EADDRINUSE, errno.EACCES)


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen there now; a connection's TIME_WAIT does not count.

    Raises:
        OSError: the host is not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            raise
    return True


def free_ports(count: int, *, draw: random.Random = _DRAW) -> list[int]:
    """That many different loopback ports free at this moment, none of which the system hands out by itself."""
    free = (port for port in draw.sample(DRAWN, len(DRAWN)) if is_free(port))
    return list(itertools.islice(free, count))


def holder(port: int) -> str | None:
    """The process that listens on the port, as `name (pid n)`; None where the system does not tell."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
            if listens and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return None
