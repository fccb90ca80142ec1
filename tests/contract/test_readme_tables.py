"""The README's tables say what the code says."""

import re
from collections.abc import Iterator

import typer
from click import Command

from deployments.cli import app
from deployments.core import errors, metrics
from deployments.core.settings import ENVIRONMENT_NAMES, Settings
from deployments.http.app import API, CALLS
from tests.service import ROOT

README = (ROOT / "README.md").read_text()


def rows(header: str) -> list[list[str]]:
    """The cells of the table whose header line begins with `header`."""
    lines = README.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(header)) + 2
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


def shown(value: object) -> str:
    """A default as the table has it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_the_settings_table_is_the_settings():
    """Name, variable, default and meaning of each, in order."""
    expected = [
        [
            f"`{name}`",
            f"`{name.upper()}`" if name.upper() in ENVIRONMENT_NAMES else "",
            shown(field.default),
            field.description,
        ]
        for name, field in Settings.model_fields.items()
    ]

    assert rows("| setting |") == expected


def test_the_metrics_table_is_the_metrics():
    """Name, kind, labels and meaning of each, in order."""
    expected = [
        [f"`{metric.name}`", metric.kind, " ".join(f"`{label}`" for label in metric.labels), metric.help]
        for metric in metrics.ALL
    ]

    assert rows("| metric |") == expected


def test_the_error_table_is_the_errors():
    """Every status and type, and no other."""
    answers = [
        each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.IntentGraphError)
    ]

    assert {(row[0], row[1]) for row in rows("| status |")} == {
        (str(each.status), f"`{each.slug}`") for each in answers
    }


def test_every_call_under_the_api_is_in_the_table():
    """Method, path, and the scope that it needs."""
    expected = {
        (f"`{call.method} {call.path.removeprefix(API)}`", f"`{call.scope}`")
        for call in CALLS
        if call.path.startswith(API)
    }

    assert {(row[0], row[1]) for row in rows("| call |")} == expected


def commands(command: Command, *names: str) -> Iterator[str]:
    """Each command under one, as it is called."""
    below = getattr(command, "commands", None)
    if below is None:
        yield " ".join(names)
    else:
        for name, each in below.items():
            yield from commands(each, *names, name)


def named(cell: str) -> Iterator[str]:
    """The commands a row names: the first in full, others by their last word."""
    first, *others = re.findall(r"`([^`]+)`", cell)
    words = re.match(r"intents( [a-z]+)+", first)[0].split()
    yield " ".join(words)
    yield from (" ".join([*words[:-1], other.split()[0]]) for other in others if not other.startswith("--"))


def test_every_command_is_in_the_table():
    """And no other."""
    assert {name for row in rows("| command |") for name in named(row[0])} == set(
        commands(typer.main.get_command(app), "intents")
    )


def test_every_file_the_readme_links_to_exists():
    """A page that lies is a bug."""
    links = re.findall(r"\]\(([^)#:]+)\)", README)

    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
