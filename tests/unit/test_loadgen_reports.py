"""What is made of reports: read on a terminal, drawn, compared, held against criteria."""

import io
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from loadgen import criteria
from loadgen.bootstrap import MIN_BLOCKS, Resampled, _blocks, tails
from loadgen.compare import Comparison, Difference, compare
from loadgen.compare import render as render_comparison
from loadgen.distribution import Distribution, merged
from loadgen.load import LoadError
from loadgen.report import SERIES, Counted, Reconciliation, Report, Steadiness, Window
from loadgen.terminal import milliseconds, print_table, render
from tests.unit.reports import encode, report

WINDOWS = [
    {"hit-local": [0.4] * 10, "hit-redis": [1.0] * 60, "miss": [20.0] * 28 + [40.0], "shed": [0.8]},
    {"hit-local": [0.5] * 10, "hit-redis": [2.0] * 60, "miss": [30.0] * 30},
]


def printed(report: Report, *, width: int = 100, terminal: bool = False) -> str:
    file = io.StringIO()
    render(report, Console(file=file, width=width, force_terminal=terminal, no_color=True, color_system=None))
    return file.getvalue()


def latency_table(shown: str) -> dict[str, list[str]]:
    """Cells by the name of their row."""
    rows = shown.partition("latency, ms")[2].splitlines()[1:]
    return {row.split()[0]: row.split()[1:] for row in itertools.takewhile(str.strip, rows)}


def lines_of(made: Comparison, width: int = 100) -> str:
    file = io.StringIO()
    render_comparison(made, Console(file=file, width=width))
    return file.getvalue()


def drawn_run(random: np.random.Generator, *, shift: float = 1.0, windows: int = 20, unrest: float = 0.3) -> Report:
    """Windows of about 50 calls; `unrest` moves all calls of a window together."""
    return report(
        [
            {"miss": shift * np.exp(unrest * random.normal()) * random.lognormal(3, 0.5, random.poisson(50))}
            for _ in range(windows)
        ]
    )


def named(differences: list[Difference], name: str, statistic: str = "") -> Difference:
    return next(each for each in differences if (each.name, each.statistic) == (name, statistic))


class TestDistribution:
    @settings(max_examples=25, deadline=None)
    @given(
        st.lists(st.integers(1, 500_000_000), min_size=1, max_size=40),
        st.floats(0.1, 99.999),
    )
    def test_it_reads_what_the_histogram_itself_gives(self, microseconds: list[int], percent: float):
        """At any magnitude; the histogram's own reading is the reference."""
        encoded = encode([value / 1000 for value in microseconds])
        histogram, distribution = merged([encoded]), Distribution.of([encoded])

        assert distribution
        assert distribution.count == len(microseconds)
        assert distribution.percentile_ms(percent) * 1000 == pytest.approx(histogram.get_value_at_percentile(percent))
        assert distribution.mean_ms * 1000 == pytest.approx(histogram.get_mean_value())
        assert distribution.max_ms * 1000 == pytest.approx(histogram.get_max_value())

    def test_histograms_add_up(self):
        both = Distribution.of([encode([1.0, 2.0]), encode([3.0])])

        assert both
        assert both.count == 3
        assert both.percentile_ms(50) == pytest.approx(2.0, rel=0.001)

    def test_of_no_call_there_is_none(self):
        assert Distribution.of([]) is None


