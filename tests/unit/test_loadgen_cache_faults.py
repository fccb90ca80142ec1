"""Faults of the prediction store measured: when each begins and ends, what its run is told to be, what is promised."""

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError
from rich.console import Console

from loadgen import cache_faults
from loadgen.cache_faults import FAULTS, Fault, FaultSwitch, Found, Plan, Seen, Stretch, Trial, chosen, outcomes, parsed
from loadgen.display import Display, SilentDisplay, View
from loadgen.load import Load
from loadgen.report import Report
from tests.unit.reports import WARMUP_S, report

Made = Mapping[str, Sequence[float]]

WELL: Made = {"hit-local": [1.0] * 50, "hit-redis": [2.0] * 50}
MISSES: Made = {"miss": [40.0] * 100}
BEGUN_S, ENDED_S = WARMUP_S + 2.2, WARMUP_S + 4.7
UNCACHED_MS = 40.0


def seen(*after: Made, before: Made = WELL, during: Made = MISSES) -> Seen:
    """Two seconds well, three that the fault touches, then `after`; without a cache the others are much slower."""
    return cache_faults.seen("killed", [trial(*after, before=before, during=during)])


def trial(*after: Made, before: Made = WELL, during: Made = MISSES) -> Trial:
    uncached = [
        report([{"bypass": [latency_ms] * 100} for latency_ms in (9_000, 9_000, *[each_ms] * 3, 9_000)])
        for each_ms in (UNCACHED_MS / 2, UNCACHED_MS)
    ]
    return Trial(uncached, report([before] * 2 + [during] * 3 + list(after)), BEGUN_S, ENDED_S)


def found(fault: Seen) -> Found:
    return Found(command="c", stamp="s", plan=Plan(), faults=[fault])


def verdicts(fault: Seen) -> list[bool]:
    """No failure, hardly slower, back soon."""
    return [each.held for each in outcomes(found(fault))]


def view(elapsed_s: float) -> View:
    return View(elapsed_s, 30, warming=False, rate_per_s=1, in_flight=0, latency_ms={}, failed={}, hit_rate=None,
                predicted_hit_rate=None)  # fmt: skip


class Server:
    """Remembers what was done to it."""

    url = "redis://127.0.0.1:1/0"

    def __init__(self) -> None:
        self.done: list[str] = []


def noted(what: str) -> Callable[[Server], None]:
    return lambda server: server.done.append(what)


FAULT = Fault("odd", lambda _: nullcontext(Server()), noted("begin"), noted("end"))


class TestTrials:
    def test_they_count_together_and_the_slowest_to_resume_counts(self):
        of_two = cache_faults.seen("killed", [trial(WELL, WELL), trial(MISSES, WELL, during=WELL)])

        assert (of_two.before.hit_share, of_two.during.hit_share, of_two.after.hit_share) == (1.0, 0.5, 0.75)
        assert of_two.resumed_s == pytest.approx(WARMUP_S + 7 - ENDED_S)
        assert of_two.uncached.p99_ms == pytest.approx(UNCACHED_MS, rel=0.05)

    def test_one_that_does_not_resume_is_not_made_up_for(self):
        assert cache_faults.seen("killed", [trial(WELL), trial(MISSES)]).resumed_s is None

    @pytest.mark.parametrize(
        ("number", "ends_itself", "order"),
        [(0, False, ["bare", "fault"]), (1, False, ["fault", "bare"]), (0, True, ["bare", "fault", "bare"])],
    )
    def test_runs_without_a_cache_take_turns_with_those_of_the_fault(
        self, monkeypatch: pytest.MonkeyPatch, number: int, ends_itself: bool, order: list[str]
    ):
        """A pair has its own arrivals, both runs the same."""
        loads = []

        def measured(load: Load, display: Display) -> Report:
            loads.append(load)
            for elapsed_s in (8.1, 18.1):
                display.update(view(elapsed_s))
            return report([WELL] * 23)

        monkeypatch.setattr(cache_faults, "_measured", measured)
        fault = replace(FAULTS[0], begin=noted("begin"), end=noted("end"), ends_itself=ends_itself)
        faults = *FAULTS[1:], fault
        monkeypatch.setattr(cache_faults, "FAULTS", faults)
        made = cache_faults._trial(Plan(), fault, Server(), "http://127.0.0.1:1", number, SilentDisplay())

        assert ["bare" if load.no_store else "fault" for load in loads] == order
        assert {load.traffic.seed for load in loads} == {number * len(faults) + len(faults) - 1}
        assert len(made.uncached) == order.count("bare")


