"""Making an artifact: rows in, a folder out that can be served.

The rows are checked before anything costs time; the artifact is written beside its place, calibrated and scored through
the serving code, and put in place at once.

Method: LoRA (Hu et al. 2021, arXiv:2106.09685) on every linear layer, AdamW, sampling balanced over intents and
sources; the epoch with the least loss on validation rows is kept; one temperature is fitted on them, and where the
artifact may abstain, a threshold.
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from deployments.core.artifact import (
    MODEL_FILE,
    NORMALISATION,
    WEIGHTS_FILE,
    Artifact,
    EncoderSpec,
    sha256_of,
)
from deployments.core.classifier import Classifier
from deployments.core.encoder import encoder_folder
from deployments.core.errors import StartupError
from deployments.training.corpus import Corpus
from deployments.training.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from deployments.training.rows import Row


def train(
    data: Sequence[Path],
    out: Path,
    *,
    labels: Path | None = None,
    evaluation: Sequence[Path] = (),
    recipe: Recipe | None = None,
    out_of_scope: str | None = None,
    abstain: bool = False,
    progress: bool = False,
) -> Artifact:
    """Train an artifact into the folder `out`; minutes on a CPU.

    On one machine's CPU the same data, recipe, number of threads and libraries give the same weights. Interrupted, it
    leaves `out` as it was.

    Args:
        data: JSONL files of rows with `text`, `intent` and optionally `complexity`, `source` and `split`.
        out: A folder that does not exist, is empty, or holds an artifact to be replaced.
        labels: Label file with descriptions and techniques; without it the labels are those found in the data.
        evaluation: JSONL files to score the artifact on, never trained on; their scores go into `model.yaml`.
        recipe: All that is not data; the defaults of `Recipe` when absent.
        out_of_scope: The label of rows that ask for none of the intents, `out_of_scope` when None. They are not trained
            on; where there are any, the artifact abstains below the confidence that tells them best from the others.
        abstain: Make an artifact that abstains also without such rows.
        progress: Show progress bars with the time left.

    Raises:
        StartupError: A row is wrong (`file:line` and what to do), or `out` is in use by something else.
    """
    chosen = recipe or Recipe()
    place = Path(os.path.abspath(out))  # noqa: PTH100 — `resolve` would follow a link that is to be replaced
    _check_out(place)
    corpus = Corpus.read(
        data,
        labels=labels,
        evaluation=evaluation,
        out_of_scope=out_of_scope,
        abstain=abstain,
        validation_share=chosen.validation_share,
    )
    with _replacing(place) as draft:
        build(corpus, draft, chosen, progress=progress)
    return Artifact.load(place)


def build(corpus: Corpus, folder: Path, recipe: Recipe, *, progress: bool = False) -> Classifier:
    """Train on a corpus that was checked, write the artifact into an empty folder, and give it as it will be served."""
    from deployments.training.loop import fit  # torch takes seconds to load; wrong rows are told before

    encoder = encoder_folder(EncoderSpec(recipe.encoder, ""), relative_to=folder)
    weights, losses = fit(corpus.training, corpus.validation, corpus.labels, encoder, recipe, progress=progress)
    _save(weights, folder / WEIGHTS_FILE)
    model = _describe(corpus, recipe, encoder, folder)
    model["training"]["validation_losses"] = [round(loss, 4) for loss in losses]
    classifier = Classifier.load(_written(folder, model))
    model["temperature"] = _temperature(classifier, corpus.validation)
    classifier.artifact = _written(folder, model)
    if corpus.abstains:
        model["abstain_below"] = _threshold(classifier, corpus)
        classifier.artifact = _written(folder, model)
    model["scores"] = _scores(classifier, corpus, progress=progress)
    classifier.artifact = _written(folder, model)
    return classifier


def _temperature(classifier: Classifier, validation: Sequence[Row]) -> float:
    """Fit the temperature on what will be served: the stored weights, through the serving code."""
    import torch

    from deployments.training.calibration import fit_temperature
    from deployments.training.evaluate import BATCH_SIZE
    from deployments.training.sampling import sampling_weights

    tokens = classifier.tokenise([row.text for row in validation])
    parts = [classifier.logits(tokens[at : at + BATCH_SIZE])[0] for at in range(0, len(tokens), BATCH_SIZE)]
    labels = torch.tensor([classifier.artifact.intent_names.index(row.intent) for row in validation])
    return fit_temperature(torch.from_numpy(np.concatenate(parts)), labels, torch.tensor(sampling_weights(validation)))


def _threshold(classifier: Classifier, corpus: Corpus) -> float:
    from deployments.training.abstention import choose_threshold
    from deployments.training.evaluate import predict

    known, unknown = (
        [said.confidence for said in predict(classifier, rows)] for rows in (corpus.validation, corpus.out_of_scope)
    )
    return choose_threshold(known, unknown)


def _scores(classifier: Classifier, corpus: Corpus, *, progress: bool) -> dict[str, Any]:
    """Score everything that has an intent; rows out of scope beside the validation rows they set the threshold with."""
    from deployments.training.evaluate import score_rows

    label = corpus.out_of_scope_label
    scored = {"validation": [*corpus.validation, *corpus.out_of_scope], "test": corpus.test, **corpus.evaluation}
    return {
        name: score_rows(classifier, rows, label, progress=progress).summary()
        for name, rows in scored.items()
        if any(row.intent != label for row in rows)
    }


def _describe(corpus: Corpus, recipe: Recipe, encoder: Path, folder: Path) -> dict[str, Any]:
    """Give the content of `model.yaml` as far as it is known before calibration."""
    labels = corpus.labels
    return {
        "version": time.strftime("%Y.%m"),
        "encoder": {"source": recipe.encoder, "sha256": sha256_of(encoder / "model.safetensors")},
        "weights": {
            "sha256": sha256_of(folder / WEIGHTS_FILE),
            "lora_rank": recipe.lora_rank,
            "lora_alpha": recipe.lora_alpha,
        },
        "normalisation": list(NORMALISATION),
        "max_tokens": recipe.max_tokens,
        "truncation": "head_tail",
        "temperature": 1.0,
        "abstain_below": None,
        "complexity_levels": list(labels.complexity_levels),
        "techniques": [asdict(technique) for technique in labels.techniques],
        "intents": [
            {
                "name": intent.name,
                "description": intent.description,
                "techniques": {level: list(intent.techniques[level]) for level in labels.complexity_levels},
                "reasons": {level: intent.reasons[level] for level in labels.complexity_levels},
            }
            for intent in labels.intents
        ],
        "training": {
            "files": [{"name": name, "sha256": digest} for name, digest in corpus.hashes],
            "rows": len(corpus.training),
            "length_baseline": _length_baseline(corpus.training),
            **asdict(recipe),
        },
        "scores": {},
    }


def _length_baseline(rows: Sequence[Row]) -> dict[str, Any] | None:
    from deployments.training.length_baseline import LengthBaseline

    levelled = [(row.text, row.complexity) for row in rows if row.complexity]
    if not levelled:
        return None
    return LengthBaseline.fit([text for text, _ in levelled], [level for _, level in levelled]).stored()


def _save(weights: dict[str, torch.Tensor], path: Path) -> None:
    from safetensors.torch import save

    path.write_bytes(save(weights))  # not `save_file`: it leaves a file that only its owner can read


def _written(folder: Path, model: dict[str, Any]) -> Artifact:
    """Write `model.yaml` and read it back as what it will be served from."""
    content = yaml.safe_dump(model, sort_keys=False, allow_unicode=True, width=120)
    (folder / MODEL_FILE).write_text(content, "utf-8")
    return Artifact.load(folder)


def _check_out(out: Path) -> None:
    """Refuse what cannot be replaced, or is more than an artifact, before anything costs time."""
    if out.is_symlink() or out.is_mount():
        raise StartupError(f"{out}: a link or a mount point cannot be replaced; name a folder below it")
    if not out.exists():
        return
    others = sorted({path.name for path in out.iterdir()} - {MODEL_FILE, WEIGHTS_FILE}) if out.is_dir() else [out.name]
    if others:
        raise StartupError(f"{out}: holds {others[0]}, which is no part of an artifact; name an empty or a new folder")


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """Give a folder to write into, which takes the place of `out` when all went well and vanishes otherwise."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as workshop:
        draft, replaced = Path(workshop) / "draft", Path(workshop) / "replaced"
        draft.mkdir()
        yield draft
        try:
            if out.exists():
                out.rename(replaced)
            draft.rename(out)
        except BaseException:
            if replaced.exists() and not out.exists():
                replaced.rename(out)
            raise
