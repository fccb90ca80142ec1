"""What other commands do with a run: start it in the background, stop it, ask how it is."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from deployments.core.errors import StartupError
from deployments.local import processes
from deployments.local.rollout import health
from deployments.local.serve_api import Application, ServeApi
from deployments.local.stores import answers
from deployments.local.supervisor import clear

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from deployments.local.instance import State, StateFile
    from deployments.local.progress import Progress

STOP_S = 20.0
"""A supervisor stops within 15 s; one that has not by now is hung and is ended."""
GRACE_S = 2.0
POLL_S = 0.2


def start_detached(arguments: Sequence[str], state_file: StateFile, progress: Progress) -> None:
    """Run `intents up` with these arguments in the background; return once it serves.

    What it says goes to `up.log` in the state folder and, until it is ready, to the user.

    Raises:
        StartupError: it ended before it was ready; its own message has been shown.
    """
    log = state_file.folder / "up.log"
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with log.open("wb") as output:
        child = subprocess.Popen(  # noqa: S603 — ourselves, no shell
            [sys.executable, "-m", "deployments.cli", "up", *arguments],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        _relay_until_ready(child, log, state_file, progress)
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        raise


def _relay_until_ready(child: subprocess.Popen[bytes], log: Path, state_file: StateFile, progress: Progress) -> None:
    with log.open(errors="replace") as lines:
        while True:
            ended, ready = child.poll() is not None, _ready(child.pid, state_file)
            for line in lines.readlines():  # after the question, so that nothing it said before is missed
                progress.tell(line.rstrip("\n"))
            if ended:
                raise StartupError(f"it did not start; all it said is in {log}")
            if ready:
                break
            time.sleep(POLL_S)
    progress.tell(f"  it goes on in the background (pid {child.pid}); log: {log}")


def _ready(pid: int, state_file: StateFile) -> bool:
    state = state_file.read()
    return state is not None and state.supervisor.pid == pid and state.phase == "ready"


def stop(state_file: StateFile, progress: Progress) -> bool:
    """Stop the run and whatever of it is left; gives whether there was anything to stop.

    Raises:
        StartupError: processes of the run resist even SIGKILL; the message names them.
    """
    state = state_file.read()
    if state is None:
        return False
    was_alive = state.alive
    if was_alive:
        _ask_to_stop(state, progress)
    left = processes.belonging(state.run, state.sessions)
    if left:
        progress.done(f"ending {len(left)} processes the run left behind")
    resisting = processes.end(left, grace_s=GRACE_S)
    if resisting:
        names = ", ".join(f"{process.name()} (pid {process.pid})" for process in resisting)
        raise StartupError(f"these processes do not end: {names}; end them by hand")
    clear(state, state_file)
    return was_alive or bool(left)


def _ask_to_stop(state: State, progress: Progress) -> None:
    progress.done(f"stopping `intents up` (pid {state.supervisor.pid}, {state.address})")
    os.kill(state.supervisor.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while state.alive and time.monotonic() < deadline:
        progress.waiting("waiting until it has stopped everything")
        time.sleep(POLL_S)
    if state.alive:
        os.kill(state.supervisor.pid, signal.SIGKILL)
        processes.wait_gone(state.supervisor, timeout_s=GRACE_S)
    progress.rest()


@dataclass(frozen=True, slots=True)
class Report:
    """How a run is: its applications (None when Serve does not answer) and whether its own stores answer."""

    state: State
    applications: tuple[Application, ...] | None
    stores: dict[str, bool | None]
    """By name; None for a store that somebody else runs."""
    health: str
    """What the service says of itself: `ok`, or the parts that are not."""

    @property
    def healthy(self) -> bool:
        """Whether everything this run is responsible for serves."""
        served = bool(self.applications) and all(application.healthy for application in self.applications or ())
        return served and False not in self.stores.values() and self.health == "ok"


def report(state: State) -> Report:
    """Ask Serve and the stores how they are; takes at most a few seconds."""
    return asyncio.run(_report(state))


async def _report(state: State) -> Report:
    try:
        applications = await ServeApi(state.dashboard).applications(timeout_s=5.0)
    except OSError:
        applications = None
    found = {name: await _answers(url) if name in state.started_stores else None for name, url in state.stores.items()}
    return Report(state=state, applications=applications, stores=found, health=await health(state.address))


async def _answers(url: str) -> bool:
    port = urlsplit(url).port
    return port is not None and await answers(port)
