"""`intents warm` against a service of a few lines: what it sends, says and ends with."""

import json
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from deployments.cli import app
from deployments.local.remote import WARM_ATTEMPTS
from tests.service import INTENTS

Intents = Callable[..., Result]


@dataclass
class Store:
    """A service that has `kept`; it answers `patience` requests, then gives each of `refusals`, then answers again."""

    address: str = ""
    kept: set[str] = field(default_factory=set)
    patience: int = 0
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    bodies: list[list[str]] = field(default_factory=list)

    def answer(self, texts: list[str]) -> tuple[int, dict[str, Any]]:
        """Warm as the service does."""
        self.bodies.append(texts)
        if len(self.bodies) > self.patience and self.refusals:
            return self.refusals.pop(0)
        fresh = set(texts) - self.kept
        self.kept |= fresh
        return 200, {"requested": len(texts), "already_cached": len(texts) - len(fresh), "computed": len(fresh)}


@pytest.fixture
def store() -> Iterator[Store]:
    """A service at an address of its own."""
    kept = Store()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/api/v1/intents/cache/warm"
            status, body = kept.answer(asked["texts"])
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *arguments: object) -> None:
            """Keep the test's output clean."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    kept.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield kept
    server.shutdown()


@pytest.fixture
def warm(store: Store, tmp_path) -> Intents:
    """Runs `intents warm` against it."""
    environment = {"XDG_STATE_HOME": str(tmp_path / "state"), "COLUMNS": "200"}
    runner = CliRunner(env=environment)
    return lambda *arguments, **options: runner.invoke(app, ["warm", "--url", store.address, *arguments], **options)


def test_warming_says_what_was_computed_and_what_was_there(warm: Intents, store: Store, tmp_path):
    """One line on standard output; off a terminal nothing else."""
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"text": "a"}\n{"text": "b"}\n{"text": "b"}\n')
    store.kept = {"a"}
    first, second = warm(str(file)), warm(str(file))

    assert (first.exit_code, first.stdout) == (0, "2 texts: 1 computed, 1 cached already\n")
    assert (second.exit_code, second.stdout) == (0, "2 texts: 0 computed, 2 cached already\n")
    assert first.stderr == ""
    assert store.bodies == [["b", "a"]] * 2


def test_many_texts_travel_in_several_requests(warm: Intents, store: Store):
    """Each once, in portions that fit a body and a request's time."""
    result = warm("-", input="".join(f"{number}\n" for number in [*range(1234), 7, 7]))

    assert result.stdout == "1,234 texts: 1,234 computed, 0 cached already\n"
    assert max(len(body) for body in store.bodies) <= 100
    assert sum(len(body) for body in store.bodies) == 1234
    assert store.bodies[0][:2] == ["7", "0"]


def test_only_the_most_frequent_texts_are_warmed_when_asked_so(warm: Intents, store: Store):
    """`--top` of them."""
    result = warm("--top", "1", "-", input="a\nb\nb\n")

    assert result.stdout == "1 text: 1 computed, 0 cached already\n"
    assert store.bodies == [["b"]]


@pytest.mark.parametrize("status", [429, 503])
def test_a_service_that_is_busy_is_asked_again(warm: Intents, store: Store, status: int):
    """When it says so, and as it says when."""
    store.refusals = [(status, {"type": "overloaded", "detail": "wait"})] * (WARM_ATTEMPTS - 1)
    result = warm("-", input="a\n")

    assert (result.exit_code, result.stdout) == (0, "1 text: 1 computed, 0 cached already\n")
    assert len(store.bodies) == WARM_ATTEMPTS


@pytest.mark.parametrize("slug", ["unavailable", "deadline-exceeded"])
def test_a_service_that_stays_away_is_given_up_with_what_it_says(warm: Intents, store: Store, slug: str):
    """One line, with how far it came; the counts of a deadline are in the detail."""
    store.patience = 1
    store.refusals = [(503, {"type": slug, "detail": "the store\nis away"})] * WARM_ATTEMPTS
    result = warm("-", input="".join(f"{number}\n" for number in range(150)))

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"intents: {store.address} answers {slug}: the store is away; 100 of 150 texts were done before\n"
    )


def test_a_refusal_is_not_sent_again(warm: Intents, store: Store):
    """With caching off there is nothing to wait for."""
    store.refusals = [(403, {"type": "forbidden", "detail": "caching is off"})]
    result = warm("-", input="a\n")

    assert result.exit_code == 1
    assert result.stderr == f"intents: {store.address} answers forbidden: caching is off\n"
    assert len(store.bodies) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"text":"a"}\n{"prompt":"b"}\n', ':2: no text; add a "text" or remove the line'),
        (b'{"text":"a"}\n{"text":\n', ":2: not JSON"),
        (b"", ": no text came in"),
    ],
)
def test_a_fault_of_the_file_is_one_line_and_nothing_is_sent(
    warm: Intents, store: Store, tmp_path, content: bytes, said: str
):
    """Whatever stands before it."""
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(content)
    result = warm(str(file))

    assert result.exit_code == 1
    assert result.stderr.startswith(f"intents: {file}{said}")
    assert len(result.stderr.splitlines()) == 1
    assert store.bodies == []


def test_a_fault_of_standard_input_names_its_line(warm: Intents):
    """There is no file to name."""
    result = warm("-", input=b'{"text":"a"}\n\xff\n')

    assert result.stderr.startswith("intents: standard input:2: not UTF-8")


def test_ctrl_c_ends_it_at_once_and_quietly(tmp_path):
    """In the middle of a request: the shell's exit code, no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        command = [*INTENTS, "warm", "--url", url, "-"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **pipes, cwd=tmp_path) as process:
            process.stdin.write("a\n")
            process.stdin.close()
            connection, _ = deaf.accept()
            with connection:
                assert connection.recv(16).startswith(b"POST")
                process.send_signal(signal.SIGINT)
                said = process.stdout.read() + process.stderr.read()

    assert (process.returncode, said) == (130, "")
