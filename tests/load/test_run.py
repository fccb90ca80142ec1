"""Whole runs against a stub: what is measured, what is counted, and how a run ends."""

import multiprocessing

import pytest

from loadgen.load import Load, LoadError
from loadgen.run import measure
from loadgen.terminal import COORDINATED_OMISSION, render
from loadgen.traffic import Traffic
from loadgen.worker import work
from tests.load.conftest import StartStub
from tests.load.watchers import Interrupter, Killer, OtherCaller, printed

SHORT = {"lengths": "12:1", "warmup_s": 0.5, "duration_s": 2.0}


def load(target: str, **traffic: object) -> Load:
    """A short load of short texts; `max_lag_ms` is not what these tests are about."""
    traffic = Traffic(**SHORT | traffic)
    return Load(target=target, traffic=traffic, workers=1, max_lag_ms=1000, settle_s=0.5, timeout_s=5)


@pytest.mark.timeout(120)
def test_open_loop_shows_a_stall_and_the_closed_loop_hides_it(start_stub: StartStub):
    """A tenth of the time at a standstill holds up all who come meanwhile, and few of those who wait for answers."""
    url, _ = start_stub("--stall-every-s", "5", "--stall-s", "0.5")
    times = {"warmup_s": 0.5, "duration_s": 5.0}

    open_loop = measure(load(url, rate=100, **times))
    closed_loop = measure(load(url, arrivals="closed", connections=8, **times))

    p99 = {report.loop: report.summary("all").p99_ms for report in (open_loop, closed_loop)}
    assert 350 <= p99["open"] <= 600
    assert p99["closed"] < 100
    assert closed_loop.summary("all").max_ms > 450  # it was there, and one caller in a thousand saw it
    assert COORDINATED_OMISSION in printed(render, closed_loop)
    assert COORDINATED_OMISSION not in printed(render, open_loop)


def test_client_and_server_counts_agree_exactly_and_the_hit_rate_is_the_predicted_one(start_stub: StartStub):
    """Batches, feedback, refusals and variants included; warm-up too, for the server knows of none."""
    url, _ = start_stub("--shed-every", "400")

    traffic = {"rate": 400, "distinct": 2000, "batch": 0.1, "feedback": 0.1, "variants": 0.2, "duration_s": 3.0}
    report = measure(load(url, **traffic).model_copy(update={"workers": 2}))

    rows = {row.name: row for row in report.reconciliation.counts}
    assert all(row.low == row.high for row in rows.values())
    assert report.reconciliation.agrees
    assert rows["texts answered"].server > 1000
    assert rows["overloaded (429)"].server > 0
    assert rows["feedback recorded"].server > 100
    assert report.hit_rate == pytest.approx(report.predicted_hit_rate, abs=0.02)


def test_ctrl_c_while_the_counters_are_read_ends_the_run_and_keeps_what_was_seen(start_stub: StartStub):
    """Whoever runs several in a row must stop, too; the calls were all made, so the report is valid."""
    url, _ = start_stub()
    interrupter = Interrupter(url)

    with interrupter.counters() as metrics_url:
        report = measure(load(url, rate=50).model_copy(update={"metrics_url": metrics_url}), interrupter)

    assert report.ended == "interrupted"
    assert report.valid
    assert report.answered_per_s > 0
    assert "interrupted" in report.reconciliation.note


def test_somebody_else_on_the_server_is_noticed(start_stub: StartStub):
    """Its counts are then not the client's, and the report says so."""
    url, _ = start_stub()

    report = measure(load(url, rate=50).model_copy(update={"metrics_url": f"{url}/metrics"}), OtherCaller(url))

    assert not report.reconciliation.agrees
    assert "somebody else" in report.reconciliation.note


def test_callers_who_leave_widen_the_counts_that_agree(start_stub: StartStub):
    """Nobody knows whether their texts were counted."""
    url, _ = start_stub("--stall-every-s", "1", "--stall-s", "0.2")

    report = measure(load(url, rate=200, cancel=0.5))

    assert report.calls["cancelled"] > 0
    assert any(row.low < row.high for row in report.reconciliation.counts)
    assert report.reconciliation.agrees
    assert report.error_rate == 0


def test_the_cache_is_brought_to_its_state_first(start_stub: StartStub):
    """Warm: hits alone. Cold and fresh: what was sent before does not count, so the first ask of a text is a miss."""
    url, _ = start_stub()
    unprepared = load(url, rate=200, distinct=50, zipf_s=0, warmup_s=0)
    measure(unprepared.model_copy(update={"cache_state": "as-is"}))

    for state, misses in (("warm", 0), ("cold", 50), ("fresh", 50)):
        report = measure(unprepared.model_copy(update={"cache_state": state}))

        assert report.texts.get("miss", 0) == misses, state
        assert report.hit_rate == pytest.approx(report.predicted_hit_rate, abs=0.02)


def test_a_dead_target_is_one_clear_line():
    """Before any worker starts."""
    with pytest.raises(LoadError, match=r"nothing answers at http://127\.0\.0\.1:1"):
        measure(load("http://127.0.0.1:1"))


def test_a_target_that_is_another_server_is_one_clear_line(start_stub: StartStub):
    """Its refusal is shown."""
    url, _ = start_stub()

    with pytest.raises(LoadError, match="answers 404"):
        measure(load(url).model_copy(update={"api_path": "/elsewhere"}))


def test_a_target_that_dies_ends_the_run_with_what_was_seen(start_stub: StartStub):
    """Not at once, for it may come back; after some seconds of nothing but failed connections."""
    url, process = start_stub()

    report = measure(load(url, rate=100, duration_s=60), Killer(process, after_s=3))

    assert report.ended == "target died"
    assert 0 < report.measured_s < 20
    assert report.summary("all").count > 100
    assert report.calls["connection"] > 100
    assert not report.valid
    assert report.reconciliation.note == "the server's counters could not be read afterwards"


def test_more_than_may_be_under_way_is_not_sent_and_makes_the_run_invalid(start_stub: StartStub):
    """Nobody is kept waiting in the client where no measurement sees it."""
    url, _ = start_stub("--stall-every-s", "2", "--stall-s", "1.5")

    report = measure(load(url, rate=200).model_copy(update={"max_in_flight": 10}))

    assert any("were not sent" in reason for reason in report.invalid_because)


def test_a_late_load_generator_makes_the_run_invalid(start_stub: StartStub):
    """Its own lateness is measured, and held against a limit."""
    url, _ = start_stub()

    report = measure(load(url, rate=200).model_copy(update={"max_lag_ms": 0.001}))

    assert report.send_lag.p99_ms > 0.001
    assert any("send lag" in reason for reason in report.invalid_because)


def test_a_worker_that_is_given_up_before_the_start_ends_in_silence():
    """As by Ctrl-C while the counters come to rest; it has said that it is ready, and nobody has heard it."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    worker = context.Process(target=work, args=(load("http://127.0.0.1:1", rate=1), 0, "greeting", there), daemon=True)
    worker.start()
    there.close()
    ready = here.poll(30)
    here.close()
    worker.join(30)

    assert ready
    assert worker.exitcode == 0
