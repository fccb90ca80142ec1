"""Servers as child processes that leave nothing behind, and one contest at a time on a machine.

A server is on a leash: it ends with the contest however that ends. Whatever it starts inherits its mark in the
environment, in whatever session it hides; stopping ends every process that bears it, with what descends from it.

Ray starts its workers 15 steps of niceness below itself, so every other server is started there too: the load generator
stands at 0 and takes what it needs from all of them alike.
"""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from loadgen.load import LoadError
from loadgen.peers import leash

MARK = "INTENTGRAPH_PEER"
NICENESS = 15
LOOPBACK = "127.0.0.1"
GRACE_S = 10.0
POLL_S = 0.1
ANSWER_TIMEOUT_S = 10.0
STEERING = ("RAY_", "SERVE_", "REDIS_", "BENTOML_", "LITSERVE_", "UVICORN_", "OMP_", "MKL_", "TORCH_")
STEERING_NAMES = frozenset({"FEEDBACK_REDIS_URL", "CACHE_TTL", "ENABLE_CACHING", "LOG_LEVEL", "PYTHONPATH"})


_Handler = Callable[[int, FrameType | None], Any] | int | None


class Server:
    """A program with everything it starts, from its start to the end of all of it."""

    def __init__(
        self, command: Sequence[str], *, environment: Mapping[str, str], folder: Path, log: Path, niceness: int = 0
    ) -> None:
        self._mark = uuid.uuid4().hex
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 — commands of this package
                [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), str(niceness), *command],
                env=dict(environment) | {MARK: self._mark},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the contest, which then stops it
            )

    def wait_ready(self, ready: Callable[[], bool], *, timeout_s: float) -> None:
        """Wait until `ready()`.

        Raises:
            LoadError: it ended, or takes longer; with its last words.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            if self._process.poll() is not None:
                raise LoadError(f"it ended with {self._process.returncode}: {self._last_words()}")
            if time.monotonic() > deadline:
                raise LoadError(f"it did not answer within {timeout_s:g} s: {self._last_words()}")
            time.sleep(POLL_S)

    def wait_done(self, *, timeout_s: float) -> None:
        """Wait until the program has ended well; what it left in the background goes on.

        Raises:
            LoadError: it failed, or takes longer; with its last words.
        """
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise LoadError(f"it did not end within {timeout_s:g} s: {self._last_words()}") from None
        if code:
            raise LoadError(f"it failed: {self._last_words()}")

    @property
    def process(self) -> psutil.Process:
        """The program itself, to be frozen or killed."""
        return psutil.Process(self._process.pid)

    def stop(self) -> None:
        """End the program, then whatever of it is left.

        Raises:
            LoadError: a process resists even SIGKILL.
        """
        with unhurried():
            if self._process.poll() is None:
                self._process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(GRACE_S)
            end(bearing(self._mark))
            self._process.wait()

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return f"{' / '.join(lines[-3:])[-600:] or 'it said nothing'} (all of it: {self._log})"


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    folder: Path,
    log: Path,
    ready: Callable[[], bool],
    timeout_s: float,
    niceness: int = NICENESS,
) -> Iterator[None]:
    """A server, ready inside the block and gone after it."""
    server = Server(command, environment=environment, folder=folder, log=log, niceness=niceness)
    try:
        server.wait_ready(ready, timeout_s=timeout_s)
        yield
    finally:
        server.stop()


def answers(url: str, body: bytes) -> bool:
    """Whether a POST is answered with 200 now."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 — loopback
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S) as response:  # noqa: S310
            return bool(response.status == 200)  # noqa: PLR2004 — HTTP's OK
    except (urllib.error.URLError, OSError):
        return False


def bearing(mark: str | None) -> list[psutil.Process]:
    """The live processes of this user that bear a mark, and their descendants; any mark at all when None."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            borne = process.environ().get(MARK) if process.pid != os.getpid() else None
            if borne and mark in (borne, None):
                found |= {each.pid: each for each in (process, *process.children(recursive=True))}
    return [process for process in found.values() if _runs(process)]


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def end(processes: Sequence[psutil.Process]) -> None:
    """Ask processes to end, then insist.

    Raises:
        LoadError: one is still there.
    """
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, stubborn = psutil.wait_procs(processes, timeout=GRACE_S)
    for process in stubborn:
        with contextlib.suppress(psutil.Error):
            process.kill()
    _, left = psutil.wait_procs(stubborn, timeout=GRACE_S)
    if left:
        raise LoadError(
            f"processes that do not end: {', '.join(str(process.pid) for process in left)}; end them by hand"
        )


@contextlib.contextmanager
def alone(folder: Path | None = None) -> Iterator[Path]:
    """Be the only contest of this user; gives the folder it writes in.

    Raises:
        LoadError: another contest is running, or the folder is somebody else's.
    """
    # Its path is short on purpose: Ray's sockets lie below, and a socket's path has at most 107 bytes.
    folder = folder or Path(tempfile.gettempdir()) / f"intentgraph-peers-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise LoadError(f"{folder} is somebody else's; remove it, or set TMPDIR to another folder")
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LoadError("another contest is running here; the figures of both would be worthless") from None
        yield folder


def end_orphans(tell: Callable[[str], None]) -> None:
    """End what a contest that was killed has left behind: being alone, every mark is an old one."""
    if orphans := bearing(None):
        tell(f"ending {len(orphans)} processes that an earlier contest left behind")
        end(orphans)


@contextlib.contextmanager
def interrupted_by_any_signal() -> Iterator[None]:
    """Being ended or left by the terminal is Ctrl-C inside the block: servers are stopped. `nohup` still holds."""
    heard = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, signal.default_int_handler) for each in heard}
    try:
        yield
    finally:
        _restore(before)


@contextlib.contextmanager
def unhurried() -> Iterator[None]:
    """Nobody's second Ctrl-C leaves processes behind: signals inside the block are ignored."""
    before = {each: signal.signal(each, signal.SIG_IGN) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        _restore(before)


def _restore(handlers: Mapping[signal.Signals, _Handler]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def plain_environment(base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The user's environment without what would steer a server: each runs as it comes."""
    return {name: value for name, value in base.items() if not name.startswith(STEERING) and name not in STEERING_NAMES}


def free_port() -> int:
    """A loopback port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
