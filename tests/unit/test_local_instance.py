"""Where a run's state is kept, whether it is alive, and what belongs to it."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from deployments.core.errors import StartupError
from deployments.local import processes
from deployments.local.environment import RUN_VARIABLE
from deployments.local.instance import State, StateFile, StateKeeper, data_folder, held, state_folder, without_password
from deployments.local.processes import Identity

SLEEP = [sys.executable, "-S", "-c", "import time; print(flush=True); time.sleep(60)"]


def a_state(**changes) -> State:
    own = Identity.of(os.getpid())
    state = State(
        run="r1",
        supervisor=own,
        phase="ready",
        address="http://127.0.0.1:8000",
        dashboard="http://127.0.0.1:8265",
        gcs="127.0.0.1:7001",
        stores={"predictions": "redis://127.0.0.1:7002/0"},
        started_stores=("predictions",),
        sessions=(own,),
    )
    return replace(state, **changes)


@pytest.fixture
def sleeping():
    """Starts processes that sleep, and ends them after the test."""
    started = []

    def start(command=SLEEP, **options) -> subprocess.Popen:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, **options)
        process.stdout.readline()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_written_state_is_read_back(tmp_path):
    """Whole, with its identities."""
    file = StateFile(tmp_path / "new")
    file.write(a_state())

    assert file.read() == a_state()


def test_only_its_owner_can_read_the_state(tmp_path):
    """Other users of the machine need not know."""
    file = StateFile(tmp_path / "new")
    file.write(a_state())

    assert file.path.stat().st_mode & 0o777 == 0o600
    assert file.folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("content", ["", "{", "[]", '{"run": "r1"}'])
def test_a_file_nobody_can_read_is_no_state(tmp_path, content):
    """A half-written or foreign file does not stop a command."""
    (tmp_path / "state.json").write_text(content)

    assert StateFile(tmp_path).read() is None


def test_changing_the_state_changes_the_file(tmp_path):
    """The keeper's file is never behind."""
    file = StateFile(tmp_path)
    keeper = StateKeeper(file, a_state(phase="starting"))

    keeper.update(phase="ready")

    assert file.read().phase == "ready"


def test_a_run_removes_its_own_state_only(tmp_path):
    """The next run may have written its own already."""
    file = StateFile(tmp_path)
    file.write(a_state(run="next"))

    file.remove("r1")

    assert file.read().run == "next"


def test_a_pid_used_again_is_another_process():
    """Its start differs."""
    own = Identity.of(os.getpid())

    assert own.alive
    assert not replace(own, started=own.started - 1).alive


def test_a_process_that_ended_has_no_identity(sleeping):
    """Not even while its parent has not asked for its exit code."""
    process = sleeping()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    assert Identity.of(process.pid) is None


def test_a_held_folder_cannot_be_held_by_another_process(tmp_path, sleeping):
    """The message has the folder, who holds it and what to do."""
    script = (
        "import pathlib, sys, time\nfrom deployments.local.instance import held\n"
        "with held(pathlib.Path(sys.argv[1]), purpose='p', remedy='r'):\n    print(flush=True); time.sleep(60)"
    )
    holder = sleeping([sys.executable, "-c", script, str(tmp_path)])

    with (
        pytest.raises(StartupError) as error,
        held(tmp_path, purpose="data folder", remedy="choose another with --data-dir"),
    ):
        pass

    assert str(error.value) == (
        f"the data folder {tmp_path} is in use by process {holder.pid}; choose another with --data-dir"
    )


def test_a_folder_is_free_again_when_its_holder_was_killed(tmp_path, sleeping):
    """The kernel lets go; no stale lock stays."""
    with held(tmp_path, purpose="p", remedy="r"):
        pass

    with held(tmp_path, purpose="p", remedy="r"):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_folders_follow_the_xdg_variables():
    """Both may be moved, as the base directory specification has it."""
    environment = {"XDG_STATE_HOME": "/s", "XDG_DATA_HOME": "/d"}

    assert str(state_folder(environment)) == "/s/intentgraph"
    assert str(data_folder(environment)) == "/d/intentgraph"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:secret@db.example:6379/0", "redis://db.example:6379/0"),
        ("redis://:sec@ret@db:1/0?password=secret", "redis://db:1/0"),
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
    ],
)
def test_a_url_is_shown_without_its_password(url, shown):
    """Neither in its authority nor in its query."""
    assert without_password(url) == shown


def test_what_carries_the_runs_mark_belongs_with_all_its_descendants(sleeping):
    """Also those whose own environment lost the mark."""
    script = "import subprocess, sys; subprocess.run(sys.argv[1:], env={})"
    parent = sleeping([sys.executable, "-c", script, *SLEEP], env=os.environ | {RUN_VARIABLE: "here"})
    stranger = sleeping(env=os.environ | {RUN_VARIABLE: "elsewhere"})

    found = processes.belonging("here")

    assert parent.pid in {process.pid for process in found}
    assert len(found) == 2
    assert stranger.pid not in {process.pid for process in found}
    processes.end(found, grace_s=1)


def test_what_lives_in_a_session_of_the_run_belongs(sleeping):
    """Ray's helpers overwrite their environment, but not their session."""
    member = sleeping(start_new_session=True)
    leader = Identity.of(member.pid)

    assert [process.pid for process in processes.belonging("none", [leader])] == [member.pid]
    assert processes.belonging("none", [replace(leader, started=0)]) == []
    assert processes.belonging("none", [leader], besides=[member.pid]) == []


def test_ending_insists(sleeping):
    """What ignores SIGTERM is killed after its grace."""
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    stubborn = sleeping([sys.executable, "-S", "-c", script], env=os.environ | {RUN_VARIABLE: "stubborn"})

    resisting = processes.end(processes.belonging("stubborn"), grace_s=0.1)

    assert resisting == []
    assert Identity.of(stubborn.pid) is None
