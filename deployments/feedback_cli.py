"""`intents feedback`: look at feedback, decide about it, learn from it, keep a copy of it.

It parses, calls and prints. Most of it asks a running service over HTTP; `backup` and `restore` go to the log's store.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from deployments.core.errors import StartupError
from deployments.core.log_layout import FIRST_ID, FeedbackState
from deployments.local.instance import service_address
from deployments.terminal import (
    KeyOption,
    UrlOption,
    cells,
    console,
    examples,
    json_line,
    one_line_errors,
    printable,
    shortened,
    tell_error,
)

if TYPE_CHECKING:
    from deployments.core.feedback_export import TrainingRows
    from deployments.local.feedback_import import Import
    from deployments.local.remote_feedback import Action

SHOWN_TEXT = 48
SHOWN_REFUSALS = 20
STDIO = Path("-")

app = typer.Typer(
    name="feedback",
    help="Look at feedback, decide about it, learn from it, keep a copy of it.",
    no_args_is_help=True,
)

IdsArgument = Annotated[list[str], typer.Argument(metavar="ID…", help="Ids of records, as `list` shows them.")]
AfterOption = Annotated[
    str, typer.Option("--after", metavar="CURSOR", help="Only what came after that record; everything when absent.")
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        envvar="FEEDBACK_REDIS_URL",
        show_default=False,
        help="The log's store, redis://…; that of the service running here when absent. With a password it is better "
        "in the variable than here, where other users of the machine see it.",
    ),
]


@app.command(
    name="list",
    epilog=examples(
        "intents feedback list --state pending",
        "intents feedback list --after 1767225600000-0 --limit 20",
        "intents feedback list --json --limit 1000000 | jq .user_id",
    ),
)
def list_feedback(
    state: Annotated[FeedbackState | None, typer.Option(help="Only these; `recorded` are confirmations.")] = None,
    after: AfterOption = FIRST_ID,
    limit: Annotated[int, typer.Option(min=1, help="Records shown, at most.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line, with all it has.")] = False,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Show records in the order of the log, the oldest first."""
    with one_line_errors():
        from deployments.local import remote_feedback

        records: list[dict[str, Any]] = []
        reading = remote_feedback.read(
            service_address(url), records.append, after=after, state=state, most=limit + 1, api_key=key
        )
        asyncio.run(reading)
        shown = records[:limit]
        if as_json:
            for record in shown:
                typer.echo(json_line(record))
        else:
            _show(shown)
        if len(records) > limit:
            typer.echo(f"There are more: --after {printable(shown[-1]['feedback_id'])}", err=True)


def _show(records: list[dict[str, Any]]) -> None:
    table = Table("id", "when", "by", "state", "text", "intent", box=None, pad_edge=False)
    for record in records:
        table.add_row(
            *cells(
                record["feedback_id"],
                record["accepted_at"][:16].replace("T", " "),
                record["by"],
                record["state"],
                shortened(record["text"], SHOWN_TEXT),
                _intents(record),
            )
        )
    console().print(table)


def _intents(record: dict[str, Any]) -> str:
    before, after = record["original_intent"], record["correct_intent"]
    changed = [record[name] for name in ("correct_complexity", "correct_techniques") if record.get(name)]
    also = f" ({', '.join(str(each) for each in changed)})" if changed else ""
    return (f"{before} → {after}" if before != after else before) + also


@app.command(epilog=examples("intents feedback approve 1767225600000-0 1767225600001-0"))
def approve(ids: IdsArgument, url: UrlOption = None, key: KeyOption = None) -> None:
    """Have corrections that wait served from now on, each for its whole life."""
    _act("approve", "approved", ids, url, key)


@app.command(epilog=examples("intents feedback reject 1767225600000-0"))
def reject(ids: IdsArgument, url: UrlOption = None, key: KeyOption = None) -> None:
    """Have corrections that wait never served."""
    _act("reject", "rejected", ids, url, key)


@app.command(
    epilog=examples(
        "intents feedback delete 1767225600000-0",
        "intents feedback list --json | jq -r 'select(.by == \"app\").feedback_id' | xargs intents feedback delete",
    )
)
def delete(ids: IdsArgument, url: UrlOption = None, key: KeyOption = None) -> None:
    """Delete records for good; what they corrected is again as the newest correction that remains says."""
    _act("delete", "deleted", ids, url, key)


