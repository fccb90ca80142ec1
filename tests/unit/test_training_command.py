"""`intents train` and `intents evaluate` as a user runs them; what a signal ends, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from deployments.cli import app
from deployments.core.artifact import DEFAULT_ARTIFACT, Artifact
from tests.service import INTENTS
from tests.unit.rows import greetings_and_sums, write

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("one_thread")

ENVIRONMENT = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_end_in_the_middle_leaves_no_half_artifact(
    small_encoder: Path, tmp_path: Path, number: signal.Signals, exit_code: int
):
    """Once the first epoch is over: Ctrl-C or a polite kill, no traceback, no folder."""
    data = greetings_and_sums(tmp_path / "rows.jsonl")
    command = [*INTENTS, "train", f"--data={data}", f"--out={tmp_path / 'model'}", f"--encoder={small_encoder}"]
    endless = ["--epochs=5000", "--patience=5000"]
    with subprocess.Popen([*command, *endless], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as training:
        assert training.stderr is not None
        said = training.stderr.readline()
        workshops = list(tmp_path.glob(".model-*"))
        training.send_signal(number)
        said += training.stderr.read()

    assert "epoch 1 of 5000: validation loss" in said
    assert len(workshops) == 1
    assert training.returncode == exit_code
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"intent": "greeting"}, 'no text; add a non-blank "text"'),
        (
            {"text": "hi", "intent": "smalltalk"},
            "add the label (known: question_answering, ",
        ),
        ('{"text": "hi"', "not JSON"),
        ({"text": "hello", "intent": "translation"}, "intent 'translation' here and 'conversation' at "),
        (None, "every row has intent 'conversation'; a classifier needs at least two"),
    ],
)
def test_a_wrong_row_stops_before_anything_is_trained(tmp_path: Path, row: object, said: str):
    """One line with file, line and remedy, and exit code 1; nothing is written."""
    rows = [{"text": "hello", "intent": "conversation"}, *([row] if row else [])]
    data = write(tmp_path / "rows.jsonl", *rows)
    labels = DEFAULT_ARTIFACT.parents[1] / "training" / "labels.yaml"

    result = CliRunner().invoke(app, ["train", f"--data={data}", f"--out={tmp_path / 'model'}", f"--labels={labels}"])

    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"intents: {data}:{len(rows)}: ")
    assert said in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_train_says_how_good_the_artifact_is_and_how_to_serve_it(
    small_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The table of scores, and the line to start a service with it; the encoder of the folder it was given."""
    monkeypatch.chdir(small_encoder.parent)
    data = greetings_and_sums(tmp_path / "rows.jsonl")
    out = tmp_path / "model"

    encoder = f"--encoder=./{small_encoder.name}"
    result = CliRunner().invoke(app, ["train", f"--data={data}", f"--out={out}", encoder, "--epochs=1", "--abstain"])

    assert result.exit_code == 0, result.output
    assert "validation" in result.output
    assert "answers out_of_scope below a confidence of" in result.output
    assert f"MODEL_ARTIFACT={out} intents up" in result.output
    assert Artifact.load(out).encoder.source == str(small_encoder)


def test_evaluate_prints_tables_or_json_and_draws(tmp_path: Path):
    """Accuracy with its interval, by intent and source, confusion, calibration, mistakes; as JSON too; two PNGs."""
    data = write(
        tmp_path / "rows.jsonl",
        {"text": "Translate to French: good morning", "intent": "translation", "source": "books", "split": "test"},
        {"text": "Write a haiku about autumn", "intent": "creative_writing", "complexity": "simple"},
        {"text": "what is the capital of France", "intent": "task_planning"},
    )

    tables = CliRunner().invoke(app, ["evaluate", f"--data={data}", f"--plots={tmp_path / 'plots'}"])
    document = json.loads(CliRunner().invoke(app, ["evaluate", f"--data={data}", "--json"]).stdout)
    test_only = json.loads(CliRunner().invoke(app, ["evaluate", f"--data={data}", "--split=test", "--json"]).stdout)

    assert tables.exit_code == 0, tables.output
    for part in ("0.6667 (0.208 to 0.939)", "macro-F1", "books", "confusion", "calibration", "the surest mistakes"):
        assert part in tables.output
    assert (document["rows"], document["accuracy"]) == (3, 0.6667)
    assert [mistake["place"] for mistake in document["mistakes"]] == [f"{data}:3"]
    assert test_only["rows"] == 1
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["confusion.png", "reliability.png"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--source=books"], "--source names what --leave-one-source-out leaves out; give both"),
        (["--split=test"], "no row has an intent to score"),
        (["--artifact=nowhere"], "nowhere/model.yaml: cannot be read"),
        (["--leave-one-source-out", "--split=test"], "trains on what is no test row and draws nothing"),
        (["--leave-one-source-out", "--source=books"], "every row has intent 'conversation'"),
    ],
)
def test_evaluate_refuses_in_one_line(tmp_path: Path, arguments: list[str], said: str):
    """Wrong options and nothing to score: exit code 1 and the remedy."""
    data = write(tmp_path / "rows.jsonl", {"text": "hello", "intent": "conversation"})
    result = CliRunner().invoke(app, ["evaluate", f"--data={data}", *arguments])

    assert result.exit_code == 1
    assert said in result.output
