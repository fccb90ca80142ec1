"""A load is one description; its calls are the same however many workers share them."""

import itertools
import json
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from loadgen.schedule import send_times
from loadgen.texts import TextSource, normalised
from loadgen.traffic import CHUNK, Call, Traffic, calls, distinct_texts, popularity, refusal

MIXED: dict[str, Any] = {
    "rate": 200,
    "warmup_s": 2,
    "duration_s": 13,
    "distinct": 500,
    "lengths": "3",
    "batch": 0.1,
    "batch_size": 3,
    "feedback": 0.2,
    "corrections": 0.25,
    "cancel": 0.1,
    "variants": 0.3,
}


def load(**fields: Any) -> Traffic:
    return Traffic.model_validate(MIXED | fields)


def first_calls(count: int, traffic: Traffic, worker: int = 0, workers: int = 1) -> list[Call]:
    return list(itertools.islice(calls(traffic, worker, workers), count))


@pytest.mark.parametrize("workers", range(1, 6))
@pytest.mark.parametrize("texts", ["zipf", "unique"])
def test_workers_share_the_calls_of_a_run(workers: int, texts: str):
    """Each call is sent by exactly one worker, and is the call that a single worker would have sent."""
    traffic = load(texts=texts)

    shared = [list(calls(traffic, worker, workers)) for worker in range(workers)]

    assert sorted(itertools.chain(*shared), key=lambda call: call.index) == list(calls(traffic))
    assert all(call.index % workers == worker for worker in range(workers) for call in shared[worker])
    assert all(mine == sorted(mine, key=lambda call: call.index) for mine in shared)


@given(workers=st.integers(1, 2000), worker=st.integers(0, 1999))
def test_any_worker_of_any_number_sends_its_share(workers: int, worker: int):
    """More workers than calls of a chunk, too."""
    traffic = load(duration_s=1, batch=0, variants=0)
    worker %= workers

    assert [call.index for call in calls(traffic, worker, workers)] == list(
        range(worker, len(send_times(traffic)), workers)
    )


def test_the_closed_loop_shares_the_same_calls():
    """It has no times and no end; what its calls ask for is what the open loop asks for."""
    whole = first_calls(3 * CHUNK, load(arrivals="closed"))
    shared = [first_calls(CHUNK, load(arrivals="closed"), worker, 3) for worker in range(3)]

    assert sorted(itertools.chain(*shared), key=lambda call: call.index) == whole
    assert all(call.at_s is None for call in whole)
    assert [call.texts for call in first_calls(2500, load())] == [call.texts for call in whole[:2500]]


@pytest.mark.parametrize("arrivals", ["poisson", "constant", "ramp"])
def test_calls_go_at_the_schedules_times(arrivals: str):
    traffic = load(arrivals=arrivals)

    assert [call.at_s for call in calls(traffic)] == send_times(traffic).tolist()


def test_calls_are_the_same_in_every_process():
    """Hash randomisation of strings plays no part, nor does what was drawn before."""
    code = f"from loadgen.traffic import Traffic, calls;print(*calls(Traffic.model_validate({MIXED!r})), sep='\\n')"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }

    assert outputs == {"".join(f"{call}\n" for call in calls(load()))}


def test_seeds_draw_other_calls_of_the_same_texts():
    """`seed` draws, `text_seed` writes."""
    asked = [
        {normalised(text) for call in calls(load(seed=seed, text_seed=text_seed)) for text in call.texts}
        for seed, text_seed in ((1, 1), (2, 1), (1, 2))
    ]

    assert [call.texts for call in calls(load(seed=1))][:50] != [call.texts for call in calls(load(seed=2))][:50]
    assert len(asked[0] & asked[1]) > len(asked[0]) / 2
    assert len(asked[0] & asked[2]) < 5


def test_a_longer_run_begins_with_the_shorter():
    short, long = list(calls(load(arrivals="constant"))), calls(load(arrivals="constant", duration_s=60))

    assert short == list(itertools.islice(long, len(short)))


