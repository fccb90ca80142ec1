"""What a run makes of its samples, without sending any."""

import io
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError
from rich.console import Console

from loadgen import bench, cache, recording, slo
from loadgen.display import PlainDisplay, Recent, line_of
from loadgen.distribution import empty_histogram
from loadgen.load import Load
from loadgen.readme import write_into
from loadgen.recording import Recording, Sample, Tally
from loadgen.report import Counted, Reconciliation, Report
from loadgen.server_metrics import FEEDBACK, REQUESTS, Settling, parse, reconcile
from loadgen.steadiness import steadiness
from loadgen.targets import HttpTarget, target_of
from loadgen.traffic import Traffic
from tests.unit.reports import report


def sample(**changes: object) -> Sample:
    """An answered hit in the measured time."""
    made = Sample(6.0, 0.0001, 0.004, "hit-redis", ("hit-redis",), 1, counted=True, feedback=False, detail="")
    return made._replace(**changes)


def recorded(*samples: Sample, warmup_s: float = 5, duration_s: float = 30) -> Recording:
    made = Recording(warmup_s, duration_s)
    for each in samples:
        made.add(each)
    return made


class TestRecording:
    def test_the_warm_up_is_counted_for_the_server_and_measured_for_nobody(self):
        recording = recorded(sample(at_s=4.9), sample(at_s=5.1))

        assert recording.latency["hit-redis"].count == 1
        assert recording.texts == {"hit-redis": 1}
        assert recording.asked_texts == {"warm-up": 1, "measured": 1}
        assert recording.tally.answered == {"hit-redis": 2}

    def test_latency_is_kept_to_three_digits_and_its_window_is_that_of_the_intended_time(self):
        recording = recorded(sample(at_s=7.2, latency_s=1.2345), sample(at_s=7.9), sample(at_s=5.0))

        assert recording.latency["hit-redis"].max_ms == pytest.approx(1234.5, rel=0.001)
        assert [(window.start_s, len(window.series)) for window in recording.windows] == [(5, 1), (6, 0), (7, 1)]

    def test_a_histogram_is_made_once_a_series_and_window(self, monkeypatch):
        """Made for each call, they took a fifth of the load generator's time, on the machine that it measures."""
        made: list[None] = []
        monkeypatch.setattr(recording, "empty_histogram", lambda: made.append(None) or empty_histogram())
        recorded(*(sample() for _ in range(50)))

        assert len(made) == 3  # the series in all, in its window, and the send lag

    def test_windows_stay_few_in_long_runs(self):
        recording = recorded(*(sample(at_s=float(second)) for second in range(3600)), warmup_s=0, duration_s=3600)

        assert len(recording.windows) == 120

    def test_the_hit_rate_counts_texts_that_were_looked_up(self):
        """Corrections are hits; what bypassed the cache, failed, or came from who knows where is neither."""
        batch = sample(series="batch", caches=("hit-redis", "correction", "miss", "bypass"), texts=4)
        recording = recorded(batch, sample(series="shed", caches=()), sample(series="unknown", caches=("unknown",)))

        assert recording.hit_rate == pytest.approx(2 / 3)
        assert recording.failed == 1

    def test_throughput_is_what_came_back_within_the_measured_time(self):
        """Of whatever was sent when: what is answered after the end was not kept up with."""
        late, early = sample(at_s=34.0, latency_s=2.0), sample(at_s=4.0, latency_s=2.0)
        recording = recorded(late, early, sample(series="batch", caches=("miss",) * 3, texts=3), sample(series="shed"))

        assert recording.answered == 2
        assert recording.answered_texts == 4

    def test_a_call_sent_after_the_end_was_not_sent_as_asked(self):
        recording = recorded(sample(at_s=34.0, lag_s=2.0), sample(at_s=34.0, lag_s=0.5))

        assert recording.sent == 1

    def test_whoever_leaves_early_counts_for_the_server_and_for_no_figure(self):
        """Only fast answers reach them, and those are hits."""
        recording = recorded(sample(series="cancelled"), sample(series="miss", caches=("miss",)))

        assert recording.hit_rate == 0
        assert recording.tally.answered == {"hit-redis": 1, "miss": 1}
        assert recording.asked_texts["measured"] == 2

    def test_no_hit_rate_without_look_ups(self):
        assert recorded(sample(series="unknown", caches=("unknown",))).hit_rate is None


