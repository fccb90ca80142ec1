"""The service of this checkout, started for a measurement by its own command, with folders of its own.

Used as its users use it: `intents up` in the background, HTTP, `intents down`. Nothing of it is imported.
"""

import copy
import math
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import yaml

from loadgen.load import LoadError
from loadgen.machine import ROOT
from loadgen.running_service import RunningService, plain_environment

START_TIMEOUT_S = 180
STOP_TIMEOUT_S = 60
INTERRUPT_TIMEOUT_S = 30


class LocalService(RunningService):
    """Starts on entry, stops on exit; the user's own data and state stay untouched.

    `config` is a Serve configuration; the shipped one when None.
    """

    def __init__(self, port: int = 8000, config: Mapping[str, Any] | None = None) -> None:
        # Not a folder that goes by itself: a service that could not be stopped still runs on it.
        super().__init__(f"http://127.0.0.1:{port}", Path(tempfile.mkdtemp(prefix="intents-")))
        self.config = config
        self.started_in_s = 0.0
        self._port = port

    def __enter__(self) -> Self:
        started_s = time.monotonic()
        try:
            self._up()
        except BaseException as error:
            self._stop(keeps_log=isinstance(error, LoadError))
            raise
        self.started_in_s = time.monotonic() - started_s
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _up(self) -> None:
        chosen = () if self.config is None else ("--config", str(self._written(self.config)))
        self._intents("up", "--detach", "--port", str(self._port), *chosen, timeout_s=START_TIMEOUT_S)

    def _written(self, config: Mapping[str, Any]) -> Path:
        path = self._folder / "serve_config.yaml"
        path.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
        return path

    def start_again(self) -> None:
        """Start it on the same data, once the supervisor of the last one has ended.

        Raises:
            LoadError: that one does not end, or the new one does not start.
        """
        try:
            self.processes()[0].wait(STOP_TIMEOUT_S)
        except psutil.TimeoutExpired:
            raise LoadError(f"`intents up` still runs {STOP_TIMEOUT_S} s after Ray has ended") from None
        except (FileNotFoundError, psutil.NoSuchProcess):
            pass  # it has ended already
        self._up()

    def _stop(self, *, keeps_log: bool = False) -> None:
        """Stop the service; that it did not is told, and hides no other error and no figure.

        With `keeps_log` its folder stays: an error names the log in it.
        """
        try:
            self._intents("down", timeout_s=STOP_TIMEOUT_S)
        except LoadError as error:
            sys.stderr.write(f"{error}; its state is in {self._folder}/state\n")
        else:
            if not keeps_log:
                shutil.rmtree(self._folder)

    def _intents(self, *arguments: str, timeout_s: float) -> None:
        folder = self._folder
        with subprocess.Popen(  # noqa: S603 — the command is our own
            [Path(sys.executable).parent / "intents", *arguments],
            env=plain_environment() | {"XDG_STATE_HOME": f"{folder}/state", "XDG_DATA_HOME": f"{folder}/data"},
            start_new_session=True,  # Ctrl-C is for the measurement, which then stops the service
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                output, errors = process.communicate(timeout=timeout_s)
            except BaseException as error:
                _interrupt(process)
                if isinstance(error, subprocess.TimeoutExpired):
                    raise LoadError(f"`intents {arguments[0]}` did not end within {timeout_s:g} s") from None
                raise
        if process.returncode:
            last_words = output.strip().rpartition("\n")[2].strip()  # progress goes there, and what ended it
            raise LoadError(f"`intents {arguments[0]}` failed: {last_words} {errors.strip()}")


def _interrupt(process: "subprocess.Popen[str]") -> None:
    """End a command as Ctrl-C does: `intents up` then ends what it has started so far."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(INTERRUPT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()


@contextmanager
def started_or(target: str | None, **settings: object) -> Iterator[tuple[str, LocalService | None]]:
    """The address of the service at `target`, or of one started here with one model replica, and that one.

    `settings` are what the one started here has beside the shipped configuration's.

    Raises:
        LoadError: it does not start.
    """
    if target:
        yield target.rstrip("/"), None
        return
    sys.stderr.write("starting the service with one model replica\n")
    config = one_model_replica(shipped_config())
    for application in config["applications"]:
        application["args"] = (application.get("args") or {}) | settings
    with LocalService(config=config) as service:
        sys.stderr.write(f"it answers after {service.started_in_s:.1f} s\n")
        yield service.url, service


def shipped_config() -> dict[str, Any]:
    """The Serve configuration of this checkout.

    Raises:
        LoadError: this is no checkout.
    """
    path = ROOT / "serve_config.yaml"
    if not path.is_file():
        raise LoadError(
            f"{path} is missing: run this in a checkout, or name a running service with --target (and its --threads)"
        )
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return config


def one_model_replica(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same configuration with a single model replica that stays single: what one does is the measure of all."""
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    model = _deployment(changed, "Model")
    if scaling := model.get("autoscaling_config"):
        scaling.pop("initial_replicas", None)
        scaling |= {"min_replicas": 1, "max_replicas": 1}
    else:
        model["num_replicas"] = 1
    return changed


def with_replicas(config: Mapping[str, Any], deployment: str, count: int) -> dict[str, Any]:
    """The same configuration with so many replicas of a deployment that does not scale by itself."""
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    _deployment(changed, deployment)["num_replicas"] = count
    return changed


def model_threads(config: Mapping[str, Any]) -> int:
    """Threads of a model replica's forward pass: its CPUs rounded up."""
    options: dict[str, float] = _deployment(config, "Model").get("ray_actor_options", {})
    return math.ceil(options.get("num_cpus", 1))


def _deployment(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    deployments = (each for application in config["applications"] for each in application["deployments"])
    found: dict[str, Any] = next(each for each in deployments if each["name"] == name)
    return found
