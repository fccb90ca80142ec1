"""`intents keys`: make, list and revoke API keys. It changes their file; a running service follows it by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from deployments.core import api_keys
from deployments.core.api_keys import ApiKey, KeysFile, changing, utc_now
from deployments.local.instance import keys_file
from deployments.terminal import console, examples, one_line_errors

app = typer.Typer(name="keys", help="Make, list and revoke API keys.", no_args_is_help=True)

FileOption = Annotated[
    Path | None,
    typer.Option("--file", help="The keys file; keys.json in the data folder when absent, which `intents up` finds."),
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Who it is for; the log speaks of it by this name.")]


@app.command(
    epilog=examples(
        "intents keys add app --scope classify --scope feedback",
        "INTENTS_API_KEY=$(intents keys add operator --scope admin)",
    )
)
def add(
    name: NameArgument,
    scope: Annotated[
        list[str],
        typer.Option(
            metavar="SCOPE",
            help="What it may: classify; feedback, where corrections wait for approval; correct, where they are served "
            "at once; admin, everything. May be given several times.",
        ),
    ],
    file: FileOption = None,
) -> None:
    """Make a key and print it, this once. A name is never given twice, not even after its key was revoked."""
    with one_line_errors():
        path = file or keys_file()
        with changing(path) as write:
            is_first = not path.exists()
            content, key = (KeysFile() if is_first else api_keys.read(path)).with_new(name, scope, utc_now())
            write(content)
        typer.echo(key)
        typer.echo(f"This key is not shown again: {path} has a digest of it only.", err=True)
        if is_first:
            typer.echo("A service that runs without keys goes on without them until it is started again.", err=True)


@app.command(name="list", epilog=examples("intents keys list", "intents keys list --json"))
def list_keys(
    file: FileOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show every key's name, id and scopes; the keys themselves are nowhere."""
    with one_line_errors():
        keys = api_keys.read(file or keys_file()).keys
        if as_json:
            shown = [key.model_dump(mode="json", exclude={"sha256"}) for key in keys]
            typer.echo(json.dumps(shown, indent=2))
        else:
            _show(keys)


def _show(keys: tuple[ApiKey, ...]) -> None:
    table = Table("name", "id", "scopes", "created", "revoked", box=None, pad_edge=False)
    for key in keys:
        revoked = f"{key.revoked:%Y-%m-%d %H:%M} UTC" if key.revoked else ""
        table.add_row(key.name, key.id, ", ".join(key.scopes), f"{key.created:%Y-%m-%d %H:%M} UTC", revoked)
    console().print(table)


@app.command(epilog=examples("intents keys revoke app"))
def revoke(name: NameArgument, file: FileOption = None) -> None:
    """Revoke a key: within two seconds a running service refuses it."""
    with one_line_errors():
        path = file or keys_file()
        with changing(path) as write:
            write(api_keys.read(path).with_revoked(name, utc_now()))
        typer.echo(f"{name} is revoked")
