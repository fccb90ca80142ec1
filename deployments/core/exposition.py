"""One exposition from many: the metrics of all replicas, summed, in Prometheus's text format.

Ray exposes each replica's metrics at its node's agent as `ray_<name>` with labels of its own. A caller of `/metrics`
wants the service's truth under the service's names, whichever replica answers.
"""

from collections.abc import Iterable, Iterator
from operator import add

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from deployments.core.metrics import ALL, Metric

RAY_PREFIX = "ray_"

_LARGEST = {metric.name for metric in ALL if metric.combine == "max"}

_Totals = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def sum_expositions(texts: Iterable[str]) -> bytes:
    """Sum the service's own metrics over `texts`, each one agent's exposition; other metrics are left out.

    Counters keep the share of replicas that are gone, because the agents keep it; so the sums never fall while the
    agents live.
    """
    totals: _Totals = {}
    for text in texts:
        _add(totals, _own_lines(text))
    registry = CollectorRegistry()
    registry.register(_Summed(totals))
    return generate_latest(registry)


def _own_lines(text: str) -> str:
    # Filtered before parsing: an agent's exposition has thousands of Ray's own lines, and parsing is slow.
    wanted = tuple(f"{RAY_PREFIX}{metric.name}" for metric in ALL)
    return "".join(line for line in text.splitlines(keepends=True) if line.startswith(wanted))


def _add(totals: _Totals, text: str) -> None:
    labels_of = {suffixed: set(metric.labels) | {"le"} for metric in ALL for suffixed in _sample_names(metric)}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removeprefix(RAY_PREFIX)
            labels = tuple(sorted((k, v) for k, v in sample.labels.items() if k in labels_of.get(name, ())))
            combine = max if name in _LARGEST else add
            totals[name, labels] = combine(totals.get((name, labels), 0.0), sample.value)


def _sample_names(metric: Metric) -> tuple[str, ...]:
    if metric.kind == "histogram":
        return f"{metric.name}_bucket", f"{metric.name}_sum", f"{metric.name}_count"
    return (metric.name,)


class _Summed(Collector):
    """Hands the sums to prometheus_client, which owns the text format."""

    def __init__(self, totals: _Totals) -> None:
        self._totals = totals

    def collect(self) -> Iterator[Family]:
        for metric in ALL:
            family = Family(metric.name.removesuffix("_total"), metric.help, metric.kind)
            for name in _sample_names(metric):
                for (sample_name, labels), value in self._totals.items():
                    if sample_name == name:
                        family.add_sample(name, dict(labels), value)
            yield family
