"""Replicas over time, beside what callers saw."""

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from loadgen.display import SilentDisplay, View
from loadgen.load import LoadError
from loadgen.scaling import HEAD, ReplicaWatch, Seen, markdown, replica_states, rows
from tests.unit.reports import report

ONE, STARTING, TWO = Counter(RUNNING=1), Counter(RUNNING=1, STARTING=1), Counter(RUNNING=2)


def details(*states: str) -> dict:
    deployments = {"Model": {"replicas": [{"state": state} for state in states]}}
    return {"applications": {"intents": {"deployments": deployments}}}


@pytest.fixture
def dashboard() -> Iterator[HTTPServer]:
    """Answers like Serve's: one replica runs and one starts."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(details("RUNNING", "STARTING")).encode())

        def log_message(self, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        yield server
        server.shutdown()
        serving.join()


def view(elapsed_s: float) -> View:
    return View(elapsed_s, 10, warming=False, rate_per_s=1, in_flight=0, latency_ms={}, failed={}, hit_rate=None,
                predicted_hit_rate=None)  # fmt: skip


def test_rows_hold_what_was_due_and_which_replicas_ran_in_each_stretch():
    """By hand: rows of 2 s, one failure in the first; the warm-up is left out."""
    measured = report([{"miss": [10, 10]}, {"miss": [30, 40], "shed": [5]}, {"miss": [20]}, {"miss": [20]}])
    seen = [Seen(4.0, TWO), Seen(5.0, ONE), Seen(6.5, STARTING), Seen(7.0, STARTING), Seen(8.5, TWO)]

    assert list(rows(measured, seen, 2.0)) == [
        ("0", "2", "1", "0 → 1", "10", "40", "1"),
        ("2", "1", "1 → 2", "1 → 0", "20", "20", "0"),
    ]


def test_a_stretch_without_calls_has_a_row_too():
    """Quiet is part of the picture."""
    measured = report([{"miss": [10]}, {}])

    assert list(rows(measured, [], 1.0))[1] == ("1", "0", "-", "-", "-", "-", "0")


def test_the_table_says_where_and_how_it_was_measured():
    """A figure without its machine and command is no figure."""
    text = markdown(report([{"miss": [10]}], failures={"503 unavailable": 2}), [Seen(5.0, ONE)], 1.0)

    assert re.match(r"\d{4}-\d\d-\d\d, .+, \d+ cores, ", text)
    assert "`python -m loadgen --rate 200`: 1 calls, 0.00% failed; 2x 503 unavailable." in text
    assert "| " + " | ".join(HEAD) + " |" in text
    assert text.endswith("| 0 | 1 | 1 | 0 | 10 | 10 | 0 |")


def test_an_unknown_deployment_is_named():
    """Not a traceback."""
    assert replica_states(details("RUNNING"), "intents", "Model") == ONE
    with pytest.raises(LoadError, match="'Modell'"):
        replica_states(details("RUNNING"), "intents", "Modell")


def test_the_watch_notes_replicas_in_the_runs_own_time(dashboard: HTTPServer):
    """The run tells it how late it is."""
    with ReplicaWatch(f"http://127.0.0.1:{dashboard.server_port}/", "intents", "Model", SilentDisplay()) as watch:
        watch.update(view(1.5))
        watch.update(view(2.0))

    assert watch.seen == [Seen(1.5, STARTING), Seen(2.0, STARTING)]


def test_a_dashboard_that_is_not_there_is_said_before_anything_is_sent():
    """A table without replicas is worth nothing."""
    with pytest.raises(LoadError, match="does not tell of replicas"):
        ReplicaWatch("http://127.0.0.1:1", "intents", "Model", SilentDisplay())