class TestTerminal:
    def test_the_first_line_is_the_verdict(self):
        assert printed(report(WINDOWS)).splitlines()[0] == "VALID, open loop"

    def test_an_invalid_run_says_so_first_with_every_reason(self):
        reasons = ["send lag p99 3.2 ms is over 1 ms [workers]", "sent 92 % of the calls asked for"]
        first = printed(report(WINDOWS, valid=False, invalid_because=reasons)).splitlines()[:3]

        assert first[0].startswith("INVALID")
        assert [line.strip() for line in first[1:]] == [f"because {reason}" for reason in reasons]

    def test_a_closed_loop_says_that_it_hides_waits(self):
        shown = printed(report(WINDOWS, loop="closed", asked_per_s=None, send_lag=None))

        assert "coordinated omission" in shown
        assert "HdrHistogram and wrk2" in shown
        assert "asked" not in shown
        assert "coordinated omission" not in printed(report(WINDOWS))

    @pytest.mark.parametrize("ended", ["interrupted", "target died"])
    def test_a_run_that_ended_early_says_so_before_its_figures(self, ended: str):
        lines = printed(report(WINDOWS, ended=ended)).splitlines()

        assert lines[1] == f"ENDED EARLY, {ended}: measured 2.0 s, the figures are of these"
        assert "ENDED" not in printed(report(WINDOWS))

    def test_it_says_where_and_what_was_run(self):
        shown = printed(report(WINDOWS))

        for part in (
            "http://127.0.0.1:8000",
            "AMD EPYC 9R14, 2 cores, 7.8 GiB",
            "67f9a9a7f1",
            "ray 2.60.0",
            "--rate 200",
        ):
            assert part in shown

    def test_rates_lag_and_counts_are_there(self):
        """199 calls of WINDOWS, one of them shed, over two seconds."""
        shown = printed(report(WINDOWS, asked_per_s=101.0))

        assert "asked 101.0/s, sent 100.0/s, answered well (goodput) 99.5/s" in shown
        assert "p99 0.200 ms, max 0.700 ms" in shown
        assert "200: hit-local 20, hit-redis 120, miss 59, shed 1" in shown
        assert "errors    0.500 %" in shown

    def test_every_series_has_its_row_and_groups_of_several_have_theirs(self):
        rows = latency_table(printed(report(WINDOWS)))

        assert rows["hit-redis"] == ["120", "1.50", "1.00", "2.00", "2.00", "2.00", "2.00", "2.00"]
        assert rows["hit"][0] == "140"
        assert rows["miss"][-1] == "40.0"
        assert rows["all"][0] == "199"
        assert rows["failed"][:2] == ["1", "0.800"]
        assert "shed" not in rows

    def test_columns_are_where_their_heads_say(self):
        """Of the numbers from 1 to 1,000 every percentile is its own."""
        rows = latency_table(printed(report([{"miss": range(1, 1001)}])))

        assert rows["miss"] == ["1,000", "501", "500", "900", "950", "990", "999", "1,000"]

    def test_a_group_of_one_series_does_not_repeat_it(self):
        assert list(latency_table(printed(report([{"miss": [20.0] * 5}])))) == ["miss"]

    def test_the_hit_rate_stands_beside_the_predicted_one(self):
        shown = printed(report(WINDOWS, hit_rate=0.712, predicted_hit_rate=0.704))

        assert "71.2 % measured, 70.4 % predicted: 0.8 points apart" in shown
        assert "none predicted" in printed(report(WINDOWS))

    def test_drift_and_failures_are_told(self):
        drifting = Steadiness(steady=False, findings=["the median of miss went from 21 ms to 40 ms"])
        shown = printed(report(WINDOWS, steadiness=drifting, failures={"connection refused": 12}))

        assert "NO: the median of miss went from 21 ms to 40 ms" in shown
        assert "connection refused (12)" in shown

    def test_counts_of_server_and_client_stand_beside_each_other(self):
        counts = [
            Counted(name="texts answered", server=101, low=100, high=102),
            Counted(name="from cache", server=60, low=63, high=63),
            Counted(name="by the model", server=45, low=40, high=41),
        ]
        shown = printed(
            report(WINDOWS, reconciliation=Reconciliation(agrees=False, counts=counts, note="it restarted"))
        )

        assert " ".join(shown.splitlines()[-4].split()) == "texts answered 101 100 to 102 yes"
        assert " ".join(shown.splitlines()[-3].split()) == "from cache 60 63 NO, 3 off"
        assert " ".join(shown.splitlines()[-2].split()) == "by the model 45 40 to 41 NO, 4 off"
        assert shown.splitlines()[-1] == "server and client DISAGREE: it restarted"

    def test_a_run_that_measured_nothing_can_be_shown(self):
        shown = printed(report([], ended="interrupted", valid=False, invalid_because=["no call was measured"]))

        assert "calls     none" in shown
        assert "latency, ms" not in shown

    @pytest.mark.parametrize("width", [20, 80, 100])
    def test_in_a_pipe_nothing_is_cut_wrapped_or_coloured(self, width: int):
        """A pipe has no width; rich takes it for 80 columns."""
        reason = "the send lag was over its limit " * 10
        made = report(WINDOWS, valid=False, invalid_because=[reason])

        assert printed(made, width=width) == printed(made, width=1000)
        assert "\x1b" not in printed(made, width=width)
        assert "…" not in printed(made, width=width)

    def test_on_a_terminal_lines_wrap_at_words(self):
        made = report(WINDOWS, valid=False, loop="closed", invalid_because=["the send lag was over its limit " * 10])
        plain = printed(made, terminal=True)

        assert max(map(len, plain.splitlines())) <= 100
        assert "lim\n" not in plain

    @given(st.lists(st.tuples(st.text("ab %", max_size=9), st.text("0123.", max_size=30)), max_size=5))
    def test_a_table_keeps_its_cells_whole_and_in_line(self, rows: list[tuple[str, str]]):
        file = io.StringIO()
        print_table(Console(file=file, width=20), ("name", "figure"), rows)
        lines = file.getvalue().splitlines()

        assert len({len(line) for line in lines}) == 1
        assert [
            (line[: len(name)], line[len(line) - len(value) :])
            for line, (name, value) in zip(lines[1:], rows, strict=True)
        ] == rows

    @given(st.floats(0.001, 600_000))
    def test_milliseconds_keep_three_digits(self, value: float):
        """An error of at most half a digit in the third place; whole milliseconds above that."""
        shown = float(milliseconds(value).replace(",", ""))

        assert shown == pytest.approx(value, rel=0.0051, abs=0.00051)