class TestKey:
    @pytest.mark.parametrize(("value", "sent"), [("ig_1\n", "Bearer ig_1"), ("", None), (None, None)])
    async def test_the_key_of_the_environment_goes_with_every_call_and_into_no_report(
        self, monkeypatch: pytest.MonkeyPatch, value: str | None, sent: str | None
    ):
        monkeypatch.delenv("INTENTS_API_KEY", raising=False)
        if value is not None:
            monkeypatch.setenv("INTENTS_API_KEY", value)
        load = Load(traffic=Traffic())
        target = HttpTarget(load.target, load.timeout_s, load.api_path, "")
        await target.open()
        try:
            assert target._session.headers.get("Authorization") == sent
            assert "ig_1" not in load.model_dump_json()
        finally:
            await target.close()


@pytest.mark.parametrize(("no_store", "sent"), [(True, "no-store"), (False, None)])
async def test_a_load_without_a_cache_says_so_with_every_call(no_store: bool, sent: str | None):
    target = target_of(Load(traffic=Traffic(), no_store=no_store))
    await target.open()
    try:
        assert target._session.headers.get("Cache-Control") == sent
    finally:
        await target.close()


def test_a_handle_cannot_be_asked_without_a_cache():
    with pytest.raises(ValidationError, match="a handle has no Cache-Control"):
        Load(target="handle:intents", traffic=Traffic(), no_store=True)


def test_no_cache_is_warm_for_a_load_without_one():
    with pytest.raises(ValidationError, match="nothing is kept"):
        Load(traffic=Traffic(), no_store=True, cache_state="warm")


class TestReconciliation:
    def test_equal_counts_agree_and_one_off_disagrees(self):
        tally = Tally()
        for each in (sample(), sample(series="miss", caches=("miss",)), sample(series="shed", caches=(), texts=3)):
            tally.add(each)
        after = Counter({(REQUESTS, "cache_hit"): 11, (REQUESTS, "success"): 1, (REQUESTS, "overloaded"): 3})
        before = Counter({(REQUESTS, "cache_hit"): 10})

        assert reconcile(before, after, tally).agrees
        assert not reconcile(before, after + Counter({(REQUESTS, "success"): 1}), tally).agrees
        assert not reconcile(before + Counter({(REQUESTS, "cache_hit"): 1}), after, tally).agrees

    def test_a_batch_that_timed_out_may_be_counted_or_not(self):
        tally = Tally()
        tally.add(sample(series="timeout", caches=(), texts=5, counted=False))

        found = [reconcile(Counter(), Counter({(REQUESTS, "success"): count}), tally) for count in (0, 5, 6)]

        assert [each.agrees for each in found] == [True, True, False]

    def test_feedback_is_held_apart_from_texts(self):
        tally = Tally()
        tally.add(sample(series="feedback", caches=(), feedback=True))

        assert reconcile(Counter(), Counter({(FEEDBACK, "recorded"): 1}), tally).agrees
        assert not reconcile(Counter(), Counter({(REQUESTS, "success"): 1}), tally).agrees

    @pytest.mark.parametrize("series", ["rejected", "shed"])
    def test_feedback_that_is_refused_or_comes_too_fast_is_one_count_of_the_server(self, series: str):
        tally = Tally()
        tally.add(sample(series=series, caches=(), feedback=True))

        assert reconcile(Counter(), Counter({(FEEDBACK, "rejected"): 1}), tally).agrees

    @pytest.mark.parametrize(("served", "note"), [(5, "somebody else"), (0, "arrive later"), (-3, "started again")])
    def test_a_disagreement_says_what_it_may_be(self, served: int, note: str):
        tally = Tally()
        tally.add(sample())

        found = reconcile(
            Counter({(REQUESTS, "cache_hit"): 10}), Counter({(REQUESTS, "cache_hit"): 10 + served}), tally
        )

        assert note in found.note

    def test_counters_are_summed_over_their_other_labels(self):
        """Prometheus's text format, other families beside them."""
        text = (
            "# TYPE intent_feedback_submissions_total counter\n"
            'intent_feedback_submissions_total{feedback_type="correction",status="recorded"} 2.0\n'
            'intent_feedback_submissions_total{feedback_type="confirmation",status="recorded"} 3.0\n'
            "# TYPE intent_model_queue_tokens gauge\nintent_model_queue_tokens 7\n"
        )

        assert parse(text) == {(FEEDBACK, "recorded"): 5}

    def test_counts_have_settled_when_they_rest(self):
        now_s = 0.0
        settling = Settling(2.5, lambda: now_s)
        seen = []
        for now_s, count in ((0.0, 1), (2.0, 2), (4.0, 2), (4.5, 2)):  # noqa: B007 — the clock reads it
            seen.append(settling.settled(Counter({(REQUESTS, "success"): count})))

        assert seen == [False, False, False, True]


