"""The one running instance of a user: where its state is kept, whether it is alive, and who holds a folder.

    $XDG_STATE_HOME/intentgraph   state.json, up.log, ray.log, one log a store      default ~/.local/state/intentgraph
    $XDG_DATA_HOME/intentgraph    the feedback log's data, keys.json                default ~/.local/share/intentgraph

`state.json` carries no password and is there from the first process started until the last one ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from deployments.core.errors import StartupError
from deployments.core.replaced_file import replacing
from deployments.local.processes import Identity

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NAME = "intentgraph"
DEFAULT_ADDRESS = "http://127.0.0.1:8000"
Phase = Literal["starting", "ready", "stopping"]


@dataclass(frozen=True, slots=True)
class State:
    """What other commands need to know of a run: who supervises it, where things listen, what may be left of it."""

    run: str
    supervisor: Identity
    phase: Phase
    address: str
    dashboard: str
    gcs: str
    stores: dict[str, str]
    """URL of each store, without its password."""
    started_stores: tuple[str, ...] = ()
    """Those of `stores` that this run started."""
    sessions: tuple[Identity, ...] = ()
    """Leaders of the sessions it opened."""
    folder: str = ""
    data_dir: str = ""
    log: str = ""

    @property
    def alive(self) -> bool:
        """Whether its supervisor still runs."""
        return self.supervisor.alive


@dataclass(frozen=True, slots=True)
class StateFile:
    """`state.json` of a folder; written whole, readable by its owner only."""

    folder: Path

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / "state.json"

    def read(self) -> State | None:
        """The state of the run that is or was there; None without one, or with a file nobody can read."""
        try:
            document: dict[str, Any] = json.loads(self.path.read_text())
            return State(
                **document
                | {
                    "supervisor": Identity(**document["supervisor"]),
                    "sessions": tuple(Identity(**session) for session in document["sessions"]),
                    "started_stores": tuple(document["started_stores"]),
                }
            )
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(self, state: State) -> None:
        """Replace the file at once, never half."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replacing(self.path) as file:
            file.write(json.dumps(asdict(state), indent=2).encode())

    def remove(self, run: str) -> None:
        """Forget that run; another run's state stays."""
        state = self.read()
        if state is None or state.run == run:
            self.path.unlink(missing_ok=True)


@dataclass(slots=True)
class StateKeeper:
    """A run's own view of its state file: change a field, and the file follows."""

    file: StateFile
    state: State = field()

    def update(self, **changes: Any) -> None:
        """Change fields and write the file."""
        self.state = replace(self.state, **changes)
        self.file.write(self.state)


def state_file() -> StateFile:
    """That of this user."""
    return StateFile(state_folder())


def service_address(url: str | None) -> str:
    """Where to ask: at `url`, else the service running here, else where one would.

    Raises:
        StartupError: the URL is not one of HTTP.
    """
    if url and not url.startswith(("http://", "https://")):
        raise StartupError(f"--url needs http:// or https:// before {url}")
    state = state_file().read()
    return url or (state.address if state and state.alive else DEFAULT_ADDRESS)


def state_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where a user's runs keep their state and logs."""
    return Path(environment.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / NAME


def data_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the feedback log's data lie unless `--data-dir` says otherwise."""
    return Path(environment.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / NAME


def keys_file(environment: Mapping[str, str] = os.environ) -> Path:
    """Where a user's API keys are unless a command is told otherwise."""
    return data_folder(environment) / "keys.json"


@contextlib.contextmanager
def held(folder: Path, *, purpose: str, remedy: str) -> Iterator[None]:
    """Hold a folder for this process alone; the kernel lets go when the process ends, however it ends.

    Raises:
        StartupError: another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (folder / "lock").open("a+")
    except OSError as error:
        raise StartupError(f"the {purpose} {folder} cannot be used ({error.strerror}); {remedy}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise StartupError(f"the {purpose} {folder} is in use by process {holder}; {remedy}") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def without_password(url: str) -> str:
    """The URL as it may be shown: without user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))