class TestSwitch:
    @pytest.fixture
    def server(self) -> Server:
        return Server()

    @pytest.fixture
    def switch(self, server: Server) -> FaultSwitch:
        return FaultSwitch(SilentDisplay(), FAULT, server, begin_s=8, end_s=18)

    def test_a_fault_begins_and_ends_once_when_the_run_is_so_far(self, switch: FaultSwitch, server: Server):
        for elapsed_s in (7.9, 8.1, 12.0, 17.9, 18.2, 18.7):
            switch.update(view(elapsed_s))
        switch.close()

        assert server.done == ["begin", "end"]
        assert switch.begun_s == 8.1
        assert switch.ended_s == pytest.approx(18.2, abs=0.05)

    def test_a_run_that_ends_early_ends_it(self, switch: FaultSwitch, server: Server):
        """Or a server would stay frozen."""
        switch.update(view(9.0))
        switch.close()

        assert server.done == ["begin", "end"]
        assert switch.ended_s is None

    def test_one_that_never_began_is_not_ended(self, switch: FaultSwitch, server: Server):
        switch.close()

        assert server.done == []

    def test_a_run_that_ends_early_does_not_wait_for_one_that_ends_itself(self, server: Server):
        switch = FaultSwitch(SilentDisplay(), replace(FAULT, ends_itself=True), server, begin_s=8, end_s=8)
        switch.update(view(8.0))
        switch.close()

        assert server.done == ["begin"]

    def test_one_that_ends_itself_is_over_when_it_has_been_waited_for(self, server: Server):
        """From its beginning on, however long the others last."""
        switch = cache_faults.switched(Plan(), replace(FAULT, ends_itself=True), server, SilentDisplay())
        for elapsed_s in (7.9, 8.1, 8.6, 9.1):
            switch.update(view(elapsed_s))

        assert server.done == ["begin", "end"]
        assert switch.ended_s == pytest.approx(8.6, abs=0.05)


class TestStretches:
    def test_a_second_the_fault_touches_belongs_to_it(self):
        """By hand: from 2.2 s to 4.7 s are the third, fourth and fifth second."""
        made = seen(WELL, WELL)

        assert [part.hit_share for part in (made.before, made.during, made.after)] == [1.0, 0.0, 1.0]
        assert made.during.answered_per_s == 100
        assert made.during.p99_ms == pytest.approx(40, rel=0.01)

    def test_429_is_told_apart_from_failures(self):
        made = seen(WELL, during={"miss": [40.0] * 60, "shed": [1.0] * 30, "server_error": [9.0] * 10}).during

        assert (made.shed_share, made.failed) == (0.3, {"server_error": 30})

    def test_nothing_answered_has_no_latency(self):
        made = seen(WELL, during={"timeout": [9000.0]}).during

        assert made == Stretch(
            answered_per_s=0, hit_share=0, shed_share=0, failed={"timeout": 3}, p50_ms=None, p99_ms=None
        )


class TestResumption:
    def test_it_is_the_end_of_the_first_second_with_hits(self):
        """By hand: the fault ends at 4.7 s, the second with hits is the one from 6 s to 7 s."""
        assert seen(MISSES, WELL).resumed_s == pytest.approx(2.3)

    def test_without_hits_there_is_none(self):
        assert seen(MISSES, MISSES).resumed_s is None

    def test_a_few_hits_are_none(self):
        few = {"miss": [40.0] * 81, "hit-redis": [2.0] * 19}

        assert seen(few, MISSES).resumed_s is None
        assert seen(few, MISSES | {"hit-redis": [2.0] * 25}).resumed_s == pytest.approx(2.3)

    def test_hits_nearer_by_beside_misses_say_nothing_of_the_store(self):
        half = {"hit-local": [1.0] * 50, "miss": [40.0] * 50}

        assert seen(half, half).resumed_s is None

    def test_hits_nearer_by_alone_are_all_there_can_be(self):
        assert seen({"hit-local": [1.0] * 100}).resumed_s == pytest.approx(1.3)


