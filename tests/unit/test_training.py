"""Training: that it makes an artifact which can be served, or nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from deployments.core.artifact import Artifact
from deployments.core.classifier import Classifier
from deployments.core.errors import StartupError
from deployments.training import loop
from deployments.training.calibration import calibration_error, fit_temperature, log_loss, reliability
from deployments.training.corpus import Corpus
from deployments.training.evaluate import evaluate
from deployments.training.network import IGNORED, loss_of
from deployments.training.recipe import Recipe
from deployments.training.sources import leave_one_source_out
from deployments.training.train import train
from tests.unit.rows import greetings_and_sums, write

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TINY = Recipe(epochs=2, max_tokens=16, batch_size=8, lora_rank=2, lora_alpha=4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact, Path]:
    """Two artifacts trained alike on forty rows, and the rows' file."""
    folder = tmp_path_factory.mktemp("training")
    data = greetings_and_sums(folder / "rows.jsonl")
    first, second = (
        train([data], folder / name, evaluation=[data], recipe=replace(TINY, seed=7)) for name in ("first", "second")
    )
    return first, second, data


def test_the_same_seed_gives_the_same_weights(trained: tuple[Artifact, Artifact, Path]):
    """Trained twice alike, the weights have one hash, and so the artifacts one version."""
    first, second, _ = trained

    assert first.weights.sha256 == second.weights.sha256
    assert first.version == second.version


def test_a_trained_artifact_is_served_and_scored(trained: tuple[Artifact, Artifact, Path]):
    """What was trained loads, answers with its own labels, and says what it was made from and how good it is."""
    artifact, _, data = trained
    classifier = Classifier.load(artifact)

    [prediction] = classifier.forward(classifier.tokenise(["hello friend"]))

    assert set(prediction.scores) == {"greeting", "sum"}
    assert prediction.complexity in artifact.complexity_levels
    assert [file["name"] for file in artifact.training["files"]] == ["rows.jsonl"]
    assert artifact.training["seed"] == 7
    assert artifact.scores["rows.jsonl"] == evaluate(artifact, [data]).summary()
    assert artifact.scores["rows.jsonl"]["complexity"]["length_baseline"] is not None
    assert artifact.abstain_below is None


def test_rows_out_of_scope_are_not_learned_but_set_the_threshold(tmp_path: Path):
    """The artifact has no such intent, abstains below a confidence, and says how well that separates them."""
    data = greetings_and_sums(tmp_path / "rows.jsonl")
    strange = write(tmp_path / "oos.jsonl", *({"text": f"zebra {n} on mars", "intent": "oos"} for n in range(8)))

    artifact = train([data, strange], tmp_path / "model", out_of_scope="oos", recipe=TINY, evaluation=[data])
    scored = evaluate(artifact, [data, strange], out_of_scope="oos").out_of_scope

    assert artifact.intent_names == ("greeting", "sum")
    assert artifact.abstain_below is not None
    assert scored is not None
    assert (scored.rows, scored.abstain_below) == (8, artifact.abstain_below)


def test_an_artifact_may_abstain_without_rows_out_of_scope(tmp_path: Path):
    """Asked for it, training keeps 95 of 100 validation texts answered."""
    data = greetings_and_sums(tmp_path / "rows.jsonl")

    assert train([data], tmp_path / "model", abstain=True, recipe=TINY).abstain_below is not None


def test_rows_marked_test_are_scored_and_never_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also when another file has the same text without the mark."""
    data = greetings_and_sums(tmp_path / "rows.jsonl")
    marked = write(
        tmp_path / "marked.jsonl",
        {"text": "hello friend 1", "intent": "greeting", "split": "test"},
        {"text": "what is one plus two", "intent": "sum", "split": "test"},
    )
    seen: list[str] = []
    monkeypatch.setattr(loop, "fit", _recording(loop.fit, seen))

    artifact = train([data, marked], tmp_path / "model", recipe=TINY)

    assert artifact.scores["test"]["rows"] == 2
    assert len(seen) == 39
    assert not {"hello friend 1", "what is one plus two"} & set(seen)


def _recording(fit, seen: list[str]):
    def wrapper(training, validation, *args, **kwargs):
        seen.extend(row.text for row in (*training, *validation))
        return fit(training, validation, *args, **kwargs)

    return wrapper


def test_training_stops_when_the_loss_on_other_rows_no_longer_falls(tmp_path: Path):
    """With a learning rate of nothing no epoch is better than the first, so patience ends it after two more."""
    data = greetings_and_sums(tmp_path / "rows.jsonl")

    artifact = train([data], tmp_path / "model", recipe=replace(TINY, epochs=9, patience=2, learning_rate=0.0))

    assert len(artifact.training["validation_losses"]) == 3


def test_a_source_is_scored_by_a_model_that_never_saw_it(tmp_path: Path):
    """One report for each source asked for, over all its rows; unknown sources are refused with the known ones."""
    rows = [
        {"text": f"{greeting} {n}", "intent": "greeting", "source": source}
        for source, greeting in (("forum", "hello there"), ("chat", "good morning"))
        for n in range(10)
    ]
    rows += [{"text": f"{n} plus {n}", "intent": "sum", "source": "book"} for n in range(10)]
    corpus = Corpus.read(
        [write(tmp_path / "rows.jsonl", *rows)], labels=None, evaluation=(), out_of_scope="oos", validation_share=0.1
    )

    reports = dict(leave_one_source_out(corpus, TINY, sources=["forum"]))

    assert {name: report.rows for name, report in reports.items()} == {"forum": 10}
    with pytest.raises(StartupError, match="no source 'radio' in the data; there are book, chat, forum"):
        list(leave_one_source_out(corpus, TINY, sources=["radio"]))
    with pytest.raises(StartupError, match="without source 'book' fewer than two intents are left"):
        list(leave_one_source_out(corpus, TINY))


def test_an_interrupted_training_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C in its middle leaves the old artifact whole and no folder beside it."""
    data = greetings_and_sums(tmp_path / "rows.jsonl")
    old = train([data], tmp_path / "model", recipe=TINY)

    def interrupt(*_: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "validate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train([data], tmp_path / "model", recipe=replace(TINY, seed=1))

    assert Artifact.load(tmp_path / "model").version == old.version
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "rows.jsonl"]


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path):
    """Training refuses to write over a folder that is no artifact, before it costs any time."""
    data = greetings_and_sums(tmp_path / "rows.jsonl")

    with pytest.raises(StartupError, match="name an empty or a new folder"):
        train([data], tmp_path, recipe=TINY)