def test_kinds_come_in_their_shares():
    """Of 20,000 calls, within a point."""
    sent = first_calls(20_000, load(arrivals="closed", batch=0.1, feedback=0.2, corrections=0.25, cancel=0.15))
    kinds = Counter(call.kind for call in sent)
    feedback = [call for call in sent if call.kind == "feedback"]
    asked = [call for call in sent if call.kind != "feedback"]

    assert [kinds[kind] / len(sent) for kind in ("classify", "batch", "feedback")] == pytest.approx(
        [0.7, 0.1, 0.2], abs=0.01
    )
    assert sum(call.correction for call in feedback) / len(feedback) == pytest.approx(0.25, abs=0.02)
    assert not any(call.correction for call in asked)
    assert sum(call.cancel_after_s is not None for call in asked) / len(asked) == pytest.approx(0.15, abs=0.01)
    assert {call.cancel_after_s for call in asked} == {None, 0.005}
    assert all(call.cancel_after_s is None for call in feedback)


def test_batches_have_their_size_and_other_calls_one_text():
    sizes = {(call.kind, len(call.texts)) for call in calls(load(batch_size=7))}

    assert sizes == {("classify", 1), ("batch", 7), ("feedback", 1)}


def test_shares_of_zero_and_one_are_exact():
    """By default all calls are single texts, sent as they are."""
    plain = list(calls(Traffic(duration_s=20, distinct=50)))
    texts = set(distinct_texts(Traffic(distinct=50)))

    assert {(call.kind, call.correction, call.cancel_after_s) for call in plain} == {("classify", False, None)}
    assert {text for call in plain for text in call.texts} <= texts
    assert {call.kind for call in calls(load(batch=1, feedback=0, corrections=0))} == {"batch"}
    assert {call.correction for call in calls(load(batch=0, feedback=1, corrections=1))} == {True}


def test_variants_are_the_same_texts_in_another_form():
    """30 % of the texts asked for, within two points; feedback speaks of the text as it is."""
    traffic = load(arrivals="closed")
    plain = first_calls(10_000, load(arrivals="closed", variants=0))
    varied = first_calls(10_000, traffic)
    pairs = [
        (one, other, call.kind)
        for call, twin in zip(varied, plain, strict=True)
        for one, other in zip(call.texts, twin.texts, strict=True)
    ]
    asked = [one != other for one, other, kind in pairs if kind != "feedback"]

    assert all(normalised(one) == normalised(other) for one, other, _ in pairs)
    assert sum(asked) / len(asked) == pytest.approx(0.3, abs=0.02)
    assert not any(one != other for one, other, kind in pairs if kind == "feedback")


def test_popular_texts_are_asked_as_often_as_zipf_says():
    """Of 50,000 asks, the first ten ranks within 5 standard errors; the whole within a total variation of 5 %."""
    traffic = load(arrivals="closed", batch=0, feedback=0, corrections=0, variants=0, distinct=300, zipf_s=1.1)
    law = popularity(traffic, TextSource(traffic))
    ranks = {text: rank for rank, text in enumerate(distinct_texts(traffic))}

    drawn = np.bincount([ranks[call.texts[0]] for call in first_calls(50_000, traffic)], minlength=300) / 50_000

    assert law[1] / law[0] == pytest.approx(2**-1.1)
    assert law.sum() == pytest.approx(1)
    assert np.abs(drawn - law)[:10].max() < 5 * np.sqrt(law[0] / 50_000)
    assert np.abs(drawn - law).sum() / 2 < 0.05


def test_zipf_of_zero_is_uniform():
    traffic = load(zipf_s=0, distinct=4)

    assert popularity(traffic, TextSource(traffic)).tolist() == [0.25] * 4


@pytest.mark.parametrize("arrivals", ["poisson", "closed"])
def test_unique_texts_never_come_twice(arrivals: str):
    """Over the whole run, in batches and feedback too, over the edges of chunks."""
    sent = first_calls(3 * CHUNK, load(arrivals=arrivals, texts="unique", batch=0.5, rate=400))
    texts = [normalised(text) for call in sent for text in call.texts]

    assert len(sent) > 2 * CHUNK
    assert len(set(texts)) == len(texts)


