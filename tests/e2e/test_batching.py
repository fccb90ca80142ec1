"""The batching benchmark against the real service: its figures come from there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service import Service


def test_batches_grow_with_the_callers(service: Service, tmp_path: Path):
    """Short, and without the bare forward pass: what the figures must reach is for a quiet machine to show."""
    out = tmp_path / "batching.json"
    command = [sys.executable, "-m", "loadgen.batching", "--target", f"{service.url}/", "--threads", "1"]
    command += ["--connections", "1,8", "--duration", "2", "--warmup", "0.5", "--mixed-texts", "0", "--out", str(out)]

    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    found = json.loads(out.read_text())
    lone, eight = found["levels"]
    assert result.returncode == ("FAILS" in result.stdout or "INVALID" in result.stdout), result.stderr
    assert found["bare"]["runtime"] in ("onnx fp32", "torch fp32")
    assert lone["mean_batch"] == pytest.approx(1, abs=0.05)  # Ray may report between a text's count and its batch's
    assert 1 < eight["mean_batch"] <= 8
    assert eight["answered_per_s"] > lone["answered_per_s"] > 1
    assert "holds: the mean batch grows with load" in result.stdout
