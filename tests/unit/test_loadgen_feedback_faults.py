"""Rounds of faults under feedback: which there are, what callers note, what the log is held against, the promises."""

import asyncio
import io
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from email.message import Message
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from aiohttp import web
from pydantic import ValidationError
from rich.console import Console

from loadgen import feedback_faults
from loadgen.feedback_callers import API, Callers, Pauses, may_be_retried, read
from loadgen.feedback_checks import Checks, Findings, Patience
from loadgen.feedback_faults import KILLED_ALONE, Found, Kind, Plan, Round, Told, order, outcomes, rows, upgraded
from loadgen.feedback_ledger import Acknowledged, Counts, Ledger, Listing, make_record
from loadgen.http_calls import Answer

INTENTS = ("reasoning", "translation", "summarization")
RECORDS = [make_record(1, number, f"text {number}", INTENTS) for number in range(40)]
TOLD = Told(acknowledged=9, retried=2, duplicates=4, sent_again=3, unconfirmed=0, odd=0, oddities=[])


def taken(*numbers: int) -> Ledger:
    """A ledger of these records, each under its number as its id."""
    ledger = Ledger()
    for number in numbers:
        ledger.sending(RECORDS[number])
        ledger.take(RECORDS[number], Acknowledged(str(number), duplicate=False), tries=1)
    return ledger


def listed(*numbers: int) -> Listing:
    listing = Listing()
    listing.add({"feedback_id": f"{number}"} | dict(RECORDS[number].body) for number in numbers)
    return listing


def done(kind: Kind, *, well_s: float = 2.0, **failed: int) -> Round:
    return Round(kind=kind, well_s=well_s, total_s=well_s + 1, acknowledged=10, failed=failed)


def found(*rounds: Round, broken: str = "", told: Mapping[str, Any] | None = None, **findings: Any) -> Found:
    made = TOLD.model_copy(update=told or {})
    return Found(command="c", stamp="s", plan=Plan(), rounds=[*rounds], findings=Findings(**findings), told=made,
                 seconds=9, broken=broken)  # fmt: skip


def failing(made: Found) -> list[int]:
    return [number for number, each in enumerate(outcomes(made)) if not each.held]


class TestOrder:
    def test_a_seed_says_what_comes_when(self):
        assert order(Plan(seed=3)) == order(Plan(seed=3)) != order(Plan(seed=4))

    def test_each_part_is_killed_as_often_and_upgrades_come_beside(self):
        kinds = Counter(order(Plan(rounds=300, whole_ray=15, upgrades=5)))

        assert kinds == dict.fromkeys(KILLED_ALONE, 95) | {Kind.RAY: 15, Kind.UPGRADE: 5}

    def test_the_whole_of_ray_is_every_twentieth_at_most(self):
        kinds = order(Plan(rounds=300, whole_ray=15, upgrades=0))
        numbers = [number for number, kind in enumerate(kinds) if kind is Kind.RAY]

        assert min(later - earlier for earlier, later in pairwise([-1, *numbers])) == 20

    def test_ray_cannot_die_more_often_than_there_are_rounds(self):
        with pytest.raises(ValidationError, match="11 of 10 rounds"):
            Plan(rounds=10, whole_ray=11)


class TestRecords:
    def test_a_number_s_record_is_always_the_same_and_nobody_else_s(self):
        assert [make_record(1, number, f"text {number}", INTENTS) for number in range(40)] == RECORDS
        assert len({record.key for record in RECORDS}) == 40

    def test_about_half_correct_and_only_those_change_the_intent(self):
        assert 10 < sum(record.corrects for record in RECORDS) < 30
        assert all(
            record.corrects == (record.body["original_intent"] != record.body["correct_intent"]) for record in RECORDS
        )


