"""Starting processes that end with us, and finding and ending exactly those that belong to a run.

A process belongs to a run when any of these holds, so that nothing else is ever touched:

    its environment carries the run's mark       all but those whose title overwrote it
    its session was opened by one that we started   Ray's own helpers, also after their parent died
    an ancestor belongs                          what is left: dashboards, HAProxy
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import psutil

from deployments.local import leash
from deployments.local.environment import RUN_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

PR_SET_CHILD_SUBREAPER = 36
_START_FIELD = 19  # starttime, counted after the command's closing parenthesis: proc(5)


@dataclass(frozen=True, slots=True)
class Identity:
    """A process for good: its pid and its start in clock ticks since boot, because pids are used again."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The identity of the process that has this pid now; None when there is none, or only its zombie."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else cls(pid, int(fields[_START_FIELD]))

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return Identity.of(self.pid) == self


def adopt_orphans() -> None:
    """Make orphaned descendants ours instead of init's: what `ray start` leaves behind stays findable (prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def spawn(command: Sequence[str], *, environment: Mapping[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a program in its own session, so that Ctrl-C reaches only us, and on a leash, so that it never outlives us.

    Call it from the thread that lives longest: the kernel ties the child to the thread, not to the process.
    """
    leashed = [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), *command]
    return subprocess.Popen(  # noqa: S603 — a full path and our own arguments, no shell
        leashed, env=dict(environment), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )


async def exited(process: subprocess.Popen[bytes]) -> None:
    """Wait until a child has ended; the kernel tells (pidfd_open(2)), nobody polls."""
    if process.poll() is not None:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    descriptor = os.pidfd_open(process.pid)
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
        process.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def exited_within(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Whether a child ends within that time."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(exited(process), timeout_s)
    return process.poll() is not None


def reap_orphans(own: Iterable[int]) -> None:
    """Clear the zombies we adopted; `own` are children whose exit somebody else waits for."""
    keep = set(own)
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error, ChildProcessError):
            if child.pid not in keep and child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)


def belonging(run: str, sessions: Iterable[Identity] = (), *, besides: Iterable[int] = ()) -> list[psutil.Process]:
    """The live processes of a run, this one never.

    Args:
        run: the run's mark.
        sessions: leaders of the sessions the run opened, alive or not.
        besides: pids to leave out, with what descends from them.
    """
    leaders = {leader.pid for leader in sessions if Identity.of(leader.pid) in (leader, None)}
    excluded = {os.getpid(), *besides}
    roots = [process for process in psutil.process_iter() if _is_of(process, run, leaders)]
    found: dict[int, psutil.Process] = {}
    for root in roots:
        with contextlib.suppress(psutil.Error):
            found |= {process.pid: process for process in (root, *root.children(recursive=True))}
    return [process for pid, process in found.items() if pid not in excluded and _runs(process)]


def _is_of(process: psutil.Process, run: str, leaders: set[int]) -> bool:
    with contextlib.suppress(psutil.Error, ProcessLookupError):
        if process.uids().real != os.getuid():
            return False
        return os.getsid(process.pid) in leaders or process.environ().get(RUN_VARIABLE) == run
    return False


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def end(processes: Sequence[psutil.Process], *, grace_s: float) -> list[psutil.Process]:
    """Ask the processes to end, insist after `grace_s`; gives those that are still there a second later."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, stubborn = psutil.wait_procs(processes, timeout=grace_s)
    for process in stubborn:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return [process for process in psutil.wait_procs(stubborn, timeout=1)[1] if _runs(process)]


def wait_gone(identity: Identity, *, timeout_s: float) -> bool:
    """Whether the process is gone within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while identity.alive and time.monotonic() < deadline:
        time.sleep(0.1)
    return not identity.alive
