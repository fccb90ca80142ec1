"""The hit rate predicted from popularity and cache state is the one that calls would see."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.hit_rate import expected_hit_rate
from loadgen.texts import normalised
from loadgen.traffic import Traffic, calls


def load(**fields: Any) -> Traffic:
    return Traffic.model_validate(
        {"rate": 200, "warmup_s": 5, "duration_s": 30, "lengths": "3", "arrivals": "constant"} | fields
    )


def simulated(traffic: Traffic) -> tuple[float, int, int]:
    """The hit rate of a cache that forgets nothing, and the texts asked in warm-up and measured time.

    Keys as the service makes them: of predictions the `normalised` text, of corrections the words in their case.
    """
    kept: set[str] = set()
    corrected: set[str] = set()
    warmup, hits = 0, list[bool]()
    for call in calls(traffic):
        assert call.at_s is not None
        if call.kind == "feedback":
            corrected.update(" ".join(text.split()) for text in call.texts if call.correction)
            continue
        keys = [normalised(text) for text in call.texts]
        if call.at_s < traffic.warmup_s:
            warmup += len(keys)
        else:
            hits += [
                key in kept or " ".join(text.split()) in corrected for key, text in zip(keys, call.texts, strict=True)
            ]
        kept.update(keys)
    return sum(hits) / len(hits), warmup, len(hits)


def test_two_texts_worked_by_hand():
    """Texts of 2/3 and 1/3 (Zipf 1 over two), one ask in the warm-up, two measured.

    | ask | P(miss) = Σ p·(1-p)^k            |
    |-----|----------------------------------|
    | 1   | 2/3·(1/3)   + 1/3·(2/3)   = 4/9  |
    | 2   | 2/3·(1/3)^2 + 1/3·(2/3)^2 = 2/9  |

    So a third of the two is a miss.
    """
    traffic = load(zipf_s=1, distinct=2, rate=1, warmup_s=1, duration_s=2)

    assert expected_hit_rate(traffic, "cold") == pytest.approx(2 / 3)
    assert expected_hit_rate(traffic, "cold", warmup_texts=1, measured_texts=2) == pytest.approx(2 / 3)


def test_batches_are_looked_up_at_once_worked_by_hand():
    """Two equal texts, batches of two: the first batch misses twice, the second once in four times each text.

    A text asked for in the second batch was not in the first with probability 1/4: misses 2 + 2·1/4 of 4.
    """
    traffic = load(zipf_s=0, distinct=2, batch=1, batch_size=2, rate=1, warmup_s=0, duration_s=2)

    assert expected_hit_rate(traffic, "cold") == pytest.approx(1 - 2.5 / 4)
    assert expected_hit_rate(traffic, "cold", warmup_texts=0, measured_texts=4) == pytest.approx(1 - 2.5 / 4)


def test_one_text_misses_once():
    """100 asks, none before: 99 hits. With a warm-up, all."""
    assert expected_hit_rate(load(texts="same", rate=10, warmup_s=0, duration_s=10), "cold") == pytest.approx(0.99)
    assert expected_hit_rate(load(texts="same"), "cold") == 1.0


MIXES: dict[str, dict[str, Any]] = {
    "singles": {},
    "no warm-up": {"warmup_s": 0},
    "poisson": {"arrivals": "poisson"},
    "ramp": {"arrivals": "ramp", "rate": 500},
    "day": {"arrivals": "diurnal", "rate": 500, "from_rate": 1},
    "flat popularity": {"zipf_s": 0, "distinct": 800},
    "steep popularity": {"zipf_s": 2},
    "batches": {"batch": 0.2, "batch_size": 20, "rate": 100},
    "batches only": {"batch": 1, "batch_size": 50, "rate": 5, "distinct": 300},
    "feedback": {"feedback": 0.5, "rate": 400},
    "corrections": {"feedback": 0.5, "corrections": 0.8, "variants": 0.8, "distinct": 300},
    "cancelled": {"cancel": 0.5},
    "variants": {"variants": 0.5},
}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_prediction_agrees_with_a_simulated_cache(mix: str, seed: int):
    """Within 2 points, from the schedule's expectation and from the counted texts."""
    traffic = load(seed=seed, **MIXES[mix])

    measured, warmup_texts, measured_texts = simulated(traffic)

    counted = expected_hit_rate(traffic, "cold", warmup_texts=warmup_texts, measured_texts=measured_texts)
    assert expected_hit_rate(traffic, "cold") == pytest.approx(measured, abs=0.02)
    assert counted == pytest.approx(measured, abs=0.02)