class TestLedger:
    def test_a_duplicate_after_a_try_that_failed_is_an_acknowledgement(self):
        ledger = Ledger()
        ledger.take(RECORDS[0], Acknowledged("5-0", duplicate=True), tries=2)

        assert (list(ledger.acknowledged), ledger.retried, ledger.duplicates, ledger.odd) == (["5-0"], 1, 1, 0)

    def test_two_records_under_one_id_are_odd(self):
        ledger = taken(0)
        ledger.take(RECORDS[1], Acknowledged("0", duplicate=False), tries=1)

        assert ledger.odd == 1

    @pytest.mark.parametrize(
        ("answer", "odd"), [(("0", True), 0), (("0", False), 1), (("9", True), 1), (("9", False), 1)]
    )
    def test_sent_again_only_the_same_id_as_a_duplicate_is_right(self, answer: tuple[str, bool], odd: int):
        ledger = taken(0)
        ledger.take_again("0", Acknowledged(*answer))

        assert (ledger.sent_again, ledger.odd) == (1, odd)


class TestAnswers:
    @pytest.mark.parametrize(
        ("status", "said", "expected"),
        [
            (201, "recorded", Acknowledged("1-0", duplicate=False)),
            (200, "duplicate", Acknowledged("1-0", duplicate=True)),
            (200, "recorded", None),
            (201, "duplicate", None),
            (422, "recorded", None),
        ],
    )
    def test_status_and_body_acknowledge_together(self, status: int, said: str, expected: Acknowledged | None):
        answer = answered(status, {"feedback_id": "1-0", "status": said})

        assert read(answer) == expected or (expected is None and str(status) in str(read(answer)))

    @pytest.mark.parametrize(
        ("status", "kind", "again"),
        [
            (201, "application/json", False),
            (404, "text/plain", True),
            (404, "application/problem+json", False),
            (422, "application/problem+json", False),
            (429, "application/problem+json", True),
            (500, "text/html", True),
            (503, "application/problem+json", True),
        ],
    )
    def test_who_is_too_busy_or_does_not_know_the_service_is_asked_again(self, status: int, kind: str, again: bool):
        assert may_be_retried(answered(status, {}, kind)) is again


def answered(status: int, body: object, kind: str = "application/json") -> Answer:
    answer = Answer(status, Message(), json.dumps(body).encode())
    answer.headers["Content-Type"] = kind
    return answer


class TestListing:
    def test_each_acknowledged_id_must_be_there_as_it_was_sent(self):
        ledger, listing = taken(0, 1, 2), listed(0, 2)
        listing.add([{"feedback_id": "3", **RECORDS[4].body}])
        ledger.take(RECORDS[3], Acknowledged("3", duplicate=False), tries=1)

        assert listing.lacks(ledger.acknowledged) == {"1", "3"}

    def test_a_text_of_ours_is_there_once(self):
        listing = listed(0, 1, 2)
        listing.add([{"feedback_id": "9", **RECORDS[1].body}, {"feedback_id": "10", **RECORDS[2].body}])

        assert listing.repeats({RECORDS[0].text, RECORDS[1].text}) == {RECORDS[1].text}

    def test_it_is_read_on_after_its_last_id(self):
        assert listed(0, 7, 3).last_id == "3"

    def test_counters_are_compared_with_a_recount(self):
        """By hand: two corrections of one pair and a confirmation; an intent that is counted as 0 changes nothing."""
        listing = Listing()
        for kind, correct in (
            ("correction", "translation"),
            ("correction", "translation"),
            ("confirmation", "reasoning"),
        ):
            listing.add([{"feedback_id": f"{time.monotonic_ns()}", "text": "t", "original_intent": "reasoning",
                          "correct_intent": correct, "feedback_type": kind}])  # fmt: skip
        stats = {
            "total": 3,
            "feedback_types": {"corrections": 2, "confirmations": 1},
            "corrections": [{"original_intent": "reasoning", "correct_intent": "translation", "count": 2}],
            "by_intent": {
                "reasoning": {"corrections": 2, "confirmations": 1},
                "translation": {"corrections": 0, "confirmations": 0},
            },
        }

        assert Counts.told(stats) == listing.counts
        assert Counts.told(stats | {"total": 4}) != listing.counts
        assert Counts.told(stats | {"feedback_types": {"corrections": 1, "confirmations": 2}}) != listing.counts
        assert Counts.told(stats | {"corrections": []}) != listing.counts
        assert Counts.told(stats | {"by_intent": {"reasoning": {"corrections": 2}}}) != listing.counts


