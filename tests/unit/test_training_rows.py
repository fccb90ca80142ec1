"""Training's rows: what is taken, what is refused and how it is said, what is drawn."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from deployments.core.errors import StartupError
from deployments.training.labels import SHIPPED_LABELS, read_labels
from deployments.training.rows import read_rows
from deployments.training.sampling import draw_batches, sampling_weights, split_validation
from tests.unit.rows import row, write

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

GOOD = {"text": "hi there", "intent": "greeting", "complexity": "simple"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"intent": "greeting"}, "no text"),
        ({"text": "  ", "intent": "greeting"}, "no text"),
        ({"text": "hi"}, "no intent"),
        ({"text": "hi", "intent": "small talk"}, "intent 'small talk': a label has 1 to 64 characters and no blanks"),
        ({"text": "hi", "intent": "sum", "split": "dev"}, "\"split\" is 'dev'; write train or test"),
        ('{"text": "\\ud83d", "intent": "sum"}', "'text' holds half a surrogate pair"),
        ({"text": 5, "intent": "greeting"}, "'text' is 5; write a string"),
        (
            {"text": "hi", "intent": "smalltalk"},
            "unknown intent 'smalltalk'; correct it",
        ),
        (
            {"text": "hi", "intent": "sum", "complexity": "easy"},
            "add the label (known: simple, hard)",
        ),
        ({"text": "hi there", "intent": "sum"}, "intent 'sum' here and 'greeting' at "),
        ({"text": "hi there", "intent": "greeting", "complexity": "hard"}, "complexity 'hard' here and 'simple' at "),
        ('{"text": "hi", ', "not JSON"),
        ('["hi", "greeting"]', "a JSON object is expected"),
    ],
)
def test_a_wrong_row_is_named_by_file_and_line(tmp_path: Path, wrong: object, said: str):
    """A wrong row stops the reading with file:line, what is wrong and what to do."""
    path = write(tmp_path / "rows.jsonl", GOOD, "", wrong)

    with pytest.raises(StartupError) as refused:
        read_rows([path], intents=["greeting", "sum"], levels=["simple", "hard"])

    assert str(refused.value).startswith(f"{path}:3: ")
    assert said in str(refused.value)


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


def test_the_validation_part_is_the_same_whatever_the_order():
    """A tenth of each intent, taken evenly over its sources, is kept aside, chosen by the texts alone."""
    rows = [row(f"text {n}", "ab"[n % 2], "xy"[n % 4 // 2]) for n in range(80)]

    kept, aside = split_validation(rows, 0.1)
    _, aside_reversed = split_validation(rows[::-1], 0.1)

    assert len(kept) + len(aside) == 80
    assert Counter((r.intent, r.source) for r in aside) == dict.fromkeys([(i, s) for i in "ab" for s in "xy"], 2)
    assert {r.text for r in aside} == {r.text for r in aside_reversed}


def test_every_intent_is_validated_on_however_many_sources_it_has():
    """Five rows of five sources give one; a single row gives none; the sources of a large intent give alike."""
    rows = [row(f"a{n}", "a", source=str(n)) for n in range(5)] + [row("b", "b")]
    rows += [row(f"c{n}", "c", source=str(n % 4)) for n in range(40)]

    _, aside = split_validation(rows, 0.1)

    assert Counter(r.intent for r in aside) == {"a": 1, "c": 4}
    assert {r.source for r in aside if r.intent == "c"} == set("0123")


def test_what_the_model_cannot_tell_apart_is_one_text(tmp_path: Path):
    """Case and white space aside, two rows are one, test where one says so; two intents of it are refused."""
    marked = write(tmp_path / "marked.jsonl", {"text": "hi  THERE", "intent": "greeting", "split": "test"})
    first = write(tmp_path / "a.jsonl", GOOD)
    other = write(tmp_path / "b.jsonl", {"text": "Hi there\n", "intent": "sum"})

    [row] = read_rows([first, marked])

    assert (row.text, row.is_test) == ("hi there", True)
    with pytest.raises(StartupError, match="intent 'sum' here and 'greeting' at "):
        read_rows([first, other])


def test_files_of_one_name_are_two_sources(tmp_path: Path):
    """Or balancing and leaving one out would take them for one; a byte order mark is no part of the first row."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    first = write(tmp_path / "a" / "rows.jsonl", GOOD)
    second = tmp_path / "b" / "rows.jsonl"
    second.write_text(json.dumps({"text": "2 + 2", "intent": "sum"}), "utf-8-sig")

    assert [each.source for each in read_rows([first, second])] == [str(tmp_path / "a/rows"), str(tmp_path / "b/rows")]


def test_of_many_known_labels_the_nearest_are_told(tmp_path: Path):
    """Five of them, and how many more there are."""
    path = write(tmp_path / "rows.jsonl", {"text": "hi", "intent": "label_7O"})

    with pytest.raises(StartupError, match=r"label_7.* and 95 more\)"):
        read_rows([path], intents=[f"label_{n}" for n in range(100)])


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


@pytest.mark.parametrize("content", ["intents: [", "intents: []\nlevels: []", "a"])
def test_a_wrong_label_file_is_refused_in_one_line(tmp_path: Path, content: str):
    """A label file that is not one is refused by name."""
    path = tmp_path / "labels.yaml"
    path.write_text(content)

    with pytest.raises(StartupError, match=r"labels\.yaml") as refused:
        read_labels(path)

    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("written", "instead", "said"),
    [
        ("simple: [zero_shot]", "simple: [magic]", "suggests unknown technique 'magic' at 'simple'"),
        ("name: reasoning", "name: translation", "intent 'translation' is listed twice"),
    ],
)
def test_a_label_file_that_contradicts_itself_is_refused_before_training(
    tmp_path: Path, written: str, instead: str, said: str
):
    """What the artifact would be refused for is told of the label file."""
    path = tmp_path / "labels.yaml"
    path.write_text(SHIPPED_LABELS.read_text().replace(written, instead, 1))

    with pytest.raises(StartupError, match=said):
        read_labels(path)


def test_wrong_rows_are_told_before_torch_is_loaded():
    """What reads and checks rows imports neither torch nor scikit-learn, which take seconds."""
    code = (
        "import sys; from deployments.training import cli, corpus, train; "
        "print(sorted({'torch', 'sklearn', 'scipy', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"