class TestPlots:
    @pytest.fixture(autouse=True)
    def _needs_matplotlib(self):
        pytest.importorskip("matplotlib")

    def test_a_folder_gets_a_png_named_by_the_date(self, tmp_path: Path):
        from loadgen.plots import write_plots

        written = write_plots(report(WINDOWS), tmp_path / "new" / "plots")

        assert written == [tmp_path / "new" / "plots" / "load-2026-07-30T120000.png"]
        assert written[0].read_bytes().startswith(b"\x89PNG")

    def test_a_png_is_written_where_it_was_asked_for(self, tmp_path: Path):
        from loadgen.plots import write_plots

        assert write_plots(report(WINDOWS), tmp_path / "a.png") == [tmp_path / "a.png"]
        assert (tmp_path / "a.png").exists()

    def test_the_title_tells_what_was_run_and_whether_to_believe_it(self):
        from loadgen.plots import _figure

        bad = report(WINDOWS, loop="closed", valid=False, invalid_because=["it was late"], ended="target died")
        title = _figure(bad).get_suptitle()

        for part in (
            "http://127.0.0.1:8000",
            "closed loop",
            "2026-07-30",
            "INVALID: it was late",
            "target died",
            "omission",
        ):
            assert part in title
        assert "valid" in _figure(report(WINDOWS)).get_suptitle()

    def test_every_series_is_drawn_where_it_belongs(self):
        """Answered ones by distribution, failed ones over time; labels carry what the axes mean."""
        from loadgen.plots import _figure

        over_time, rate, cumulative, tail, shares = _figure(report(WINDOWS)).axes
        labels = [
            [line.get_label() for line in axes.get_lines()] for axes in (over_time, rate, cumulative, tail, shares)
        ]

        assert labels[0] == ["answered, p50", "answered, p95", "answered, p99", "shed, p50"]
        assert labels[1] == ["sent", "answered"]
        assert labels[2] == ["hit-local (20)", "hit-redis (120)", "miss (59)"]
        assert labels[3] == ["hit-local", "hit-redis", "miss"]
        assert labels[4] == ["shed, %"]
        assert over_time.get_ylabel() == cumulative.get_xlabel() == tail.get_ylabel() == "latency, ms"

    def test_lines_go_through_the_figures(self):
        from loadgen.plots import _figure

        over_time, rate, cumulative, tail, shares = _figure(report(WINDOWS)).axes
        p50, _, p99, shed = over_time.get_lines()

        assert p50.get_xdata() == pytest.approx([0, 1, 1, 2])
        assert p50.get_ydata() == pytest.approx([1, 1, 2, 2], rel=0.001)
        assert p99.get_ydata() == pytest.approx([20, 20, 30, 30], rel=0.001)
        assert shed.get_xdata()[0] == 0.5
        assert rate.get_lines()[0].get_ydata() == pytest.approx([100, 100, 100, 100])
        assert rate.get_lines()[1].get_ydata() == pytest.approx([99, 99, 100, 100])
        assert shares.get_lines()[0].get_ydata()[0] == pytest.approx(1.0)
        assert cumulative.get_lines()[1].get_xdata() == pytest.approx([1, 1, 2], rel=0.001)
        assert cumulative.get_lines()[1].get_ydata() == pytest.approx([0, 50, 100])
        assert tail.get_lines()[1].get_xdata() == pytest.approx([1, 2, 120])

    def test_failed_calls_are_apart_from_the_answered(self):
        from loadgen.plots import _figure

        lines = _figure(report([{"miss": [20.0] * 9, "timeout": [30_000.0] * 9}])).axes[0].get_lines()

        assert [line.get_ydata()[0] for line in lines] == pytest.approx([20, 20, 20, 30_000], rel=0.001)

    def test_a_missing_window_breaks_the_line(self):
        from loadgen.plots import _figure

        made = report([{"miss": [20.0]}] * 3)
        made = made.model_copy(update={"windows": [made.windows[0], made.windows[2]]})

        assert np.isnan(_figure(made).axes[0].get_lines()[0].get_ydata()).sum() == 1

    def test_a_run_that_measured_nothing_can_be_drawn(self, tmp_path: Path):
        from loadgen.plots import write_plots

        assert write_plots(report([]), tmp_path / "empty.png")
        assert write_plots(report([{"timeout": [30_000.0]}]), tmp_path / "failed.png")

    def test_a_place_that_cannot_be_written_is_a_clear_line(self, tmp_path: Path):
        from loadgen.plots import write_plots

        (tmp_path / "file").touch()

        with pytest.raises(LoadError, match=r"cannot write .*file"):
            write_plots(report(WINDOWS), tmp_path / "file" / "plots")