class Service:
    """Feedback in memory; every third record is written and answered with 503. Each flaw breaks one promise."""

    def __init__(self, *flaws: str) -> None:
        self._flaws = flaws
        self._items: list[dict[str, Any]] = []
        self._ids: dict[str, str] = {}

    async def feedback(self, request: web.Request) -> web.Response:
        key, record = request.headers["Idempotency-Key"], await request.json()
        if key in self._ids and "forgets keys" not in self._flaws:
            return web.json_response({"feedback_id": self._ids[key], "status": "duplicate"})
        number = len(self._ids) + len(self._items) + 1
        self._ids[key] = f"{number:06}"
        if not ("loses records" in self._flaws and number % 7 == 0):
            self._items.append({"feedback_id": self._ids[key], **record})
        recorded = {"feedback_id": self._ids[key], "status": "recorded"}
        return web.json_response(status=503) if number % 3 == 0 else web.json_response(recorded, status=201)

    async def list(self, request: web.Request) -> web.Response:
        page = [item for item in self._items if item["feedback_id"] > request.query.get("after", "")][:10]
        return web.json_response({"items": page, "next": page[-1]["feedback_id"] if len(page) == 10 else None})

    async def stats(self, _: web.Request) -> web.Response:
        corrections = Counter(map(pair, filter(corrects, self._items)))
        types = {
            f"{kind}s": Counter(item["original_intent"] for item in self._items if item["feedback_type"] == kind)
            for kind in ("correction", "confirmation")
        }
        told = {
            "total": len(self._items) + ("miscounts" in self._flaws),
            "feedback_types": {kind: counts.total() for kind, counts in types.items()},
            "corrections": [
                {"original_intent": original, "correct_intent": correct, "count": count}
                for (original, correct), count in corrections.items()
            ],
            "by_intent": {intent: {kind: counts[intent] for kind, counts in types.items()} for intent in INTENTS},
        }
        return web.json_response(told)

    async def classify(self, request: web.Request) -> web.Response:
        texts = (await request.json())["texts"]
        corrected = {item["text"]: item["correct_intent"] for item in filter(corrects, self._items)}
        if "forgets corrections" in self._flaws:
            corrected.popitem()
        states = ", ".join("correction" if text in corrected else "miss" for text in texts)
        results = [{"intent": corrected.get(text, "reasoning")} for text in texts]
        return web.json_response({"results": results}, headers={"X-Cache": states})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        app = web.Application()
        app.add_routes(
            [
                web.post(f"{API}/feedback", self.feedback),
                web.get(f"{API}/feedback", self.list),
                web.get(f"{API}/feedback/stats", self.stats),
                web.post(f"{API}/classify/batch", self.classify),
            ]
        )
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield "http://127.0.0.1:{1}".format(*runner.addresses[0])
        await runner.cleanup()


def corrects(item: Mapping[str, Any]) -> bool:
    return bool(item["feedback_type"] == "correction")


def pair(item: Mapping[str, Any]) -> tuple[str, str]:
    return item["original_intent"], item["correct_intent"]


async def asked(*flaws: str) -> tuple[Ledger, Findings]:
    """What becomes of some dozens of records of four callers, and what two checks find."""
    async with Service(*flaws).running() as url:
        return await asyncio.to_thread(_asked, url)


def _asked(url: str) -> tuple[Ledger, Findings]:
    callers = Callers(url, INTENTS, count=4, seed=1, again=0.2, pauses=Pauses(calm_s=0.001, retry_s=0.001))
    checks = Checks(url, callers.ledger, Random(1), Patience(shown_s=0, settle_s=0))
    with callers:
        while len(callers.ledger.acknowledged) < 30:
            time.sleep(0.01)
        with callers.held():
            checks.check_new([url])
    checks.check_all([url])
    return callers.ledger, checks.findings