class TestSteadiness:
    def test_even_windows_are_steady(self):
        assert steadiness(report([{"miss": [20.0] * 50}] * 9).windows).steady

    def test_a_median_that_climbs_is_named(self):
        found = steadiness(report([{"miss": [20.0 * (1 + second)] * 50} for second in range(9)]).windows)

        assert not found.steady
        assert "median of miss went from 40.0 ms to 160" in found.findings[0]

    def test_a_tenth_of_a_millisecond_is_noise_however_large_its_share(self):
        assert steadiness(report([{"hit-redis": [0.1 + second / 20] * 50} for second in range(9)]).windows).steady

    def test_failures_that_begin_are_named(self):
        windows = [{"miss": [20.0] * 50}] * 6 + [{"miss": [20.0] * 50, "timeout": [900.0] * 5}] * 3

        assert "failures went from 0.0% to 9.1%" in steadiness(report(windows).windows).findings

    def test_few_windows_tell_nothing(self):
        assert not steadiness(report([{"miss": [20.0] * 50}] * 5).windows).steady


class TestSlo:
    """Searched against a made-up service that keeps 20 ms up to a rate, and not beyond."""

    @staticmethod
    def search(capacity: float, **changes: object) -> slo.Found:
        objective = slo.Objective(**{"p99_ms": 50, "low": 10, "high": 1000, "repeats": 3} | changes)

        def measure(load: Load) -> Report:
            rate = load.traffic.rate
            return report([{"miss": [20.0 if rate <= capacity else 500.0] * 20}] * 2, answered_per_s=rate)

        return slo.search(Load(traffic=Traffic(texts="unique")), objective, lambda _line: None, measure)

    @pytest.mark.parametrize("capacity", [10, 37, 140, 999])
    def test_it_finds_the_highest_rate_to_its_precision(self, capacity: float):
        found = self.search(capacity)

        assert capacity / 1.05 <= found.rate_per_s <= capacity
        assert found.goodput_per_s == found.rate_per_s
        assert found.highest_per_s == [found.rate_per_s] * 3

    def test_bounds_that_hold_or_break_throughout(self):
        assert self.search(5).rate_per_s is None
        assert self.search(2000).rate_per_s == 1000

    def test_every_trial_sends_at_other_times(self):
        seeds = []

        def measure(load: Load) -> Report:
            seeds.append(load.traffic.seed)
            return report([{"miss": [20.0]}])

        slo.search(Load(traffic=Traffic()), slo.Objective(p99_ms=50), lambda _line: None, measure)

        assert len(seeds) == len(set(seeds)) == 6

    def test_a_run_that_was_late_itself_keeps_nothing(self):
        late = {"valid": False, "invalid_because": ["p99 send lag 3 ms"]}

        found = slo.search(
            Load(traffic=Traffic()),
            slo.Objective(p99_ms=50),
            lambda _line: None,
            lambda _load: report([{"miss": [20.0]}], **late),
        )

        assert found.rate_per_s is None
        assert "send lag" in found.trials[0].why_not
        assert len(found.trials) == 6  # each was tried once more

    def test_popular_texts_are_the_same_within_a_search_and_unique_ones_never(self):
        seen = {"zipf": set(), "unique": set()}

        def measure(load: Load) -> Report:
            seen[load.traffic.texts].add(load.freshened().traffic.text_seed)
            return report([{"miss": [20.0]}])

        for texts in seen:
            slo.search(Load(traffic=Traffic(texts=texts)), slo.Objective(p99_ms=50), lambda _line: None, measure)

        assert len(seen["zipf"]) == 3
        assert len(seen["unique"]) == 6


