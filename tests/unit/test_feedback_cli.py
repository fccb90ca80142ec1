"""`intents feedback` against a service of a few lines, and against a real store."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import Result
from redis import Redis
from typer.testing import CliRunner

from deployments.cli import app
from deployments.core.connection import connect
from deployments.core.feedback_log import FeedbackLog
from deployments.core.log_layout import LOG
from deployments.core.log_store import LogStore
from deployments.local.instance import StateFile
from deployments.training.rows import read_rows
from tests.service import INTENTS
from tests.unit.feedback_rows import submission
from tests.unit.test_feedback_export import confirmation, record
from tests.unit.test_local_instance import a_state

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.conftest import StartValkey, ValkeyServer

Intents = Callable[..., Result]
API = "/api/v1/intents/feedback"


@dataclass
class Service:
    """Has `records`, and gives two a page; it takes what is submitted unless the text is `wrong`."""

    address: str = ""
    records: list[dict[str, Any]] = field(default_factory=list)
    refusals: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    keys_sent: set[str | None] = field(default_factory=set)

    def answer(self, method: str, path: str, body: Any, idempotency_key: str) -> tuple[int, Any]:
        """As the service answers."""
        if self.refusals:
            return self.refusals.pop(0)
        self.asked.append((method, path, body))
        if (method, urlsplit(path).path) == ("GET", API):
            return self._page(**{name: values[0] for name, values in parse_qs(urlsplit(path).query).items()})
        if path == API:
            return self._take(body, idempotency_key)
        if path.startswith(f"{API}/0-0"):
            return 404, {"type": "not-found", "detail": "no feedback 0-0"}
        return (204, None) if method == "DELETE" else (200, {"deleted": 3, "total_pending_feedback": 1})

    def _page(self, after: str, limit: str, state: str = "") -> tuple[int, Any]:
        later = [each for each in self.records if int(each["feedback_id"][:-2]) > int(after[:-2])]
        page = later[: min(int(limit), 2)]
        items = [each for each in page if state in ("", each["state"])]
        return 200, {"items": items, "next": page[-1]["feedback_id"] if len(later) > len(page) else None}

    def _take(self, body: Any, key: str) -> tuple[int, Any]:
        if body["text"] == "wrong":
            return 422, {"type": "invalid-input", "detail": "correct_intent:\nunknown label"}
        status = "duplicate" if key in self.keys else "recorded"
        self.keys[key] = body["text"]
        return 201 if status == "recorded" else 200, {"status": status}


@pytest.fixture
def service() -> Iterator[Service]:
    """A service at an address of its own."""
    running = Service()

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            length = int(self.headers["Content-Length"] or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            running.keys_sent.add(self.headers["Authorization"])
            status, answer = running.answer(self.command, self.path, body, self.headers["Idempotency-Key"] or "")
            content = b"" if answer is None else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json" if content else "text/plain")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self._handle()

        def do_POST(self) -> None:
            self._handle()

        def do_DELETE(self) -> None:
            self._handle()

        def log_message(self, *arguments: object) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield running
    server.shutdown()
    server.server_close()


@pytest.fixture
def intents(tmp_path: Path) -> Intents:
    """Runs `intents feedback`, with a state folder of its own."""
    environment = {"XDG_STATE_HOME": str(tmp_path / "state"), "COLUMNS": "200", "FEEDBACK_REDIS_URL": ""}
    runner = CliRunner(env=environment)
    return lambda *arguments, **options: runner.invoke(app, ["feedback", *arguments], **options)


@pytest.fixture
def feedback(intents: Intents, service: Service) -> Intents:
    """Runs it against that service."""
    return lambda command, *arguments, **options: intents(command, "--url", service.address, *arguments, **options)


def full(number: int, text: str = "a", **other: Any) -> dict[str, Any]:
    """A record as the service lists it."""
    known = {"accepted_at": "2026-01-01T10:00:00.000Z", "by": "app", "model_version": "1", "original_confidence": 0.5}
    return record(number, text) | known | {"user_id": None, "timestamp": None, "correct_techniques": None} | other


def test_records_are_listed_in_a_table(feedback: Intents, service: Service):
    """Texts on one line; what more there is, is said."""
    service.records = [full(n, f"text {n} " + "[bold]\n" * 20) for n in range(1, 6)]
    result = feedback("list", "--limit", "3")
    rows = result.stdout.splitlines()

    assert rows[0].split() == ["id", "when", "by", "state", "text", "intent"]
    assert [row.split()[0] for row in rows[1:]] == ["1-0", "2-0", "3-0"]
    assert "2026-01-01 10:00  app  applied  text 1 [bold] [bold]" in rows[1]
    assert rows[1].endswith("reasoning → translation")
    assert result.stderr == "There are more: --after 3-0\n"


def test_a_record_cannot_forge_rows_of_the_list(feedback: Intents, service: Service):
    """Nor do more to a terminal than stand there, in the table or as JSON."""
    hostile = "a\x1b[2K\r\x1b[1A\x9b2J\u202e"
    service.records = [full(1, hostile, by=hostile, user_id=hostile, correct_intent=hostile)]
    table, document, rows = feedback("list"), feedback("list", "--json"), feedback("export", "--all")

    assert len(table.stdout.splitlines()) == 2
    for line in (*table.stdout.splitlines(), document.stdout[:-1], rows.stdout[:-1]):
        assert line.isprintable()
    assert json.loads(document.stdout) == json.loads(rows.stdout) == service.records[0]


def test_a_list_is_of_a_state_and_after_a_record_when_asked_so(feedback: Intents, service: Service):
    """However many pages have none."""
    states = ["pending", "applied", "applied", "applied", "applied", "pending"]
    service.records = [full(n, state=state) for n, state in enumerate(states, start=1)]
    result = feedback("list", "--state", "pending", "--after", "1-0", "--json")

    assert [json.loads(line) for line in result.stdout.splitlines()] == [full(6, state="pending")]
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("command", "method", "suffix", "done"),
    [
        ("approve", "POST", "/approve", "approved"),
        ("reject", "POST", "/reject", "rejected"),
        ("delete", "DELETE", "", "deleted"),
    ],
)
def test_what_can_be_done_with_records_is_and_the_others_are_named(
    feedback: Intents, service: Service, command: str, method: str, suffix: str, done: str
):
    """One that is not there does not keep those after it from it."""
    result = feedback(command, "1-0", "0-0", "2-0")

    assert [call[:2] for call in service.asked] == [(method, f"{API}/{each}{suffix}") for each in ("1-0", "0-0", "2-0")]
    assert (result.exit_code, result.stdout) == (1, f"1-0 {done}\n2-0 {done}\n")
    assert result.stderr == "intents: 0-0: not-found: no feedback 0-0\n"


def test_a_key_that_may_not_ends_it_at_once(feedback: Intents, service: Service):
    """It would not do for the next record either; the key is sent, and never shown."""
    service.refusals = [(403, {"type": "forbidden", "detail": "this needs the scope `admin`"})]
    result = feedback("approve", "1-0", "2-0", "--key", "ig_a_b")

    assert (result.exit_code, service.asked, service.keys_sent) == (1, [], {"Bearer ig_a_b"})
    assert result.stderr == f"intents: {service.address} answers forbidden: this needs the scope `admin`\n"


def test_erasing_a_user_asks_first(feedback: Intents, service: Service):
    """A word too much cannot be taken back."""
    refused = feedback("erase", "--user", "ann", input="n\n")
    asked = list(service.asked)
    done = feedback("erase", "--user", "ann", "--yes")

    assert (refused.exit_code, asked) == (1, [])
    assert refused.stderr.endswith("intents: nothing was deleted\n")
    assert (done.exit_code, done.stdout) == (0, "3 records deleted\n")
    assert service.asked == [("POST", f"{API}/erase", {"user_id": "ann"})]


def test_acknowledging_tells_what_is_left(feedback: Intents, service: Service):
    """That came after it."""
    result = feedback("ack", "5-0")

    assert (result.exit_code, result.stdout) == (0, "1 record after it\n")
    assert service.asked == [("POST", f"{API}/ack", {"feedback_id": "5-0"})]


def test_an_export_is_rows_to_train_with(feedback: Intents, service: Service, tmp_path: Path):
    """How many, what was left out, and what to acknowledge."""
    service.records = [full(1), full(2, "b", state="pending"), confirmation(3, "c"), full(4, "A")]
    file = tmp_path / "feedback.jsonl"
    result = feedback("export", str(file))

    assert (result.exit_code, result.stdout) == (0, "")
    assert [(row.text, row.intent) for row in read_rows([file])] == [("A", "translation"), ("c", "translation")]
    assert result.stderr.splitlines() == [
        "2 rows written; left out, pending: 1; left out, superseded by a newer one of the same text: 1",
        "Once they are trained on: intents feedback ack 4-0",
    ]
    assert file.stat().st_mode & 0o777 == 0o600
    assert feedback("export", "--after", "3-0").stdout == '{"text": "A", "intent": "translation"}\n'


def test_an_export_that_fails_leaves_the_file_as_it_was(feedback: Intents, service: Service, tmp_path: Path):
    """And no half of one beside it."""
    service.records = [full(n) for n in range(1, 6)]
    file = tmp_path / "out" / "feedback.jsonl"
    file.parent.mkdir()
    file.write_text("before")
    service.refusals = [service.answer("GET", f"{API}?after=0-0&limit=2", None, ""), (500, {"detail": "no"})]
    result = feedback("export", "--all", str(file))

    assert result.exit_code == 1
    assert file.read_text() == "before"
    assert list(file.parent.iterdir()) == [file]


def test_a_place_that_cannot_be_written_is_one_line(feedback: Intents, tmp_path: Path):
    """It names the file."""
    result = feedback("export", str(tmp_path / "no" / "file"))

    assert result.exit_code == 1
    assert result.stderr == (
        f"intents: {tmp_path}/no/file: cannot be written (No such file or directory); choose another place\n"
    )


def test_what_is_exported_whole_is_imported_and_twice_is_once(feedback: Intents, service: Service, tmp_path: Path):
    """Of two that say the same there are two; what was not trusted there is left out, unless asked for."""
    service.records = [
        full(1, by="ann", user_id="u"),
        full(2),
        full(3),
        full(4, state="pending"),
        full(5, state="applied", trusted=False),
        full(6, state="approved", trusted=False),
    ]
    file = tmp_path / "records.jsonl.gz"
    exported = feedback("export", "--all", str(file))
    content = gzip.decompress(file.read_bytes())
    service.asked.clear()
    first, again, everything = (feedback("import", *options, "-", input=content) for options in ([], [], ["--all"]))

    assert exported.stderr == "6 records written\n"
    assert [json.loads(line) for line in content.splitlines()] == service.records
    assert first.stdout == "4 recorded, 0 duplicates, 0 refused, 2 left out\n"
    assert again.stdout == "0 recorded, 4 duplicates, 0 refused, 2 left out\n"
    assert everything.stdout == "2 recorded, 4 duplicates, 0 refused\n"
    sent = [body for _, _, body in service.asked[:4]]
    assert MINIMAL | {"text": "a", "feedback_type": "correction", "user_id": "u"} in sent


MINIMAL = {"original_intent": "reasoning", "correct_intent": "translation", "original_confidence": 0.5}


def test_rows_that_are_refused_are_named_and_the_others_recorded(feedback: Intents, service: Service):
    """By the service, or before; equal rows without an id are one record."""
    rows = [*(json.dumps(MINIMAL | {"text": text}) for text in ("a", "wrong", "a", "", "b")), "[1]", "{"]
    result = feedback("import", "-", input="\n".join(rows))

    assert (result.exit_code, result.stdout) == (1, "2 recorded, 1 duplicate, 4 refused\n")
    assert sorted(line[: len("intents: standard input:7: bad-request")] for line in result.stderr.splitlines()) == [
        "intents: standard input:2: invalid-inp",
        "intents: standard input:4: invalid-inp",
        "intents: standard input:6: invalid-inp",
        "intents: standard input:7: bad-request",
    ]
    assert "correct_intent: unknown label" in result.stderr


def test_corrections_of_a_text_are_sent_in_their_order(feedback: Intents, service: Service):
    """The last one holds; texts beside it do not wait."""
    rows = [MINIMAL | {"text": text, "user_id": str(n)} for n in range(12) for text in ("a", " a", "b", "c")]
    feedback("import", "-", input="".join(json.dumps(row) + "\n" for row in rows))
    order = [int(body["user_id"]) for _, _, body in service.asked if body["text"].strip() == "a"]

    assert len(order) == 24
    assert order == sorted(order)


@pytest.mark.parametrize("status", [429, 503])
def test_an_import_waits_for_a_service_that_is_busy(feedback: Intents, service: Service, status: int):
    """A key's rate is waited out."""
    service.refusals = [(status, {"type": "overloaded", "detail": "wait"})] * 20
    result = feedback("import", "-", input=json.dumps(MINIMAL | {"text": "a"}))

    assert (result.exit_code, result.stdout) == (0, "1 recorded, 0 duplicates, 0 refused\n")


