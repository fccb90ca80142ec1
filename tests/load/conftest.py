"""Stub servers for the load generator's own tests."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

StartStub = Callable[..., tuple[str, "subprocess.Popen[str]"]]


@pytest.fixture
def start_stub() -> Iterator[StartStub]:
    """Starts `python -m loadgen.stub` with options; gives its address and process."""
    started = []

    def start(*options: str) -> tuple[str, "subprocess.Popen[str]"]:
        command = [sys.executable, "-m", "loadgen.stub", "--port", "0", *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout
        url = process.stdout.readline().strip()
        assert url, "the stub did not start"
        return url, process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout
        process.stdout.close()