def _act(action: Action, done: str, ids: list[str], url: str | None, key: str | None) -> None:
    with one_line_errors():
        from deployments.local import remote_feedback

        acting = remote_feedback.act(
            service_address(url),
            action,
            ids,
            lambda feedback_id: typer.echo(f"{printable(feedback_id)} {done}"),
            api_key=key,
        )
        _tell_refused(asyncio.run(acting))


def _tell_refused(refused: list[str]) -> None:
    """Exit code 1 if there are any."""
    for line in refused[:SHOWN_REFUSALS]:
        tell_error(line)
    if len(refused) > SHOWN_REFUSALS:
        tell_error(f"and {len(refused) - SHOWN_REFUSALS:,} more")
    if refused:
        raise typer.Exit(1)


@app.command(epilog=examples("intents feedback erase --user ann", "intents feedback erase --user ann --yes"))
def erase(
    user: Annotated[str, typer.Option(metavar="USER_ID", help="The `user_id` of the records.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Delete every record of a user for good. Backups and exports that were made before still have them."""
    with one_line_errors():
        from deployments.local import remote_feedback

        address = service_address(url)
        if not yes and not typer.confirm(f"Delete all feedback of {user!r} at {address} for good?", err=True):
            raise StartupError("nothing was deleted")
        deleted = asyncio.run(remote_feedback.erase(address, user, api_key=key))
        typer.echo(f"{_number(deleted, 'record')} deleted")


@app.command(
    epilog=examples(
        "intents feedback export feedback.jsonl",
        "intents feedback export feedback.jsonl && intents train --data feedback.jsonl --data prompts.jsonl --out mine",
        "intents feedback export --all - | gzip > records.jsonl.gz",
    )
)
def export(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="JSONL to write, compressed if it ends in .gz; `-` is standard output."),
    ] = STDIO,
    after: AfterOption = FIRST_ID,
    everything: Annotated[
        bool, typer.Option("--all", help="Every record with all that is known of it, as `import` takes it.")
    ] = False,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Write what may be learned from: rows with text, intent and perhaps complexity, as `intents train` takes them.

    They are corrections that hold (of callers who may correct, or approved) and confirmations by such callers; never
    what waits or was rejected. With several for one text the newest holds; an approved correction counts from its own
    place in the log, not its approval's. So does --after: what waited then and was approved since is not after it.
    """
    with one_line_errors():
        address = service_address(url)
        if everything:
            _export_all(address, file, after, key)
        else:
            _export_rows(address, file, after, key)


def _export_all(address: str, file: Path, after: str, key: str | None) -> None:
    from deployments.local import remote_feedback
    from deployments.local.progress import told_on_stderr
    from deployments.local.whole_file import written_whole

    written = 0
    with written_whole(file) as out, told_on_stderr() as tell:

        def write(record: dict[str, Any]) -> None:
            nonlocal written
            out.write(_json_line(record))
            written += 1
            tell(_number(written, "record"))

        asyncio.run(remote_feedback.read(address, write, after=after, api_key=key))
    typer.echo(f"{_number(written, 'record')} written", err=True)


def _export_rows(address: str, file: Path, after: str, key: str | None) -> None:
    from deployments.core.feedback_export import TrainingRows
    from deployments.local import remote_feedback
    from deployments.local.progress import told_on_stderr
    from deployments.local.whole_file import written_whole

    chosen = TrainingRows()
    with told_on_stderr() as tell:

        def take(record: dict[str, Any]) -> None:
            chosen.add(record)
            tell(_number(len(chosen), "row"))

        asyncio.run(remote_feedback.read(address, take, after=after, api_key=key))
    with written_whole(file) as out:
        out.writelines(map(_json_line, chosen.rows))
    _tell_exported(chosen)


def _tell_exported(chosen: TrainingRows) -> None:
    left_out = "".join(f"; left out, {reason}: {count:,}" for reason, count in sorted(chosen.left_out.items()))
    typer.echo(f"{_number(len(chosen), 'row')} written{left_out}", err=True)
    if chosen.last_id:
        typer.echo(f"Once they are trained on: intents feedback ack {printable(chosen.last_id)}", err=True)


def _json_line(value: object) -> bytes:
    return json_line(value).encode() + b"\n"


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@app.command(
    name="import",
    epilog=examples(
        "intents feedback import records.jsonl",
        "zcat records.jsonl.gz | intents feedback import - --url http://intents.example:8000",
    ),
)
def import_feedback(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="JSONL: rows of `export --all`, or records as the API takes them; `-` reads standard input.",
        ),
    ],
    everything: Annotated[
        bool, typer.Option("--all", help="Also what waited, was rejected or not trusted where it was exported.")
    ] = False,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Submit records of a file to a running service; those it has from an earlier import are not recorded again.

    They are new records there, trusted as the key that sends them is: ids and times are that service's, corrections
    that it applies are served. Rows that wait, were rejected or not trusted where they come from are left out, unless
    --all. To move a whole log as it is, use `backup` and `restore`. Exit code 1 when rows were refused.
    """
    with one_line_errors():
        from deployments.local import feedback_import
        from deployments.local.progress import told_on_stderr

        address = service_address(url)
        result = feedback_import.read(file, everything=everything)
        with told_on_stderr() as tell:
            total = len(result.rows)
            sending = feedback_import.send(
                address, result, lambda done: tell(f"{done:,} of {_number(total, 'record')}"), api_key=key
            )
            asyncio.run(sending)
        typer.echo(_imported(result))
        _tell_refused(result.refused)


def _imported(result: Import) -> str:
    left_out = f", {result.left_out:,} left out" if result.left_out else ""
    return (
        f"{result.recorded:,} recorded, {_number(result.duplicates, 'duplicate')}, "
        f"{len(result.refused):,} refused{left_out}"
    )


@app.command(epilog=examples("intents feedback ack 1767225600000-0", "intents feedback ack 0-0"))
def ack(
    feedback_id: Annotated[str, typer.Argument(metavar="ID", help="The last record trained on; 0-0 is none.")],
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Say that what came up to a record was trained on; the statistics then count what came after it as pending."""
    with one_line_errors():
        from deployments.local import remote_feedback

        pending = asyncio.run(remote_feedback.acknowledge(service_address(url), feedback_id, api_key=key))
        typer.echo(f"{_number(pending, 'record')} after it")


@app.command(
    epilog=examples(
        "intents feedback backup feedback.jsonl.gz",
        "FEEDBACK_REDIS_URL=redis://log.example:6379/0 intents feedback backup feedback.jsonl.gz",
    )
)
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL to write, compressed if it ends in .gz.")],
    store: StoreOption = None,
) -> None:
    """Copy the whole log into a file, while the service goes on: records, decisions, idempotency keys, the cursor.

    What comes after it began is not in it. Its last line has the SHA-256 of all before it, by which `restore` tells a
    torn or changed file.
    """
    with one_line_errors():
        from deployments.local import feedback_store
        from deployments.local.progress import told_on_stderr
        from deployments.local.whole_file import written_whole

        url = feedback_store.store_url(store)
        with written_whole(file) as out, told_on_stderr() as tell:
            writing = feedback_store.write_backup(url, out, lambda done: tell(_entries(done)))
            entries = asyncio.run(writing)
        typer.echo(f"{_entries(entries)} written", err=True)


@app.command(
    epilog=examples(
        "intents feedback restore feedback.jsonl.gz",
        "intents feedback restore --store redis://log.example:6379/0 feedback.jsonl.gz && intents up",
    )
)
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of `backup`.", exists=True, dir_okay=False)],
    store: StoreOption = None,
    unsafe: Annotated[
        bool, typer.Option("--unsafe-feedback", help="Also into a store that may lose what it acknowledges.")
    ] = False,
) -> None:
    """Put a backup into a store that has no log yet; ids, states and idempotency keys are what they were.

    The whole file is checked first. Broken off, it goes on where it was when started again. Restore before services
    start: one that follows an empty log sees what is restored, but one that followed another log keeps in memory what
    it knew of that until it is started again, and one that writes meanwhile ends the restore.
    """
    with one_line_errors():
        from deployments.local import feedback_store
        from deployments.local.progress import told_on_stderr

        url = feedback_store.store_url(store)
        with told_on_stderr() as tell:
            tell(f"reading {file}")
            contents = feedback_store.checked(file)
            total = len(contents.ids)
            restoring = feedback_store.restore_backup(
                url, file, contents, lambda done: tell(f"{done:,} of {_entries(total)}"), unsafe=unsafe
            )
            restored = asyncio.run(restoring)
        before = f"; {restored.before:,} were there from an earlier attempt" if restored.before else ""
        typer.echo(f"{_entries(restored.written)} restored{before}", err=True)


def _entries(count: int) -> str:
    return f"{count:,} entr{'y' if count == 1 else 'ies'}"