def test_all_the_same_is_one_text():
    traffic = load(texts="same", variants=0)

    assert {text for call in calls(traffic) for text in call.texts} == set(distinct_texts(traffic))
    assert len(list(distinct_texts(traffic))) == 1


def corpus_file(folder: Path, count: int) -> Path:
    path = folder / "corpus.txt"
    path.write_text("".join(f"text {number}\n" for number in range(count)))
    return path


def test_a_corpus_takes_the_generators_place(tmp_path: Path):
    """The first line is the most popular; a small corpus has fewer texts than `distinct`."""
    traffic = load(corpus=corpus_file(tmp_path, 20), variants=0)
    counts = Counter(text for call in calls(traffic) for text in call.texts)

    assert counts.most_common(1)[0][0] == "text 0"
    assert set(counts) == set(distinct_texts(traffic)) == {f"text {number}" for number in range(20)}
    assert len(list(distinct_texts(load(corpus=corpus_file(tmp_path, 20), distinct=5)))) == 5


def test_a_corpus_must_have_enough_unique_texts(tmp_path: Path):
    """Counted exactly, batches included, before anything is sent."""
    needed = sum(len(call.texts) for call in calls(load(texts="unique")))

    enough = list(calls(load(texts="unique", corpus=corpus_file(tmp_path, needed))))

    assert sum(len(call.texts) for call in enough) == needed
    with pytest.raises(ValueError, match=f"asks for {needed:,} unique texts and the corpus has {needed - 1:,}"):
        calls(load(texts="unique", corpus=corpus_file(tmp_path, needed - 1)))


def test_files_are_checked_before_anything_is_sent(tmp_path: Path):
    """Not when the first call is drawn."""
    with pytest.raises(ValueError, match="cannot be read"):
        calls(load(corpus=tmp_path / "none.txt"))
    with pytest.raises(ValueError, match="cannot be read"):
        calls(Traffic(arrivals="trace", trace=tmp_path / "none.jsonl"))


def trace_file(folder: Path) -> Path:
    rows = [{"time_s": 7.5, "texts": ["b", "B"]}, {"time_s": 7, "text": "a "}, {"time_s": 8, "text": "c"}]
    path = folder / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_trace_is_sent_as_recorded(tmp_path: Path):
    """By hand; two workers share it."""
    traffic = Traffic(arrivals="trace", trace=trace_file(tmp_path), warmup_s=0.5)
    expected = [
        Call(0, 0.0, "classify", ("a ",)),
        Call(1, 0.5, "batch", ("b", "B")),
        Call(2, 1.0, "classify", ("c",)),
    ]

    assert list(calls(traffic)) == expected
    assert [list(calls(traffic, worker, 2)) for worker in range(2)] == [[expected[0], expected[2]], [expected[1]]]
    assert sorted(distinct_texts(traffic), key=normalised) == ["a ", "B", "c"]


def test_unique_texts_have_no_warm_cache():
    with pytest.raises(ValueError, match="unique texts are asked once each"):
        distinct_texts(load(texts="unique"))