@pytest.mark.parametrize("mix", ["batches", "batches only", "corrections"])
def test_prediction_is_unbiased(mix: str):
    """Over 12 seeds the mean difference is below a third of a point, less than the chance of one run hides."""
    runs = [load(seed=seed, **MIXES[mix]) for seed in range(12)]
    differences = [simulated(run)[0] - (expected_hit_rate(run, "cold") or 0) for run in runs]

    assert sum(differences) / len(differences) == pytest.approx(0, abs=0.0033)


def test_a_corpus_is_as_wide_as_its_texts(tmp_path: Path):
    """40 different lines are 40 texts, whatever `distinct` says."""
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"text {number % 40}\n" for number in range(80)))
    traffic = load(corpus=path, rate=2)

    assert expected_hit_rate(traffic, "cold") == expected_hit_rate(load(distinct=40, rate=2), "cold")
    assert expected_hit_rate(traffic, "cold") == pytest.approx(simulated(traffic)[0], abs=0.2)


def test_a_warm_cache_hits_always_and_unique_texts_never():
    assert [expected_hit_rate(load(texts=texts), "warm") for texts in ("zipf", "same", "unique")] == [1, 1, 0]
    assert expected_hit_rate(load(texts="unique"), "cold") == 0


def test_the_closed_loop_needs_counts():
    """How often its callers are answered is not known beforehand."""
    closed = load(arrivals="closed")

    assert expected_hit_rate(closed, "cold") is None
    assert expected_hit_rate(closed, "cold", warmup_texts=1000, measured_texts=6000) == pytest.approx(
        expected_hit_rate(load(), "cold") or 0
    )


@pytest.mark.parametrize("state", ["cold", "warm"])
def test_nothing_measured_is_no_rate(state: Any):
    """No texts, or feedback alone."""
    assert expected_hit_rate(load(), state, warmup_texts=5, measured_texts=0) is None
    assert expected_hit_rate(load(feedback=1), state) is None


@given(
    distinct=st.integers(1, 50),
    zipf_s=st.floats(0, 10),
    warmup=st.integers(0, 1000),
    measured=st.integers(1, 1000),
    batch=st.floats(0, 0.5),
    feedback=st.floats(0, 0.5),
    corrections=st.floats(0, 1),
)
def test_the_rate_is_a_share_and_grows_with_the_warmup(
    distinct: int, zipf_s: float, warmup: int, measured: int, batch: float, feedback: float, corrections: float
):
    traffic = load(
        distinct=distinct, zipf_s=zipf_s, batch=batch, feedback=feedback, corrections=corrections if feedback else 0
    )

    rates = [
        expected_hit_rate(traffic, "cold", warmup_texts=texts, measured_texts=measured) or 0.0
        for texts in (warmup, warmup + 100)
    ]

    assert 0 <= rates[0] <= rates[1] + 1e-9 <= 1 + 2e-9


def trace(folder: Path) -> Traffic:
    """Asks for A in the warm-up; then for a with blanks, b and b in one batch, b again, a."""
    rows = [(0, ["A"]), (1, [" a\n"]), (2, ["b", "b"]), (3, ["b"]), (4, ["a"])]
    path = folder / "trace.jsonl"
    path.write_text("".join(json.dumps({"time_s": time_s, "texts": texts}) + "\n" for time_s, texts in rows))
    return Traffic(arrivals="trace", trace=path, warmup_s=1, duration_s=10)


def test_a_trace_is_replayed_by_hand(tmp_path: Path):
    """Hit, two misses, hit, hit."""
    assert expected_hit_rate(trace(tmp_path), "cold") == pytest.approx(3 / 5)
    assert expected_hit_rate(trace(tmp_path), "warm") == 1


def test_counts_say_where_a_trace_was_cut(tmp_path: Path):
    """After two texts, the next three: miss, miss, hit."""
    assert expected_hit_rate(trace(tmp_path), "cold", warmup_texts=2, measured_texts=3) == pytest.approx(1 / 3)


def test_a_missing_corpus_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'none.txt'}: cannot be read")):
        expected_hit_rate(load(corpus=tmp_path / "none.txt"), "cold")