def suite() -> cache.Suite:
    """Misses of 90 ms, hits of 4 ms; three of four texts of the mix from the cache."""
    counts = [
        Counted(name="texts answered", server=400, low=400, high=400),
        Counted(name="by the model", server=100, low=100, high=100),
    ]
    return cache.Suite(
        plan=cache.Plan(),
        reports={
            "cold": report([{"miss": [90.0] * 10}] * 3),
            "warm": report([{"hit-redis": [4.0] * 100}] * 3),
            "concurrent": report([{"hit-redis": [8.0] * 100}] * 3, answered_per_s=480.0),
            "mixed": report(
                [{"miss": [120.0] * 25, "hit-redis": [6.0] * 75}],
                predicted_hit_rate=0.74,
                reconciliation=Reconciliation(agrees=True, counts=counts, note=""),
            ),
        },
    )


class TestCacheSuite:
    def test_figures_are_what_their_names_say(self):
        found = suite()

        assert found.hit_p99_ms() == pytest.approx(4, rel=0.01)
        assert found.miss_p95_ms() == pytest.approx(90, rel=0.01)
        assert found.speed_up() == pytest.approx(22.5, rel=0.01)
        assert found.improvement() == pytest.approx(0.955, abs=0.01)
        assert found.mixed_speed_up() == pytest.approx(20, rel=0.01)
        assert found.hit_rate() == found.compute_saved() == 0.75
        assert found.hits_per_s() == 480
        assert found.mixed_per_s() == 100

    def test_each_figure_says_how_far_it_reaches(self):
        reached = {row[0]: row[-1] for row in cache.rows(suite())}

        assert reached["hits, p99"] == "aim"
        assert reached["misses, p95"] == "floor"
        assert reached["hits, concurrent (closed loop)"] == "SHORT"
        assert reached["mix, hit rate"] == "floor"
        assert not cache.kept(suite())

    def test_a_mix_with_failures_sustains_nothing(self):
        found = suite()
        failing = found.reports["mixed"].model_copy(update={"error_rate": 0.01})

        assert cache.Suite(plan=found.plan, reports={"mixed": failing}).mixed_per_s() == 0

    def test_what_was_not_run_is_not_measured(self):
        found = cache.Suite(plan=cache.Plan(), reports={})

        assert {row[-1] for row in cache.rows(found)} == {"not measured"}

    def test_strictness_judges_the_phases_that_were_run(self):
        found = suite()

        assert cache.kept(cache.Suite(plan=found.plan, reports={"warm": found.reports["warm"]}))
        assert not cache.kept(found)  # its concurrent hits fall short

    def test_a_floor_below_the_promise_keeps_no_promise(self):
        saved = next(promise for promise in cache.PROMISES if promise.name == "mix, compute saved")

        assert saved.floor < 0.65 < saved.promise
        assert saved.reached(0.65) == "SHORT"
        assert [saved.reached(share) for share in (0.71, 0.76)] == ["floor", "aim"]

    def test_a_figure_of_a_run_not_to_be_believed_is_marked(self):
        found = suite()
        late = found.reports["warm"].model_copy(update={"valid": False})

        marked = {row[0]: row[-1] for row in cache.rows(cache.Suite(plan=found.plan, reports={"warm": late}))}

        assert marked["hits, p99"] == "aim (invalid)"

    def test_it_prints_every_phase_and_figure(self):
        output = io.StringIO()
        cache.render(suite(), Console(file=output))

        assert all(f"{phase}: " in output.getvalue() for phase in cache.PHASES)
        assert all(promise.name in output.getvalue() for promise in cache.PROMISES)

    @pytest.mark.parametrize("phase", cache.PHASES)
    def test_cold_is_purged_and_warm_is_warmed(self, phase: cache.Phase):
        assert cache.Plan().load(phase).start == ("warm" if phase in ("warm", "concurrent") else "cold")


