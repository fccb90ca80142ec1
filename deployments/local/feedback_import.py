"""Records of a file, submitted to a running service: read and checked first, then sent several at a time.

Each has an idempotency key made from what it says, so what is sent again is not recorded again. Records of one text are
sent one after the other: which correction holds is a matter of their order.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deployments.core.contract import FeedbackRecord
from deployments.core.errors import IntentGraphError, StartupError
from deployments.core.feedback_export import reason_against
from deployments.core.parsing import parse
from deployments.core.text import correction_key
from deployments.local.remote import connected, one_line
from deployments.local.remote_feedback import slug
from deployments.local.text_file import lines

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from deployments.client import HttpClient

LANES = 8
"""Records on their way at once: they share an fsync at the log's store."""
ATTEMPTS = 30
"""More than for a question: a key's rate is waited out, and nobody waits for the answer."""

_ABOUT_THE_RECORD = frozenset({"bad-request", "gone", "idempotency-key-conflict", "invalid-input", "too-large"})


@dataclass(frozen=True, slots=True)
class Row:
    """A record with its place in the file and, of an exported one, its id where it came from."""

    place: str
    record: dict[str, Any]
    exported_id: str | None

    @property
    def idempotency_key(self) -> str:
        """The same for the same record; two of an export that say the same are two."""
        says = json.dumps([self.exported_id, self.record], sort_keys=True)
        return f"import-{hashlib.sha256(says.encode()).hexdigest()}"

    @property
    def lane(self) -> int:
        """The same for one text."""
        return int(correction_key(self.record["text"])[:8], 16) % LANES


@dataclass(slots=True)
class Import:
    """What became of a file's rows; `refused` has a line for each, with its place."""

    rows: list[Row] = field(default_factory=list)
    left_out: int = 0
    recorded: int = 0
    duplicates: int = 0
    refused: list[str] = field(default_factory=list)

    @property
    def sent(self) -> int:
        """Rows that the service has answered."""
        return self.recorded + self.duplicates


def read(file: Path, *, everything: bool = False) -> Import:
    """Read and check the rows of a file; `-` is standard input.

    Those that another service did not trust, as their `state` and `trusted` say, are left out unless `everything`.

    Raises:
        StartupError: the file cannot be read or is not UTF-8.
    """
    result = Import()
    for place, line in lines(file):
        try:
            record = parse(FeedbackRecord, line.encode())
        except IntentGraphError as error:
            result.refused.append(f"{place}: {error.handle_message}")
            continue
        given = json.loads(line)
        if "state" in given and not everything and reason_against(given):
            result.left_out += 1
        else:
            exported_id = given.get("feedback_id")
            result.rows.append(Row(place, record.model_dump(mode="json", exclude_none=True), exported_id))
    return result


async def send(address: str, result: Import, told: Callable[[int], None], *, api_key: str | None = None) -> None:
    """Submit the rows, and note what becomes of each; `told` hears how many are done.

    Raises:
        StartupError: nothing answers at the address, or not as it should; one line.
    """
    lanes: list[list[Row]] = [[] for _ in range(LANES)]
    for row in result.rows:
        lanes[row.lane].append(row)
    try:
        async with connected(address, api_key, attempts=ATTEMPTS) as client:
            await _all([_send_lane(client, lane, result, told) for lane in lanes])
    except StartupError as error:
        before = f"; {result.sent:,} of {len(result.rows):,} were recorded before, and are not doubled when sent again"
        raise StartupError(f"{error}{before if result.sent else ''}") from None


async def _all(lanes: Sequence[Any]) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for lane in lanes:
                group.create_task(lane)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _send_lane(client: HttpClient, lane: Sequence[Row], result: Import, told: Callable[[int], None]) -> None:
    for row in lane:
        try:
            receipt = await client.submit_feedback(row.record, row.idempotency_key)
        except ValueError as error:
            if slug(error) not in _ABOUT_THE_RECORD:
                raise
            result.refused.append(f"{row.place}: {one_line(error)}")
            continue
        if receipt["status"] == "duplicate":
            result.duplicates += 1
        else:
            result.recorded += 1
        told(result.sent)
