"""The batching benchmark against the real service: its figures come from there and from the same model without it."""

import json
import subprocess
import sys
from pathlib import Path

from tests.service import Service


def test_throughput_is_held_against_the_bare_forward_pass_of_the_runtime_in_service(service: Service, tmp_path: Path):
    """Short; what the figures must reach is for a quiet machine to show."""
    out = tmp_path / "batching.json"
    command = [sys.executable, "-m", "loadgen.batching", "--target", service.url, "--threads", "1", "--out", str(out)]
    command += ["--connections", "8", "--held-against", "8", "--duration", "2", "--warmup", "0.5"]
    command += ["--mixed-texts", "0"]

    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    found = json.loads(out.read_text())
    (level,) = found["levels"]
    assert result.returncode == ("FAILS" in result.stdout or "INVALID" in result.stdout), result.stderr
    assert found["bare"]["runtime"] in service.get("/metrics").body.decode()
    assert len(found["bare"]["texts_per_s"]) == 2
    assert 1 < level["mean_batch"] <= 8
    # The same texts by the same model: a service cannot beat its own forward pass, nor fall far behind.
    assert 0.1 < level["answered_per_s"] / max(found["bare"]["texts_per_s"]) < 1.2
    assert "8 connections: " in result.stdout