def test_without_matplotlib_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from loadgen.plots import write_plots

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    with pytest.raises(LoadError, match=r"pip install 'intentgraph\[plots\]'"):
        write_plots(report(WINDOWS), tmp_path)


def test_matplotlib_is_loaded_only_to_draw():
    """In a fresh interpreter; a load generator without it works."""
    code = "import sys, loadgen.plots, loadgen.compare, loadgen.criteria; print('matplotlib' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "False"


class TestBootstrap:
    @given(st.integers(0, 400))
    def test_blocks_are_neighbours_and_hold_every_window_once(self, count: int):
        windows = [Window(start_s=number, length_s=1, series={}) for number in range(count)]
        blocks = _blocks(windows)
        sizes = [len(block) for block in blocks]

        assert [window for block in blocks for window in block] == windows
        assert len(blocks) >= min(count, 10)
        assert not sizes or max(sizes) - min(sizes) <= 1

    @pytest.mark.parametrize(
        ("windows", "blocks"), [(5, 5), (19, 19), (20, 10), (30, 10), (60, 20), (64, 16), (120, 30)]
    )
    def test_the_length_of_blocks_grows_with_the_cube_root_of_their_number(self, windows: int, blocks: int):
        made = [Window(start_s=number, length_s=1, series={}) for number in range(windows)]

        assert len(_blocks(made)) == blocks

    def test_percentiles_of_resamples_are_those_of_the_summed_histograms(self):
        """Bisection against summing whole histograms, which is the definition."""
        random = np.random.default_rng(3)
        made = report(
            [{"miss": random.lognormal(3, 1, 30), "hit-redis": random.lognormal(0, 1, 20)} for _ in range(12)]
        )
        resampled = Resampled(made, np.random.default_rng(1), 25)

        for percent in (50, 90, 95):
            expected = [
                Distribution.of(
                    window.series[series]
                    for window, times in zip(made.windows, draw, strict=True)
                    for series in ("miss", "hit-redis")
                    for _ in range(times)
                ).percentile_ms(percent)
                for draw in resampled._draws
            ]

            assert resampled.percentile("all", percent).resampled == pytest.approx(expected)

    def test_means_and_shares_of_resamples_are_those_of_the_drawn_windows(self):
        made = report([{"miss": [float(number + 1)] * 9, "timeout": [1.0] * number} for number in range(6)])
        resampled = Resampled(made, np.random.default_rng(1), 20)
        draws = resampled._draws

        means = draws @ np.arange(1, 7) / 6
        failed = draws @ np.arange(6)
        assert resampled.mean("miss").resampled == pytest.approx(means, rel=0.001)
        share = resampled.share(made.error_rate, ("timeout",), ("miss", "timeout"))
        assert share.resampled == pytest.approx(failed / (failed + 54))
        assert resampled.rate(made.answered_per_s, ("miss",)).resampled == pytest.approx([9.0] * 20)

    def test_every_resample_draws_as_many_blocks_as_there_are(self):
        resampled = Resampled(report([{"miss": [1.0]}] * 7), np.random.default_rng(1), 30)

        assert (resampled._draws.sum(axis=1) == 7).all()
        assert len(np.unique(resampled._draws, axis=0)) > 20

    def test_tails_are_wider_for_few_blocks(self):
        """By hand: Student's t of 4 degrees of freedom is 2.776; times √(5/4) that is 3.104 standard deviations."""
        low, high = tails(0.95, 5)

        assert low == pytest.approx(0.000955, rel=0.05)
        assert high == pytest.approx(1 - low)
        assert tails(0.95, 100_000)[0] == pytest.approx(0.025, rel=0.001)

    def test_windows_that_do_not_add_up_to_the_report_give_no_interval(self):
        """The figure shown and the one resampled must be the same."""
        made = report([{"miss": [20.0] * 40}] * 10)
        halved = made.model_copy(update={"windows": made.windows[:5]})
        resampled = Resampled(halved, np.random.default_rng(1), 20)

        assert resampled.rate(made.answered_per_s / 2, ("miss",)).doubt == "the windows do not add up to it"
        assert not resampled.mean("miss").doubt

    def test_the_last_window_counts_for_the_time_it_was_measured(self):
        made = report([{"miss": [20.0] * 10}] * 5 + [{"miss": [20.0] * 5}], measured_s=5.5, answered_per_s=10.0)

        assert Resampled(made, np.random.default_rng(1), 20).rate(10.0, ("miss",)).resampled == pytest.approx(10.0)


