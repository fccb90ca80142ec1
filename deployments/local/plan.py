"""What a local run will do, decided before anything starts: its Serve configuration, the stores and keys it needs."""

from __future__ import annotations

import copy
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from deployments.core import api_keys
from deployments.core.errors import StartupError
from deployments.local.instance import keys_file

if TYPE_CHECKING:
    from collections.abc import Mapping

DASHBOARD_PORT = 8265
STATISTICS_PORT = ("RAY_SERVE_HAPROXY_STATS_PORT", 8404)
METRICS_PORT = ("RAY_SERVE_HAPROXY_METRICS_PORT", 9101)


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked of `intents up`."""

    config: Path
    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 8000
    haproxy: bool = True
    open_to_all: bool = False
    keys: Path | None = None
    unsafe_feedback: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Options with the configuration they come to."""

    options: Options
    config: dict[str, Any]
    """The Serve configuration with host, port, keys and `auth` as asked."""
    stores: tuple[str, ...]
    """Names of the stores to start: those without a URL in `args:` or the environment."""
    keys_in_force: int | None = None
    """How many API keys the service will know; None: it will ask for none."""

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The settings in `args:` of the first application."""
        return self.config["applications"][0].get("args") or {}

    @property
    def address(self) -> str:
        """Where this machine calls the service."""
        host = self.options.host if is_loopback(self.options.host) else "127.0.0.1"
        return f"http://{f'[{host}]' if ':' in host else host}:{self.options.port}"

    def listening_ports(self, environment: Mapping[str, str] = os.environ) -> dict[int, str]:
        """Fixed ports the run will listen on, each with what for and how to move it."""
        ports = {
            self.options.port: f"the service; choose another with --port {self.options.port + 1}",
            DASHBOARD_PORT: "the Ray dashboard, through which the graph is deployed",
        }
        if self.options.haproxy:
            for (name, default), purpose in ((STATISTICS_PORT, "statistics"), (METRICS_PORT, "metrics")):
                ports[int(environment.get(name) or default)] = (
                    f"HAProxy's {purpose}; move it with {name}, or use --no-haproxy"
                )
        return ports


def plan(options: Options, environment: Mapping[str, str] = os.environ) -> Plan:
    """Read the Serve configuration and settle what the run needs.

    Raises:
        StartupError: the file is missing or is no Serve configuration; the keys file is missing or is none.
    """
    config = _adapted(_read(options.config), options, keys_file(environment))
    arguments = config["applications"][0].get("args") or {}
    return Plan(
        options=options,
        config=config,
        stores=_stores_without_url(arguments, environment),
        keys_in_force=_keys_in_force(arguments),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text())
    except OSError as error:
        raise StartupError(f"cannot read {path} ({error.strerror}); name a Serve configuration with --config") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StartupError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not (isinstance(config, dict) and config.get("applications")):
        raise StartupError(f"{path} has no `applications:`; it must be a configuration for `serve deploy`")
    return config


def _adapted(config: dict[str, Any], options: Options, own_keys: Path) -> dict[str, Any]:
    adapted = copy.deepcopy(config)
    adapted["http_options"] = (adapted.get("http_options") or {}) | {"host": options.host, "port": options.port}
    application = adapted["applications"][0]
    arguments = application.get("args") or {}
    if options.open_to_all:
        arguments |= {"auth": "open"}
    if options.unsafe_feedback:
        arguments |= {"unsafe_feedback": True}
    if keys := options.keys or arguments.get("api_keys_file") or (own_keys if own_keys.exists() else None):
        arguments |= {"api_keys_file": str(Path(keys).absolute())}
    return adapted | {"applications": [application | {"args": arguments}, *adapted["applications"][1:]]}


def _keys_in_force(arguments: Mapping[str, Any]) -> int | None:
    file = arguments.get("api_keys_file")
    return len(api_keys.read(Path(file)).in_force) if file else None


def _stores_without_url(arguments: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[str, ...]:
    def given(*names: str) -> bool:
        return any(arguments.get(name) or environment.get(name.upper()) for name in names)

    if given("redis_url", "redis_host"):
        return ()  # the log uses the same server unless it has its own URL
    return ("predictions",) if given("feedback_redis_url") else ("predictions", "feedback")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
