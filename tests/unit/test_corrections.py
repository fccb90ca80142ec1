"""The overlay as a pure value, and its follower against real Valkey servers."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import time
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from deployments.core.connection import connect
from deployments.core.corrections import Correction, Follower, Overlay
from deployments.core.feedback_log import FeedbackLog, Submission
from deployments.core.log_layout import DAY_S, LOG, LogEntry
from deployments.core.log_store import LogStore
from deployments.core.metrics import CORRECTIONS_HELD, LOG_LAG, Metric, NoMetrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import pytest

    from tests.unit.conftest import StartValkey, ValkeyServer

TTL_S = 100.0


def entry(
    at_s: float, text_key: str, *, kind: str = "feedback", of: str = "", applied: bool = True, **corrected: object
) -> LogEntry:
    return LogEntry(
        entry_id=f"{int(at_s * 1000)}-0",
        kind=kind,
        of=of,
        state="applied" if applied else "pending",
        text_key=text_key,
        correction=json.dumps({"intent": "reasoning", **corrected}),
    )


def correction(key: str, *, text_key: str = "text", intent: str = "reasoning", applied: bool = True) -> Submission:
    record = {"text": "?", "original_intent": "translation", "correct_intent": intent, "feedback_type": "correction"}
    return Submission(record, text_key, state="applied" if applied else "pending", idempotency_key=key)


async def until(condition: Callable[[], bool], *, timeout_s: float = 5) -> None:
    """Wait for what another process brings about."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the other process has no event to set
            await asyncio.sleep(0.005)


steps = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.integers(0, 60),
        st.sampled_from(["applied", "applied", "pending", "approve", "delete", "unknown kind"]),
        st.integers(0, 20),
    )
)


@given(steps=steps, max_corrections=st.integers(1, 4), later_s=st.integers(0, 150), expire=st.booleans())
def test_the_newest_remaining_correction_holds_for_its_life_within_the_bound(
    steps: list[tuple[str, int, str, int]], max_corrections: int, later_s: int, *, expire: bool
) -> None:
    """Against a list of what was accepted and is left of it."""
    overlay = Overlay(ttl_s=TTL_S, max_corrections=max_corrections)
    left: list[tuple[str, str, float]] = []  # text key, feedback id, accepted at
    texts: dict[str, str] = {}
    now_s = 0.0
    for text_key, waited_s, what, which in steps:
        now_s += waited_s + 1
        folded = next_entry(now_s, text_key, what, texts, which)
        if folded.kind == "deletion" or folded.applies:
            left = [each for each in left if each[1] != folded.feedback_id]
        if folded.applies:
            left = [*left, (folded.text_key, folded.feedback_id, now_s)][-max_corrections:]
        overlay.fold(folded)
        if expire:
            overlay.expire(now_s)
            left = [each for each in left if now_s < each[2] + TTL_S]
        assert len(overlay) <= max_corrections
    now_s += later_s

    held = {text_key: at_s for text_key, _, at_s in left}
    for text_key in "abc":
        found = overlay.get(text_key, now_s)
        lives = text_key in held and now_s < held[text_key] + TTL_S
        assert (found.accepted_at_s if found else None) == (held[text_key] if lives else None)
    overlay.expire(now_s)
    assert len(overlay) == sum(now_s < at_s + TTL_S for _, _, at_s in left)


def next_entry(now_s: float, text_key: str, what: str, texts: dict[str, str], which: int) -> LogEntry:
    """An entry of a kind; `texts` has the text of each record so far, and `which` says the one it speaks of."""
    of = list(texts)[which % len(texts)] if texts else "0-0"
    match what:
        case "approve":
            return entry(now_s, texts.get(of, "?"), kind="approval", of=of)
        case "delete":
            return entry(now_s, "", kind="deletion", of=of)
        case "unknown kind":
            return entry(now_s, text_key, kind="unknown")
    record = entry(now_s, text_key, applied=what == "applied")
    texts[record.feedback_id] = text_key
    return record


def test_undoing_a_correction_brings_back_the_one_before_it_for_its_remaining_life() -> None:
    overlay = Overlay(ttl_s=TTL_S, max_corrections=10)
    overlay.fold(entry(10, "a", intent="first"))
    overlay.fold(entry(50, "a", intent="second"))
    undone = overlay.fold(entry(60, "", kind="deletion", of="50000-0"))

    assert undone
    assert overlay.get("a", 109).intent == "first"
    assert overlay.get("a", 110) is None


def test_an_approved_correction_lives_from_its_approval() -> None:
    overlay = Overlay(ttl_s=TTL_S, max_corrections=10)
    overlay.fold(entry(10, "a", applied=False))
    overlay.fold(entry(500, "a", kind="approval", of="10000-0"))

    assert overlay.get("a", 599).feedback_id == "10000-0"
    assert overlay.get("a", 600) is None
    assert overlay.fold(entry(600, "", kind="deletion", of="10000-0"))


