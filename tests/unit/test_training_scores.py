"""Scores, by hand: accuracy, F1, confusion, sources, complexity against length, abstention."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from deployments.core.prediction import Prediction
from deployments.training.abstention import choose_threshold
from deployments.training.display import show
from deployments.training.length_baseline import LengthBaseline
from deployments.training.plots import write_plots
from deployments.training.scores import Report, interval, most_confused, score
from tests.unit.fakes import artifact
from tests.unit.rows import row

if TYPE_CHECKING:
    from pathlib import Path

    from deployments.training.rows import Row

ARTIFACT = artifact()  # its intents are reasoning and translation


def said(intent: str, confidence: float = 0.9, complexity: str = "simple") -> Prediction:
    other = {"reasoning": "translation", "translation": "reasoning"}[intent]
    scores = {intent: confidence, other: 1 - confidence}
    return Prediction(intent, confidence, complexity, (), scores, 3, truncated=False, model_version="v")


@pytest.fixture
def report() -> Report:
    """Three rows of reasoning, one of them taken for translation, and one of translation."""
    rows = [
        row("1", "reasoning", "book", "simple"),
        row("2", "reasoning", "book"),
        row("3", "reasoning", "chat", "complex"),
        row("4", "translation", "chat"),
    ]
    answers = [said("reasoning"), said("translation", 0.8), said("reasoning"), said("translation", 0.6)]
    return score(rows, answers, ARTIFACT, "oos")


def test_accuracy_and_f1(report: Report):
    """3 of 4 right; F1 is 0.8 for reasoning (1, 2/3) and 2/3 for translation (1/2, 1)."""
    assert (report.rows, report.accuracy) == (4, 0.75)
    assert report.macro_f1 == pytest.approx((0.8 + 2 / 3) / 2, abs=1e-4)
    assert report.by_intent["reasoning"].recall == pytest.approx(2 / 3, abs=1e-4)
    assert report.by_intent["translation"].precision == 0.5


def test_confusion_counts_rows_by_what_was_meant(report: Report):
    """Rows are what was meant, columns what was said."""
    assert report.intents == ("reasoning", "translation")
    assert report.confusion == [[2, 1], [0, 1]]
    assert most_confused(report) == [("reasoning", "translation", 1)]


def test_each_source_has_its_accuracy_and_that_of_the_rest(report: Report):
    """A book with one of two right and a chat with both."""
    assert {name: (each.accuracy, each.accuracy_of_the_rest) for name, each in report.by_source.items()} == {
        "book": (0.5, 1.0),
        "chat": (1.0, 0.5),
    }


def test_complexity_counts_the_rows_that_have_a_level(report: Report):
    """Two rows have one, of which one is right; an artifact that names no baseline has none."""
    assert report.complexity is not None
    assert (report.complexity.rows, report.complexity.accuracy, report.complexity.length_baseline) == (2, 0.5, None)


def test_mistakes_come_with_the_surest_first():
    """A mistake at 0.9 stands before one at 0.6."""
    rows: list[Row] = [row("a", "reasoning"), row("b", "reasoning")]

    mistakes = score(rows, [said("translation", 0.6), said("translation", 0.9)], ARTIFACT, "oos").mistakes

    assert [(each.text, each.said, each.confidence) for each in mistakes] == [
        ("b", "translation", 0.9),
        ("a", "translation", 0.6),
    ]


def test_wilsons_interval():
    """8 of 10: 0.490 to 0.943 (Wilson 1927; the example of Newcombe 1998 rounds alike)."""
    assert interval([True] * 8 + [False] * 2) == (0.4902, 0.9433)


def test_out_of_scope_rows_count_apart():
    """At a threshold of 0.7 one of two strangers is rejected and one of two known texts kept; AUROC is 3 of 4 pairs."""
    rows = [row("a", "reasoning"), row("b", "reasoning"), row("c", "oos"), row("d", "oos")]
    answers = [said("reasoning", 0.9), said("reasoning", 0.6), said("reasoning", 0.8), said("reasoning", 0.55)]

    report = score(rows, answers, replace(ARTIFACT, abstain_below=0.7), "oos")

    assert report.rows == 2
    assert report.accuracy == 1.0
    assert report.out_of_scope is not None
    assert (report.out_of_scope.rows, report.out_of_scope.auroc) == (2, 0.75)
    assert (report.out_of_scope.rejected, report.out_of_scope.kept) == (0.5, 0.5)


def test_the_threshold_parts_known_from_unknown():
    """It is the least confidence of those that lie above all strangers; without strangers it keeps 95 of 100.

    So it does where strangers are surer than known texts. It never rejects all that it was chosen to keep.
    """
    assert choose_threshold([0.9, 0.8, 0.7], [0.6, 0.3]) == 0.7
    assert choose_threshold([n / 100 for n in range(101)]) == pytest.approx(0.05)
    assert choose_threshold([0.1, 0.2], [0.9, 0.8]) == 0.1
    assert choose_threshold([0.99996] * 20) <= 0.99996


def test_labels_that_look_like_markup_are_printed_as_they_are():
    """A source of `[deleted]` is no style, `[/x]` no error."""
    output = StringIO()
    report = score([row("[b]", "reasoning", "[deleted]")], [said("translation")], ARTIFACT, "oos")

    show(replace(report, model_version="[/x]"), Console(file=output, width=200), worst=5)

    assert all(word in output.getvalue() for word in ("[deleted]", "[/x]", "[b]"))


def test_length_alone_tells_what_it_tells():
    """Texts up to 10 characters are simple and longer ones complex: the baseline finds the cut, stored or not."""
    texts = ["x" * length for length in range(1, 21)]
    levels = ["simple" if len(text) <= 10 else "complex" for text in texts]

    baseline = LengthBaseline.fit(texts, levels)

    assert baseline.levels(texts) == levels
    assert LengthBaseline.of(baseline.stored()) == baseline


def test_a_report_is_drawn(report: Report, tmp_path: Path):
    """Two PNG files, in a folder that need not exist."""
    files = write_plots(report, tmp_path / "new")

    assert [path.name for path in files] == ["confusion.png", "reliability.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files)
