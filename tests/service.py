"""The real service for tests: `intents up` in a process of its own, asked over HTTP like anybody would."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any, Self

import psutil
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[1]
INTENTS = [str(Path(sys.executable).parent / "intents")]
API = "/api/v1/intents"
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 15
HITS = ("hit-local", "hit-redis")
RECORD = {
    "original_intent": "question_answering",
    "correct_intent": "translation",
    "original_confidence": 0.5,
}


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, whatever its status."""

    status: int
    headers: Message
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def request(
    url: str, body: object = None, *, method: str | None = None, headers: dict[str, str] | None = None
) -> Answer:
    """Send one request; `body` is bytes as they are, or made JSON. Without a method, POST with a body, else GET."""
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    call = urllib.request.Request(url, data, {"Content-Type": "application/json"} | (headers or {}), method=method)
    try:
        with urllib.request.urlopen(call, timeout=60) as response:
            return Answer(response.status, response.headers, response.read())
    except urllib.error.HTTPError as refusal:
        return Answer(refusal.code, refusal.headers, refusal.read())


class Service:
    """One `intents up`, with folders of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = os.environ | {
            "XDG_STATE_HOME": str(folder / "state"),
            "XDG_DATA_HOME": str(folder / "data"),
            "PYTHONUNBUFFERED": "1",
        }
        self.output = folder / "up.out"
        self._up: subprocess.Popen[bytes] | None = None
        self._seen: set[psutil.Process] = set()

    def start(self, *options: str) -> None:
        """Start in the foreground and wait until it says that it serves."""
        with self.output.open("wb") as output:
            command = [*INTENTS, "up", "--port", str(self.port), *options]
            self._up = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=self.environment, cwd=ROOT, start_new_session=True
            )
        wait_for(self._serves, START_TIMEOUT_S, lambda: f"intents up did not serve:\n{self.output.read_text()}")

    def _serves(self) -> bool:
        if self._up is not None and self._up.poll() is not None:
            raise AssertionError(f"intents up ended:\n{self.output.read_text()}")
        return "serving at" in self.output.read_text()

    def interrupt(self) -> None:
        """Press Ctrl-C and wait for the end."""
        assert self._up is not None
        self.remember_processes()
        self._up.send_signal(signal.SIGINT)
        self._up.wait(STOP_TIMEOUT_S)
        self._up = None

    def close(self) -> None:
        """Stop, if it runs; also one that never came up or does not stop by itself."""
        try:
            if self._up is not None and self._up.poll() is None:
                self.interrupt()
        except (subprocess.TimeoutExpired, OSError, psutil.Error):
            self.intents("down")

    def remember_processes(self) -> None:
        """Note every process that belongs to the service now."""
        supervisor = psutil.Process(self.state["supervisor"]["pid"])
        self._seen |= {supervisor, *supervisor.children(recursive=True)}

    def left_processes(self) -> list[str]:
        """Which of the noted processes still run."""
        left = []
        for process in self._seen:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    left.append(process.name())
        return left

    @property
    def state(self) -> dict[str, Any]:
        """What `intents up` tells other commands."""
        return json.loads((self.folder / "state" / "intentgraph" / "state.json").read_text())

    def intents(self, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run another `intents` command against this service."""
        return subprocess.run(
            [*INTENTS, *arguments],
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=ROOT,
            timeout=timeout_s,
            check=False,
        )

    def job(self, *command: str) -> str:
        """Run a program elsewhere that knows of this service what `intents up` prints; give what it said."""
        environment = self.environment | {"RAY_ADDRESS": self.state["gcs"], "RAY_AUTH_MODE": "disabled"}
        result = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd="/", timeout=120, check=False
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    def store(self, name: str) -> psutil.Process | None:
        """The process of the store `predictions` or `feedback`; None while there is none."""
        port = self.state["stores"][name].rsplit(":", 1)[1].split("/")[0]
        return next((each for each, command in self._processes("valkey-server") if port in " ".join(command)), None)

    @contextlib.contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """Have a store hang: it is there, takes connections and does nothing more."""
        store = self.store(name)
        assert store
        store.suspend()
        try:
            yield
        finally:
            store.resume()

    def replica_pids(self, deployment: str) -> set[int]:
        """The processes of a deployment's replicas."""
        return {replica.pid for replica, _ in self._processes(f"ray::ServeReplica:intents:{deployment}")}

    def replica_urls(self) -> list[str]:
        """Where each ingress replica listens itself, behind HAProxy."""
        ports: set[int] = set()
        for replica, _ in self._processes("ray::ServeReplica:intents:Ingress"):
            with contextlib.suppress(psutil.NoSuchProcess):
                connections = replica.net_connections("tcp4")
                ports |= {each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN}
        # Serve gives direct ingress the ports from 30000 on; a replica's other ports are not HTTP.
        return sorted(f"http://127.0.0.1:{port}" for port in ports if 30_000 <= port <= 31_000)

    def _processes(self, program: str) -> list[tuple[psutil.Process, list[str]]]:
        """The service's processes of a program, each with its command line; processes come and go meanwhile."""
        found = []
        for process in psutil.Process(self.state["supervisor"]["pid"]).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                command = process.cmdline()
                if program in "".join(command[:1]):
                    found.append((process, command))
        return found

    def get(self, path: str) -> Answer:
        """GET a path of the service."""
        return request(self.url + path)

    def metric(self, name: str, **labels: str) -> float:
        """The value of a counter or gauge; 0 when there is none."""
        exposition = self.get("/metrics").body.decode()
        samples = (each for family in text_string_to_metric_families(exposition) for each in family.samples)
        return next((each.value for each in samples if (each.name, each.labels) == (name, labels)), 0.0)

    def classify(self, text: str, *, url: str | None = None, query: str = "", **headers: str) -> Answer:
        """Classify one text; header names are given with underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return request(f"{url or self.url}{API}/classify{query}", {"text": text}, headers=named)

    def batch(self, texts: list[str]) -> Answer:
        """Classify several texts."""
        return request(f"{self.url}{API}/classify/batch", {"texts": texts})

    def feedback(self, record: Mapping[str, Any], **headers: str) -> Answer:
        """Submit a record over the defaults of `RECORD`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return request(f"{self.url}{API}/feedback", RECORD | dict(record), headers=named)

    def purge(self, asked: Mapping[str, Any]) -> Answer:
        """Have predictions deleted."""
        return request(f"{self.url}{API}/cache/purge", dict(asked))

    def stats(self) -> Any:
        """The feedback statistics."""
        return self.get(f"{API}/feedback/stats").json()

    def warm(self, texts: list[str]) -> Answer:
        """Have predictions in the store, and no answer in any replica's memory."""
        return request(f"{self.url}{API}/cache/warm", {"texts": texts})

    def classify_until(self, text: str, *cache_states: str, timeout_s: float = 5) -> Answer:
        """Classify a text until its answer comes from where it should; predictions are kept after the answer."""
        answers: list[Answer] = []

        def came() -> bool:
            answers.append(self.classify(text))
            return answers[-1].headers["X-Cache"] in cache_states

        wait_for(came, timeout_s, lambda: f"never {cache_states}, last {answers[-1]}")
        return answers[-1]


