"""`intents train` and `intents evaluate`: they parse, call and print."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deployments.core.artifact import DEFAULT_ARTIFACT, OUT_OF_SCOPE, Artifact
from deployments.core.errors import StartupError
from deployments.terminal import console, examples, json_line, one_line_errors
from deployments.training.recipe import Recipe
from deployments.training.rows import Split

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deployments.training.scores import Report

DEFAULTS = Recipe()

TRAIN_EXAMPLES = examples(
    "intents train --data prompts.jsonl --out artifacts/mine",
    "intents train --data a.jsonl --data b.jsonl --labels labels.yaml --epochs 5 --out artifacts/mine",
    "intents train --data questions.jsonl --abstain --out artifacts/mine",
    "intents train --data prompts.jsonl --encoder ./smaller-bert --out artifacts/mine",
    "MODEL_ARTIFACT=artifacts/mine intents up",
)
EVALUATE_EXAMPLES = examples(
    "intents evaluate --data prompts.jsonl",
    "intents evaluate --artifact artifacts/mine --data prompts.jsonl --split test --plots plots/",
    "intents evaluate --artifact artifacts/mine --data test.jsonl --data oos.jsonl --out-of-scope oos --json",
    "intents evaluate --data a.jsonl --data b.jsonl --leave-one-source-out --source forum",
)

OutOfScope = Annotated[
    str | None,
    typer.Option(help=f"The label of rows that ask for none of the intents; `{OUT_OF_SCOPE}` when absent."),
]


def train(  # noqa: PLR0913, PLR0917 — its options
    data: Annotated[
        list[Path],
        typer.Option(
            help="JSONL with `text`, `intent` and perhaps `complexity`, `source` and `split` (`test`: only scored); "
            "may be given again."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new artifact.")],
    labels: Annotated[
        Path | None, typer.Option(help="Labels, descriptions and techniques; the labels found in the data when absent.")
    ] = None,
    evaluate: Annotated[
        list[Path] | None,
        typer.Option(help="JSONL to score the artifact on; its texts are not trained on. May be given again."),
    ] = None,
    encoder: Annotated[
        str,
        typer.Option(
            help="The uncased BERT to train on: an installed package, or a folder when it starts with `.` or `/`, with "
            "config.json, tokenizer.json and model.safetensors."
        ),
    ] = DEFAULTS.encoder,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data, at most.")] = DEFAULTS.epochs,
    patience: Annotated[
        int, typer.Option(min=1, help="Stop after so many passes without a better validation loss.")
    ] = DEFAULTS.patience,
    learning_rate: Annotated[float, typer.Option(min=1e-6, help="Peak learning rate.")] = DEFAULTS.learning_rate,
    validation_share: Annotated[
        float, typer.Option(min=0.01, max=0.5, help="Share of rows to stop early and to calibrate by.")
    ] = DEFAULTS.validation_share,
    max_tokens: Annotated[
        int, typer.Option(min=8, max=512, help="Tokens of a text that are read, half from each end.")
    ] = DEFAULTS.max_tokens,
    seed: Annotated[int, typer.Option(help="Makes the run repeatable.")] = DEFAULTS.seed,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Multiply in bf16: twice as fast on processors that have it.")
    ] = DEFAULTS.bf16,
    out_of_scope: OutOfScope = None,
    abstain: Annotated[
        bool,
        typer.Option("--abstain", help="Answer `out_of_scope` when unsure; implied by rows that are out of scope."),
    ] = False,
) -> None:
    """Train an artifact: a LoRA adapter and heads on the encoder, on CPU in minutes."""
    with _training_errors("peft", "sklearn"):
        from deployments.training.display import show_trained
        from deployments.training.train import train as run_training

        recipe = Recipe(
            encoder=str(Path(encoder).absolute()) if encoder.startswith((".", "/")) else encoder,
            seed=seed,
            epochs=epochs,
            patience=patience,
            learning_rate=learning_rate,
            validation_share=validation_share,
            max_tokens=max_tokens,
            bf16=bf16,
        )
        artifact = run_training(
            data,
            out,
            labels=labels,
            evaluation=evaluate or (),
            recipe=recipe,
            out_of_scope=out_of_scope,
            abstain=abstain,
            progress=True,
        )
        show_trained(artifact, out, console())


def evaluate(  # noqa: PLR0913, PLR0917 — its options
    data: Annotated[
        list[Path], typer.Option(help="JSONL with `text`, `intent` and perhaps `complexity`; may be given again.")
    ],
    artifact: Annotated[Path | None, typer.Option(help="Folder of the artifact; the shipped one when absent.")] = None,
    split: Annotated[Split, typer.Option(help="`test`: rows marked so; `train`: the others.")] = Split.ALL,
    out_of_scope: OutOfScope = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for confusion.png and reliability.png.")] = None,
    worst: Annotated[int, typer.Option(min=0, help="Mistakes to show, the surest first.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    leave_one_source_out: Annotated[
        bool,
        typer.Option(
            "--leave-one-source-out",
            help="Train as the artifact was, without each `source` in turn, and score on that source: "
            "as long as a training for each.",
        ),
    ] = False,
    source: Annotated[list[str] | None, typer.Option(help="Leave out only this source; may be given again.")] = None,
) -> None:
    """Score an artifact on labelled texts: by intent and source, confusions, calibration, the surest mistakes."""
    with _training_errors("sklearn", *(["matplotlib"] if plots else []), *(["peft"] if leave_one_source_out else [])):
        if source and not leave_one_source_out:
            raise StartupError("--source names what --leave-one-source-out leaves out; give both")
        if leave_one_source_out and (plots or split is not Split.ALL):
            raise StartupError(
                "--leave-one-source-out trains on what is no test row and draws nothing; drop the other option"
            )
        loaded = Artifact.load(artifact or DEFAULT_ARTIFACT)
        if leave_one_source_out:
            _show_left_out(_leave_one_source_out(loaded, data, out_of_scope, source or []), as_json)
            return
        from deployments.training.evaluate import evaluate as run_evaluation

        report = run_evaluation(loaded, data, split=split, out_of_scope=out_of_scope or OUT_OF_SCOPE, progress=True)
        _show(report, worst, as_json)
        if plots:
            _draw(report, plots)


def _show(report: Report, worst: int, as_json: bool) -> None:
    from deployments.training.display import show

    if as_json:
        typer.echo(json_line(asdict(report)))
    else:
        show(report, console(), worst=worst)


def _draw(report: Report, folder: Path) -> None:
    from deployments.training.plots import write_plots

    for path in write_plots(report, folder):
        typer.echo(f"wrote {path}", err=True)


def _leave_one_source_out(
    artifact: Artifact, data: list[Path], out_of_scope: str | None, sources: list[str]
) -> dict[str, Report | None]:
    from deployments.training.corpus import Corpus
    from deployments.training.labels import Labels
    from deployments.training.sources import leave_one_source_out

    recipe = Recipe.of(artifact.training)
    labels = Labels(artifact.intents, artifact.complexity_levels, artifact.techniques)
    corpus = Corpus.read(data, labels=labels, out_of_scope=out_of_scope, validation_share=recipe.validation_share)
    reports = {}
    for name, report in leave_one_source_out(corpus, recipe, sources=sources, progress=True):
        said = (
            f"accuracy {report.accuracy:.4f} on its {report.rows:,} texts" if report else "nobody else has its intents"
        )
        typer.echo(f"without {name}: {said}", err=True)
        reports[name] = report
    return reports


def _show_left_out(reports: dict[str, Report | None], as_json: bool) -> None:
    from deployments.training.display import show_left_out

    if as_json:
        document = {name: report and asdict(report) for name, report in reports.items()}
        typer.echo(json_line(document))
    else:
        show_left_out(reports, console())


@contextlib.contextmanager
def _training_errors(*packages: str) -> Iterator[None]:
    """Refuse before anything else where a library of the `train` extra is missing; failures in one line.

    A polite end (SIGTERM) leaves as little behind as Ctrl-C does.
    """
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with one_line_errors((StartupError, ValueError, OSError)):
            for package in packages:
                if importlib.util.find_spec(package) is None:
                    raise StartupError(f"this needs {package}; run `pip install 'intentgraph[train]'`")
            yield
    finally:
        signal.signal(signal.SIGTERM, before)
