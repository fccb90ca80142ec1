"""Displays that interfere with a run, and what a report looks like on a terminal."""

import io
import os
import signal
import subprocess  # noqa: TC003
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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


class Interrupter(SilentDisplay):
    """Passes a server's counters on, and presses Ctrl-C when they are asked for after the run."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._ran = False

    def update(self, view: View) -> None:
        self._ran = True

    @contextmanager
    def counters(self) -> Iterator[str]:
        """The address of the counters."""
        interrupter = self

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if interrupter._ran:
                    os.kill(os.getpid(), signal.SIGINT)
                with urllib.request.urlopen(f"{interrupter._url}/metrics") as counters:
                    body = counters.read()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None: ...

        with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,)).start()
            yield f"http://127.0.0.1:{server.server_port}/metrics"
            server.shutdown()


def printed(render: Callable[[Report, Console], None], report: Report) -> str:
    """What a pipe would receive."""
    output = io.StringIO()
    render(report, Console(file=output))
    return output.getvalue()
