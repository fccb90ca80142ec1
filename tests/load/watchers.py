"""Displays that interfere with a run, and what a report looks like on a terminal."""

import io
import subprocess  # noqa: TC003
import urllib.request
from collections.abc import Callable

from rich.console import Console

from loadgen.display import SilentDisplay, View
from loadgen.report import Report


class Killer(SilentDisplay):
    """Kills a process when the run is so far."""

    def __init__(self, process: "subprocess.Popen[str]", after_s: float) -> None:
        self._process = process
        self._after_s = after_s

    def update(self, view: View) -> None:
        if view.elapsed_s >= self._after_s:
            self._process.kill()


class OtherCaller(SilentDisplay):
    """Calls the server too."""

    def __init__(self, url: str) -> None:
        self._url = url

    def update(self, view: View) -> None:
        with urllib.request.urlopen(f"{self._url}/api/v1/intents/classify", b'{"text": "me too"}') as response:
            response.read()


def printed(render: Callable[[Report, Console], None], report: Report) -> str:
    """What a pipe would receive."""
    output = io.StringIO()
    render(report, Console(file=output))
    return output.getvalue()
