"""An overload measured: when what is sent, what each phase is told to be, and when the service counts as recovered."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console

from loadgen import overload
from loadgen.display import SilentDisplay
from loadgen.load import Load, LoadError
from loadgen.overload import Found, MemoryWatch, Plan, Resident, memory, outcomes, recovery_s
from loadgen.report import Report, Window
from tests.unit.reports import WARMUP_S, report

PLAN = Plan(rate=100, calm_s=2, overload_s=3, warmup_s=int(WARMUP_S))
CALM = {"miss": [20.0] * 50}
LOADED = {"miss": [50.0] * 60, "shed": [2.0] * 40}
GIB = 2**30


def found(windows: Sequence[dict[str, list[float]]], **changes: object) -> Found:
    return overload.found(PLAN, 100.0, report(windows), None).model_copy(update=changes)


def usual(**changes: object) -> Found:
    return found([CALM, CALM, LOADED, LOADED, LOADED, LOADED, CALM, CALM], **changes)


def verdicts(made: Found) -> dict[str, bool]:
    """By their first word."""
    return {each.text.split()[0]: each.held for each in outcomes(made)}


def window(number: int, **series: list[float]) -> Window:
    return report([{}] * number + [series]).windows[number]


class TestSustainable:
    """Searched for at a service made up: 80/s in a closed loop, 20 ms up to its capacity in each search, not beyond."""

    @staticmethod
    def search(*capacities: float) -> float:
        begun = 0

        def measure(load: Load) -> Report:
            nonlocal begun
            traffic = load.traffic
            if traffic.arrivals == "closed":
                return report([CALM], answered_per_s=80.0)
            begun += traffic.rate == 40  # each search begins at half of what the closed loop reached
            holds = traffic.rate <= capacities[begun - 1]
            return report([{"miss": [20.0 if holds else 100.0 * begun] * 20}], answered_per_s=traffic.rate)

        return overload.sustainable(Plan(p99_ms=50), "http://127.0.0.1:1", lambda _line: None, measure)

    @pytest.mark.parametrize("capacities", [(110, 110, 110), (45, 110, 115), (110, 150, 45)])
    def test_one_slow_search_of_three_changes_nothing(self, capacities: tuple[float, ...]):
        assert 110 / 1.1 <= self.search(*capacities) <= 110

    def test_none_that_holds_is_told_with_the_reason(self):
        """That of a search in which none did, though the last was better."""
        with pytest.raises(LoadError, match=r"not even 40\.0/s is sustainable \(p99 100"):
            self.search(30, 30, 100)


class TestTraffic:
    def test_each_phase_has_its_rate(self):
        """100/s for 100 s: 80 of the warm-up and before, 200, and 80 again; three standard deviations."""
        plan = Plan(calm_s=20, overload_s=60, warmup_s=10)
        times_s = plan.send_times(100, seed=1)
        counts = np.histogram(times_s, [0, 30, 90, 110])[0]

        assert np.all(np.diff(times_s) >= 0)
        assert abs(counts - [2400, 12_000, 1600]) == pytest.approx([0, 0, 0], abs=330)

    def test_every_text_is_another_one(self, tmp_path: Path):
        overload.write_trace(tmp_path / "trace.jsonl", [0.5, 0.75])
        rows = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]

        assert [row["time_s"] for row in rows] == [0.0, 0.5, 0.75]
        assert len({row["text"] for row in rows}) == 3

    def test_what_is_not_kept_second_by_second_is_refused(self):
        with pytest.raises(ValidationError, match="170 s; over 120 s"):
            Plan(calm_s=25, overload_s=120)


class TestPhases:
    def test_windows_belong_to_the_phase_they_begin_in(self):
        phases = usual().phases

        assert (phases["before"].p99_ms, phases["overload"].p99_ms) == pytest.approx((20, 50), rel=0.01)
        assert phases["overload"].shed_share == pytest.approx(0.4)
        assert phases["overload"].answered_per_s == 60
        assert phases["after"].shed_share == pytest.approx(40 / 200)

    def test_a_run_that_ended_before_the_last_phase_is_no_result(self):
        with pytest.raises(LoadError, match="ended early"):
            found([CALM, CALM, LOADED])


class TestRecovery:
    def test_it_is_the_first_of_two_normal_seconds(self):
        assert usual().recovery_s == 1.0
        assert found([CALM, CALM, LOADED, LOADED, LOADED, CALM, CALM]).recovery_s == 0.0

    def test_a_second_with_a_refusal_or_a_longer_wait_is_not_normal(self):
        slow = [window(n, miss=[20.0] * 50 + [90.0] * 5) for n in range(3)]
        refused = [window(n, miss=[20.0], shed=[1.0]) for n in range(3)]

        assert recovery_s(slow, normal_ms=25.0) is None
        assert recovery_s(refused, normal_ms=25.0) is None

    def test_one_normal_second_at_the_end_is_not_yet_a_return(self):
        """It takes two in a row."""
        after = [window(n, miss=[90.0]) for n in range(2)] + [window(2, miss=[20.0])]

        assert recovery_s(after, normal_ms=25.0) is None

    def test_one_normal_second_between_others_is_luck(self):
        fast, slow = {"miss": [20.0] * 9}, {"miss": [90.0] * 9}
        after = [window(number, **series) for number, series in enumerate([fast, slow, fast, fast])]

        assert recovery_s(after, normal_ms=25.0) == 2.0


class TestVerdicts:
    def test_an_overload_that_is_only_refused_holds(self):
        assert verdicts(usual()) == {"accepted": True, "the": True, "back": True}

    def test_waiting_three_times_as_long_fails(self):
        slow = {"miss": [61.0] * 60, "shed": [2.0] * 40}

        assert verdicts(found([CALM, CALM, slow, slow, slow, CALM, CALM]))["accepted"] is False

    @pytest.mark.parametrize("series", ["server_error", "timeout", "connection", "rejected"])
    def test_any_failure_but_429_fails(self, series: str):
        broken = LOADED | {series: [1.0]}

        assert verdicts(found([CALM, CALM, broken, LOADED, LOADED, CALM, CALM]))["the"] is False

    def test_memory_that_grows_fails_and_says_where(self):
        begin = {1: Resident("/bin/a", GIB), 2: Resident("b", GIB)}
        flat = memory(begin, {1: Resident("/bin/a", GIB + 1), 2: Resident("b", GIB)})
        grown = memory(begin, {1: Resident("/bin/a", 3 * GIB // 2), 2: Resident("b under another name", GIB)})

        assert verdicts(usual(memory=flat))["memory"] is True
        assert verdicts(usual(memory=grown))["memory"] is False
        assert grown.most == "a +512 MiB"

    @pytest.mark.parametrize(("after_s", "held"), [(5.0, True), (6.0, False), (None, False)])
    def test_it_must_be_over_soon(self, after_s: float | None, held: bool):
        assert verdicts(usual(recovery_s=after_s))["back"] is held


def test_memory_that_was_not_read_is_not_told():
    """Of a service that runs elsewhere."""
    assert MemoryWatch(SilentDisplay(), None, [1, 2]).memory is None
    assert "memory" not in verdicts(usual())


def test_the_document_has_the_phases_the_verdicts_and_the_doubts():
    made = usual(doubts=["sent late"])
    output = io.StringIO()
    overload.render(made, Console(file=output, width=200))
    written = overload.markdown(made)

    assert "| overload | 200.0 | 60.0 | 50.0 | 50.0 | 40.0 % |" in written
    assert "- holds: back to normal" in written
    assert "- **invalid**: sent late" in written
    assert "INVALID: sent late" in output.getvalue()
