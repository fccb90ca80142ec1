"""Starting in the background, stopping, and cleaning up after a run that was killed."""

import io
import os
import subprocess
import sys
import uuid

import pytest
from rich.console import Console

from deployments.core.errors import StartupError
from deployments.local import control, supervisor
from deployments.local.environment import RUN_VARIABLE
from deployments.local.instance import State, StateFile
from deployments.local.processes import Identity
from deployments.local.progress import Progress

GONE = Identity(pid=1, started=-1)


@pytest.fixture
def told():
    """What the user is told off a terminal; the clock stands still."""
    return io.StringIO()


@pytest.fixture
def progress(told):
    return Progress(Console(file=told, width=200), clock=lambda: 0.0)


@pytest.fixture
def left_behind(tmp_path):
    """The state of a run whose supervisor was killed, and the one process that survived it."""
    run = uuid.uuid4().hex  # its processes are looked for on the whole machine, where such another test may run
    survivor = subprocess.Popen(
        [sys.executable, "-S", "-c", "import time; print(flush=True); time.sleep(60)"],
        env=os.environ | {RUN_VARIABLE: run},
        stdout=subprocess.PIPE,
    )
    survivor.stdout.readline()
    folder = tmp_path / "scratch"
    folder.mkdir()
    state = State(run, GONE, "ready", "http://127.0.0.1:1", "http://127.0.0.1:2", "g", {}, folder=str(folder))
    file = StateFile(tmp_path)
    file.write(state)
    yield file, Identity.of(survivor.pid), folder
    survivor.kill()
    survivor.communicate()


def test_down_ends_what_a_killed_run_left(left_behind, progress, told):
    """Its processes, its folder and its state; nothing is left to do by hand."""
    file, survivor, folder = left_behind

    assert control.stop(file, progress)
    assert "ending 1 processes the run left behind" in told.getvalue()
    assert not survivor.alive
    assert not folder.exists()
    assert file.read() is None


def test_the_next_start_ends_what_a_killed_run_left(left_behind, progress):
    """So that its ports are free at once."""
    file, survivor, folder = left_behind

    assert supervisor.sweep(file, progress) == 1
    assert not survivor.alive
    assert not folder.exists()
    assert file.read() is None


def test_a_live_run_is_not_swept(tmp_path, progress):
    """Only `intents down` stops it."""
    file = StateFile(tmp_path)
    file.write(State("alive", Identity.of(os.getpid()), "ready", "a", "d", "g", {}))

    assert supervisor.sweep(file, progress) == 0
    assert file.read() is not None


def test_with_nothing_running_there_is_nothing_to_stop(tmp_path, progress):
    """And nothing is told."""
    assert not control.stop(StateFile(tmp_path), progress)


def test_a_detached_start_that_fails_shows_why(tmp_path, progress, told):
    """The background process's own words reach the user, and the log that keeps them is named."""
    with pytest.raises(StartupError, match=r"up\.log"):
        control.start_detached(["--config=/none.yaml"], StateFile(tmp_path), progress)

    assert "intents: cannot read /none.yaml" in told.getvalue()


def test_off_a_terminal_only_what_is_done_is_told(progress, told):
    """One line a step, with its second; brackets are text, not markup."""
    progress.waiting("thinking")
    progress.done("Ray is up [here]")
    progress.rest()

    assert told.getvalue() == "   0.0 s  Ray is up [here]\n"
