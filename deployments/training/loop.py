"""The training loop: AdamW over drawn batches, the best epoch kept."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from deployments.core.classifier import Tokeniser, Tokens, load_encoder
from deployments.training.dataset import Row, draw_batches, sampling_weights
from deployments.training.labels import Labels
from deployments.training.network import IGNORED, Network, loss_of
from deployments.training.recipe import Recipe


def fit(
    kept: Sequence[Row], held: Sequence[Row], labels: Labels, encoder: Path, recipe: Recipe, *, progress: bool
) -> dict[str, torch.Tensor]:
    """Train on `kept` and give the weights of the epoch with the least loss on `held`, as an artifact stores them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = _network(labels, encoder, recipe)
        tokeniser = Tokeniser.load(encoder, recipe.max_tokens)
        examples, aside = (Examples.of(rows, labels, tokeniser) for rows in (kept, held))
        chance = random.Random(recipe.seed)  # noqa: S311 - the order of rows is no secret
        epochs = [
            draw_batches(examples.lengths, examples.weights, recipe.batch_size, chance) for _ in range(recipe.epochs)
        ]
        steps = sum(map(len, epochs))
        optimizer, schedule = _optimizer(network, steps, recipe)
        best, best_loss = network.weights(), float("inf")
        with _progress_bar(steps, shown=progress) as advance:
            for batches in epochs:
                for batch in batches:
                    _step(network, examples, batch, optimizer, recipe)
                    schedule.step()
                    advance()
                loss = held_out_loss(network, aside, recipe.batch_size)
                if loss < best_loss:
                    best, best_loss = network.weights(), loss
    return best


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

    def loss(self, network: Network, batch: Sequence[int], *, smoothing: float) -> torch.Tensor:
        """The network's loss on the rows at the indices in `batch`."""
        logits = network([self.tokens[index] for index in batch], self.pad_id)
        rows = list(batch)
        return loss_of(logits, self.intents[rows], self.levels[rows], smoothing=smoothing)


def held_out_loss(network: Network, aside: Examples, batch_size: int) -> float:
    """Mean loss over all rows, without dropout or smoothing."""
    network.eval()
    order = sorted(range(len(aside.tokens)), key=aside.lengths.__getitem__)
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            total += float(aside.loss(network, batch, smoothing=0.0)) * len(batch)
    return total / len(order)


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


def _step(network: Network, examples: Examples, batch: Sequence[int], optimizer: Optimizer, recipe: Recipe) -> None:
    network.train()
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
        loss = examples.loss(network, batch, smoothing=recipe.label_smoothing)
    loss.backward()  # type: ignore[no-untyped-call]
    clip_grad_norm_(network.parameters(), recipe.gradient_norm)
    optimizer.step()


@contextmanager
def _progress_bar(steps: int, *, shown: bool) -> Iterator[Callable[[], None]]:
    """Give a function that counts a step; with a bar and the time left on the terminal when shown."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not shown) as bar:
        task = bar.add_task("training", total=steps)
        yield lambda: bar.advance(task)