def test_a_correction_carries_what_was_corrected_and_nothing_else() -> None:
    overlay = Overlay(ttl_s=TTL_S, max_corrections=10)
    overlay.fold(entry(1, "intent only"))
    overlay.fold(entry(2, "all", complexity="simple", techniques=["few_shot"]))
    overlay.fold(entry(3, "no techniques", techniques=[]))

    assert overlay.get("intent only", 5) == Correction("1000-0", "reasoning", None, None, 1.0)
    assert overlay.get("all", 5) == Correction("2000-0", "reasoning", "simple", ("few_shot",), 2.0)
    assert overlay.get("no techniques", 5) == Correction("3000-0", "reasoning", None, (), 3.0)


def test_entries_that_change_no_answer_say_so() -> None:
    overlay = Overlay(ttl_s=TTL_S, max_corrections=10)

    changed = [
        overlay.fold(entry(1, "a")),
        overlay.fold(entry(2, "a", applied=False)),
        overlay.fold(entry(3, "", kind="?")),
    ]

    assert changed == [True, False, False]


class Recorder:
    """Keeps what was recorded."""

    def __init__(self) -> None:
        self.values: list[tuple[Metric, float]] = []

    def record(self, metric: Metric, value: float = 1.0, **_labels: str) -> None:
        self.values.append((metric, value))

    def values_of(self, wanted: Metric) -> list[float]:
        return [value for metric, value in self.values if metric is wanted]


@asynccontextmanager
async def following(
    server: ValkeyServer, *, wait_s: float = 5, timeout_s: float = 1, socket_timeout_s: float = 2, **options: object
) -> AsyncIterator[Follower]:
    options = {"metrics": NoMetrics(), **options}
    follower = Follower(lambda: connect(server.url, timeout_s=socket_timeout_s), timeout_s=timeout_s, **options)
    await follower.start(wait_s)
    try:
        yield follower
    finally:
        await follower.close()


async def test_a_new_entry_shows_before_the_blocking_read_ends(server: ValkeyServer, log: FeedbackLog) -> None:
    recorder = Recorder()
    async with following(server, metrics=recorder) as follower:
        [receipt] = await log.append([correction("1")])
        await until(lambda: follower.held == 1, timeout_s=0.4)  # the read blocks for 0.5 s

        assert follower.get("text").feedback_id == receipt.feedback_id
        await until(lambda: (CORRECTIONS_HELD, 1) in recorder.values)
        [lag_s] = recorder.values_of(LOG_LAG)
        assert 0 <= lag_s < 0.4


async def test_entries_that_come_one_upon_another_share_round_trips(
    server: ValkeyServer, client: Redis, log: FeedbackLog
) -> None:
    """However fast they come, the log is read once in 20 ms and not once an entry."""
    async with following(server) as follower:
        read_before = (await client.info("commandstats"))["cmdstat_xread"]["calls"]
        started_s = time.monotonic()
        for number in range(100):
            await log.append([correction(str(number), text_key=str(number))])
        await until(lambda: follower.held == 100)
        took_s = time.monotonic() - started_s
        reads = (await client.info("commandstats"))["cmdstat_xread"]["calls"] - read_before

    assert reads <= took_s / 0.02 + 2


async def test_an_entry_that_changes_no_answer_is_not_held(server: ValkeyServer, log: FeedbackLog) -> None:
    async with following(server) as follower:
        await log.append([correction("1", text_key="pending", applied=False), correction("2", text_key="applied")])
        await until(lambda: follower.get("applied") is not None)

        assert (follower.get("pending"), follower.held) == (None, 1)


async def test_the_start_loads_the_last_ttl_of_a_log_of_many_pages(server: ValkeyServer, client: Redis) -> None:
    now_ms = int(time.time() * 1000)
    pipeline = client.pipeline(transaction=False)
    fields = {"kind": "feedback", "state": "applied", "correction": '{"intent": "reasoning"}'}
    pipeline.xadd(LOG, {**fields, "text_key": "too old"}, id=f"{now_ms - DAY_S * 1000 - 1}-0")
    for n in range(1234):
        pipeline.xadd(LOG, {**fields, "text_key": str(n)}, id=f"{now_ms - DAY_S * 500}-{n}")
    await pipeline.execute()

    async with following(server) as follower:
        assert follower.held == 1234
        assert follower.get("1233").intent == "reasoning"
        assert follower.get("too old") is None