def test_complexity_counts_only_where_it_is_known():
    """Without a level the loss is the intent's alone; with one row labelled, that row's is added."""
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [5.0, 0.0]])
    intents = torch.tensor([0, 1])

    without = loss_of(logits, intents, torch.tensor([IGNORED, IGNORED]), smoothing=0)
    one = loss_of(logits, intents, torch.tensor([0, IGNORED]), smoothing=0)

    assert float(without) == pytest.approx((math.log(1 + math.exp(-2)) + math.log(2)) / 2)
    assert float(one - without) == pytest.approx(0.3 * math.log(1 + math.exp(-1)))


def test_the_temperature_undoes_a_known_scaling():
    """Logits that say the true odds, multiplied by 3, are calibrated by a temperature of 3."""
    logits = torch.tensor([[math.log(3), 0.0]] * 4) * 3
    labels = torch.tensor([0, 0, 0, 1])

    assert fit_temperature(logits, labels, torch.ones(4)) == pytest.approx(3, rel=1e-3)


def test_certainty_is_never_fitted():
    """A few rows that are all right would be served with probabilities of 1: the temperature stops at a half."""
    logits = torch.tensor([[4.0, 0.0], [0.0, 4.0]])

    assert fit_temperature(logits, torch.tensor([0, 1]), torch.ones(2)) == pytest.approx(0.5, abs=1e-3)


def test_the_log_loss_by_hand():
    """At a temperature of 2, odds of 9 to 1 become 3 to 1; a row that counts twice counts twice."""
    logits = torch.tensor([[math.log(9), 0.0], [math.log(9), 0.0]])

    loss = log_loss(logits, torch.tensor([0, 1]), torch.tensor([2.0, 1.0]), 2.0)

    assert loss == pytest.approx((2 * math.log(4 / 3) + math.log(4)) / 3)


def test_calibration_error_by_hand():
    """Two answers at 0.95, one right, and two at 0.5, one right: a gap of 0.45 on half of them."""
    confidences, right = [0.95, 0.95, 0.5, 0.5], [True, False, True, False]

    assert calibration_error(confidences, right) == pytest.approx(0.225)
    assert [(each.rows, each.confidence, each.accuracy) for each in reliability(confidences, right)] == [
        (2, 0.5, 0.5),
        (2, 0.95, 0.5),
    ]


def test_wrong_rows_of_a_file_to_be_scored_stop_the_training_before_it_starts(tmp_path: Path):
    """An evaluation file is checked with the others, not twenty minutes later."""
    data = greetings_and_sums(tmp_path / "rows.jsonl")
    wrong = write(tmp_path / "dev.jsonl", {"text": "hi", "intent": "smalltalk"})

    with pytest.raises(StartupError, match=r"dev\.jsonl:1: unknown intent 'smalltalk'; known: "):
        train([data], tmp_path / "out", evaluation=[wrong])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("good evening", "greeting", "train")], r"rows\.jsonl:1: every row has intent 'greeting'"),
        ([("good evening", "oos", "train")], "no rows to train on; all are test or oos"),
        ([("good evening", "greeting", "test"), ("2 + 2", "sum", "test")], "no rows to train on"),
    ],
)
def test_rows_that_teach_nothing_are_refused(tmp_path: Path, rows: Sequence[tuple[str, str, str]], said: str):
    """One intent alone, only rows out of scope, only test rows."""
    data = write(
        tmp_path / "rows.jsonl", *({"text": text, "intent": intent, "split": split} for text, intent, split in rows)
    )

    with pytest.raises(StartupError, match=said):
        train([data], tmp_path / "out", out_of_scope="oos")
