"""The environment of a local run's Ray processes: which Serve and Ray knobs differ from their defaults, and why.

It decides more about speed than any code: a constant answer goes from 350 to 3,000 requests/s. It must stand before
`ray start`, because Serve reads it at import in every process. Names and defaults: `ray/serve/_private/constants.py`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

RUN_VARIABLE = "INTENTS_RUN"
"""Marks every process of one run, so that stopping ends those and no others."""


@dataclass(frozen=True, slots=True)
class Knob:
    """A variable, its value for a local run and the reason; where `yields`, the user's own value stands."""

    name: str
    value: str
    reason: str
    yields: bool = True


def knobs(*, haproxy: bool, cpus: int) -> tuple[Knob, ...]:
    """Every variable a local run sets; `haproxy` puts HAProxy in front and turns the throughput mode on with it."""
    return (
        Knob("RAY_AUTH_MODE", "disabled", "otherwise a token file left in the home folder decides", yields=False),
        Knob("RAY_metrics_report_interval_ms", "1000", "fresh numbers on a dashboard; default 10 s"),
        Knob(
            "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS", "1000", "no faster than Ray reports; 100 ms cost idle replicas 15 %"
        ),
        Knob(
            "RAY_SERVE_COLLECT_AUTOSCALING_METRICS_ON_HANDLE",
            "0",
            "replicas tell of their own load; counting at each handle too is work on every call",
        ),
        Knob(
            "RAY_SERVE_CONTROL_LOOP_INTERVAL_S",
            "0.5",
            "the controller looks after the replicas twice a second; ten times takes 8 % of a core, this half of it",
        ),
        Knob("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "0", "Serve is shut down before Ray: nothing is left to drain"),
        Knob("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "1", "nobody here needs 30 s to stop calling"),
        Knob("RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S", "5", "an old HAProxy holds its port no longer; default 120 s"),
        Knob("RAY_SERVE_PORT_QUARANTINE_S", "6", "over the hard stop: an old HAProxy still routes to freed ports"),
        Knob("HF_HUB_OFFLINE", "1", "the encoder is a wheel: no start waits for a hub"),
        *(_haproxy_knobs(cpus) if haproxy else _PLAIN_KNOBS),
    )


def _haproxy_knobs(cpus: int) -> tuple[Knob, ...]:
    threads = str(min(4, max(1, cpus // 2)))
    return (
        Knob("RAY_SERVE_ENABLE_HA_PROXY", "1", "7x the requests of Serve's own Python proxy", yields=False),
        Knob("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1", "gRPC between replicas, one event loop in each", yields=False),
        Knob(
            "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH",
            "deployments.http.front.middlewares",
            "a hit is answered before Serve's own work on a request",
        ),
        Knob("RAY_SERVE_HAPROXY_NBTHREAD", threads, "on 2 cores one thread serves 15 % more than the default 4"),
        Knob("RAY_SERVE_HAPROXY_METRICS_ENABLED", "0", "its manager spends 25 % of a core on a log line a request"),
    )


_PLAIN_KNOBS = (
    Knob("RAY_SERVE_ENABLE_HA_PROXY", "0", "asked for with --no-haproxy", yields=False),
    Knob("RAY_SERVE_THROUGHPUT_OPTIMIZED", "0", "without HAProxy it forces `proxy_location: HeadOnly`", yields=False),
)


def haproxy_paths(folder: Path) -> dict[str, str]:
    """HAProxy's files below a folder only this user can enter: its admin socket is world-writable (mode 666)."""
    return {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
    }


def node_environment(
    base: Mapping[str, str],
    *,
    run: str,
    folder: Path,
    haproxy: bool,
    fallback_proxy_port: int,
    store_urls: Mapping[str, str],
    cpus: int | None = None,
) -> dict[str, str]:
    """The whole environment of `ray start`, from which every replica inherits.

    Args:
        base: the user's environment; the settings it names (`CACHE_TTL`, `LOG_LEVEL`, …) pass through.
        run: this run's mark.
        folder: a private folder with a short path (a socket's path has at most 107 bytes).
        haproxy: whether HAProxy stands in front.
        fallback_proxy_port: where Serve's Python proxy listens behind HAProxy; a free port instead of always 8500.
        store_urls: `REDIS_URL` and `FEEDBACK_REDIS_URL` of the stores this run started.
        cpus: processors to assume; those of this machine when absent.
    """
    environment = dict(base)
    environment.pop("RAY_ADDRESS", None)  # it would point replicas at another cluster
    environment.pop("INTENTS_API_KEY", None)  # of this user as a caller; no process of the service needs it
    if environment.get("MODEL_ARTIFACT"):  # a replica's working folder is Ray's affair
        environment["MODEL_ARTIFACT"] = str(Path(environment["MODEL_ARTIFACT"]).absolute())
    for knob in knobs(haproxy=haproxy, cpus=cpus or os.cpu_count() or 1):
        if not (knob.yields and base.get(knob.name)):
            environment[knob.name] = knob.value
    environment |= haproxy_paths(folder) if haproxy else {}
    environment.setdefault("RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", str(fallback_proxy_port))
    return environment | dict(store_urls) | {RUN_VARIABLE: run}
