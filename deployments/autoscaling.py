"""How many model replicas there should be: a policy for Serve's autoscaler, named in `serve_config.yaml`.

Serve's own policy counts calls. Here a call carries many texts and an ingress keeps a handful in flight, so calls
understate a queue without end. This one goes by what each replica tells of itself (`Model.record_autoscaling_stats`):

    more     what waits at a replica, all of it, would take longer than `target_delay_ms`
    fewer    it would take half of that at most, and the replicas left would be busy for at most `max_busy_share` of the
             time
    as many  in between, and where some replica has told nothing lately and the others do not need help

Between the two bounds lies what keeps it from flapping: a replica that was added because texts waited is busy.

It runs in Serve's controller, pickled by value with nothing but this module: so it imports nothing, least of all ours.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

QUEUE_DELAY_MS = "queue_delay_ms"
"""Expected milliseconds until all that waits at a replica is served."""
BUSY_SHARE = "busy_share"
"""Share of the time, 0 to 1, in which a replica's worker worked."""


class QueueDelayPolicy:
    """Serve's `policy_function`; its arguments are `policy_kwargs`.

    Args:
        target_delay_ms: The longest that what waits should take to be served.
        drain_s: Time in which the replicas together are to work off what waits beyond the target, next to what comes
            in. Short, because a full queue refuses what comes: the wait stops growing where the shortage does not.
        max_busy_share: Share of the time that the replicas left after scaling down may be busy.

    Raises:
        ValueError: an argument that is not above 0.
    """

    def __init__(self, *, target_delay_ms: float = 50.0, drain_s: float = 1.0, max_busy_share: float = 0.6) -> None:
        if min(target_delay_ms, drain_s, max_busy_share) <= 0:
            raise ValueError(f"must be above 0: {target_delay_ms=}, {drain_s=}, {max_busy_share=}")
        self._target_delay_ms = target_delay_ms
        self._drain_ms = 1000 * drain_s
        self._max_busy_share = max_busy_share

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The replicas wanted, and no state to keep. Serve applies the delays of the configuration to it."""
        wanted = self._wanted(*_told(context), context.current_num_replicas, context.target_num_replicas)
        fewest, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        return max(fewest, min(wanted, most)), {}

    def _wanted(self, delays_ms: list[float], busy_shares: list[float], running: int, target: int) -> int:
        """Replicas wanted by those that told of themselves, when so many run and so many are to run."""
        if not delays_ms:
            return target
        delay_ms = sum(delays_ms) / len(delays_ms)
        if delay_ms > self._target_delay_ms:
            backlog = (delay_ms - self._target_delay_ms) / self._drain_ms
            return max(target, math.ceil(len(delays_ms) * (1 + backlog)))
        if delay_ms > self._target_delay_ms / 2 or len(busy_shares) < running:
            return target
        return min(target, max(1, math.ceil(sum(busy_shares) / self._max_busy_share)))


def _told(context: AutoscalingContext) -> tuple[list[float], list[float]]:
    """Queue delays and busy shares over the look-back period, of the running replicas that told of both in it."""
    since_s = context.current_time - context.config.look_back_period_s
    samples, means = context.raw_metrics or {}, context.aggregated_metrics or {}
    told = [
        replica
        for replica in context.running_replicas
        if all(_is_fresh(samples.get(name, {}).get(replica, []), since_s) for name in (QUEUE_DELAY_MS, BUSY_SHARE))
    ]
    return [means[QUEUE_DELAY_MS][replica] for replica in told], [means[BUSY_SHARE][replica] for replica in told]


def _is_fresh(series: list[Any], since_s: float) -> bool:
    """Whether the last sample is not older: Serve keeps the last report of a replica that has fallen silent."""
    return bool(series) and series[-1].timestamp >= since_s
