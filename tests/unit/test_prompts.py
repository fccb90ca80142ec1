"""The prompts written for the project: enough of each kind, none a copy of another, a fifth never trained on."""

import re
from collections import Counter, defaultdict

import pytest

from deployments.training.labels import SHIPPED_LABELS, read_labels
from deployments.training.rows import Row, read_rows

LABELS = read_labels(SHIPPED_LABELS)
PROMPTS = SHIPPED_LABELS.parent / "prompts.jsonl"
LEAST_PUBLIC = ("data_analysis", "summarization", "task_planning", "translation", "creative_writing")


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """All of them."""
    return read_rows([PROMPTS], intents=LABELS.intent_names, levels=LABELS.complexity_levels)


def test_every_intent_is_there_at_every_complexity(rows: list[Row]):
    """At least 1,200 prompts, more of the intents that public rows lack, each level in each intent."""
    intents = Counter(row.intent for row in rows)
    levels = Counter((row.intent, row.complexity) for row in rows)
    others = set(LABELS.intent_names) - set(LEAST_PUBLIC)

    assert len(rows) >= 1200
    assert min(intents[name] for name in LEAST_PUBLIC) > sum(intents[name] for name in others) / len(others)
    assert all(levels[intent, level] >= 20 for intent in LABELS.intent_names for level in LABELS.complexity_levels)


def test_lengths_are_those_of_real_prompts(rows: list[Row]):
    """From a few characters to 4,000, with many short and some of a page."""
    lengths = sorted(len(row.text) for row in rows)

    assert lengths[0] <= 3
    assert 3000 <= lengths[-1] <= 4000
    assert sum(length < 60 for length in lengths) > len(lengths) / 5
    assert sum(length > 900 for length in lengths) > len(lengths) / 25


def test_no_two_prompts_are_nearly_the_same(rows: list[Row]):
    """No pair shares half of its runs of four words (Jaccard index)."""
    runs = [four_word_runs(row.text) for row in rows]

    assert [
        (rows[a].place, rows[b].place)
        for (a, b), shared in overlaps(runs).items()
        if shared / (len(runs[a]) + len(runs[b]) - shared) >= 0.5
    ] == []


def test_likeness_by_hand():
    """Of "a b c d e" and "a b c d f" one run of two each is shared: 1 of 3."""
    runs = [four_word_runs(text) for text in ("A b c d e", "a, b c d f", "x")]

    assert overlaps(runs) == {(0, 1): 1}
    assert [len(each) for each in runs] == [2, 2, 1]


def test_a_fifth_is_never_trained_on(rows: list[Row]):
    """Marked in the file, of every intent at every complexity."""
    total, marked = (
        Counter((row.intent, row.complexity) for row in rows if row.is_test or not only_test)
        for only_test in (False, True)
    )

    assert sum(marked.values()) / len(rows) == pytest.approx(0.2, abs=0.01)
    assert all(marked[kind] / count == pytest.approx(0.2, abs=0.06) for kind, count in total.items())


def four_word_runs(text: str) -> set[tuple[str, ...]]:
    """Every run of four words; of a shorter text, the whole."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[start : start + 4]) for start in range(max(1, len(words) - 3))}


def overlaps(runs: list[set[tuple[str, ...]]]) -> Counter[tuple[int, int]]:
    """How many runs each pair of texts shares, where any."""
    where: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    shared: Counter[tuple[int, int]] = Counter()
    for index, its_runs in enumerate(runs):
        for run in its_runs:
            shared.update((other, index) for other in where[run])
            where[run].append(index)
    return shared