class TestAsking:
    async def test_a_service_that_is_right_is_found_to_be(self):
        """A third is first answered with 503, then as a duplicate."""
        ledger, findings = await asked()

        assert ledger.retried
        assert ledger.sent_again
        assert ledger.duplicates == ledger.retried + ledger.sent_again
        assert ledger.odd == 0
        assert (findings.found, findings.recounts) == (len(ledger.acknowledged), 2)
        assert findings.corrections
        assert [findings.lost, findings.doubled, findings.miscounted, findings.unserved] == [set(), set(), 0, []]

    async def test_a_lost_record_is_missed(self):
        ledger, findings = await asked("loses records")

        assert findings.lost
        assert findings.found == len(ledger.acknowledged) - len(findings.lost)

    async def test_a_retry_that_is_written_twice_is_seen(self):
        ledger, findings = await asked("forgets keys")

        assert findings.doubled
        assert ledger.odd, "an acknowledged record sent again is no duplicate"

    async def test_counters_that_differ_are_seen_each_time(self):
        _, findings = await asked("miscounts")

        assert findings.miscounted == findings.recounts == 2

    async def test_a_correction_that_is_not_served_is_seen(self):
        _, findings = await asked("forgets corrections")

        assert findings.unserved

    def test_a_record_that_nobody_acknowledges_is_unconfirmed(self, unused_tcp_port: int):
        """At the end; not before."""
        callers = Callers(f"http://127.0.0.1:{unused_tcp_port}", INTENTS, count=1, seed=1, again=0,
                          pauses=Pauses(calm_s=0.001, retry_s=0.001))  # fmt: skip
        with callers:
            while not callers.ledger.failures():
                time.sleep(0.01)
            assert not callers.ledger.unconfirmed

        assert len(callers.ledger.unconfirmed) == 1
        assert set(callers.ledger.failures()) == {"ConnectionRefusedError"}


class TestPromises:
    def test_all_are_kept(self):
        assert failing(found(done(Kind.STORE), done(Kind.UPGRADE))) == []

    def test_each_is_judged_by_itself(self):
        flawed = [
            found(broken="in round 3 of 9: the service is not well again after 120 s"),
            found(lost={"1-0"}),
            found(doubled={"a text"}),
            found(miscounted=1),
            found(unserved=["a text"]),
            found(told={"odd": 1, "oddities": ["5-0 sent again is 6-0"]}),
            found(done(Kind.UPGRADE, ConnectionResetError=1)),
        ]

        assert [failing(each) for each in flawed] == [[number] for number in range(7)]

    def test_a_try_may_fail_where_something_was_killed(self):
        assert failing(found(done(Kind.STORE, ConnectionResetError=8), done(Kind.UPGRADE))) == []


class TestTable:
    def test_each_kind_of_round_has_its_row(self):
        made = found(done(Kind.STORE, well_s=1), done(Kind.STORE, well_s=3, TimeoutError=4), done(Kind.UPGRADE))

        assert list(rows(made)) == [
            ("store of the log", "2", "20", "4", "2.0", "3.0", "3.0"),
            ("upgrade", "1", "10", "0", "2.0", "2.0", "3.0"),
        ]

    def test_both_forms_tell_what_was_found(self):
        made = found(done(Kind.STORE), told={"unconfirmed": 2}, doubled={"a text"})
        console = Console(file=io.StringIO(), width=200)
        feedback_faults.render(made, console)

        for text in (console.file.getvalue(), feedback_faults.markdown(made)):  # type: ignore[attr-defined]
            assert "FAILS: 1 texts in the log twice" in text
            assert "2 records unconfirmed at the end" in text


def test_each_upgrade_is_another_one():
    """Of the arguments alone, which every deployment has."""
    config = {"applications": [{"name": "intents", "args": {"auth": "local"}}]}

    changed = [upgraded(config, number) for number in (1, 2)]

    assert changed[0] != changed[1]
    assert config == {"applications": [{"name": "intents", "args": {"auth": "local"}}]}
    assert all(each["applications"][0]["args"]["auth"] == "local" for each in changed)
