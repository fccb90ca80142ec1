"""When corrections show, measured: what is read from a replica's answers, what is promised, a service that lies."""

import asyncio
import io
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from rich.console import Console

from loadgen import corrections
from loadgen.corrections import Door, Found, Plan, Seen, Sighting, Watched, observe, outcomes, rows, sighting
from loadgen.load import LoadError
from tests.unit.reports import report

ACCEPTED_S = 100.0
AT_ONCE = Sighting(shown_ms=5, others=0)
PLAN = Plan(count=1, rate=0, hold_s=0.05)


def answers(*states: str) -> list[Seen]:
    """One every 10 ms, the first 20 ms before the 201."""
    return [Seen(ACCEPTED_S - 0.02 + number * 0.01, state) for number, state in enumerate(states)]


def found(*sightings: Sequence[Sighting], load: str = "") -> Found:
    watched = Watched(condition="idle", replicas=["a", "b"], corrections=[list(each) for each in sightings], load=load)
    return Found(command="c", stamp="s", plan=Plan(), watched=[watched])


def verdicts(*sightings: Sequence[Sighting]) -> list[bool]:
    """All in time, most of them sooner, nothing else afterwards."""
    return [each.held for each in outcomes(found(*sightings))]


def late(shown_ms: float | None) -> list[Sighting]:
    """One replica at once, the other then."""
    return [AT_ONCE, Sighting(shown_ms=shown_ms, others=0)]


class TestSighting:
    def test_time_counts_from_the_201_to_the_first_answer(self):
        """By hand: the fifth answer comes 20 ms after it."""
        made = sighting(answers("hit-redis", "hit-redis", "hit-redis", "miss", "correction", "correction"), ACCEPTED_S)

        assert made.shown_ms == pytest.approx(20)
        assert made.others == 0

    def test_before_the_201_it_is_at_once(self):
        """The log may be faster than the answer of whoever wrote into it."""
        assert sighting(answers("correction"), ACCEPTED_S).shown_ms == 0

    def test_whatever_comes_after_it_and_is_none_is_counted(self):
        states = ("miss", "correction", "hit-local", "correction", "status 503")

        assert sighting(answers(*states), ACCEPTED_S).others == 2

    def test_it_may_never_show(self):
        assert sighting(answers("hit-redis"), ACCEPTED_S) == Sighting(shown_ms=None, others=0)


class TestPromises:
    def test_all_are_kept(self):
        assert verdicts(*[late(100)] * 95, *[late(250)] * 5) == [True, True, True]

    def test_one_over_250_ms_at_one_replica_is_one_too_many(self):
        assert verdicts(*[late(5)] * 99, late(251)) == [False, True, True]
        assert verdicts(*[late(5)] * 99, late(None)) == [False, True, True]

    def test_six_in_a_hundred_over_100_ms_are_too_many(self):
        assert verdicts(*[late(5)] * 94, *[late(101)] * 6) == [True, False, True]

    def test_another_answer_afterwards_is_never_right(self):
        assert verdicts([AT_ONCE, Sighting(shown_ms=5, others=1)]) == [True, True, False]


class TestTable:
    def test_each_replica_has_its_row(self):
        made = found(*[late(5)] * 18, late(120), late(None))

        assert list(rows(made)) == [
            ("idle", "1", "5.00", "5.00", "5.00", "0", "0", "0"),
            ("idle", "2", "5.00", "never", "never", "2", "1", "0"),
        ]

    def test_both_forms_tell_of_verdicts_and_load(self):
        made = found(late(5), load="100 answers/s")
        console = Console(file=io.StringIO(), width=200)
        corrections.render(made, console)

        for text in (console.file.getvalue(), corrections.markdown(made)):  # type: ignore[attr-defined]
            assert "holds: idle: 1 of 1 within 100 ms" in text
            assert "the load: 100 answers/s" in text

    def test_the_load_is_told_in_a_few_words(self):
        told = corrections.told(report([{"hit-redis": [2.0] * 60, "miss": [40.0] * 30, "shed": [1.0] * 10}]))

        assert told == "90 answers/s, 66.7 % hits, 10.0 % failed"


class Service:
    """An ingress that shows a correction at once; `forgets` one when a fresh prediction is kept."""

    def __init__(self, *, forgets: bool = False, accepts: bool = True) -> None:
        self._forgets = forgets
        self._accepts = accepts
        self._corrected: set[str] = set()

    async def classify(self, request: web.Request) -> web.Response:
        text, fresh = (await request.json())["text"], request.headers.get("Cache-Control") == "no-cache"
        if fresh and self._forgets:
            self._corrected.discard(text)
        state = "bypass" if fresh else "correction" if text in self._corrected else "miss"
        return web.json_response({"intent": "reasoning"}, headers={"X-Cache": state})

    async def feedback(self, request: web.Request) -> web.Response:
        self._corrected.add((await request.json())["text"])
        return web.json_response({}, status=201 if self._accepts else 503)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        app = web.Application()
        app.add_routes(
            [
                web.post(f"{corrections.API}/classify", self.classify),
                web.post(f"{corrections.API}/feedback", self.feedback),
            ]
        )
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield "http://127.0.0.1:{1}".format(*runner.addresses[0])
        await runner.cleanup()


@asynccontextmanager
async def doors(service: Service, count: int) -> AsyncIterator[list[Door]]:
    async with service.running() as url, Door.opened(url) as door:
        yield [door] * count


class TestObserving:
    async def test_each_replica_is_seen_to_show_it(self):
        async with doors(Service(), 3) as (front, *replicas):
            seen = await observe(front, replicas, "Is it?", PLAN)

        assert [each.others for each in seen] == [0, 0]
        assert all(each.shown_ms is not None and each.shown_ms < 250 for each in seen)

    async def test_a_model_s_answer_that_takes_its_place_is_seen(self):
        """Asked for anew once it shows; the service then says something else for as long as it is watched."""
        async with doors(Service(forgets=True), 2) as (front, replica):
            (seen,) = await observe(front, [replica], "Is it?", PLAN)

        assert seen.others > 0

    async def test_a_correction_that_is_not_taken_is_said(self):
        async with doors(Service(accepts=False), 2) as (front, replica):
            with pytest.raises(LoadError, match="feedback answers 503"):
                await observe(front, [replica], "Is it?", PLAN)

        assert len(asyncio.all_tasks()) == 1, "somebody still asks"

    async def test_nobody_there_is_said(self, unused_tcp_port: int):
        async with Door.opened(f"http://127.0.0.1:{unused_tcp_port}") as nobody:
            with pytest.raises(LoadError, match="nothing answers"):
                await observe(nobody, [nobody], "Is it?", PLAN)