@pytest.mark.parametrize(("worker", "workers"), [(2, 2), (-1, 2), (0, 0)])
def test_a_worker_must_be_one_of_the_workers(worker: int, workers: int):
    with pytest.raises(ValueError, match=f"worker is {worker}"):
        calls(load(), worker, workers)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"rate": 0}, "rate is 0: input should be greater than 0"),
    ({"rate": -1.5}, "rate is -1.5"),
    ({"rate": 100_001}, "rate is 100001: input should be less than or equal to 100000"),
    ({"rate": float("nan")}, "rate is nan"),
    ({"rate": float("inf")}, "rate is inf"),
    ({"rate": "fast"}, "rate is 'fast'"),
    ({"duration_s": 0}, "duration_s is 0: input should be greater than 0"),
    ({"duration_s": float("inf")}, "duration_s is inf"),
    ({"warmup_s": -1}, "warmup_s is -1: input should be greater than or equal to 0"),
    ({"rate": 100_000, "duration_s": 600}, "60,500,000 calls; the limit is 20,000,000; run shorter"),
    ({"seed": -1}, "seed is -1"),
    ({"text_seed": -1}, "text_seed is -1"),
    ({"arrivals": "burst"}, "arrivals is 'burst'"),
    ({"arrivals": "ramp", "from_rate": 60}, "from_rate is 60, above rate 50; swap them"),
    ({"arrivals": "ramp", "from_rate": 0}, "from_rate is 0"),
    ({"from_rate": 10}, 'from_rate is for step, ramp, diurnal, pulse; arrivals "poisson" has one rate'),
    ({"period_s": 10}, "period_s is for diurnal"),
    ({"arrivals": "diurnal", "period_s": 0}, "period_s is 0"),
    ({"arrivals": "step", "steps": 1}, "steps is 1"),
    ({"connections": 0}, "connections is 0"),
    ({"arrivals": "trace"}, 'arrivals "trace" and a trace file go together; arrivals is "trace"'),
    ({"trace": "t.jsonl"}, 'arrivals "trace" and a trace file go together; arrivals is "poisson"'),
    ({"arrivals": "trace", "trace": "t.jsonl", "trace_speed": 0}, "trace_speed is 0"),
    *(
        ({"arrivals": "trace", "trace": "t.jsonl"} | extra, "a trace is sent as it was recorded")
        for extra in ({"batch": 0.1}, {"feedback": 0.1}, {"cancel": 0.1}, {"variants": 0.1}, {"corpus": "c.txt"})
    ),
    ({"zipf_s": -0.1}, "zipf_s is -0.1"),
    ({"distinct": 0}, "distinct is 0"),
    ({"distinct": 1_000_001}, "distinct is 1000001: input should be less than or equal to 1000000"),
    ({"lengths": "12:0.5"}, "the shares of lengths '12:0.5' add up to 0.5"),
    *(
        ({name: value} | ({"feedback": 0.1} if name == "corrections" else {}), f"{name} is {value}")
        for name in ("variants", "batch", "feedback", "corrections", "cancel")
        for value in (-0.1, 1.1)
    ),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"batch_size": 101}, "batch_size is 101: input should be less than or equal to 100"),
    ({"batch": 0.6, "feedback": 0.5}, "batch 0.6 and feedback 0.5 are over 1 together; lower one"),
    ({"corrections": 0.5}, "corrections is 0.5 of no feedback; set feedback too"),
    ({"cancel_after_s": -1}, "cancel_after_s is -1"),
    ({"arrivals": "closed", "texts": "unique", "corpus": "c.txt"}, "leave the corpus out"),
    ({"speed": 1}, "speed is 1: extra inputs are not permitted"),
]


@pytest.mark.parametrize(("fields", "complaint"), REFUSED)
def test_what_makes_no_sense_is_refused_in_a_line(fields: dict[str, Any], complaint: str):
    """Naming the field, its value and the limit or the remedy."""
    with pytest.raises(ValidationError) as refused:
        Traffic.model_validate(fields)

    assert complaint in refusal(refused.value)
    assert "\n" not in refusal(refused.value)


def test_limits_themselves_are_allowed():
    assert Traffic(rate=100_000, warmup_s=0, duration_s=200).rate == 100_000
    assert Traffic(batch_size=100, batch=1, cancel=1, variants=1).batch_size == 100
    assert Traffic(arrivals="step", from_rate=50, rate=50, steps=2).lowest_rate == 50


def test_a_description_travels_between_processes():
    """Pickled or as JSON, it is the same load; and it cannot be changed on the way."""
    traffic = load(arrivals="diurnal", period_s=3)

    assert pickle.loads(pickle.dumps(traffic)) == Traffic.model_validate_json(traffic.model_dump_json()) == traffic
    with pytest.raises(ValidationError):
        traffic.rate = 1  # type: ignore[misc]
