"""The services compared: how each is started, what it is asked, what its answers must be.

| name | what it is |
|---|---|
| intentgraph | this service as shipped: `intents up` |
| intentgraph-NAME | the same with another Serve configuration, for what a setting is worth |
| fastapi | one process, FastAPI and Redis, what one would write instead |
| fastapi-lru | the same with an LRU in the process |
| litserve, bentoml | the encoder behind their own dynamic batching, no cache |
| naive | the same graph as first written on Ray Serve, everything at its default |
| naive-100 | the same with `max_ongoing_requests: 100` |
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from loadgen.load import LoadError
from loadgen.peers import processes
from loadgen.peers.processes import LOOPBACK, NICENESS, free_port, plain_environment, running
from loadgen.peers.store import fill, store

PATH = "/api/v1/intents/classify"
PROBE = b'{"text": "Is anybody there?"}'
PROGRAMS = Path(__file__).parent
PEER_READY_S = 120.0
OWN_READY_S = 180.0
OWN_STOP_S = 60.0
LRU_SIZE = 10_000
RAISED_MAX_ONGOING = 100

Texts = Literal["hits", "unique"]


@dataclass(frozen=True, slots=True)
class Tuning:
    """What the peers with batching of their own are given.

    The defaults served most on two cores, 12 words a text (texts/s at 32 connections, two to four runs each):

    | LitServe, workers, batch timeout | 1, 0 ms | 1, 5 ms | 1, 12 ms | 1, 25 ms | 2, 5 ms | 2, 12 ms | 2, 25 ms |
    |---|---|---|---|---|---|---|---|
    | | 133–142 | 120–158 | 121–146 | 98 | 87–126 | 115–141 | 136 |

    | BentoML, workers | 1 | 2 |
    |---|---|---|
    | | 96–124 | 144–153 |

    LitServe's ZeroMQ queue, meant for over 100 requests/s, made no difference beyond the noise and is on. BentoML's
    `max_latency_ms` is its own default: it only decides what is refused.
    """

    threads: int = 1
    max_batch: int = 32
    litserve_workers: int = 1
    litserve_batch_timeout_ms: float = 5.0
    bentoml_workers: int = 2
    bentoml_max_latency_ms: int = 60_000


@dataclass(slots=True)
class Stage:
    """What the contestants share: where they write, what the peers run in, the answers recorded so far."""

    folder: Path
    logs: Path
    python: Path
    tuning: Tuning
    answers: dict[str, bytes] = field(default_factory=dict)
    started: int = 0

    def place(self, name: str) -> tuple[Path, Path]:
        """A folder of its own for one start of a server, and its log."""
        self.started += 1
        folder = self.folder / str(self.started)
        folder.mkdir()
        return folder, self.logs / f"{self.started:02}-{name}.log"


@dataclass(frozen=True, slots=True)
class Contestant:
    """One service. `running` gives its address inside its block; `answers`: how its hits compare to the recorded."""

    name: str
    what: str
    asked: frozenset[Texts]
    running: Callable[[Stage], AbstractContextManager[str]]
    answers: Literal["recorded", "bytes", "values", "own"]
    in_venv: bool = False


OWN = "intentgraph"


def contestants(variants: Mapping[str, Path]) -> dict[str, Contestant]:
    """All there are, by name; `variants` are Serve configurations by the name behind `intentgraph-`."""
    everything: frozenset[Texts] = frozenset({"hits", "unique"})
    hits, unique = frozenset[Texts]({"hits"}), frozenset[Texts]({"unique"})
    all_of_them = (
        Contestant(OWN, "this service as shipped", everything, _intentgraph, "recorded"),
        *(
            Contestant(
                f"{OWN}-{name}", f"this service with {config.name}", everything,
                partial(_intentgraph, config=config), "recorded",
            )
            for name, config in variants.items()
        ),
        Contestant("fastapi", "FastAPI and Redis in one process", hits, _fastapi, "bytes", in_venv=True),
        Contestant("fastapi-lru", "the same with an LRU", hits, partial(_fastapi, lru=LRU_SIZE), "bytes", in_venv=True),
        Contestant("litserve", "LitServe, its own batching", unique, _litserve, "own", in_venv=True),
        Contestant("bentoml", "BentoML, its own batching", unique, _bentoml, "own", in_venv=True),
        Contestant("naive", "Ray Serve as first written, all defaults", everything, _naive, "values"),
        Contestant(
            f"naive-{RAISED_MAX_ONGOING}", f"the same, max_ongoing_requests {RAISED_MAX_ONGOING}", everything,
            partial(_naive, max_ongoing=RAISED_MAX_ONGOING), "values",
        ),
    )  # fmt: skip
    return {each.name: each for each in all_of_them}


@contextlib.contextmanager
def _intentgraph(stage: Stage, *, config: Path | None = None) -> Iterator[str]:
    folder, log = stage.place(OWN)
    port = free_port()
    environment = plain_environment() | {
        "XDG_STATE_HOME": str(folder / "state"),
        "XDG_DATA_HOME": str(folder / "data"),
    }
    chosen = [f"--config={config.absolute()}"] if config else []
    up = [_intents(), "up", "--detach", f"--port={port}", *chosen]
    # Its processes set their own niceness: Ray's workers 15, the rest 0.
    server = processes.Server(up, environment=environment, folder=folder, log=log)
    try:
        server.wait_done(timeout_s=OWN_READY_S)
        yield f"http://{LOOPBACK}:{port}"
    finally:
        with processes.unhurried():
            _down(environment, folder, log)
            server.stop()


def _intents() -> str:
    command = Path(sys.executable).with_name("intents")
    if not command.exists():
        raise LoadError(f"{command} is missing; install this service beside the load generator: `make .venv`")
    return str(command)


def _down(environment: Mapping[str, str], folder: Path, log: Path) -> None:
    with log.open("ab") as output, contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(  # noqa: S603 — our own command
            [_intents(), "down"],
            env=dict(environment),
            cwd=folder,
            stdout=output,
            stderr=output,
            timeout=OWN_STOP_S,
            check=False,
            start_new_session=True,
        )


@contextlib.contextmanager
def _fastapi(stage: Stage, *, lru: int = 0) -> Iterator[str]:
    folder, log = stage.place("fastapi")
    with store(folder / "store", log) as redis_url:
        fill(redis_url, stage.answers)
        command = [str(stage.python), "-m", "servers.fastapi_service", "--redis-url", redis_url, f"--lru={lru}"]
        with _program(stage, command, log) as url:
            yield url


@contextlib.contextmanager
def _litserve(stage: Stage) -> Iterator[str]:
    _, log = stage.place("litserve")
    tuning = stage.tuning
    command = [
        str(stage.python), "-m", "servers.litserve_service", f"--workers={tuning.litserve_workers}",
        f"--max-batch={tuning.max_batch}", f"--batch-timeout-ms={tuning.litserve_batch_timeout_ms}", "--fast-queue",
    ]  # fmt: skip
    with _program(stage, command, log) as url:
        yield url


@contextlib.contextmanager
def _bentoml(stage: Stage) -> Iterator[str]:
    folder, log = stage.place("bentoml")
    tuning = stage.tuning
    port = free_port()
    environment = _peer_environment(tuning) | {
        "BENTOML_HOME": str(folder),
        "BENTOML_DO_NOT_TRACK": "True",
        "PEER_WORKERS": str(tuning.bentoml_workers),
        "PEER_THREADS": str(tuning.threads),
        "PEER_MAX_BATCH": str(tuning.max_batch),
        "PEER_MAX_LATENCY_MS": str(tuning.bentoml_max_latency_ms),
    }
    program = "servers.bentoml_service:Classifier"
    command = [str(stage.python), "-m", "bentoml", "serve", program, "--host", LOOPBACK, "--port", str(port)]
    with _serving(command, environment, port, log) as url:
        yield url


@contextlib.contextmanager
def _naive(stage: Stage, *, max_ongoing: int | None = None) -> Iterator[str]:
    folder, log = stage.place("naive")
    with store(folder / "store", log) as redis_url:
        fill(redis_url, stage.answers)
        command = [
            sys.executable, "-m", "servers.naive_graph", "--redis-url", redis_url, f"--temp-dir={folder / 'ray'}",
            *([f"--max-ongoing={max_ongoing}"] if max_ongoing else []),
        ]  # fmt: skip
        # Ray lowers its workers by 15 itself, from where it was started.
        with _program(stage, command, log, niceness=0, RAY_AUTH_MODE="disabled") as url:
            yield url


@contextlib.contextmanager
def _program(
    stage: Stage, command: list[str], log: Path, *, niceness: int = NICENESS, **environment: str
) -> Iterator[str]:
    port = free_port()
    command = [*command, f"--port={port}", f"--threads={stage.tuning.threads}"]
    with _serving(command, _peer_environment(stage.tuning) | environment, port, log, niceness=niceness) as url:
        yield url


@contextlib.contextmanager
def _serving(
    command: list[str], environment: Mapping[str, str], port: int, log: Path, *, niceness: int = NICENESS
) -> Iterator[str]:
    url = f"http://{LOOPBACK}:{port}"
    with running(
        command,
        environment=environment,
        folder=PROGRAMS,
        log=log,
        ready=lambda: processes.answers(url + PATH, PROBE),
        timeout_s=PEER_READY_S,
        niceness=niceness,
    ):
        yield url


def _peer_environment(tuning: Tuning) -> dict[str, str]:
    threads = {"OMP_NUM_THREADS": str(tuning.threads)}  # as Ray gives a replica
    return plain_environment(os.environ) | threads | {"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
