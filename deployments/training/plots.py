"""A report as pictures: `confusion.png` and `reliability.png`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from pathlib import Path

    from deployments.training.scores import Report

CELL_INCHES = 0.45
MAX_INCHES = 24.0
NUMBERED_INTENTS = 30
"""Intents up to which each cell shows its share as a number."""
NAMED_INTENTS = 160
"""Intents up to which rows and columns have names: beyond, nobody could read them."""


def write_plots(report: Report, folder: Path) -> list[Path]:
    """Draw the confusion matrix and the reliability diagram into `folder`; give the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {"confusion.png": _confusion(report), "reliability.png": _reliability(report)}
    for name, figure in drawn.items():
        figure.savefig(folder / name, dpi=150, bbox_inches="tight")
    return [folder / name for name in drawn]


def _confusion(report: Report) -> Figure:
    """Each row sums to 1: the share of an intent's rows taken for each intent."""
    counts = np.array(report.confusion, dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(4.0, CELL_INCHES * len(report.intents)), MAX_INCHES)
    figure = Figure(figsize=(side + 2, side + 1))
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(report.intents) <= NAMED_INTENTS:
        size = min(10.0, 60 * side / len(report.intents))
        axes.set_xticks(range(len(report.intents)), report.intents, rotation=90, fontsize=size)
        axes.set_yticks(range(len(report.intents)), report.intents, fontsize=size)
    axes.set_xlabel("said")
    axes.set_ylabel("meant")
    axes.set_title(f"{report.model_version}: {report.rows:,} texts, accuracy {report.accuracy:.3f}")
    if len(report.intents) <= NUMBERED_INTENTS:
        for (row, column), share in np.ndenumerate(shares):
            if counts[row, column]:
                colour = "white" if share > 0.5 else "black"  # noqa: PLR2004
                axes.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, fraction=0.04)
    return figure


def _reliability(report: Report) -> Figure:
    """Points on the diagonal are calibrated; their area says how many texts they stand for."""
    figure = Figure(figsize=(5, 5))
    axes = figure.add_subplot()
    sizes = [20 + 600 * each.rows / report.rows for each in report.reliability]
    axes.plot([0, 1], [0, 1], linestyle="--", color="grey", linewidth=1)
    axes.scatter(
        [each.confidence for each in report.reliability],
        [each.accuracy for each in report.reliability],
        s=sizes,
        alpha=0.6,
    )
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence", ylabel="share that is right")
    axes.set_title(f"{report.model_version}: calibration error {report.ece:.3f}")
    return figure
