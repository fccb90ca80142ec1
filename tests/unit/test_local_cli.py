"""The `intents` command where nothing runs: what it says and how it exits."""

import asyncio
import json
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest
from typer.testing import CliRunner

from deployments.cli import app
from deployments.client import HttpClient
from deployments.local.ports import free_ports

ANSWER = {
    "intent": "creative_writing",
    "confidence": 0.97,
    "complexity": "simple",
    "suggested_techniques": ["few_shot"],
    "metadata": {"model_version": "1", "source": "model", "tokens": 4, "truncated": False},
}


class Service(BaseHTTPRequestHandler):
    """Answers a batch or a purge as the service does; refuses the text `wrong`. It keeps 7 predictions."""

    seen_keys: ClassVar[list[str | None]] = []

    def do_POST(self) -> None:
        self.seen_keys.append(self.headers["Authorization"])
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        texts = asked.get("texts", [])
        status, body = 200, {"results": [ANSWER] * len(texts)}
        if self.path.endswith("/cache/warm"):
            body = {"requested": len(texts), "already_cached": 0, "computed": len(texts)}
        if self.path.endswith("/cache/purge"):
            body = {"deleted": 7 if asked.get("all") else len(texts)}
        if "wrong" in texts:
            status, body = 422, {"type": "invalid-input", "detail": "texts.0: is wrong"}
        if self.path.startswith("/elsewhere"):
            body = {}
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *arguments: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where a service that answers listens."""
    server = HTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def intents(tmp_path):
    """Runs the command with a state and data folder of its own."""
    environment = {"XDG_STATE_HOME": str(tmp_path / "state"), "XDG_DATA_HOME": str(tmp_path / "data"), "COLUMNS": "200"}
    return lambda *arguments, **options: CliRunner(env=environment).invoke(app, arguments, **options)


def test_stopping_nothing_is_no_error(intents):
    """What is asked for is the case already."""
    result = intents("down")

    assert (result.exit_code, result.stdout) == (0, "nothing is running\n")


def test_the_status_of_nothing_is_an_error(intents):
    """A script that waits for a healthy service must see that there is none."""
    result = intents("status")

    assert result.exit_code == 1
    assert result.stderr == "intents: nothing is running; start it with `intents up`\n"


def test_a_service_that_is_not_there_is_one_line(intents):
    """No stack trace, and what to do."""
    url = f"http://127.0.0.1:{free_ports(1)[0]}"

    result = intents("classify", "--url", url, "hello")

    assert result.exit_code == 1
    assert (
        result.stderr
        == f"intents: nothing answers at {url}; start the service with `intents up`, or name it with --url\n"
    )


def test_classifying_prints_a_table(intents, address):
    """A line a text, with what it asks for."""
    result = intents("classify", "--url", address, "Write a haiku", "x" * 100)

    assert result.exit_code == 0
    assert [line.split()[-4:] for line in result.stdout.splitlines()[1:]] == [
        ["creative_writing", "0.97", "simple", "few_shot"]
    ] * 2


def test_a_text_cannot_forge_rows_of_the_table(intents, address):
    """Its escape sequences are shown, not obeyed."""
    result = intents("classify", "--url", address, "a\x1b[2K\x1b[1A\x9b")

    assert [line.isprintable() for line in result.stdout.splitlines()] == [True, True]


def test_classifying_standard_input_takes_a_text_a_line(intents, address):
    """Blank lines are none; as JSON it is one object a line, in order."""
    result = intents("classify", "--json", "--url", address, "-", input="one\n\ntwo\n" * 120)

    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert answers == [ANSWER] * 240


def test_a_refusal_is_shown_with_the_services_own_words(intents, address):
    """The problem's detail says what is wrong with the text."""
    result = intents("classify", "--url", address, "wrong")

    assert result.exit_code == 1
    assert "answers invalid-input: texts.0: is wrong" in result.stderr


def test_no_text_is_an_error(intents, address):
    """An empty pipe is a mistake upstream."""
    result = intents("classify", "--url", address, "-", input="\n")

    assert result.exit_code == 1
    assert result.stderr.startswith("intents: no text came in")


@pytest.mark.parametrize(
    ("arguments", "standard_input", "said"),
    [
        (["a"], None, "1 prediction deleted\n"),
        (["a", "b"], None, "2 predictions deleted\n"),
        (["-"], "one\n\ntwo\n" * 120, "240 predictions deleted\n"),
        (["--all"], None, "7 predictions deleted\n"),
    ],
)
def test_purging_says_how_many_predictions_went(intents, address, arguments, standard_input, said):
    """Of the texts given, of those of standard input, or of all."""
    result = intents("purge", "--url", address, *arguments, input=standard_input)

    assert (result.exit_code, result.stdout) == (0, said)


