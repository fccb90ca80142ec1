"""The load generator against the real service: its predictions and the server's counters must come true."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadgen.report import Report
from tests.service import HITS, INTENTS, Service

SHORT = ["--lengths", "12:1", "--warmup", "0.5", "--max-lag-ms", "1000", "--timeout", "10"]


def load(
    tmp_path: Path, *arguments: str, seconds: int = 2, command: tuple[str, ...] = (), **environment: str
) -> Report:
    """Run a load to its end; whether it was on time is not what these tests are about."""
    out = tmp_path / "report.json"
    options = [*arguments, *SHORT, "--duration", str(seconds), "--out", str(out)]
    result = subprocess.run(
        [*(command or (sys.executable, "-m", "loadgen")), *options],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return Report.model_validate(json.loads(out.read_text()))


def test_counts_agree_exactly_and_the_hit_rate_is_the_predicted_one(service: Service, tmp_path: Path):
    """From a purged cache; with batches, confirmations and texts in other case and white space."""
    cold = ["--target", service.url, "--rate", "20", "--distinct", "200", "--cache-state", "cold"]
    mix = ["--batch", "0.05", "--feedback", "0.05", "--variants", "0.3"]

    report = load(tmp_path, *cold, *mix, seconds=5)

    rows = {row.name: row for row in report.reconciliation.counts}
    assert report.reconciliation.agrees, rows
    assert all(row.low == row.high for row in rows.values())
    assert rows["feedback recorded"].server > 0
    assert report.error_rate == 0
    assert report.hit_rate == pytest.approx(report.predicted_hit_rate, abs=0.05)
    assert report.summary("miss").p50_ms > report.summary("hit").p50_ms


def test_a_warm_cache_answers_everything(service: Service, tmp_path: Path):
    """Through the `intents` command."""
    command = (INTENTS[0], "load")

    report = load(
        tmp_path,
        *("--target", service.url, "--workers", "1"),
        *("--rate", "20", "--distinct", "20", "--cache-state", "warm"),
        command=command,
    )

    assert set(report.texts) <= set(HITS)
    assert report.hit_rate == report.predicted_hit_rate == 1


def test_a_handle_is_a_target_too(service: Service, tmp_path: Path):
    """Its answers say nothing of the cache, but every one is counted by the server."""
    report = load(
        tmp_path,
        *("--target", "handle:intents", "--metrics-url", f"{service.url}/metrics", "--workers", "1"),
        *("--rate", "20", "--batch", "0.1", "--feedback", "0.1"),
        RAY_ADDRESS=service.state["gcs"],
        RAY_AUTH_MODE="disabled",
    )

    assert set(report.texts) == {"unknown"}
    assert report.error_rate == 0
    assert report.reconciliation.agrees
