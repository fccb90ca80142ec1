"""The service of this checkout, started for a measurement by its own command, with folders of its own.

Used as its users use it: `intents up` in the background, HTTP, `intents down`. Nothing of it is imported.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from loadgen.load import LoadError

START_TIMEOUT_S = 180
STOP_TIMEOUT_S = 60
STEERING = ("RAY_", "REDIS_", "FEEDBACK_REDIS_", "CACHE_", "ENABLE_CACHING", "MODEL_ARTIFACT", "LOG_LEVEL")


class LocalService:
    """Starts on entry, stops on exit; the user's own data and state stay untouched."""

    def __init__(self, port: int = 8000) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.started_in_s = 0.0
        self._port = port
        self._folder = tempfile.TemporaryDirectory(prefix="intents-")

    def __enter__(self) -> Self:
        started_s = time.monotonic()
        try:
            self._intents("up", "--detach", "--port", str(self._port), timeout_s=START_TIMEOUT_S)
        except BaseException:
            self._stop()
            raise
        self.started_in_s = time.monotonic() - started_s
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        """Stop the service; that it did not is told, and hides no other error and no figure."""
        try:
            self._intents("down", timeout_s=STOP_TIMEOUT_S)
        except LoadError as error:
            sys.stderr.write(f"{error}; its state is in {self._folder.name}/state\n")
        else:
            self._folder.cleanup()

    def _intents(self, *arguments: str, timeout_s: float) -> None:
        folder = self._folder.name
        try:
            result = subprocess.run(  # noqa: S603 — the command is our own
                [Path(sys.executable).parent / "intents", *arguments],
                env=_plain_environment() | {"XDG_STATE_HOME": f"{folder}/state", "XDG_DATA_HOME": f"{folder}/data"},
                start_new_session=True,  # Ctrl-C is for the measurement, which then stops the service
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise LoadError(f"`intents {arguments[0]}` did not end within {timeout_s:g} s") from None
        if result.returncode:
            raise LoadError(f"`intents {arguments[0]}` failed: {result.stderr.strip() or result.stdout.strip()}")


def _plain_environment() -> dict[str, str]:
    """The user's environment without what would steer the service: it is measured as it comes."""
    return {name: value for name, value in os.environ.items() if not name.startswith(STEERING)}