async def test_a_correction_ends_by_the_stores_clock_whatever_this_machines_says(
    server: ValkeyServer, log: FeedbackLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The clock below goes on as the store's would, and is not held against it.
    monkeypatch.setattr("deployments.core.corrections._CLOCK_PERIOD_S", math.inf)
    started_s, passed_s = time.monotonic(), 0.0
    await log.append([correction("1")])

    def clock() -> float:
        return 1e6 + time.monotonic() - started_s + passed_s

    async with following(server, clock=clock) as follower:
        at_first = follower.get("text")
        passed_s = DAY_S - 60
        near_the_end = follower.get("text")
        passed_s = DAY_S + 60
        await until(lambda: follower.held == 0)

        assert at_first == near_the_end
        assert at_first is not None
        assert follower.get("text") is None


async def test_a_correction_ends_in_time_though_this_machines_clock_stood_still(
    server: ValkeyServer, log: FeedbackLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A monotonic clock does while its machine sleeps; here it goes at a hundredth of the store's pace."""
    monkeypatch.setattr("deployments.core.corrections._CLOCK_PERIOD_S", 0.001)
    await log.append([correction("1")])
    async with following(server, clock=lambda: time.monotonic() / 100, ttl_s=1.5) as follower:
        await until(lambda: follower.held == 1, timeout_s=1)
        await until(lambda: follower.held == 0)

        assert follower.get("text") is None


async def test_an_unreadable_entry_does_not_hide_the_next(
    server: ValkeyServer, client: Redis, log: FeedbackLog, caplog: pytest.LogCaptureFixture
) -> None:
    bad = {"kind": "feedback", "text_key": "bad", "state": "applied"}
    for unreadable in ("{", "[]", "{}", b"\xff secret"):
        await client.xadd(LOG, {**bad, "correction": unreadable})
    async with following(server) as follower:
        await client.xadd(LOG, {**bad, "correction": "null"})
        await log.append([correction("1")])
        await until(lambda: follower.get("text") is not None)

        assert follower.held == 1
        assert sum("unreadable" in message for message in caplog.messages) == 5
        assert "secret" not in caplog.text


async def append_to(server: ValkeyServer, submission: Submission) -> None:
    async with aclosing(connect(server.url, timeout_s=2)) as client:
        await FeedbackLog(LogStore(client, timeout_s=2)).append([submission])


async def test_corrections_outlive_the_store_and_follow_it_when_it_is_back(valkey_server: StartValkey) -> None:
    server = valkey_server()
    async with following(server) as follower:
        await append_to(server, correction("1"))
        await until(lambda: follower.get("text") is not None)
        server.kill()
        await until(lambda: not follower.connected)
        during = follower.get("text")
        server.start()
        await until(lambda: follower.connected)
        after = follower.get("text")
        await append_to(server, correction("2", text_key="next"))
        await until(lambda: follower.get("next") is not None)

        assert during == after
        assert during is not None


async def test_an_empty_store_in_the_place_of_the_old_one_clears_the_corrections(valkey_server: StartValkey) -> None:
    server = valkey_server()
    async with following(server) as follower:
        await append_to(server, correction("1"))
        await until(lambda: follower.held == 1)
        server.kill()
        shutil.rmtree(server.folder / "appendonlydir")
        server.start()
        await until(lambda: follower.held == 0)

        assert follower.get("text") is None


async def test_a_store_that_hangs_is_noticed_within_the_timeout(server: ValkeyServer, log: FeedbackLog) -> None:
    await log.append([correction("1")])
    async with following(server, timeout_s=0.4, socket_timeout_s=60) as follower:
        server.pause()
        try:
            await until(lambda: not follower.connected, timeout_s=1)
            held = follower.held
        finally:
            server.resume()
        await until(lambda: follower.connected)

        assert held == 1


async def test_a_quiet_log_keeps_the_connection(server: ValkeyServer, client: Redis) -> None:
    async with following(server) as follower:
        connections = (await client.info("stats"))["total_connections_received"]
        await asyncio.sleep(1.5)  # longer than a round trip may take

        assert follower.connected
        assert (await client.info("stats"))["total_connections_received"] == connections


async def test_a_start_without_the_store_goes_on_and_loads_later(valkey_server: StartValkey) -> None:
    server = valkey_server()
    server.kill()
    async with following(server, wait_s=0.1) as follower:
        loaded_at_start = follower.loaded.is_set()
        server.start()
        await until(follower.loaded.is_set)

        assert not loaded_at_start


async def test_a_defect_is_logged_and_does_not_end_the_following(
    server: ValkeyServer, log: FeedbackLog, caplog: pytest.LogCaptureFixture
) -> None:
    class FailsOnce(Recorder):
        def record(self, metric: Metric, value: float = 1.0, **labels: str) -> None:
            if metric is LOG_LAG and not self.values_of(LOG_LAG):
                super().record(metric, value, **labels)
                raise RuntimeError("defect")
            super().record(metric, value, **labels)

    async with following(server, metrics=FailsOnce()) as follower:
        await log.append([correction("1", text_key="first")])
        await until(lambda: not follower.connected)
        await log.append([correction("2", text_key="second")])
        await until(lambda: follower.get("second") is not None)

        assert "RuntimeError: defect" in caplog.text


async def test_a_client_of_the_older_protocol_follows_too(server: ValkeyServer, log: FeedbackLog) -> None:
    follower = Follower(lambda: Redis.from_url(server.url, protocol=2), metrics=NoMetrics())
    await follower.start(5)
    try:
        await log.append([correction("1")])
        await until(lambda: follower.get("text") is not None)

        assert follower.connected
    finally:
        await follower.close()