class TestPromises:
    def test_all_are_kept(self):
        assert verdicts(seen(WELL)) == [True, True, True]

    def test_429_breaks_none(self):
        assert verdicts(seen(WELL, during=MISSES | {"shed": [1.0] * 100})) == [True, True, True]

    @pytest.mark.parametrize("series", ["server_error", "timeout", "connection", "rejected"])
    def test_one_failure_is_one_too_many_at_any_time(self, series: str):
        assert verdicts(seen(WELL, during=MISSES | {series: [1.0]})) == [False, True, True]
        assert verdicts(seen(WELL, WELL | {series: [1.0]})) == [False, True, True]

    def test_the_slowest_may_take_25_ms_longer_than_without_a_cache(self):
        within, beyond = {"miss": [UNCACHED_MS + 24.5] * 100}, {"miss": [UNCACHED_MS + 25.5] * 100}

        assert verdicts(seen(WELL, during=within)) == [True, True, True]
        assert verdicts(seen(WELL, during=beyond)) == [True, False, True]

    def test_hits_must_be_back_within_5_s(self):
        assert verdicts(seen(*[MISSES] * 3, WELL)) == [True, True, True]
        assert verdicts(seen(*[MISSES] * 4, WELL)) == [True, True, False]
        assert verdicts(seen(MISSES)) == [True, True, False]

    def test_nothing_passes_because_it_was_not_measured(self):
        silent = found(seen(WELL, during={}))

        assert [each.held for each in outcomes(silent)] == [True, False, True]


class TestTable:
    def test_each_fault_is_a_row(self):
        (killed,) = cache_faults.rows(found(seen(WELL)))

        assert len(killed) == len(cache_faults.HEAD)
        assert killed == ("killed", "100.0 %", "0.0 %", "100.0 %", "100.0", "40.0", "40.0", "40.0", "0.0 %", "0", "1.3")

    def test_both_forms_tell_of_verdicts_and_doubts(self):
        made = found(seen(WELL).model_copy(update={"doubts": ["the load generator was late"]}))
        console = Console(file=io.StringIO(), width=200)
        cache_faults.render(made, console)

        for text in (console.file.getvalue(), cache_faults.markdown(made)):  # type: ignore[attr-defined]
            assert "holds: killed: p99 40.0 ms meanwhile; at most 65.0 ms" in text
            assert "the load generator was late" in text


class TestUsage:
    def test_faults_of_one_store_stand_together(self):
        """The service is started once for each store."""
        stores = [fault.store for fault in FAULTS]

        assert stores == sorted(stores, key=stores.index)

    def test_faults_are_chosen_by_name(self):
        assert [fault.name for fault in chosen(["frozen", "killed"])] == ["killed", "frozen"]
        assert chosen(None) == list(FAULTS)
        with pytest.raises(ValueError, match="no fault 'melted'"):
            chosen(["melted"])

    def test_settings_are_read_as_yaml(self):
        assert parsed(["cache_timeout_ms=20", "log_level=DEBUG", "x=a=b"]) == {
            "cache_timeout_ms": 20,
            "log_level": "DEBUG",
            "x": "a=b",
        }
        with pytest.raises(ValueError, match="write cache_ttl=VALUE"):
            parsed(["cache_ttl"])
        with pytest.raises(ValueError, match="no YAML"):
            parsed(["cache_ttl=["])

    def test_what_is_not_kept_second_by_second_is_refused(self):
        with pytest.raises(ValidationError, match="213 s; over 120 s"):
            Plan(fault_s=200)

    def test_texts_are_kept_for_faults_and_not_without_a_cache(self, tmp_path: Path):
        """The same load otherwise."""
        kept, bare = (Plan(fault_s=9).load("http://127.0.0.1:1", 3, kept=kept) for kept in (True, False))

        assert (kept.start, bare.start) == ("warm", "as-is")
        assert (kept.no_store, bare.no_store) == (False, True)
        assert kept.traffic.model_copy(update={"text_seed": bare.traffic.text_seed}) == bare.traffic
        assert (kept.traffic.seed, kept.traffic.rate, kept.traffic.duration_s) == (3, 100, 22)
