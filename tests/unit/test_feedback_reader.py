"""What reads the feedback log, against a real Valkey server."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import pytest

from deployments.core.connection import connect
from deployments.core.errors import InvalidInput, NotFound, Unavailable
from deployments.core.feedback_counts import Agreement, LogStats
from deployments.core.feedback_reader import FeedbackReader, Page, StoredRecord
from deployments.core.log_layout import COUNTS, CURSOR, DAY_S, FIRST_ID, LOG
from deployments.core.log_store import LogStore
from tests.unit.feedback_rows import INTENTS, add_entry_of, counters, recount, submission

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from deployments.core.feedback_log import FeedbackLog, Submission
    from deployments.core.log_store import RawEntry
    from tests.unit.conftest import StartValkey


async def test_stats_count_the_retained_log(log: FeedbackLog, reader: FeedbackReader) -> None:
    pairs = [("reasoning", "summarization"), ("code_generation", "reasoning"), ("reasoning", "summarization")]
    same = [("reasoning", "reasoning")]
    await log.append([submission(str(n), original=a, correct=b) for n, (a, b) in enumerate([*pairs, *same])])

    assert await reader.stats() == LogStats(
        agreement=Agreement(corrections=3, confirmations=1),
        pairs=[("reasoning", "summarization", 2), ("code_generation", "reasoning", 1)],
        by_intent={"code_generation": Agreement(1, 0), "reasoning": Agreement(2, 1)},
        untrained=4,
    )


async def test_stats_of_an_empty_log_are_zero(log: FeedbackLog, reader: FeedbackReader) -> None:
    assert await reader.stats() == LogStats(Agreement(0, 0), [], {}, 0)


async def test_pending_counts_what_came_after_the_training_cursor(
    log: FeedbackLog, client: Redis, store: LogStore, reader: FeedbackReader
) -> None:
    today = int(await store.now_s() // DAY_S)
    await add_entry_of(client, today - 2)
    await add_entry_of(client, today - 1)
    receipts = await log.append([submission("1"), submission("2"), submission("3")])
    await client.xadd(LOG, {"kind": "undo", "of": receipts[0].feedback_id})
    ids = [entry_id for entry_id, _ in await client.xrange(LOG)]

    pending = []
    for cursor in ids:
        await client.set(CURSOR, cursor)
        pending.append((await reader.stats()).untrained)

    assert pending == [4, 3, 2, 1, 0, 0]


async def all_pages(reader: FeedbackReader, limit: int, state: str | None = None) -> list[StoredRecord]:
    records, cursor = [], FIRST_ID
    while cursor:
        page = await reader.page(cursor, limit, state)
        assert len(page.records) <= limit
        records += page.records
        cursor = page.next
    return records


@pytest.mark.parametrize("limit", [1, 3, 7, 1000])
async def test_pages_give_every_record_once_in_the_order_of_the_log(
    log: FeedbackLog, reader: FeedbackReader, client: Redis, store: LogStore, limit: int
) -> None:
    await add_entry_of(client, int(await store.now_s() // DAY_S) - 1)
    receipts = await log.append([submission(str(n), text=f"text {n}") for n in range(9)])
    await log.delete(receipts[4].feedback_id)
    records = await all_pages(reader, limit)

    ids = [record.entry.feedback_id for record in records]
    assert ids[1:] == [receipt.feedback_id for n, receipt in enumerate(receipts) if n != 4]
    assert records[3].to_json() | {"accepted_at": ""} == {
        **submission(text="text 2").record,
        "feedback_id": ids[3],
        "accepted_at": "",
        "state": "applied",
        "trusted": True,
        "by": "",
        "model_version": "v1",
    }


async def test_a_cursor_goes_on_where_it_was_whatever_came_since(log: FeedbackLog, reader: FeedbackReader) -> None:
    await log.append([submission(str(n)) for n in range(4)])
    first = await reader.page(FIRST_ID, 2)
    await log.append([submission("new")])
    await log.delete(first.records[1].entry.feedback_id)
    rest = await reader.page(first.next, 100)

    assert len(rest.records) == 3
    assert rest.next is None


async def test_long_records_make_shorter_pages(log: FeedbackLog, reader: FeedbackReader) -> None:
    """What crosses between replicas is bounded."""
    await log.append([submission(str(n), text="ä" * 200_000) for n in range(7)])
    page = await reader.page(FIRST_ID, 1000)

    assert len(page.records) == 2
    assert len(await all_pages(reader, 1000)) == 7


@pytest.mark.parametrize("limit", [1, 2, 1000])
async def test_pages_of_a_state_give_all_that_are_in_it(log: FeedbackLog, reader: FeedbackReader, limit: int) -> None:
    states = ("pending", "applied", "pending", "recorded", "pending", "pending", "pending")
    receipts = await log.append([submission(str(n), state=state) for n, state in enumerate(states)])
    await log.review(receipts[0].feedback_id, "approved")
    await log.review(receipts[2].feedback_id, "rejected")
    await log.delete(receipts[5].feedback_id)

    wanted = {"approved": [0], "applied": [1], "rejected": [2], "recorded": [3], "pending": [4, 6]}
    for state, numbers in wanted.items():
        found = [record.entry.feedback_id for record in await all_pages(reader, limit, state)]
        assert found == [receipts[number].feedback_id for number in numbers]


@pytest.mark.parametrize("cursor", ["", "x", "1", "1-0-0", "1-" + "9" * 19, "-"])
async def test_what_is_no_cursor_is_refused(reader: FeedbackReader, cursor: str) -> None:
    with pytest.raises(InvalidInput, match="is no cursor"):
        await reader.page(cursor, 10)
    with pytest.raises(InvalidInput, match="is no cursor"):
        await reader.acknowledge(cursor)


async def test_the_training_cursor_moves_to_what_the_log_has(log: FeedbackLog, reader: FeedbackReader) -> None:
    receipts = await log.append([submission(str(n)) for n in range(3)])
    pending = []
    for cursor in (receipts[1].feedback_id, receipts[2].feedback_id, FIRST_ID):
        await reader.acknowledge(cursor)
        pending.append((await reader.stats()).untrained)

    assert pending == [1, 0, 3]
    with pytest.raises(NotFound):
        await reader.acknowledge("999999999999999-0")


async def test_a_users_records_are_erased_and_nobody_elses(
    log: FeedbackLog, reader: FeedbackReader, client: Redis
) -> None:
    names = ["ann", "bob", "ann", None, 'ann"', "ann"]
    await log.append([submission(str(n), **({"user_id": name} if name else {})) for n, name in enumerate(names)])
    await log.append([submission("of her", text='about "ann"')])
    erased = await reader.erase(log, "ann")
    again = await reader.erase(log, "ann")

    left = [json.loads(record.record).get("user_id") for record in await all_pages(reader, 100)]
    assert (erased, again, left) == (3, 0, ["bob", None, 'ann"', None])
    assert await counters(client) == await recount(client)


async def test_an_empty_log_has_nothing_to_read(log: FeedbackLog, reader: FeedbackReader) -> None:
    assert (await reader.page(FIRST_ID, 10), await reader.page(FIRST_ID, 10, "pending")) == 2 * (Page([], None),)
    assert await reader.erase(log, "ann") == 0
    assert await reader.recount() == {}
    assert await reader.contested(10) == []


async def test_counters_that_agree_with_the_log_are_left(
    log: FeedbackLog, reader: FeedbackReader, client: Redis
) -> None:
    receipts = await log.append([submission(str(n), original=INTENTS[n % 3]) for n in range(9)])
    await log.delete(receipts[0].feedback_id)
    before = await counters(client)

    assert await reader.recount() == {}
    assert await counters(client) == before


async def test_counters_that_do_not_are_put_right_and_told(
    log: FeedbackLog, reader: FeedbackReader, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    await log.append([submission("1"), submission("2", original="code_generation")])
    right = await counters(client)
    [wrong, missing] = sorted(right)
    stray = f'{missing.partition(":")[0]}:["correction","x","y","v1"]'
    await client.hset(COUNTS, wrong, 7)
    await client.hdel(COUNTS, missing)
    await client.hset(COUNTS, stray, 3)
    found = await reader.recount()

    assert found == {wrong: (7, 1), missing: (0, 1), stray: (3, 0)}
    assert await counters(client) == right
    assert "said 7 instead of 1: put right" in caplog.text
    assert await reader.recount() == {}


async def test_records_that_come_while_it_counts_are_no_difference(log: FeedbackLog, reader: FeedbackReader) -> None:
    async def write() -> None:
        for n in range(40):
            [receipt] = await log.append([submission(str(n))])
            if n % 5 == 0:
                await log.delete(receipt.feedback_id)

    writing = asyncio.create_task(write())
    found = []
    while not writing.done():
        found.append(await reader.recount())
        await asyncio.sleep(0)
    await writing

    assert found
    assert not any(found)


async def test_texts_that_are_corrected_back_and_forth_are_shown(log: FeedbackLog, reader: FeedbackReader) -> None:
    def correct(key: str, text: str, intent: str) -> Submission:
        return replace(submission(key, correct=intent, text=text), text_key=text)

    calm = [correct("1", "calm", "summarization"), correct("2", "calm", "summarization")]
    once = [correct("3", "once", "summarization"), correct("4", "once", "translation")]
    often = [correct(f"5{n}", "often", ("summarization", "translation")[n % 2]) for n in range(4)]
    for each in (*calm, *once, *often):
        await log.append([each])

    found = await reader.contested(10)
    assert [(text, contest.turns) for contest, text in found] == [("often", 3), ("once", 1)]
    assert len(await reader.contested(1)) == 1


async def test_what_waits_is_counted(log: FeedbackLog, reader: FeedbackReader) -> None:
    receipts = await log.append([submission(str(n), state="pending") for n in range(3)])
    await log.review(receipts[0].feedback_id, "approved")

    assert await reader.pending() == 2


async def test_counting_after_the_cursor_goes_on_where_it_was_and_begins_anew_after_a_deletion(
    log: FeedbackLog, reader: FeedbackReader, client: Redis
) -> None:
    receipts = await log.append([submission(str(n)) for n in range(5)])
    await reader.acknowledge(receipts[0].feedback_id)
    found = [(await reader.stats()).untrained]
    await log.append([submission("5")])
    found.append((await reader.stats()).untrained)
    await log.delete(receipts[2].feedback_id)
    found.append((await reader.stats()).untrained)
    await log.append([submission("6")])
    found.append((await reader.stats()).untrained)
    before = (await client.info("commandstats"))["cmdstat_xrange"]["calls"]
    found.append((await reader.stats()).untrained)

    assert found == [4, 5, 4, 5, 5]
    assert (await client.info("commandstats"))["cmdstat_xrange"]["calls"] == before


async def test_an_erasure_that_was_broken_off_goes_on_when_it_is_asked_again(log: FeedbackLog, store: LogStore) -> None:
    """Its page at a time, so that the last records of a long log are reached at last."""

    class Slow(LogStore):
        asked: ClassVar[list[str]] = []

        async def _range(self, first: str, last: str, count: int) -> list[RawEntry]:
            self.asked.append(first)
            if len(self.asked) == 3:
                raise TimeoutError
            return await super()._range(first, last, min(count, 2))

    await log.append([submission(str(n), user_id="ann") for n in range(9)])
    slow = Slow(store.client, timeout_s=2)
    reader = FeedbackReader(slow)
    with pytest.raises(TimeoutError):
        await reader.erase(log, "ann")
    again = await reader.erase(log, "ann")

    assert again == 5
    assert slow.asked[3] == slow.asked[2]
    assert await FeedbackReader(store).erase(log, "ann") == 0


async def test_the_cursor_is_not_moved_on_a_store_that_would_forget_it(valkey_server: StartValkey) -> None:
    server = valkey_server("--appendfsync", "everysec")
    async with aclosing(connect(server.url, timeout_s=2)) as client:
        with pytest.raises(Unavailable, match="appendfsync always"):
            await FeedbackReader(LogStore(client, timeout_s=2)).acknowledge(FIRST_ID)
    server.kill()