class TestBench:
    def test_a_table_goes_between_its_marks_and_nowhere_else(self, tmp_path: Path):
        document = tmp_path / "README.md"
        document.write_text("before\n<!-- a -->\nold\n<!-- /a -->\nafter\n")

        write_into(document, "a", "| new |")

        assert document.read_text() == "before\n<!-- a -->\n| new |\n<!-- /a -->\nafter\n"
        with pytest.raises(ValueError, match="no <!-- b -->"):
            write_into(document, "b", "| new |")

    def test_every_row_reads_its_figure(self):
        made = report([{"hit-redis": [4.0], "miss": [100.0], "feedback": [9.0]}]).model_dump_json()
        documents = {row.command: made for row in bench.ROWS} | {bench.SUITE: suite().model_dump_json()}

        table = bench.numbers(documents, 17.3)

        assert "| hits, 200/s | p50 4 ms, p99 4 ms |" in table
        assert "| hits, 32 callers (closed loop) | 480/s |" in table
        assert "| `intents up` until it answers | 17.3 s |" in table
        assert len(table.splitlines()) == 2 + 2 + len(bench.ROWS) + 1

    def test_an_invalid_run_s_figure_says_so(self):
        made = report([{"miss": [100.0]}], valid=False, invalid_because=["p99 send lag 3 ms"]).model_dump_json()

        assert bench.ROWS[0].figure(made).endswith("(**invalid**: p99 send lag 3 ms)")


class TestDisplay:
    def test_a_plain_line_has_rate_latency_hit_rate_and_failures(self):
        recording = recorded(sample(), sample(series="miss", caches=("miss",)), sample(series="timeout", caches=()))
        recent = Recent()
        recent.add([sample(), sample(series="miss", latency_s=0.04)], now_s=6)

        line = line_of(recent.view(recording, elapsed_s=6, in_flight=3, predicted=0.61))

        assert "6/35 s" in line
        assert "3 in flight" in line
        assert "hit-redis p50 4.0 p95 4.0 p99 4.0 ms; miss p50 40.0" in line
        assert "hit rate 50.0%, 61.0% predicted" in line
        assert "failed: timeout 1" in line

    def test_what_finished_long_ago_is_not_recent(self):
        recent = Recent()
        recent.add([sample(at_s=1), sample(at_s=9)], now_s=10)

        assert recent.view(recorded(), 10, 0, None).rate_per_s == pytest.approx(0.2)

    def test_plain_lines_come_every_few_seconds_and_messages_at_once(self):
        now_s = 0.0
        lines = []
        display = PlainDisplay(lines.append, lambda: now_s)
        view = Recent().view(recorded(), 1, 0, None)
        display.tell("purged")
        for now_s in (10.0, 11.0, 14.9, 15.0):  # noqa: B007 — the clock reads it
            display.update(view)

        assert lines[0] == "purged"
        assert len(lines) == 3
