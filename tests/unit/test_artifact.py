"""What an artifact folder must hold, and what is said when it does not."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from deployments.core.artifact import DEFAULT_ARTIFACT, OUT_OF_SCOPE, Artifact
from deployments.core.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

INTENTS = (
    "question_answering",
    "creative_writing",
    "code_generation",
    "data_analysis",
    "reasoning",
    "summarization",
    "translation",
    "conversation",
    "task_planning",
    "problem_solving",
)
COMPLEXITY_LEVELS = ("simple", "moderate", "complex")
TECHNIQUES = (
    "chain_of_thought",
    "tree_of_thoughts",
    "few_shot",
    "zero_shot",
    "self_consistency",
    "constitutional_ai",
    "iterative_refinement",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped artifact."""
    return shutil.copytree(DEFAULT_ARTIFACT, tmp_path / "artifact")


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "model.yaml"
    fields = yaml.safe_load(path.read_text("utf-8"))
    change(fields)
    path.write_text(yaml.safe_dump(fields), "utf-8")


def refusal(folder: Path) -> str:
    with pytest.raises(ArtifactError) as refused:
        Artifact.load(folder)
    return str(refused.value)


def test_the_shipped_artifact_knows_the_ten_intents_and_a_technique_for_each_complexity():
    """The shipped artifact has the contract's labels and suggests only known techniques, at least one each."""
    artifact = Artifact.load(DEFAULT_ARTIFACT)

    assert set(artifact.intent_names) == set(INTENTS)
    assert artifact.complexity_levels == COMPLEXITY_LEVELS
    assert artifact.technique_names == TECHNIQUES
    for intent in INTENTS:
        for level in COMPLEXITY_LEVELS:
            suggested = artifact.techniques_for(intent, level)
            assert suggested
            assert set(suggested) <= set(TECHNIQUES)


def test_the_shipped_artifact_is_small_and_names_no_path_of_the_machine_it_was_made_on():
    """The folder stays under 10 MB; the training files are named without folders, each with its hash."""
    artifact = Artifact.load(DEFAULT_ARTIFACT)

    assert sum(path.stat().st_size for path in DEFAULT_ARTIFACT.iterdir()) < 10_000_000
    assert all("/" not in file["name"] and len(file["sha256"]) == 64 for file in artifact.training["files"])


def test_every_suggestion_has_a_reason_and_every_technique_a_source():
    """One line of reason for each intent at each level; each technique names the publication it is taken from."""
    artifact = Artifact.load(DEFAULT_ARTIFACT)

    assert all(intent.reasons[level] for intent in artifact.intents for level in COMPLEXITY_LEVELS)
    assert all("arXiv:" in technique.source for technique in artifact.techniques)


def test_an_artifact_that_may_abstain_has_one_more_answer(folder: Path):
    """`out_of_scope` is listed after the model's own intents, and suggests no technique."""
    edit(folder, lambda fields: fields.update(abstain_below=0.5))

    artifact = Artifact.load(folder)

    assert artifact.answer_names == (*artifact.intent_names, OUT_OF_SCOPE)
    assert artifact.techniques_for(OUT_OF_SCOPE, "simple") == ()


def test_an_unknown_intent_has_no_techniques():
    """Asking for the techniques of an unknown intent is a KeyError."""
    artifact = Artifact.load(DEFAULT_ARTIFACT)

    with pytest.raises(KeyError, match="astrology"):
        artifact.techniques_for("astrology", "simple")


def test_any_edit_changes_the_version(folder: Path):
    """A changed technique is another version, so predictions made before it are not served after it."""
    before = Artifact.load(folder).version

    edit(folder, lambda fields: fields["intents"][0]["techniques"].update(simple=["few_shot"]))

    assert Artifact.load(folder).version != before


def test_a_missing_folder_is_named(tmp_path: Path):
    """A folder that does not exist is refused by its path with what to name instead."""
    assert "nowhere/model.yaml: cannot be read" in refusal(tmp_path / "nowhere")


def test_missing_weights_are_named(folder: Path):
    """A folder without weights is refused."""
    (folder / "weights.safetensors").unlink()

    assert "weights.safetensors: missing" in refusal(folder)


def test_weights_of_another_training_are_refused_with_both_hashes(folder: Path):
    """Weights that are not those model.yaml was written for are refused, naming both hashes."""
    named = Artifact.load(folder).weights.sha256
    (folder / "weights.safetensors").write_bytes(b"other")

    message = refusal(folder)

    assert named in message
    assert "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa" in message


@pytest.mark.parametrize("content", ["intents: [", "- a\n- b", "", b"\xff\xfe"])
def test_what_is_not_a_yaml_mapping_is_refused_in_one_line(folder: Path, content: str | bytes):
    """Broken YAML, a list, nothing and bytes that are no text are refused in one line with a remedy."""
    (folder / "model.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())

    message = refusal(folder)

    assert "\n" not in message
    assert "restore the file" in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.pop("encoder"), "encoder: Field required"),
        (lambda f: f.update(temperature=0), "temperature: Input should be greater than 0"),
        (lambda f: f.update(temprature=1), "temprature"),
        (lambda f: f.update(normalisation=["rot13"]), "unknown normalisation step 'rot13'; known: collapse_whitespace"),
        (lambda f: f["intents"][0]["techniques"].update(simple=["magic"]), "unknown technique 'magic' at 'simple'"),
        (lambda f: f["intents"][3]["techniques"].pop("complex"), "it needs simple, moderate, complex"),
        (
            lambda f: f["intents"][3]["reasons"].pop("complex"),
            "has reasons for moderate, simple; it needs simple, moderate, complex",
        ),
        (lambda f: f["intents"].append(f["intents"][0]), "is listed twice"),
        (lambda f: f.update(abstain_below=1.5), "abstain_below: Input should be less than or equal to 1"),
        (
            lambda f: (f["intents"][0].update(name="out_of_scope"), f.update(abstain_below=0.5)),
            "intent 'out_of_scope' is listed twice",
        ),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(folder: Path, change: Callable[[dict[str, Any]], object], said: str):
    """Each wrong field is refused in one line which names it."""
    edit(folder, change)

    message = refusal(folder)

    assert said in message
    assert "\n" not in message
