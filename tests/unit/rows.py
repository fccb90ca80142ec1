"""Rows of labelled texts for the training tests."""

import json
from pathlib import Path

from deployments.training.rows import Row


def row(text: str, intent: str = "a", source: str = "s", complexity: str | None = None) -> Row:
    """A row as it is read."""
    return Row(text, intent, complexity, source, "here:1")


def write(path: Path, *rows: object) -> Path:
    """Write a JSONL file; strings as they stand."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def greetings_and_sums(path: Path, *, first: int = 0) -> Path:
    """Forty rows which anything can tell apart, numbered from `first`; the greetings with complexities."""
    numbers = range(first, first + 20)
    greetings = [
        {"text": f"hello friend {n}", "intent": "greeting", "complexity": ("simple", "moderate")[n % 2]}
        for n in numbers
    ]
    return write(path, *greetings, *({"text": f"what is {n} plus {n}", "intent": "sum"} for n in numbers))
