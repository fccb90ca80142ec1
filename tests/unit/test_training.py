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
from deployments.training.evaluate import evaluate, predict
from deployments.training.labels import labels_of
from deployments.training.network import IGNORED, loss_of
from deployments.training.recipe import Recipe
from deployments.training.sources import leave_one_source_out
from deployments.training.train import train
from tests.unit.rows import greetings_and_sums, write

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from deployments.training.rows import Row

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def recipe(small_encoder: Path) -> Recipe:
    """Two epochs of a small adapter on a small encoder."""
    return Recipe(
        encoder=str(small_encoder), epochs=2, max_tokens=16, batch_size=8, lora_rank=2, lora_alpha=4, learning_rate=1e-2
    )


@pytest.fixture(scope="module")
def trained(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact, Path]:
    """Two artifacts trained alike on forty rows, and the file of others they were scored on."""
    folder = tmp_path_factory.mktemp("training")
    data, others = greetings_and_sums(folder / "rows.jsonl"), greetings_and_sums(folder / "others.jsonl", first=50)
    first, second = (
        train([data], folder / name, evaluation=[others], recipe=replace(recipe, seed=7))
        for name in ("first", "second")
    )
    return first, second, others


def test_the_same_seed_gives_the_same_weights(trained: tuple[Artifact, Artifact, Path]):
    """Trained twice alike, the weights have one hash, and so the artifacts one version."""
    first, second, _ = trained

    assert first.weights.sha256 == second.weights.sha256
    assert first.version == second.version


def test_a_trained_artifact_is_served_and_scored(trained: tuple[Artifact, Artifact, Path]):
    """What was trained loads, answers with its own labels, and says what it was made from and how good it is."""
    artifact, _, others = trained
    classifier = Classifier.load(artifact)

    [prediction] = classifier.forward(classifier.tokenise(["hello friend"]))

    assert set(prediction.scores) == {"greeting", "sum"}
    assert prediction.complexity in artifact.complexity_levels
    assert [file["name"] for file in artifact.training["files"]] == ["rows.jsonl"]
    assert artifact.training["seed"] == 7
    assert artifact.scores["others.jsonl"] == evaluate(artifact, [others]).summary()
    assert artifact.scores["others.jsonl"]["complexity"]["length_baseline"] is not None
    assert artifact.abstain_below is None
    assert artifact.training["validation_losses"][1] < artifact.training["validation_losses"][0]


def test_rows_out_of_scope_are_not_learned_but_set_the_threshold(recipe: Recipe, tmp_path: Path):
    """The artifact has no such intent, abstains below a confidence, and says how well that separates them."""
    data = greetings_and_sums(tmp_path / "rows.jsonl")
    strange = write(tmp_path / "oos.jsonl", *({"text": f"zebra {n} on mars", "intent": "oos"} for n in range(8)))

    artifact = train([data, strange], tmp_path / "model", out_of_scope="oos", recipe=recipe)
    scored = evaluate(artifact, [data, strange], out_of_scope="oos").out_of_scope

    assert artifact.intent_names == ("greeting", "sum")
    assert artifact.abstain_below is not None
    assert scored is not None
    assert (scored.rows, scored.abstain_below) == (8, artifact.abstain_below)
    assert artifact.scores["validation"]["out_of_scope"]["rows"] == 8


def test_an_artifact_may_abstain_without_rows_out_of_scope(recipe: Recipe, tmp_path: Path):
    """Asked for it, training keeps 95 of 100 validation texts answered: here all four."""
    data = greetings_and_sums(tmp_path / "rows.jsonl")
    artifact = train([data], tmp_path / "model", abstain=True, recipe=recipe)
    corpus = Corpus.read([data], validation_share=recipe.validation_share)

    answers = predict(Classifier.load(artifact), corpus.validation)

    assert artifact.abstain_below == min(said.confidence for said in answers)
    assert "out_of_scope" not in {said.intent for said in answers}