def new_text() -> str:
    """A text that nobody has sent."""
    return f"Is it {uuid.uuid4()}?"


def short_text() -> str:
    """One that nobody has asked for, of some ten tokens: eight fit into one batch, and are never refused."""
    return f"Is it {random.randrange(10**9)}?"


class Traffic:
    """Classifies texts in threads while its block runs; counts statuses, and connections that failed by name.

    `longest_s` is the time of the slowest answer.

    Each thread sends again `pause_s` after its answer, what `text` gives; with `texts` above 1, a batch of so many.
    """

    def __init__(
        self,
        service: Service,
        *,
        threads: int = 1,
        pause_s: float = 0.0,
        text: Callable[[], str] = new_text,
        texts: int = 1,
    ) -> None:
        self._service = service
        self._text = text
        self._pause_s = pause_s
        self._texts = texts
        self._stop = threading.Event()
        self.outcomes: Counter[int | str] = Counter()
        self.longest_s = 0.0
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self) -> None:
        while not self._stop.wait(self._pause_s):
            texts = [self._text() for _ in range(self._texts)]
            sent_s = time.monotonic()
            try:
                answer = self._service.batch(texts) if len(texts) > 1 else self._service.classify(*texts)
                self.outcomes[answer.status] += 1
                self.longest_s = max(self.longest_s, time.monotonic() - sent_s)
            except OSError as error:
                self.outcomes[repr(error)] += 1

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def wait_for(condition: Any, timeout_s: float, message: Any, *, pause_s: float = 0.05) -> None:
    """Wait until `condition()` holds; fail with `message()` when it takes longer than `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(message())
        time.sleep(pause_s)


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