def test_an_import_that_is_stopped_says_how_far_it_came(feedback: Intents, service: Service):
    """One line; sent again it doubles nothing."""
    answers = [(201, {"status": "recorded"}), (401, {"type": "unauthorized", "detail": "no such key"})]
    service.refusals = answers
    result = feedback(
        "import", "-", input="".join(json.dumps(MINIMAL | {"text": "a", "user_id": u}) + "\n" for u in "xyz")
    )

    assert result.exit_code == 1
    assert result.stderr == (
        f"intents: {service.address} answers unauthorized: no such key; 1 of 3 were recorded before, and are not "
        "doubled when sent again\n"
    )


def test_ctrl_c_ends_an_export_at_once_and_leaves_nothing(tmp_path: Path):
    """In the middle of a request: the shell's exit code, no traceback, no file."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        command = [*INTENTS, "feedback", "export", "--all", "--url", url, str(tmp_path / "out.jsonl")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            connection, _ = deaf.accept()
            with connection:
                assert connection.recv(16).startswith(b"GET")
                process.send_signal(signal.SIGINT)
                said = process.stdout.read() + process.stderr.read()

    assert (process.returncode, said) == (130, "")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_ends_early_ends_an_export_quietly(service: Service, tmp_path: Path):
    """As `| head -1` does: no traceback, and nothing about the service, which answers."""
    service.records = [full(n, "long " * 20_000) for n in range(1, 6)]
    command = [*INTENTS, "feedback", "export", "--all", "--url", service.address, "-"]
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        first = process.stdout.read(10)
        process.stdout.close()
        said = process.stderr.read()

    assert first == b'{"feedback'
    assert (process.returncode, said) == (1, b"")


async def fill(url: str, count: int) -> None:
    async with aclosing(connect(url, timeout_s=5)) as client:
        log = FeedbackLog(LogStore(client, timeout_s=5))
        await log.append([submission(str(n), state="pending") for n in range(count)])


def contents(url: str) -> dict[bytes, bytes]:
    """All that is in a store."""
    with Redis.from_url(url) as client:
        return {key: client.dump(key) for key in client.keys()}  # noqa: SIM118 — a command of the store


def emptied(server: ValkeyServer) -> ValkeyServer:
    with Redis.from_url(server.url) as client:
        client.flushall()
    return server


@pytest.mark.parametrize(("name", "count"), [("log.jsonl", 1100), ("log.jsonl.gz", 5)])
def test_a_backup_is_restored(intents: Intents, server: ValkeyServer, tmp_path: Path, name: str, count: int):
    """Also more than a page and a batch of it; a second time there is nothing to do."""
    asyncio.run(fill(emptied(server).url, count))
    before, file = contents(server.url), tmp_path / name
    backed_up = intents("backup", "--store", server.url, str(file))
    emptied(server)
    restored = intents("restore", "--store", server.url, str(file))
    again = intents("restore", str(file), env={"FEEDBACK_REDIS_URL": server.url})

    assert (backed_up.exit_code, backed_up.stderr) == (0, f"{count:,} entries written\n")
    assert (restored.exit_code, restored.stderr) == (0, f"{count:,} entries restored\n")
    assert again.stderr == f"0 entries restored; {count:,} were there from an earlier attempt\n"
    assert contents(server.url) == before
    assert (gzip.open if name.endswith(".gz") else open)(file, "rb").read(30) == b'{"format":"intentgraph feedbac'


def test_a_torn_backup_is_refused_before_anything_is_written(intents: Intents, server: ValkeyServer, tmp_path: Path):
    """Compressed or not."""
    asyncio.run(fill(emptied(server).url, 3))
    said = []
    for name in ("log.jsonl", "log.jsonl.gz"):
        file = tmp_path / name
        intents("backup", "--store", server.url, str(file))
        file.write_bytes(file.read_bytes()[:-10])
        said.append(intents("restore", "--store", emptied(server).url, str(file)))
        asyncio.run(fill(server.url, 3))

    assert [result.exit_code for result in said] == [1, 1]
    assert said[0].stderr == f"intents: {tmp_path}/log.jsonl: it is torn after 3 entries; take another backup\n"
    assert "log.jsonl.gz: it is no gzip file, or a torn one" in said[1].stderr


def test_a_store_with_another_log_or_that_keeps_nothing_is_refused(
    intents: Intents, server: ValkeyServer, valkey_server: StartValkey, tmp_path: Path
):
    """The other stays as it is; a store that may lose it is taken when one insists."""
    file = str(tmp_path / "log.jsonl")
    asyncio.run(fill(emptied(server).url, 3))
    intents("backup", "--store", server.url, file)
    asyncio.run(fill(emptied(server).url, 2))
    other = intents("restore", "--store", server.url, file)
    careless = valkey_server("--appendfsync", "no")
    refused, taken = (intents("restore", *also, "--store", careless.url, file) for also in ([], ["--unsafe-feedback"]))

    assert other.stderr.startswith("intents: the log there has other entries; restore into an empty store")
    assert (refused.exit_code, taken.exit_code) == (1, 0)
    assert "`appendfsync always` (it is no)" in refused.stderr
    with Redis.from_url(careless.url) as client:
        assert client.xlen(LOG) == 3


def test_a_store_that_asks_for_a_password_is_told_with_where_to_give_it(
    intents: Intents, valkey_server: StartValkey, tmp_path: Path
):
    """The state of a service that runs here has its URL without."""
    store = valkey_server("--requirepass", "s3cret")
    state = a_state(stores={"feedback": store.url})
    StateFile(tmp_path / "state" / "intentgraph").write(state)
    refused = intents("backup", str(tmp_path / "log.jsonl"))
    whole = store.url.replace("//", "//:s3cret@")
    taken = intents("backup", str(tmp_path / "log.jsonl"), env={"FEEDBACK_REDIS_URL": whole})

    assert refused.stderr == (
        "intents: the feedback log does not answer (AuthenticationError); "
        "if it needs a password or TLS options, give its URL with them as --store or FEEDBACK_REDIS_URL\n"
    )
    assert (taken.exit_code, taken.stderr) == (0, "0 entries written\n")


def test_a_password_on_the_command_line_is_warned_of(intents: Intents):
    """A URL may have one, and other users see the command lines of all processes."""
    assert "other users of the machine see it" in " ".join(intents("backup", "--help").stdout.split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "no service runs here; name the log's store with --store or FEEDBACK_REDIS_URL"),
        (["--store", "http://:secret@x"], "the URL of the log's store names none: its scheme `http` is none of"),
        (["--store", "redis://:secret@127.0.0.1:1"], "the feedback log does not answer (ConnectionError)"),
    ],
)
def test_a_store_that_is_not_there_is_one_line_without_its_password(
    intents: Intents, tmp_path: Path, options: list[str], said: str
):
    """And what to do."""
    result = intents("backup", *options, str(tmp_path / "log.jsonl"))

    assert result.exit_code == 1
    assert result.stderr.startswith(f"intents: {said}")
    assert len(result.stderr.splitlines()) == 1
    assert "secret" not in result.stderr
    assert list(tmp_path.iterdir()) == []
