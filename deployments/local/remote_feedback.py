"""Feedback of a running service over HTTP, for `intents feedback`; failures are one line, as those of `remote`."""

from __future__ import annotations

from contextlib import aclosing
from itertools import count
from typing import TYPE_CHECKING, Any, Literal

from deployments.client import MAX_PAGE
from deployments.core.log_layout import FIRST_ID
from deployments.local.remote import connected, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from deployments.client import HttpClient

Action = Literal["approve", "reject", "delete"]

_ABOUT_THE_RECORD = frozenset({"not-found", "conflict"})


async def read(
    address: str,
    take: Callable[[dict[str, Any]], object],
    *,
    after: str = FIRST_ID,
    state: str | None = None,
    most: int | None = None,
    api_key: str | None = None,
) -> None:
    """Hand over the records after a cursor, in the order of the log; at most `most`, of one state if that is given.

    Raises:
        StartupError: nothing answers at the address, or it answers with an error; one line.
    """
    page = min(most or MAX_PAGE, MAX_PAGE)
    async with (
        connected(address, api_key) as client,
        aclosing(client.feedback(after=after, state=state, page=page)) as records,
    ):
        taken = count(1)
        async for record in records:
            take(record)
            if next(taken) == most:
                return


async def act(
    address: str, action: Action, ids: Sequence[str], done: Callable[[str], None], *, api_key: str | None = None
) -> list[str]:
    """Approve, reject or delete records one by one; give a line for each that refuses it. Raises as `read` does."""
    refused = []
    async with connected(address, api_key) as client:
        for feedback_id in ids:
            try:
                await _call(client, action)(feedback_id)
            except ValueError as error:
                if slug(error) not in _ABOUT_THE_RECORD:
                    raise
                refused.append(f"{feedback_id}: {one_line(error)}")
            else:
                done(feedback_id)
    return refused


def _call(client: HttpClient, action: Action) -> Callable[[str], Any]:
    return {
        "approve": client.approve_feedback,
        "reject": client.reject_feedback,
        "delete": client.delete_feedback,
    }[action]


async def erase(address: str, user_id: str, *, api_key: str | None = None) -> int:
    """Delete all records of a user; give how many. Raises as `read` does."""
    async with connected(address, api_key) as client:
        return await client.erase_feedback(user_id)


async def acknowledge(address: str, feedback_id: str, *, api_key: str | None = None) -> int:
    """Move the training cursor; give how many records are after it. Raises as `read` does."""
    async with connected(address, api_key) as client:
        return await client.acknowledge_feedback(feedback_id)


def slug(error: ValueError) -> str:
    """What kind of refusal it is."""
    return str(error).partition(":")[0]
