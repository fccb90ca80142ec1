"""Calls go when the shape of the load says, by chance only where it is meant to be chance."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.schedule import expected_calls, read_trace, send_times
from loadgen.traffic import Traffic

CLIMBING = ("step", "ramp", "diurnal", "pulse")
RANDOM = ("poisson", *CLIMBING)


def load(arrivals: str = "poisson", **fields: Any) -> Traffic:
    return Traffic.model_validate({"arrivals": arrivals, "rate": 100, "warmup_s": 10, "duration_s": 100} | fields)


def trace_file(folder: Path, *rows: Any) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_constant_arrivals_are_evenly_spaced_from_the_start():
    """By hand: 4/s for 2 s are 8 calls, a quarter of a second apart."""
    times = send_times(load("constant", rate=4, warmup_s=0.5, duration_s=1.5))

    assert times.tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75]


@pytest.mark.parametrize(("rate", "duration_s", "count"), [(4, 1.6, 7), (12.5, 4.4, 55), (0.1, 5, 1)])
def test_constant_arrivals_fill_the_run_and_stay_in_it(rate: float, duration_s: float, count: int):
    """4/s for 1.6 s still send at 1.5 s; 12.5/s for 4.4 s, a product that rounds up, do not send at 4.4 s."""
    assert len(send_times(load("constant", rate=rate, warmup_s=0, duration_s=duration_s))) == count


@pytest.mark.parametrize("rate", [1, 3, 7, 50, 123, 1999])
def test_constant_arrivals_split_exactly_at_the_end_of_the_warmup(rate: int):
    """No call is measured that belongs to the warm-up, whatever rounding does."""
    times = send_times(load("constant", rate=rate, warmup_s=5, duration_s=30))

    assert [(times < 5).sum(), len(times)] == [5 * rate, 35 * rate]


@pytest.mark.parametrize("seed", range(5))
def test_poisson_gaps_are_exponential(seed: int):
    """Their mean is 1/rate and their standard deviation too; a share of 1/e is longer than the mean."""
    gaps = np.diff(send_times(load(seed=seed, duration_s=200)))

    assert gaps.mean() == pytest.approx(0.01, rel=0.03)
    assert gaps.std() == pytest.approx(0.01, rel=0.05)
    assert (gaps > 0.01).mean() == pytest.approx(math.exp(-1), abs=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_poisson_counts_vary_as_much_as_they_should(seed: int):
    """Counts of 1-second bins have a variance near their mean: index of dispersion 1."""
    counts = np.bincount(send_times(load(seed=seed, warmup_s=0, duration_s=1000)).astype(int), minlength=1000)

    assert counts.mean() == pytest.approx(100, rel=0.02)
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("arrivals", RANDOM)
def test_counts_follow_the_expected_ones(arrivals: str):
    """Mean over 30 seeds within 3 standard errors, in each tenth of the run."""
    edges = np.linspace(0, 110, 11)
    counts = np.array([np.histogram(send_times(load(arrivals, seed=seed)), edges)[0] for seed in range(30)])

    expected = np.diff([expected_calls(load(arrivals), edge) for edge in edges])
    assert counts.mean(axis=0) == pytest.approx(expected, abs=float(3 * np.sqrt(expected.max() / 30)))


def test_a_ramp_integrates_to_its_area():
    """By hand: 10 s at 20/s, then from 20 to 100/s in 100 s: 200 + 6,000 calls; half-way up, 200 + 2,000."""
    ramp = load("ramp", from_rate=20)

    assert [expected_calls(ramp, at_s) for at_s in (0, 10, 60, 110)] == pytest.approx([0, 200, 2200, 6200])


def test_steps_climb_evenly():
    """By hand: 20, 60 and 100/s, 30 s each, after 10 s at 20/s."""
    steps = load("step", from_rate=20, steps=3, duration_s=90)

    assert [expected_calls(steps, at_s) for at_s in (10, 40, 70, 100)] == pytest.approx([200, 800, 2600, 5600])


def test_a_pulse_rises_at_once_and_falls_at_once():
    """By hand: 10 s and 25 s at 20/s, 25 s at 100/s, 50 s at 20/s."""
    pulse = load("pulse", from_rate=20, duration_s=100)

    assert [expected_calls(pulse, at_s) for at_s in (35, 60, 110)] == pytest.approx([700, 3200, 4200])


def test_a_day_begins_and_ends_at_its_lowest():
    """A whole period has the mean rate; its first quarter is the lowest, a quarter about noon the highest."""
    day = load("diurnal", from_rate=20, warmup_s=0, duration_s=200, period_s=100)
    at = [expected_calls(day, at_s) for at_s in (0, 25, 50, 75, 100, 200)]

    assert at[2] == pytest.approx(60 * 50)
    assert at[4:] == pytest.approx([60 * 100, 60 * 200])
    # By hand: ∫ 60 - 40·cos(2πt/100) over the first quarter is 60·25 - 40·100/2π.
    assert at[1] == pytest.approx(1500 - 4000 / (2 * math.pi))
    assert at[3] - at[2] == pytest.approx(1500 + 4000 / (2 * math.pi))


@pytest.mark.parametrize("arrivals", CLIMBING)
def test_the_warmup_runs_at_the_lowest_rate(arrivals: str):
    """A tenth of the highest when nothing is said."""
    assert expected_calls(load(arrivals), 10) == pytest.approx(10 * 10)


@given(
    arrivals=st.sampled_from((*RANDOM, "constant")),
    rate=st.floats(0.01, 500),
    warmup_s=st.floats(0, 5),
    duration_s=st.floats(0.01, 20),
    seed=st.integers(0, 2**70),
)
def test_times_are_sorted_and_within_the_run(arrivals: str, rate: float, warmup_s: float, duration_s: float, seed: int):
    """Whatever the shape, in [0, warm-up + duration); and the same load has the same times."""
    traffic = load(arrivals, rate=rate, warmup_s=warmup_s, duration_s=duration_s, seed=seed)

    times = send_times(traffic)

    assert (np.diff(times) >= 0).all()
    assert ((times >= 0) & (times < traffic.run_s)).all()
    assert times.tolist() == send_times(traffic).tolist()


def test_a_longer_run_begins_like_the_shorter():
    """So that lengthening a run changes nothing of what it began with."""
    short, long = send_times(load(duration_s=20)), send_times(load(duration_s=300))

    assert long[long < 30] == pytest.approx(short, rel=1e-12)


def test_another_seed_is_another_draw():
    assert send_times(load(seed=1))[0] != send_times(load(seed=2))[0]


def test_the_closed_loop_has_no_schedule():
    with pytest.raises(ValueError, match="closed loop has no schedule"):
        send_times(load("closed"))


def test_a_trace_goes_at_its_own_times(tmp_path: Path):
    """By hand: rows in any order, times from the earliest, at double speed, cut at 0.5 + 2 s."""
    rows = ({"time_s": 13.0, "text": "b"}, {"time_s": 10, "texts": ["a", "A"], "user": 1}, {"time_s": 15, "text": "c"})
    traffic = load("trace", trace=trace_file(tmp_path, *rows), trace_speed=2, warmup_s=0.5, duration_s=2)

    assert send_times(traffic).tolist() == [0, 1.5]
    assert [(row.texts, row.is_batch) for row in read_trace(traffic)] == [(("a", "A"), True), (("b",), False)]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: no time"),
        ({"text": "a"}, "line 2: no time"),
        ({"time_s": True, "text": "a"}, "line 2: no time"),
        ({"time_s": float("nan"), "text": "a"}, "line 2: no time"),
        ({"time_s": 1}, "line 2: no texts"),
        ({"time_s": 1, "text": 5}, "line 2: no texts"),
        ({"time_s": 1, "texts": ["a", 5]}, "line 2: no texts"),
        ({"time_s": 1, "texts": []}, "line 2: a batch of 0 texts; 1 to 100"),
        ({"time_s": 1, "texts": ["a"] * 101}, "line 2: a batch of 101 texts; 1 to 100"),
        ({"time_s": 1, "text": "a", "texts": ["a"]}, "line 2: has both"),
        (b"\xff", "line 2: not UTF-8"),
    ],
)
def test_a_malformed_trace_is_refused_by_line(tmp_path: Path, row: Any, complaint: str):
    path = trace_file(tmp_path, {"time_s": 0, "text": "a"}, row if not isinstance(row, bytes) else "")
    if isinstance(row, bytes):
        path.write_bytes(path.read_bytes().rstrip() + b"\n" + row + b"\n")

    with pytest.raises(ValueError, match=complaint) as refusal:
        send_times(load("trace", trace=path))
    assert str(refusal.value).startswith(str(path))


def test_an_empty_missing_or_unmeasured_trace_is_refused(tmp_path: Path):
    """Each says which file and what to do."""
    with pytest.raises(ValueError, match=r"trace\.jsonl: no rows"):
        send_times(load("trace", trace=trace_file(tmp_path, "", "  ")))
    with pytest.raises(ValueError, match=r"missing\.jsonl: cannot be read .*No such file"):
        send_times(load("trace", trace=tmp_path / "missing.jsonl"))
    with pytest.raises(ValueError, match=r"no call of it is measured: .* at 3 s and the warm-up takes 10 s"):
        send_times(load("trace", trace=trace_file(tmp_path, {"time_s": 1, "text": "a"}, {"time_s": 4, "text": "a"})))
