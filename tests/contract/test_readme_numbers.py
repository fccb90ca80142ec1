"""The README's figures come from the commands beside them."""

import re
import shlex
from types import ModuleType

import pytest
import typer

from loadgen import batching, bench, cache, cache_faults, corrections, feedback_faults, overload, scaling
from loadgen.cli import app
from tests.contract.test_readme_tables import README, rows

LOADGEN_COMMANDS = sorted(
    set(re.findall(r"python -m loadgen [^`#\n]+", README)) | set(re.findall(r"intents load [^`#|\n]+", README))
)


def test_the_table_of_numbers_is_the_one_the_benchmark_writes():
    """What was measured and by which command, in order; every figure is there."""
    table = rows("| what | measured | command |")

    assert [(what, command) for what, _, command in table[:-1]] == [
        (row.what, f"`{row.command}`") for row in bench.ROWS
    ]
    assert all(re.search(r"\d", figure) for _, figure, _ in table)


def test_the_table_of_promises_is_the_suite_s():
    """Every figure of the cache suite with what it is held against."""
    expected = [promise.name for promise in cache.PROMISES]

    assert [row[0] for row in rows("| figure | measured | promise |")] == expected


def test_the_numbers_name_their_machine_and_day():
    """A figure without its machine is no figure."""
    stamp = README.partition("<!-- bench -->")[2].strip().splitlines()[0]

    assert re.match(r"\d{4}-\d\d-\d\d, .+, \d+ cores, \d+ GiB, Python \S+, Ray \S+, torch \S+;", stamp)


@pytest.mark.parametrize("command", LOADGEN_COMMANDS)
def test_a_command_of_the_readme_is_one_the_load_generator_takes(command: str):
    """Its options exist and take such values."""
    words = [word for word in shlex.split(command) if word not in ("python", "-m", "loadgen", "intents", "load")]
    group = typer.main.get_command(app)
    name, *arguments = words if words[0] in group.commands else ["run", *words]

    context = group.commands[name].make_context(name, [each.replace("N", "1") for each in arguments])

    assert context.params


def test_such_commands_are_found():
    """Or the test above tests nothing."""
    assert len(LOADGEN_COMMANDS) > 10


@pytest.mark.parametrize(
    ("command", "promises"),
    [
        (batching, 4),
        (overload, 4),
        (corrections, 3),
        (cache_faults, 3 * len(cache_faults.FAULTS)),
        (feedback_faults, 7),
    ],
    ids=lambda value: getattr(value, "MARK", None),
)
def test_a_table_with_promises_is_the_one_its_command_writes(command: ModuleType, promises: int):
    """Machine and day first, then the table, then a verdict on each promise."""
    lines = written(command)

    assert lines[2] == f"| {' | '.join(command.HEAD)} |"
    assert sum(line.startswith(("- holds: ", "- FAILS: ")) for line in lines) >= promises


def test_the_table_of_replicas_over_time_is_that_of_a_pulse():
    """Fewest before and after the load, more under it."""
    _, _, head, _, *stretches = written(scaling)
    replicas = [int(row.split(" | ")[2].split(" → ")[-1]) for row in stretches]

    assert head == f"| {' | '.join(scaling.HEAD)} |"
    assert replicas[0] == replicas[-1] == min(replicas) < max(replicas)


def written(command: ModuleType) -> list[str]:
    """What a command wrote into the README, in lines; the first names day, machine and command."""
    lines = (
        README.partition(f"<!-- {command.MARK} -->")[2].partition(f"<!-- /{command.MARK} -->")[0].strip().splitlines()
    )

    assert re.match(r"\d{4}-\d\d-\d\d, .+, \d+ cores, .*`python -m " + re.escape(command.__name__), lines[0])
    return lines