@pytest.mark.parametrize("arguments", [(), ("--all", "a"), ("--all", "-")])
def test_purging_needs_either_texts_or_all(intents, address, arguments):
    """A slip of the keyboard must not empty the cache."""
    result = intents("purge", "--url", address, *arguments, input="a\n")

    assert (result.exit_code, result.stderr) == (1, "intents: give either texts or --all\n")


def test_purging_nothing_of_standard_input_is_an_error(intents, address):
    """An empty pipe is a mistake upstream, and above all not everything."""
    result = intents("purge", "--url", address, "-", input="\n")

    assert result.exit_code == 1
    assert result.stderr.startswith("intents: no text came in")


def test_a_refused_purge_is_one_line(intents, address):
    """As for every other call."""
    result = intents("purge", "--url", address, "wrong")

    assert result.exit_code == 1
    assert "answers invalid-input: texts.0: is wrong" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["classify", "purge", "warm"])
@pytest.mark.parametrize(
    ("option", "variable", "sent"),
    [
        ((), "", None),
        (("--key", "ig_1"), "", "Bearer ig_1"),
        ((), "ig_2\n", "Bearer ig_2"),
        (("--key", "ig_1"), "ig_2", "Bearer ig_1"),
    ],
)
def test_a_key_is_sent_from_the_option_or_the_variable(intents, address, command, option, variable, sent):
    """The option wins; an empty variable is none."""
    Service.seen_keys.clear()
    text = "-" if command == "warm" else "hello"
    result = intents(command, "--url", address, *option, text, input="hello\n", env={"INTENTS_API_KEY": variable})

    assert result.exit_code == 0, result.stderr
    assert Service.seen_keys == [sent]


@pytest.mark.parametrize("key", ["ig_s3cret\r\nX-Evil: 1", "ig_s3crét", "ig_\x01s3cret", "ig_ s3cret"])
def test_a_key_that_no_header_can_carry_is_one_line_without_it(intents, address, key):
    """A terminal's scrollback is no place for secrets."""
    result = intents("classify", "--url", address, "hello", env={"INTENTS_API_KEY": key})

    assert result.exit_code == 1
    assert result.stderr.startswith("intents: the API key holds ")
    assert "s3cr" not in result.stderr + result.stdout


def test_a_client_shows_its_key_to_nobody():
    """Neither by repr nor by the error of a service that is not there."""

    async def ask() -> str:
        async with client:
            try:
                await client.classify("hello")
            except ConnectionError as error:
                return "".join(traceback.format_exception(error))
        return ""

    client = HttpClient(f"http://127.0.0.1:{free_ports(1)[0]}", api_key="ig_s3cret")
    told = asyncio.run(ask())

    assert "cannot be reached" in told
    assert "s3cret" not in told + repr(client)


def test_another_server_at_the_address_is_not_taken_for_the_service(intents, address):
    """A page that does not exist there is no classification."""
    result = intents("classify", "--url", f"{address}/elsewhere", "hello")

    assert result.exit_code == 1
    assert "does not answer as this service does" in result.stderr


def test_a_missing_configuration_is_one_line(intents, tmp_path):
    """Nothing has been started by then."""
    result = intents("up", "--config", str(tmp_path / "none.yaml"))

    assert result.exit_code == 1
    assert result.stderr.startswith("intents: cannot read ")
    assert "--config" in result.stderr


def test_training_on_a_missing_file_is_one_line(intents, tmp_path):
    """As is every other fault of the data."""
    result = intents("train", "--data", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "artifact"))

    assert result.exit_code == 1
    assert result.stderr.startswith("intents: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["up", "down", "status", "classify", "purge", "warm", "train"])
def test_every_command_shows_examples(intents, command):
    """Most people read nothing else."""
    result = intents(command, "--help")

    assert result.exit_code == 0
    assert f"$ intents {command}" in result.stdout or f" intents {command}" in result.stdout


def test_standard_input_that_is_not_utf8_names_its_line(intents):
    """The user hears of the input, not of the server."""
    result = intents("classify", "--url", "http://127.0.0.1:1", "-", input=b"fine\n\xff\n")

    assert result.exit_code == 1
    assert "line 2 of standard input is not UTF-8" in result.stderr


def test_an_address_without_a_scheme_is_told_so(intents):
    """Nobody answers there, but that is not the reason."""
    result = intents("classify", "--url", "127.0.0.1:8000", "hi")

    assert result.exit_code == 1
    assert "--url needs http:// or https:// before 127.0.0.1:8000" in result.stderr
