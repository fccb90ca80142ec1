"""The feedback deployment's own work, without Ray, against a real Valkey server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from deployments import feedback
from deployments.core.feedback_reader import FeedbackReader
from deployments.core.log_layout import COUNTS, DAY_S, LOG
from deployments.core.metrics import NoMetrics
from deployments.core.settings import Settings
from tests.unit.feedback_rows import add_entry_of, submission

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from deployments.core.feedback_counts import LogStats
    from deployments.core.log_store import LogStore
    from tests.unit.conftest import ValkeyServer


@pytest.fixture
async def deployment(server: ValkeyServer, client: Redis, monkeypatch: pytest.MonkeyPatch) -> feedback.Feedback:
    """A replica whose upkeep is the test's to do."""
    monkeypatch.setattr(feedback, "RayMetrics", NoMetrics)
    monkeypatch.setattr(feedback, "_every", lambda _period_s, _work: asyncio.sleep(0))
    replica = object.__new__(feedback.Feedback)
    await replica.__init__(Settings(redis_url=server.url))
    return replica


async def test_counts_asked_for_at_once_are_counted_once_or_twice_and_hold_what_came_before(
    deployment: feedback.Feedback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has a key may ask for them: a hundred callers must not take a hundred times the replica's time."""
    count, counted = FeedbackReader.stats, 0

    async def stats(reader: FeedbackReader) -> LogStats:
        nonlocal counted
        counted += 1
        return await count(reader)

    monkeypatch.setattr(FeedbackReader, "stats", stats)
    before = asyncio.create_task(deployment.stats())
    await asyncio.sleep(0)  # it is under way
    await deployment.append([submission()])
    after = await asyncio.gather(*(deployment.stats() for _ in range(100)))
    await before

    assert [each.agreement.total for each in after] == [1] * 100
    assert counted == 2


async def test_a_log_that_cannot_be_counted_is_trimmed_all_the_same(
    deployment: feedback.Feedback, client: Redis, store: LogStore
) -> None:
    await add_entry_of(client, int(await store.now_s() // DAY_S) - 31)
    await client.xadd(LOG, {"kind": b"\xff"})

    with pytest.raises(UnicodeDecodeError):
        await deployment._keep_in_order()

    assert await client.xlen(LOG) == 1
    assert await client.hgetall(COUNTS) == {}