class TestCompare:
    def test_the_interval_of_equal_services_holds_one(self):
        """95 % intervals over 60 seeded pairs of runs whose windows go up and down by 30 %."""
        random = np.random.default_rng(1)
        held = []
        for _ in range(60):
            made = compare(drawn_run(random), drawn_run(random), resamples=500)
            held.append([each.interval[0] <= 1 <= each.interval[1] for each in made.latencies if each.interval])

        shares = np.mean(held, axis=0)
        assert len(shares) == 5
        assert (shares >= 0.85).all()

    def test_a_service_slower_by_a_fifth_is_called_slower(self):
        random = np.random.default_rng(2)
        verdicts = []
        for _ in range(15):
            base, slow = drawn_run(random, unrest=0.05), drawn_run(random, shift=1.2, unrest=0.05)
            verdicts.append(named(compare(base, slow, resamples=500).latencies, "miss", "p50").verdict)

        assert verdicts.count("slower") >= 14
        assert named(compare(slow, base).latencies, "miss", "p50").verdict == "faster"

    def test_a_run_differs_in_nothing_from_itself(self):
        run = drawn_run(np.random.default_rng(4))
        made = compare(run, run)

        assert {each.verdict for each in [*made.latencies, *made.rates]} == {"no difference shown"}
        assert all(each.change == 1 for each in made.latencies)
        assert made.warnings == []

    def test_the_same_seed_gives_the_same_intervals(self):
        a, b = drawn_run(np.random.default_rng(5)), drawn_run(np.random.default_rng(6))

        assert compare(a, b, seed=7).latencies == compare(a, b, seed=7).latencies
        assert compare(a, b, seed=7).latencies != compare(a, b, seed=8).latencies

    def test_a_lower_confidence_gives_a_narrower_interval(self):
        a, b = drawn_run(np.random.default_rng(5)), drawn_run(np.random.default_rng(6))
        sure, unsure = (compare(a, b, confidence=level).latencies[0].interval for level in (0.99, 0.8))

        assert sure
        assert unsure
        assert sure[0] < unsure[0] < unsure[1] < sure[1]

    def test_figures_are_those_of_the_reports(self):
        a, b = (report([{"miss": [each] * 20}] * 6) for each in (20.0, 30.0))
        p50 = named(compare(a, b).latencies, "miss", "p50")

        assert (p50.a, p50.b) == (a.latency["miss"].p50_ms, b.latency["miss"].p50_ms)
        assert p50.change == pytest.approx(1.5, rel=0.001)
        assert p50.interval == pytest.approx((1.5, 1.5), rel=0.001)

    def test_few_windows_give_no_interval_and_a_warning(self):
        short, long = report([{"miss": [20.0] * 50}] * (MIN_BLOCKS - 1)), report([{"miss": [30.0] * 50}] * 9)
        made = compare(short, long)

        assert {each.verdict for each in [*made.latencies, *made.rates]} == {"unknown"}
        assert made.warnings == ["A has 4 windows; 5 are needed for intervals: run it longer"]

    def test_a_percentile_with_few_calls_beyond_it_has_no_interval(self):
        """p99 of 400 calls is its fourth highest; p90 has forty beyond it."""
        made = compare(*(report([{"miss": [20.0] * 40}] * 10) for _ in range(2)))

        assert named(made.latencies, "miss", "p99").why == "too few calls beyond it"
        assert named(made.latencies, "miss", "p99").interval is None
        assert named(made.latencies, "miss", "p90").interval

    def test_a_series_of_few_windows_has_no_interval(self):
        windows = [{"miss": [20.0] * 50, **({"bypass": [9.0] * 50} if number < 4 else {})} for number in range(10)]
        made = compare(report(windows), report(windows))

        assert named(made.latencies, "bypass", "p50").why == "in 4 parts of the run, 5 needed"
        assert named(made.latencies, "miss", "p50").interval

    def test_series_of_both_runs_are_compared_and_groups_of_several(self):
        a = report([{"hit-local": [1.0] * 9, "hit-redis": [2.0] * 9, "bypass": [3.0], "shed": [1.0]}] * 6)
        b = report([{"hit-redis": [2.0] * 9, "miss": [9.0] * 9, "shed": [1.0]}] * 6)
        made = compare(a, b)

        assert {each.name for each in made.latencies} == {"hit-redis", "hit", "all"}
        assert "seen in A alone: hit-local, bypass" in made.warnings
        assert "seen in B alone: miss" in made.warnings

    def test_rates_errors_and_hits_are_compared(self):
        """Windows that vary a little; B answers half as many, fails ten times as often, hits less."""

        def run(hits: int, misses: int, failed: int) -> Report:
            spread = (0, 1, 2, 1, 0, 2, 1, 0, 2, 1)
            return report(
                [
                    {"hit-redis": [1.0] * (hits + n), "miss": [9.0] * misses, "timeout": [9.0] * (failed + n)}
                    for n in spread
                ]
            )

        rates = compare(run(80, 20, 0), run(20, 30, 10)).rates
        answered, errors, hits = rates

        assert [each.name for each in rates] == ["answered/s", "error rate", "hit rate"]
        assert (answered.change, answered.verdict) == (pytest.approx(51 / 101), "lower")
        assert (errors.change, errors.verdict) == (pytest.approx(11 / 62 - 1 / 102), "higher")
        assert (hits.change, hits.verdict) == (pytest.approx(21 / 51 - 81 / 101), "lower")

    def test_a_rate_that_a_run_does_not_have_is_left_out(self):
        a, b = report([{"unknown": [1.0] * 9}] * 6), report([{"timeout": [1.0] * 9}] * 6)

        assert [each.name for each in compare(a, b).rates] == ["error rate"]

    def test_what_makes_runs_incomparable_is_listed(self):
        a = report(WINDOWS * 5)
        b = report(
            WINDOWS * 5,
            settings={**a.settings, "traffic": {"rate": 300.0, "text_seed": 8}},
            machine=a.machine.model_copy(update={"cores": 8, "load_average_before": 2.0}),
            versions={"python": "3.11.9", "ray": "2.61.0"},
            valid=False,
            invalid_because=["it was late"],
            ended="interrupted",
            loop="closed",
            steadiness=Steadiness(steady=False, findings=["it drifted"]),
        )

        assert compare(a, b, resamples=50).warnings == [
            "B is invalid: it was late",
            "B ended early (interrupted) after 10.0 s",
            "B was not steady, its intervals are too narrow: it drifted",
            "A is an open loop, B is closed: their latencies are not of one kind",
            "settings differ: traffic.rate 200.0 → 300.0",
            "machines differ: cores 2 → 8",
            "versions differ: ray 2.60.0 → 2.61.0",
        ]

    def test_the_seed_of_the_texts_is_a_setting_where_the_cache_may_know_them(self):
        a, b = (
            report(WINDOWS * 5, settings={"cache_state": "as-is", "traffic": {"text_seed": seed}}) for seed in (1, 2)
        )

        assert compare(a, b, resamples=50).warnings == ["settings differ: traffic.text_seed 1 → 2"]

    def test_it_reads_well_in_a_hundred_columns_and_in_a_pipe(self):
        random = np.random.default_rng(4)
        made = compare(drawn_run(random), drawn_run(random, shift=2.0))
        shown = lines_of(made)

        table = shown.partition("latency, ms")[2].splitlines()[1:6]

        assert lines_of(made, width=20) == shown
        assert [line.split()[:2] for line in table] == [["miss", each] for each in ("p50", "p90", "p95", "p99", "mean")]
        assert table[0].endswith("slower")
        assert max(map(len, table)) <= 100
        assert "95% interval" in shown
        assert "2,000 resamples" in shown

    def test_runs_without_a_series_in_common_can_be_compared(self):
        made = compare(report([]), report([{"miss": [20.0]}]))

        assert made.latencies == []
        assert "error rate" in lines_of(made)

    def test_an_hour_is_compared_in_moments(self):
        """Sixty windows each, thousands of columns: no resample's histogram is summed whole."""
        random = np.random.default_rng(4)
        run = report([{"miss": random.lognormal(5, 2, 200)} for _ in range(60)])

        assert compare(run, run).latencies[0].interval


