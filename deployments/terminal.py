"""What the `intents` commands share on a terminal: the service's options, examples, tables, failures in one line."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from deployments.core.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Iterator

UrlOption = Annotated[
    str | None, typer.Option("--url", help="Address of the service; the one running here when absent.")
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="INTENTS_API_KEY",
        show_default=False,
        help="API key; better in the variable than here, where other users of the machine see it.",
    ),
]

INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C
REPLACED = "\N{REPLACEMENT CHARACTER}"


def examples(*commands: str) -> str:
    """The examples below a command's help."""
    return "\n\n".join(("Examples:", *(f"  $ {command}" for command in commands)))


def console() -> Console:
    """Standard output for tables; in full when piped, since a program that reads them has no width."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 240)


def shortened(text: str, limit: int) -> str:
    """A text on one line of at most `limit` characters, white space made single blanks."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def printable(text: str) -> str:
    """A text that can do nothing to a terminal but stand there.

    What comes from others may hold escape sequences, line ends or changes of direction: with them it would move the
    cursor, and forge lines of a table.
    """
    return text if text.isprintable() else "".join(each if each.isprintable() else REPLACED for each in text)


def cells(*texts: str) -> list[str]:
    """The cells of a table's row, as they are: printable, and no markup."""
    return [escape(printable(text)) for text in texts]


def json_line(value: object) -> str:
    """JSON on one line: letters as they are, and what is not printable escaped."""
    line = json.dumps(value, ensure_ascii=False)
    return (
        line if line.isprintable() else "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in line)
    )


def tell_error(line: str) -> None:
    """Print a line on standard error, with the command's name before it."""
    typer.echo(f"intents: {printable(line)}", err=True)


@contextlib.contextmanager
def one_line_errors(expected: tuple[type[Exception], ...] = (StartupError,)) -> Iterator[None]:
    """Turn a failure the user can do something about into lines on standard error and exit code 1."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:  # `intents status | head`: not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except expected as error:
        for line in str(error).splitlines() or [type(error).__name__]:
            tell_error(line)
        raise typer.Exit(1) from None
