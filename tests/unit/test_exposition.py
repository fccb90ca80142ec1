"""Metrics of many replicas summed into one exposition."""

from prometheus_client.parser import text_string_to_metric_families

from deployments.core.exposition import sum_expositions

AGENT = """\
# HELP ray_intent_classification_requests_total Texts.
# TYPE ray_intent_classification_requests_total counter
ray_intent_classification_requests_total{{application="intents",replica="a",status="success"}} {a}
ray_intent_classification_requests_total{{application="intents",replica="b",status="success"}} 2.0
ray_intent_classification_requests_total{{application="intents",replica="b",status="cache_hit"}} 5.0
# TYPE ray_intent_classification_duration_seconds histogram
ray_intent_classification_duration_seconds_bucket{{replica="a",cache_status="hit",le="0.001"}} 1.0
ray_intent_classification_duration_seconds_bucket{{replica="a",cache_status="hit",le="+Inf"}} 3.0
ray_intent_classification_duration_seconds_count{{replica="a",cache_status="hit"}} 3.0
ray_intent_classification_duration_seconds_sum{{replica="a",cache_status="hit"}} 0.5
ray_node_cpu_utilization{{ip="1"}} 7.0
"""


def samples(exposition: bytes) -> dict[tuple[str, str], float]:
    return {
        (sample.name, ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(exposition.decode())
        for sample in family.samples
    }


def test_counts_are_summed_over_replicas_and_nodes_under_the_services_own_names():
    """Ray's prefix and labels go; what is not the service's is left out."""
    summed = samples(sum_expositions([AGENT.format(a=1.0), AGENT.format(a=10.0)]))

    assert summed["intent_classification_requests_total", "status=success"] == 15
    assert summed["intent_classification_requests_total", "status=cache_hit"] == 10
    assert not any("ray" in name or "replica" in labels for name, labels in summed)


def test_histograms_keep_their_buckets():
    """Buckets, count and sum add up each by itself, as histogram_quantile needs them."""
    summed = samples(sum_expositions([AGENT.format(a=1.0)] * 2))

    assert summed["intent_classification_duration_seconds_bucket", "cache_status=hit,le=0.001"] == 2
    assert summed["intent_classification_duration_seconds_bucket", "cache_status=hit,le=+Inf"] == 6
    assert summed["intent_classification_duration_seconds_sum", "cache_status=hit"] == 1


def test_no_agent_is_an_empty_exposition_that_parses():
    """A scrape must not fail because nothing was counted yet."""
    assert samples(sum_expositions([])) == {}


def test_a_gauge_of_which_there_is_one_truth_is_not_added_up():
    """Two replicas with the same model and the same corrections are not two models."""
    lines = "# TYPE ray_intent_model_info gauge\n" + "".join(
        f'ray_intent_model_info{{replica="{replica}",model_version="v1"}} 1.0\n' for replica in "ab"
    )

    assert samples(sum_expositions([lines]))["intent_model_info", "model_version=v1"] == 1
