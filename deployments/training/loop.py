"""The training loop: AdamW over drawn batches, stopped early, the best epoch kept."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from deployments.core.classifier import Tokeniser, Tokens
from deployments.core.encoder import load_encoder
from deployments.core.errors import StartupError
from deployments.training.calibration import fit_temperature, log_loss
from deployments.training.labels import Labels
from deployments.training.network import COMPLEXITY_SHARE, IGNORED, Network, complexity_loss, loss_of
from deployments.training.recipe import Recipe
from deployments.training.rows import Row
from deployments.training.sampling import draw_batches, sampling_weights


def fit(
    training: Sequence[Row],
    validation: Sequence[Row],
    labels: Labels,
    encoder: Path,
    recipe: Recipe,
    *,
    progress: bool,
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Train until the last epoch, or until `patience` epochs in a row did not improve the loss on `validation`.

    Returns:
        The weights of the best epoch as an artifact stores them, and the validation loss after each epoch.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = _network(labels, encoder, recipe)
        tokeniser = Tokeniser.load(encoder, recipe.max_tokens)
        examples, aside = (Examples.of(rows, labels, tokeniser) for rows in (training, validation))
        chance = random.Random(recipe.seed)  # noqa: S311 - the order of rows is no secret
        epochs = [
            draw_batches(examples.lengths, examples.weights, recipe.batch_size, chance) for _ in range(recipe.epochs)
        ]
        steps = sum(map(len, epochs))
        optimizer, schedule = _optimizer(network, steps, recipe)
        best, losses = network.weights(), list[float]()
        with _progress_bar(steps, shown=progress) as bar:
            for batches in epochs:
                for batch in batches:
                    _step(network, examples, batch, optimizer, schedule, recipe)
                    bar.advance()
                loss, accuracy = validate(network, aside, recipe.batch_size)
                if not math.isfinite(loss):
                    raise StartupError("the loss is no longer a number: training diverged; lower --learning-rate")
                if loss < min(losses, default=float("inf")):
                    best = network.weights()
                losses.append(loss)
                bar.tell(f"epoch {len(losses)} of {recipe.epochs}: validation loss {loss:.4f}, accuracy {accuracy:.4f}")
                if len(losses) - losses.index(min(losses)) > recipe.patience:
                    bar.tell(f"no better loss in {recipe.patience} epochs: stopping")
                    break
    return best, losses


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows as the network takes them."""

    tokens: list[Tokens]
    intents: torch.Tensor
    levels: torch.Tensor
    weights: list[float]
    pad_id: int

    @classmethod
    def of(cls, rows: Sequence[Row], labels: Labels, tokeniser: Tokeniser) -> "Examples":
        """Tokenise rows and number their labels."""
        intents = {name: index for index, name in enumerate(labels.intent_names)}
        levels = {name: index for index, name in enumerate(labels.complexity_levels)}
        return cls(
            tokeniser([row.text for row in rows]),
            torch.tensor([intents[row.intent] for row in rows]),
            torch.tensor([levels[row.complexity] if row.complexity else IGNORED for row in rows]),
            sampling_weights(rows),
            tokeniser.pad_id,
        )

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, truncated."""
        return [len(tokens.ids) for tokens in self.tokens]


def validate(network: Network, examples: Examples, batch_size: int) -> tuple[float, float]:
    """Give loss and accuracy over all rows, the intents' weighed by `sampling_weights` as training's are.

    The intent's loss is taken at the temperature that fits it best, as it will be served: without that, an epoch that
    is right more often but too sure of itself would lose against an earlier one.
    """
    network.eval()
    order = sorted(range(len(examples.tokens)), key=examples.lengths.__getitem__)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            parts.append(network([examples.tokens[index] for index in batch], examples.pad_id))
    intents, levels = (torch.cat([part[head] for part in parts]) for head in (0, 1))
    meant, weights = examples.intents[order], torch.tensor(examples.weights)[order]
    loss = log_loss(intents, meant, weights, fit_temperature(intents, meant, weights))
    loss += COMPLEXITY_SHARE * float(complexity_loss(levels, examples.levels[order]))
    return loss, float(((intents.argmax(dim=1) == meant) * weights).sum() / weights.sum())


def _network(labels: Labels, encoder: Path, recipe: Recipe) -> Network:
    return Network(
        load_encoder(encoder),
        intents=len(labels.intents),
        levels=len(labels.complexity_levels),
        rank=recipe.lora_rank,
        alpha=recipe.lora_alpha,
        dropout=recipe.lora_dropout,
    )


def _optimizer(network: Network, steps: int, recipe: Recipe) -> tuple[Optimizer, LRScheduler]:
    """AdamW with a linear rise over the first steps and a linear fall to zero."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = AdamW(trained, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    rise = max(1, round(steps * recipe.warmup_share))

    def factor(step: int) -> float:
        return min((step + 1) / rise, (steps - step) / max(1, steps - rise))

    return optimizer, LambdaLR(optimizer, factor)


def _step(
    network: Network, examples: Examples, rows: list[int], optimizer: Optimizer, schedule: LRScheduler, recipe: Recipe
) -> None:
    network.train()
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
        logits = network([examples.tokens[index] for index in rows], examples.pad_id)
        loss = loss_of(logits, examples.intents[rows], examples.levels[rows], smoothing=recipe.label_smoothing)
    loss.backward()  # type: ignore[no-untyped-call]
    clip_grad_norm_(network.parameters(), recipe.gradient_norm)
    optimizer.step()
    schedule.step()


@dataclass(frozen=True, slots=True)
class _Bar:
    """Counts steps, and tells of epochs above the bar."""

    advance: Callable[[], None]
    tell: Callable[[str], None]


@contextmanager
def _progress_bar(steps: int, *, shown: bool) -> Iterator[_Bar]:
    """Show steps and the time left on a terminal, lines about epochs anywhere; nothing when not shown."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True, quiet=not shown, highlight=False)
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task("training", total=steps)
        yield _Bar(lambda: bar.advance(task), console.print)
