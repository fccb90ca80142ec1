"""The command line: what it says and with which exit code it ends."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadgen.cli import app
from tests.load.conftest import StartStub

LOADGEN = [sys.executable, "-m", "loadgen"]
SHORT = ["--lengths", "12:1", "--warmup", "0.5", "--duration", "2", "--settle", "0.5", "--max-lag-ms", "1000"]
HOLDS = ["--assert", "error_rate<0.001"]


def loadgen(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LOADGEN, *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--rate", "-4"], "rate is -4.0"),
        (["--rate", "fast"], "Invalid value for '--rate'"),
        (["--arrivals", "wild"], "arrivals is 'wild'"),
        (["--target", "localhost:8000"], "give http://HOST:PORT"),
        (["--target", "http://127.0.0.1:1"], "nothing answers at http://127.0.0.1:1"),
        (["--assert", "hit.p99<10"], "needs its unit"),
        (["--corpus", "/no/such/file"], "/no/such/file"),
        (["--arrivals", "trace"], "trace"),
        (["--texts", "unique", "--cache-state", "warm"], "unique texts come once"),
        (["--out", "/no/such/folder/run.json"], "there is no folder"),
        (["compare", "/no/such/a.json", "/no/such/b.json"], "/no/such/a.json"),
        (["slo", "--low", "100", "--high", "10"], "give a low below the high"),
    ],
)
def test_wrong_usage_is_a_clear_line_and_exit_code_2(arguments: list[str], complaint: str):
    """One line, and nothing is sent."""
    result = CliRunner().invoke(app, arguments)

    assert result.exit_code == 2
    assert complaint in result.stderr


def test_wrong_usage_has_no_stack():
    """Nor does anything else speak of the insides when the process ends."""
    result = loadgen("--rate", "-4")

    assert result.returncode == 2
    assert result.stderr.startswith("error: rate is -4.0")
    assert len(result.stderr.splitlines()) == 1


def test_a_run_prints_its_report_and_writes_it_with_plots(start_stub: StartStub, tmp_path: Path):
    """Progress goes to standard error, the report to standard output, a line every few seconds without a terminal.

    A report that is held against itself differs in nothing.
    """
    url, _ = start_stub()
    out, plots = tmp_path / "run.json", tmp_path / "plots"

    result = loadgen("--target", url, "--rps", "100", *SHORT, "--out", str(out), "--plots", str(plots), *HOLDS)
    compared = loadgen("compare", str(out), str(out))

    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("VALID, open loop")
    assert "server and client agree" in result.stdout
    assert "holds: error_rate<0.001" in result.stdout
    assert re.search(r"\d/2 s \| ", result.stderr)
    report = json.loads(out.read_text())
    assert report["settings"]["traffic"]["rate"] == 100
    assert report["machine"]["cores"] >= 1
    assert {"python", "aiohttp", "ray"} <= report["versions"].keys()
    assert all(path.stat().st_size > 10_000 for path in plots.glob("*.png"))
    assert list(plots.glob("*.png"))
    assert compared.returncode == 0, compared.stderr
    assert re.search(r"p99 .*\b1\.00", compared.stdout)


def test_an_assertion_that_does_not_hold_makes_the_exit_code_1(start_stub: StartStub):
    """Each is printed, those that hold too."""
    url, _ = start_stub()

    result = loadgen("--target", url, *SHORT, *HOLDS, "--assert", "all.count>=10", "--assert", "miss.p50<1us")

    assert result.returncode == 1
    assert "holds: all.count>=10" in result.stdout
    assert "FAILS: miss.p50<1us" in result.stdout


def test_ctrl_c_ends_a_run_with_what_was_seen(start_stub: StartStub, tmp_path: Path):
    """The report is printed and written, the exit code is the shell's for Ctrl-C, and no process is left."""
    url, _ = start_stub()
    out = tmp_path / "run.json"
    command = [*LOADGEN, "--target", url, "--rate", "100", *SHORT, "--duration", "60", "--out", str(out)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, start_new_session=True) as process:
        assert process.stderr
        assert any("60 s |" in line and "warm-up" not in line for line in process.stderr)  # measuring

        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
        output, progress = process.communicate(timeout=30)

    assert process.returncode == 130
    assert "interrupted after" in progress
    assert "Traceback" not in progress
    assert "ENDED EARLY, interrupted" in output
    report = json.loads(out.read_text())
    assert report["ended"] == "interrupted"
    assert report["valid"]
    assert report["calls"]["miss"] > 20
    assert report["reconciliation"]["agrees"]


def test_slo_finds_a_rate_that_holds(start_stub: StartStub):
    """A stub that refuses every fortieth call keeps no objective of 0.1 % failures, but one of 5 %."""
    url, _ = start_stub("--shed-every", "40")
    search = ["slo", "--target", url, "--low", "40", "--high", "60", "--precision", "0.3", "--repeats", "1"]
    search += ["--lengths", "12:1", "--warmup", "0.5", "--duration", "2", "--p99-ms", "1000", "--max-lag-ms", "1000"]

    lenient, strict = loadgen(*search, "--errors", "0.05"), loadgen(*search, "--errors", "0.001")

    assert (lenient.returncode, strict.returncode) == (0, 1)
    assert "60.0/s, goodput" in lenient.stdout
    assert "does not hold even at 40/s" in strict.stdout


def test_an_overload_is_told_by_phase_with_a_verdict_for_each_promise(start_stub: StartStub, tmp_path: Path):
    """A stub that refuses every hundredth call was never normal, so it does not come back either: exit code 1."""
    url, _ = start_stub("--shed-every", "100")
    out = tmp_path / "overload.json"
    command = [sys.executable, "-m", "loadgen.overload", "--target", url, "--rate", "100", "--max-lag-ms", "1000"]
    command += ["--duration", "2", "--calm", "2", "--out", str(out)]

    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    phases = json.loads(out.read_text())["phases"]
    assert result.returncode == 1, result.stderr
    assert phases["overload"]["answered_per_s"] > 1.5 * phases["before"]["answered_per_s"]
    assert phases["overload"]["failed"].keys() == {"shed"}
    assert "holds: the rest is refused with 429" in result.stdout
    assert "FAILS: back to normal" in result.stdout


@pytest.mark.parametrize("command", ["batching", "overload"])
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--target", "http://127.0.0.1:1"], "http://127.0.0.1:1"),
        (["--duration", "0"], "_s is 0"),
        (["--readme", "/no/such/README.md"], "/no/such/README.md"),
    ],
)
def test_the_other_commands_complain_alike(command: str, arguments: list[str], complaint: str):
    """Before anything is started or sent."""
    line = [sys.executable, "-m", f"loadgen.{command}", *arguments]

    result = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)

    assert result.returncode == 2
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr
