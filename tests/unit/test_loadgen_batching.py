"""Dynamic batching measured: what the metrics tell, what is held against what, and how it is written down."""

import io
import math

import pytest
import yaml
from rich.console import Console

from loadgen import batching
from loadgen.batching import Bare, Found, Level, Mixed, Plan, grows, outcomes
from loadgen.load import LoadError
from loadgen.local_service import model_threads, one_model_replica
from loadgen.model_metrics import Histogram, Passes, parse
from tests.service import ROOT

EXPOSITION = """\
# TYPE intent_classification_requests_total counter
intent_classification_requests_total{status="success"} 120
intent_classification_requests_total{status="cache_hit"} 1000
# TYPE intent_model_batch_size histogram
intent_model_batch_size_bucket{le="1"} 10
intent_model_batch_size_bucket{le="8"} 30
intent_model_batch_size_bucket{le="+Inf"} 30
intent_model_batch_size_sum 999
intent_model_batch_size_count 30
# TYPE intent_model_queue_wait_seconds histogram
intent_model_queue_wait_seconds_bucket{le="0.01"} 60
intent_model_queue_wait_seconds_bucket{le="0.03"} 120
intent_model_queue_wait_seconds_bucket{le="+Inf"} 120
# TYPE intent_model_info gauge
intent_model_info{model_version="1",runtime="onnx fp32"} 1
intent_model_info{model_version="0",runtime="torch fp32"} 0
"""


def level(connections: int, per_s: float = 100.0, **changes: object) -> Level:
    made = {"p50_ms": 5.0, "p99_ms": 9.0, "error_rate": 0.0, "mean_batch": float(connections), "doubts": []}
    made |= {"padding_share": 0.01, "queue_wait_ms": 2.0}
    return Level(connections=connections, answered_per_s=per_s, **made | changes)


def found(*levels: Level, bare_per_s: float = 200.0, mixed: Mixed | None = None) -> Found:
    bare = Bare(runtime="onnx fp32", threads=1, texts_per_s=[0.9 * bare_per_s, 1.1 * bare_per_s])
    return Found(command="python -m x", stamp="today", plan=Plan(), levels=list(levels), bare=bare, mixed=mixed)


def verdicts(made: Found) -> dict[str, bool]:
    """By their first words."""
    return {" ".join(each.text.split()[:2]): each.held for each in outcomes(made)}


class TestMetrics:
    def test_the_mean_batch_is_texts_by_passes_and_never_the_estimated_sum(self):
        assert parse(EXPOSITION).mean_batch == 4

    def test_a_mean_is_taken_from_the_middles_of_the_buckets(self):
        """60 at 5 ms and 60 at 20 ms."""
        assert parse(EXPOSITION).queue_wait_ms == pytest.approx(12.5)

    def test_only_what_came_since_counts(self):
        later = parse(EXPOSITION.replace('"success"} 120', '"success"} 140').replace("} 30\n", "} 35\n"))

        assert (later - parse(EXPOSITION)).mean_batch == 4
        assert (later - parse(EXPOSITION)).queue_wait_ms is None

    def test_beyond_the_last_bound_counts_as_that_bound(self):
        assert Histogram({2.0: 0, math.inf: 5}).mean == 2

    def test_the_runtime_is_the_one_in_service(self):
        assert parse(EXPOSITION).runtimes == {"onnx fp32"}

    def test_what_a_replica_says_as_it_starts_is_waited_for(self, monkeypatch: pytest.MonkeyPatch):
        """It reaches the metrics a second or more after the service answers."""
        answers = iter([Passes(0, {}), Passes(0, {}), Passes(0, {}, frozenset({"onnx fp32"}))])

        async def scrape(_url: str) -> Passes:
            return next(answers)

        monkeypatch.setattr(batching, "scrape_passes", scrape)
        monkeypatch.setattr(batching, "POLL_S", 0)

        assert batching.first_passes("http://service").runtimes == {"onnx fp32"}

    def test_two_runtimes_or_none_cannot_be_held_against_one(self):
        for runtimes in (frozenset(), frozenset({"a", "b"})):
            with pytest.raises(LoadError, match="one runtime is needed"):
                batching._runtime(Passes(0, {}, runtimes))


class TestVerdicts:
    def test_the_share_is_of_the_median_bare_forward_pass_at_its_level(self):
        assert found(level(1, 500.0), level(32, 150.0), bare_per_s=200.0).share == pytest.approx(0.75)
        assert found(level(1)).share is None

    @pytest.mark.parametrize(("per_s", "held"), [(140.0, True), (139.0, False)])
    def test_less_than_the_share_fails(self, per_s: float, held: bool):
        assert verdicts(found(level(32, per_s), bare_per_s=200.0))["32 connections:"] is held

    @pytest.mark.parametrize(
        ("batches", "held"),
        [([1, 4, 20, 21], True), ([1, 4, 20, 19.5], True), ([1, 4, 20, 10], False), ([1, 1], False)],
    )
    def test_batches_grow_until_they_are_full(self, batches: list[float], held: bool):
        assert grows(batches) is held

    @pytest.mark.parametrize(("p50_ms", "held"), [(7.9, True), (8.0, False)])
    def test_one_caller_is_answered_soon(self, p50_ms: float, held: bool):
        assert verdicts(found(level(1, p50_ms=p50_ms)))["one connection:"] is held

    @pytest.mark.parametrize(("random_s", "held"), [(11.0, True), (12.0, False)])
    def test_mixed_lengths_lose_time_and_so_tokens(self, random_s: float, held: bool):
        mixed = Mixed(texts=9, random_s=[random_s, random_s], sorted_s=[9.0, 11.0])

        assert mixed.loss == pytest.approx(1 - 10 / random_s)
        assert verdicts(found(level(8), mixed=mixed))["9 texts"] is held

    def test_a_failed_call_fails_it(self):
        *_, last = outcomes(found(level(8), level(32, error_rate=0.01)))

        assert (last.held, last.measured) == (False, 0.01)


def test_the_document_has_the_table_the_verdicts_and_the_doubts():
    made = found(level(1), level(32, 150.0, doubts=["sent late"]))

    written = batching.markdown(made)
    output = io.StringIO()
    batching.render(made, Console(file=output, width=200))

    assert "| 32 | 150.0 | 5.00 | 9.00 | 32.0 |" in written
    assert "- holds: 32 connections: 75.0" in written
    assert "- **invalid**: 32 connections: sent late" in written
    assert "INVALID: 32 connections: sent late" in output.getvalue()
    assert "`python -m x`" in written


class TestOneModelReplica:
    def test_a_fixed_number_becomes_one(self):
        config = {"applications": [{"deployments": [{"name": "Model", "num_replicas": 3}, {"name": "Cache"}]}]}

        changed = one_model_replica(config)["applications"][0]["deployments"]

        assert changed == [{"name": "Model", "num_replicas": 1}, {"name": "Cache"}]
        assert config["applications"][0]["deployments"][0]["num_replicas"] == 3

    def test_an_autoscaled_one_stays_one(self):
        scaling = {"min_replicas": 2, "initial_replicas": 2, "max_replicas": 8, "upscale_delay_s": 3}
        config = {"applications": [{"deployments": [{"name": "Model", "autoscaling_config": scaling}]}]}

        (model,) = one_model_replica(config)["applications"][0]["deployments"]

        assert model["autoscaling_config"] == {"min_replicas": 1, "max_replicas": 1, "upscale_delay_s": 3}

    def test_the_shipped_model_has_the_threads_of_its_cpus_rounded_up(self):
        assert model_threads(yaml.safe_load((ROOT / "serve_config.yaml").read_text())) == 1
