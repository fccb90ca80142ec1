"""The README's model card says what the artifact and its data say of themselves."""

import re
from collections import Counter

import pytest
from typer.main import get_command

from deployments.cli import app
from deployments.core.artifact import DEFAULT_ARTIFACT, Artifact
from deployments.training.rows import Split, read_rows
from tests.contract.test_readme_tables import README, rows
from tests.service import ROOT

ARTIFACT = Artifact.load(DEFAULT_ARTIFACT)
PROMPTS = ROOT / "deployments" / "training" / "prompts.jsonl"
COMMANDS = sorted(
    set(
        re.findall(
            r"^(?:time )?intents ((?:train|evaluate) (?:[^\\\n]|\\\n)+?)(?: +#.*| && .*)?$", README, re.MULTILINE
        )
    )
)


def test_the_scores_are_the_artifact_s():
    """Rows, accuracy with its interval, macro-F1 and calibration error of every set it was scored on."""
    names = {
        "test": "written prompts, the fifth never trained on",
        "validation": "validation rows (epoch and temperature chosen on them)",
    }
    expected = [
        [
            names.get(name, f"`{name}`"),
            f"{scores['rows']:,}",
            f"{scores['accuracy']:.3f} ({scores['interval'][0]:.3f} to {scores['interval'][1]:.3f})",
            f"{scores['macro_f1']:.3f}",
            f"{scores['ece']:.3f}",
            f"{min(scores['recall'].values()):.2f}",
        ]
        for name, scores in ARTIFACT.scores.items()
    ]

    assert rows("| scored on |") == expected


def test_the_complexity_figures_are_the_artifact_s():
    """What the head reaches on the held-out fifth, and length alone."""
    complexity = ARTIFACT.scores["test"]["complexity"]

    assert f"{complexity['accuracy']:.3f} of the held-out fifth" in README
    assert f"its length alone would tell {complexity['length_baseline']:.3f}" in README
    assert complexity["accuracy"] > complexity["length_baseline"]


def test_the_shipped_artifact_keeps_what_a_release_needs():
    """On the written fifth and on the public prompts kept apart: accuracy, every intent's recall, calibration."""
    test, public = ARTIFACT.scores["test"], ARTIFACT.scores["public_prompts_dev.jsonl"]

    assert test["accuracy"] >= 0.9
    assert min(test["recall"].values()) >= 0.8
    assert test["ece"] <= 0.05
    assert public["accuracy"] >= 0.92
    assert public["ece"] <= 0.05


def test_the_card_counts_the_written_prompts():
    """All of them, those only scored and those trained on."""
    splits = Counter(row.split for row in read_rows([PROMPTS]))

    assert f"{splits.total():,} rows, of which the {splits[Split.TEST]:,} marked" in README
    assert f"| {splits[Split.TRAIN]:,} | Apache-2.0 | in this repository |" in README


def test_it_was_trained_on_the_prompts_of_this_repository():
    """The hash in the artifact is that of the file beside it."""
    from deployments.core.artifact import sha256_of

    hashes = {file["name"]: file["sha256"] for file in ARTIFACT.training["files"]}

    assert hashes["prompts.jsonl"] == sha256_of(PROMPTS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_training_command_of_the_readme_is_one_the_command_line_takes(command: str):
    """Its options exist and take such values."""
    name, *arguments = command.replace("\\\n", " ").split()

    assert get_command(app).commands[name].make_context(name, arguments).params


def test_such_commands_are_found():
    """Or the test above tests nothing."""
    assert len(COMMANDS) >= 5
