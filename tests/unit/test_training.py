"""Training: what rows it takes, what it draws, and that it makes an artifact that can be served, or nothing."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from deployments.core.artifact import COMPLEXITY_LEVELS, Artifact
from deployments.core.classifier import Classifier
from deployments.core.errors import StartupError
from deployments.core.prediction import Prediction
from deployments.training import dataset
from deployments.training.calibration import calibration_error, fit_temperature
from deployments.training.dataset import Row, draw_batches, hold_out, read_rows, sampling_weights
from deployments.training.evaluate import evaluate, score
from deployments.training.labels import SHIPPED_LABELS, read_labels
from deployments.training.network import IGNORED, loss_of
from deployments.training.recipe import Recipe
from deployments.training.train import train

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

TINY = Recipe(epochs=1, max_tokens=16, batch_size=8, lora_rank=2, lora_alpha=4)


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def greetings_and_sums(path: Path) -> Path:
    rows = [{"text": f"hello friend {n}", "intent": "greeting", "complexity": "simple"} for n in range(20)]
    rows += [{"text": f"what is {n} plus {n}", "intent": "sum"} for n in range(20)]
    return write(path, *rows)


def row(text: str, intent: str = "a", source: str = "s", complexity: str | None = None) -> Row:
    return Row(text, intent, complexity, source, "here:1")


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
    assert prediction.complexity in COMPLEXITY_LEVELS
    assert [file["name"] for file in artifact.training["files"]] == ["rows.jsonl"]
    assert artifact.training["seed"] == 7
    assert artifact.scores["rows.jsonl"]["accuracy"] == evaluate(artifact, [data]).accuracy


def test_an_interrupted_training_leaves_what_was_there(tmp_path: Path):
    """Ctrl-C while the rows are evaluated leaves the old artifact whole and no folder beside it."""
    data = greetings_and_sums(tmp_path / "rows.jsonl")
    old = train([data], tmp_path / "model", recipe=TINY)

    def interrupt() -> Iterator[Path]:
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        train([data], tmp_path / "model", recipe=replace(TINY, seed=1), evaluation=interrupt())

    assert Artifact.load(tmp_path / "model").version == old.version
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "rows.jsonl"]


def test_a_folder_with_other_files_is_not_replaced(tmp_path: Path):
    """Training refuses to write over a folder that is no artifact, before it costs any time."""
    data = greetings_and_sums(tmp_path / "rows.jsonl")

    with pytest.raises(StartupError, match="name an empty or a new folder"):
        train([data], tmp_path, recipe=TINY)


GOOD = {"text": "hi there", "intent": "greeting"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"intent": "greeting"}, "no text"),
        ({"text": "  ", "intent": "greeting"}, "no text"),
        ({"text": "hi"}, "no intent"),
        ({"text": 5, "intent": "greeting"}, "'text' is 5; write a string"),
        ({"text": "hi", "intent": "smalltalk"}, "unknown intent 'smalltalk'; known: greeting, sum"),
        ({"text": "hi", "intent": "sum", "complexity": "hard"}, "unknown complexity 'hard'; known: simple"),
        ({"text": "hi there", "intent": "sum"}, "intent 'sum' here and 'greeting' at "),
        ('{"text": "hi", ', "not JSON"),
        ('["hi", "greeting"]', "a JSON object is expected"),
    ],
)
def test_a_wrong_row_is_named_by_file_and_line(tmp_path: Path, wrong: object, said: str):
    """A wrong row stops the reading with file:line, what is wrong and what to do."""
    path = write(tmp_path / "rows.jsonl", GOOD, "", wrong)

    with pytest.raises(StartupError) as refused:
        read_rows([path], intents=["greeting", "sum"], levels=["simple"])

    assert str(refused.value).startswith(f"{path}:3: ")
    assert said in str(refused.value)


def test_one_intent_is_not_enough(tmp_path: Path):
    """Data with a single intent is refused: there is nothing to tell apart."""
    path = write(tmp_path / "rows.jsonl", GOOD, {"text": "good evening", "intent": "greeting"})

    with pytest.raises(StartupError, match=r"rows\.jsonl:1: every row has intent 'greeting'"):
        train([path], tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"\xff", None])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: bytes | None):
    """An empty file, one that is no text and one that does not exist are refused by name."""
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(StartupError, match=r"rows\.jsonl"):
        read_rows([path])


def test_a_row_said_twice_counts_once(tmp_path: Path):
    """The same text with the same intent in two files is one row."""
    first, second = write(tmp_path / "a.jsonl", GOOD), write(tmp_path / "b.jsonl", GOOD)

    assert len(read_rows([first, second])) == 1


def test_the_held_out_part_is_the_same_whatever_the_order():
    """A tenth of each intent and source is kept aside, chosen by the texts alone."""
    rows = [row(f"text {n}", "ab"[n % 2], "xy"[n % 4 // 2]) for n in range(80)]

    kept, held = hold_out(rows, 0.1)
    _, held_reversed = hold_out(rows[::-1], 0.1)

    assert len(kept) + len(held) == 80
    assert Counter((r.intent, r.source) for r in held) == dict.fromkeys([(i, s) for i in "ab" for s in "xy"], 2)
    assert {r.text for r in held} == {r.text for r in held_reversed}


def test_sampling_leans_towards_small_intents_and_sources():
    """By hand: 16 rows of one intent and 1 of another are drawn 2 to 1, for the fourth root is taken."""
    rows = [row(str(n), "large") for n in range(16)] + [row("x", "small")]

    weights = sampling_weights(rows)

    assert sum(weights) == pytest.approx(1)
    assert sum(weights[:16]) == pytest.approx(2 / 3)


def test_each_row_is_drawn_within_one_of_its_share():
    """An epoch draws as many as there are rows, each as often as its weight says, up to one."""
    chance = random.Random(5)
    weights = [chance.random() for _ in range(100)]
    weights = [weight / sum(weights) for weight in weights]

    batches = draw_batches([1] * 100, weights, 8, chance)
    drawn = Counter(index for batch in batches for index in batch)

    assert abs(drawn.total() - 100) <= 1
    assert all(abs(drawn[index] - 100 * weight) < 1 + 1e-9 for index, weight in enumerate(weights))


def test_batches_hold_near_lengths():
    """Sorted within a pool, batches need less than a third of the padding of batches in random order."""
    chance = random.Random(5)
    lengths = [chance.randint(4, 256) for _ in range(640)]

    def padding(batches: Sequence[Sequence[int]]) -> int:
        return sum(max(lengths[i] for i in batch) - lengths[j] for batch in batches for j in batch)

    batches = draw_batches(lengths, [1 / 640] * 640, 32, chance)
    mixed = [list(range(at, at + 32)) for at in range(0, 640, 32)]

    assert padding(batches) < padding(mixed) / 3


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


def test_calibration_error_by_hand():
    """Two answers at 0.95, one right, and two at 0.5, one right: a gap of 0.45 on half of them."""
    assert calibration_error([0.95, 0.95, 0.5, 0.5], [True, False, True, False]) == pytest.approx(0.225)


def test_scores_by_hand():
    """Three rows, two right: accuracy 2/3, F1 2/3 for both intents, recall 1/2 and 1."""
    rows = [row("1", "a", complexity="simple"), row("2", "a"), row("3", "b")]
    said = [Prediction(name, 1.0, "complex", (), {name: 1.0}, 3, truncated=False, model_version="v") for name in "abb"]

    report = score(rows, said)

    assert (report.accuracy, report.macro_f1, report.complexity_accuracy) == (0.6667, 0.6667, 0.0)
    assert report.recall == {"a": 0.5, "b": 1.0}


def test_the_projects_own_prompts_cover_every_intent_at_every_complexity():
    """prompts.jsonl reads without error and has each label of labels.yaml at each level at least three times."""
    labels = read_labels(SHIPPED_LABELS)
    prompts = SHIPPED_LABELS.parent / "prompts.jsonl"

    rows = read_rows([prompts], intents=labels.intent_names, levels=labels.complexity_levels)
    found = Counter((row.intent, row.complexity) for row in rows)

    assert len(rows) >= 500
    assert all(found[intent, level] >= 3 for intent in labels.intent_names for level in labels.complexity_levels)


@pytest.mark.parametrize("content", ["intents: [", "intents: []\nlevels: []", "a"])
def test_a_wrong_label_file_is_refused_in_one_line(tmp_path: Path, content: str):
    """A label file that is not one is refused by name."""
    path = tmp_path / "labels.yaml"
    path.write_text(content)

    with pytest.raises(StartupError, match=r"labels\.yaml") as refused:
        read_labels(path)

    assert "\n" not in str(refused.value)


def test_the_dataset_module_needs_no_torch():
    """Rows are checked before torch is loaded, so a wrong row is told at once."""
    assert not hasattr(dataset, "torch")