def test_rows_marked_test_are_scored_and_never_trained_on(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Also when another file has the same text without the mark; so are those of a file that is only scored."""
    data = greetings_and_sums(tmp_path / "rows.jsonl")
    marked = write(
        tmp_path / "marked.jsonl",
        {"text": "hello friend 1", "intent": "greeting", "split": "test"},
        {"text": "what is one plus two", "intent": "sum", "split": "test"},
    )
    scored = write(tmp_path / "dev.jsonl", {"text": "What is  2 plus 2", "intent": "sum"})
    seen = record_fits(monkeypatch)

    artifact = train([data, marked], tmp_path / "model", evaluation=[scored], recipe=recipe)

    assert (artifact.scores["test"]["rows"], artifact.scores["dev.jsonl"]["rows"]) == (2, 1)
    assert len(seen) == 38
    assert not {"hello friend 1", "what is one plus two", "what is 2 plus 2"} & {row.text for row in seen}


def record_fits(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """Note the rows that every training from now on learns from or validates on."""
    seen: list[Row] = []
    fit = loop.fit

    def recording(training, validation, *args, **kwargs):
        seen.extend((*training, *validation))
        return fit(training, validation, *args, **kwargs)

    monkeypatch.setattr(loop, "fit", recording)
    return seen


def test_training_stops_when_the_loss_on_other_rows_no_longer_falls(recipe: Recipe, tmp_path: Path):
    """With a learning rate of nothing no epoch is better than the first, so patience ends it after two more."""
    data = greetings_and_sums(tmp_path / "rows.jsonl")

    artifact = train([data], tmp_path / "model", recipe=replace(recipe, epochs=9, patience=2, learning_rate=0.0))

    assert len(artifact.training["validation_losses"]) == 3


def test_a_source_is_scored_by_a_model_that_never_saw_it(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A report over its rows; none where no other source has its intent; unknown sources are refused."""
    rows = [
        {"text": f"{greeting} {n}", "intent": "greeting", "source": source}
        for source, greeting in (("forum", "hello there"), ("chat", "good morning"))
        for n in range(10)
    ]
    rows += [{"text": f"{n} plus {n}", "intent": "sum", "source": "book"} for n in range(10)]
    rows += [{"text": f"sing {n} songs", "intent": "song", "source": "radio"} for n in range(10)]
    corpus = Corpus.read([write(tmp_path / "rows.jsonl", *rows)], validation_share=0.1)
    seen = record_fits(monkeypatch)

    reports = dict(leave_one_source_out(corpus, recipe, sources=["forum", "radio"]))

    assert reports["forum"] is not None
    assert reports["forum"].rows == 10
    assert reports["radio"] is None
    assert {row.source for row in seen} == {"chat", "book", "radio"}
    with pytest.raises(StartupError, match="no source 'tv' in the data; there are book, chat, forum, radio"):
        leave_one_source_out(corpus, recipe, sources=["tv"])


def test_an_interrupted_training_leaves_what_was_there(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C in its middle leaves the old artifact whole and no folder beside it."""
    data = greetings_and_sums(tmp_path / "rows.jsonl")
    old = train([data], tmp_path / "model", recipe=recipe)

    def interrupt(*_: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "validate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train([data], tmp_path / "model", recipe=replace(recipe, seed=1))

    assert Artifact.load(tmp_path / "model").version == old.version
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "rows.jsonl"]


def test_a_folder_with_other_files_is_not_replaced(recipe: Recipe, tmp_path: Path):
    """Neither one that is no artifact nor one that holds an artifact and the data it is trained on, nor a link."""
    data = greetings_and_sums(tmp_path / "rows.jsonl")
    (tmp_path / "model.yaml").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")

    with pytest.raises(StartupError, match="name an empty or a new folder"):
        train([data], tmp_path, recipe=recipe)
    with pytest.raises(StartupError, match="a link or a mount point cannot be replaced"):
        train([data], tmp_path / "link", recipe=recipe)
    assert data.exists()


@pytest.mark.parametrize("labelled", ["out_of_scope", "oos"])
def test_the_name_for_texts_out_of_scope_has_one_meaning(tmp_path: Path, labelled: str):
    """An intent of that name beside rows that set the threshold is refused before training, not after it."""
    rows = [{"text": f"text {n}", "intent": ("out_of_scope", "sum", "greeting")[n % 3]} for n in range(9)]
    data = write(tmp_path / "rows.jsonl", *rows, {"text": "zebra", "intent": labelled})
    labels = labels_of(["greeting", "out_of_scope", "sum"])

    with pytest.raises(StartupError, match="intent 'out_of_scope' is what an artifact that abstains answers"):
        Corpus.read([data], labels=labels, out_of_scope=labelled, validation_share=0.1)


def test_a_label_that_nothing_teaches_is_refused(tmp_path: Path):
    """Listed and never answered, it would look like a bad model; so is a wrong name for rows out of scope."""
    data = greetings_and_sums(tmp_path / "rows.jsonl")

    with pytest.raises(StartupError, match="intent 'song' has no row to train on"):
        Corpus.read([data], labels=labels_of(["greeting", "song", "sum"]), validation_share=0.1)
    with pytest.raises(StartupError, match="no row has the label 'oso' of --out-of-scope"):
        Corpus.read([data], out_of_scope="oso", validation_share=0.1)


def test_a_training_that_diverges_ships_nothing(recipe: Recipe, tmp_path: Path):
    """An absurd learning rate ends in one line, not in an artifact."""
    data = greetings_and_sums(tmp_path / "rows.jsonl")

    with pytest.raises(StartupError, match="training diverged; lower --learning-rate"):
        train([data], tmp_path / "model", recipe=replace(recipe, learning_rate=1e30, gradient_norm=1e30))
    assert not (tmp_path / "model").exists()


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
    wrong = write(tmp_path / "dev.jsonl", {"intent": "greeting"})

    with pytest.raises(StartupError, match=r"dev\.jsonl:1: no text"):
        train([data], tmp_path / "out", evaluation=[wrong])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("good evening", "greeting", "train")], r"rows\.jsonl:1: every row has intent 'greeting'"),
        ([("good evening", "oos", "train")], "no row to train on; all are test, scored or oos"),
        ([("good evening", "greeting", "test"), ("2 + 2", "sum", "test")], "no row to train on"),
        ([("good evening", "greeting", "train"), ("2 + 2", "sum", "train")], "every intent has a single row"),
        ([("good evening", "greeting", "train"), ("2 + 2", "sum", "train")] * 2, "every intent has a single row"),
    ],
)
def test_rows_that_teach_nothing_are_refused(tmp_path: Path, rows: Sequence[tuple[str, str, str]], said: str):
    """One intent alone, only rows out of scope, only test rows, no row to spare for validation."""
    data = write(
        tmp_path / "rows.jsonl", *({"text": text, "intent": intent, "split": split} for text, intent, split in rows)
    )

    with pytest.raises(StartupError, match=said):
        train([data], tmp_path / "out", out_of_scope="oos" if "oos" in said else None)