class TestCriteria:
    @pytest.mark.parametrize(
        ("text", "measured", "held"),
        [
            ("hit-redis.p50<=1.1ms", 1.0, True),
            ("hit-redis.p50<999us", 1.0, False),
            ("hit.mean<1s", (10 * 0.4 + 10 * 0.5 + 60 + 120) / 140, True),
            ("hit.max > 1.9 ms", 2.0, True),
            ("miss.p99.9>=0.04s", 40.0, True),
            ("miss.p999<39ms", 40.0, False),
            ("miss.p10<=20.5ms", 20.0, True),
            ("all.count>=199", 199, True),
            ("all.count>199", 199, False),
            ("all.count<=199", 199, True),
            ("all.count<199", 199, False),
            ("failed.count<1", 1, False),
            ("send_lag.p99<1ms", 0.2, True),
            ("error_rate<0.5%", 0.005, False),
            ("error_rate<=0.005", 0.005, True),
            ("shed_rate<1%", 0.005, True),
            ("hit_rate>=60%", 140 / 199, True),
            ("answered_per_s>=100", 99.5, False),
            ("goodput_per_s>=99.5", 99.5, True),
            ("texts_per_s>99", 99.5, True),
        ],
    )
    def test_a_figure_is_held_against_its_limit(self, text: str, measured: float, held: bool):
        outcome = criteria.parse(text).check(report(WINDOWS))

        assert outcome.held is held
        assert outcome.measured == pytest.approx(measured, rel=0.001)
        assert outcome.text.startswith(f"{text}: measured ")

    def test_the_outcome_says_what_was_measured(self):
        assert (
            criteria.parse("miss.p50<10ms").check(report(WINDOWS)).text
            == "miss.p50<10ms: measured 30.015 ms over 59 calls"
        )

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("bypass.p99<10s", "no call of bypass was measured"),
            ("bypass.p99>0ms", "no call of bypass was measured"),
            ("hit_rate>=0", "no answer told its cache state"),
            ("send_lag.p99<1s", "no call of send_lag was measured"),
        ],
    )
    def test_what_was_not_measured_fails_with_the_reason(self, text: str, reason: str):
        """Never passes: not under a limit either."""
        closed = report([{"unknown": [1.0]}], loop="closed", send_lag=None)
        outcome = criteria.parse(text).check(closed)

        assert outcome == criteria.Outcome(held=False, measured=None, text=f"{text}: {reason}")

    @pytest.mark.parametrize("text", ["error_rate<1%", "failed.count<1", "all.p99<1s", "texts_per_s>=0", "shed_rate<1"])
    def test_a_run_without_calls_passes_nothing(self, text: str):
        outcome = criteria.parse(text).check(report([]))

        assert not outcome.held
        assert outcome.text == f"{text}: no call was measured"

    def test_a_run_of_cancelled_calls_has_no_error_rate(self):
        cancelled = report([{"cancelled": [5.0] * 9}])

        assert criteria.parse("error_rate<1%").check(cancelled).text == "error_rate<1%: every call was cancelled"
        assert criteria.parse("shed_rate<1%").check(cancelled).measured is None

    def test_cancelled_calls_are_no_part_of_the_share_shed(self):
        made = report([{"miss": [1.0] * 8, "shed": [1.0], "timeout": [1.0], "cancelled": [5.0] * 90}])

        assert criteria.parse("shed_rate<1").check(made).measured == pytest.approx(0.1)
        assert criteria.parse("error_rate<1").check(made).measured == pytest.approx(0.2)

    def test_texts_and_calls_are_two_rates(self):
        made = report(WINDOWS, texts_per_s=400.0)

        assert criteria.parse("texts_per_s>=400").check(made).held
        assert not criteria.parse("answered_per_s>=400").check(made).held

    def test_a_figure_that_is_no_number_fails(self):
        made = report(WINDOWS).model_copy(update={"error_rate": float("nan")})

        outcome = criteria.parse("error_rate<1").check(made)

        assert (outcome.held, outcome.measured) == (False, None)
        assert outcome.text == "error_rate<1: the report holds nan, no number"

    def test_a_count_of_zero_is_a_measurement(self):
        """`no server error` is what one wants to assert."""
        outcome = criteria.parse("server_error.count<1").check(report(WINDOWS))

        assert (outcome.held, outcome.measured) == (True, 0)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("hitt.p99<10ms", "no series is called 'hitt'; did you mean 'hit'?"),
            ("eror_rate<1%", "no figure is called 'eror_rate'; did you mean 'error_rate'?"),
            ("miss.p100<10ms", "no statistic is called 'p100'"),
            ("miss.p0<10ms", "no statistic is called 'p0'; did you mean 'p90'?"),
            ("miss.men<10ms", "no statistic is called 'men'; did you mean 'mean'?"),
            ("miss<10ms", "miss needs a statistic: miss.p99"),
            ("error_rate.p99<1%", "error_rate has no statistics"),
            ("hit.p99<10", "a latency needs its unit: ms, us or s"),
            ("hit.p99<10min", "a latency needs its unit: ms, us or s, not 'min'"),
            ("all.count>10ms", "a count has no unit, not even 'ms'"),
            ("answered_per_s>10%", "a rate has no unit, not even '%'"),
            ("error_rate<5", "error_rate is a share: write 0.05 or 5%"),
            ("error_rate<1ms", "error_rate is a share: write 0.05 or 5%"),
            ("hit.p99=10ms", "it does not read as a criterion"),
            ("hit.p99<", "it does not read as a criterion"),
            ("hit.p99<nan", "it does not read as a criterion"),
            ("hit.p99<-1ms", "it does not read as a criterion"),
            ("", "it does not read as a criterion"),
        ],
    )
    def test_bad_syntax_is_told_with_grammar_and_names(self, text: str, says: str):
        with pytest.raises(ValueError, match=r"SERIES\.STATISTIC OPERATOR VALUE") as raised:
            criteria.parse(text)

        assert str(raised.value).splitlines()[0] == f"{text!r}: {says}"
        assert all(name in str(raised.value) for name in (*SERIES, "send_lag", "shed_rate", "goodput_per_s"))

    @given(st.text(max_size=30))
    def test_any_other_text_is_a_value_error(self, text: str):
        try:
            criterion = criteria.parse(text)
        except ValueError:
            return

        assert criterion.text == text.strip()

    @given(
        st.sampled_from([*criteria.SUBJECTS]),
        st.sampled_from(["mean", "max", "p50", "p99.9", "p7"]),
        st.sampled_from(["<", "<=", ">", ">="]),
        st.integers(0, 10_000),
        st.sampled_from([("us", 0.001), ("ms", 1), ("s", 1000)]),
    )
    def test_every_criterion_of_the_grammar_is_read(self, series, statistic, operator, value, unit):
        name, scale = unit
        criterion = criteria.parse(f" {series}.{statistic} {operator} {value} {name} ")

        assert (criterion.name, criterion.statistic, criterion.operator) == (series, statistic, operator)
        assert criterion.limit == pytest.approx(value * scale)
