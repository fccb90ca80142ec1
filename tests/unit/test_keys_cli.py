"""`intents keys`: what it prints, what it refuses, and what it leaves in the file."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deployments.cli import app
from deployments.core.api_keys import read
from deployments.core.errors import Unauthorized
from deployments.core.key_ring import KeyRing


@pytest.fixture
def intents(tmp_path: Path):
    """Runs the command with a data folder of its own."""
    environment = {"XDG_DATA_HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state"), "COLUMNS": "200"}
    return lambda *arguments: CliRunner(env=environment).invoke(app, arguments)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where keys are unless the command is told otherwise."""
    return tmp_path / "intentgraph" / "keys.json"


def caller(file: Path, key: str) -> str:
    """Whom a service with that file takes the key's holder for."""
    return KeyRing(file).of(f"Bearer {key}".encode()).name


def test_a_key_is_printed_alone_and_opens_the_service(intents, file: Path):
    """Standard output is the key, for `$(…)`; that it is not shown again is said beside it."""
    result = intents("keys", "add", "app", "--scope", "classify", "--scope", "feedback")
    (key,) = result.stdout.splitlines()

    assert result.exit_code == 0
    assert caller(file, key) == "app"
    assert read(file).keys[0].scopes == ("classify", "feedback")
    assert "not shown again" in result.stderr
    assert key not in result.stderr


def test_only_with_the_first_key_is_it_said_that_a_running_service_goes_on_without(intents):
    """It was started to ask for none."""
    first, second = (intents("keys", "add", name, "--scope", "classify") for name in "ab")

    assert "until it is started again" in first.stderr
    assert "until it is started again" not in second.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("app", "--scope", "classify"), "there is or was a key named app"),
        (("other", "--scope", "root"), "'classify', 'feedback', 'correct' or 'admin'"),
        (("two words", "--scope", "admin"), "no such key can be made (name: "),
        (("anyone", "--scope", "admin"), "may not be named anyone"),
    ],
)
def test_what_is_no_new_key_is_one_line_and_changes_nothing(intents, file: Path, arguments, words):
    """Nothing is printed that could be taken for a key."""
    intents("keys", "add", "app", "--scope", "classify")
    before = file.read_text()
    result = intents("keys", "add", *arguments)

    assert (result.exit_code, result.stdout, file.read_text()) == (1, "", before)
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_key_needs_a_scope(intents, file: Path):
    """None is chosen for its maker."""
    result = intents("keys", "add", "app")

    assert result.exit_code == 2
    assert not file.exists()


def test_the_list_shows_what_is_known_of_each_key(intents):
    """A line a key; as JSON for programs. Neither has a digest."""
    key = intents("keys", "add", "app", "--scope", "classify", "--scope", "correct").stdout
    intents("keys", "add", "old", "--scope", "admin")
    intents("keys", "revoke", "old")
    table, document = intents("keys", "list"), json.loads(intents("keys", "list", "--json").stdout)
    app_line, old_line = table.stdout.splitlines()[1:]

    assert app_line.split()[:4] == ["app", key.split("_")[1], "classify,", "correct"]
    assert old_line.count("UTC") == 2
    assert [(each["name"], each["scopes"], each["revoked"] is None) for each in document] == [
        ("app", ["classify", "correct"], True),
        ("old", ["admin"], False),
    ]
    assert "sha256" not in document[0]


def test_a_revoked_key_opens_nothing(intents, file: Path):
    """And the others go on."""
    keys = [intents("keys", "add", name, "--scope", "classify").stdout.strip() for name in ("a", "b")]
    result = intents("keys", "revoke", "a")

    assert (result.exit_code, result.stdout) == (0, "a is revoked\n")
    with pytest.raises(Unauthorized):
        caller(file, keys[0])
    assert caller(file, keys[1]) == "b"


@pytest.mark.parametrize("command", [("list",), ("revoke", "app")])
def test_without_a_file_the_command_that_makes_one_is_named(intents, file: Path, command):
    """Which is no list of no keys: the file may have been meant elsewhere."""
    result = intents("keys", *command)

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"intents: the keys file {file} is missing; `intents keys add` makes one\n"


def test_revoking_what_is_not_in_force_is_one_line(intents):
    """A slip of the keyboard must not look like a revocation."""
    intents("keys", "add", "app", "--scope", "classify")
    result = intents("keys", "revoke", "ap")

    assert result.exit_code == 1
    assert result.stderr == "intents: no key named ap is in force; `intents keys list` shows them\n"


def test_a_broken_file_is_not_written_over(intents, file: Path):
    """It may have keys in it that somebody can still save."""
    intents("keys", "add", "app", "--scope", "classify")
    file.write_text("{")
    result = intents("keys", "add", "other", "--scope", "classify")

    assert result.exit_code == 1
    assert "is none" in result.stderr
    assert file.read_text() == "{"


def test_keys_may_be_in_another_file(intents, file: Path, tmp_path: Path):
    """Such as one that is mounted into several machines."""
    other = tmp_path / "elsewhere" / "k.json"
    intents("keys", "add", "app", "--scope", "classify", "--file", str(other))
    intents("keys", "revoke", "app", "--file", str(other))

    assert [key.revoked is None for key in read(other).keys] == [False]
    assert "app" in intents("keys", "list", "--file", str(other)).stdout
    assert not file.exists()


@pytest.mark.parametrize("command", ["add", "list", "revoke"])
def test_every_command_shows_examples(intents, command):
    """Most people read nothing else."""
    assert f"intents keys {command}" in intents("keys", command, "--help").stdout
