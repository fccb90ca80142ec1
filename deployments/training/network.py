"""What is trained: LoRA adapters on every linear layer of a frozen encoder, and two heads on its mean-pooled output.

It shares padding and pooling with what serves it (`core.classifier`, `core.encoder`): what `weights()` gives.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from deployments.core.classifier import Tokens, pad
from deployments.core.encoder import mean_pool

IGNORED = -1
COMPLEXITY_SHARE = 0.3
"""Weight of the complexity loss beside the intent loss: few rows carry it, and it must not steer the encoder."""


class Network(nn.Module):
    """A frozen encoder with trainable adapters and heads."""

    def __init__(
        self, encoder: nn.Module, *, intents: int, levels: int, rank: int, alpha: float, dropout: float
    ) -> None:
        super().__init__()
        width = encoder.get_parameter("embeddings.word_embeddings.weight").shape[1]
        self.encoder = add_adapters(encoder, rank=rank, alpha=alpha, dropout=dropout)
        self.intent = nn.Linear(width, intents)
        self.complexity = nn.Linear(width, levels)
        # Data without complexity labels leaves this head as it starts: then it always says the first level.
        nn.init.zeros_(self.complexity.weight)
        nn.init.zeros_(self.complexity.bias)

    def forward(self, batch: Sequence[Tokens], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the logits of both heads: `[batch, intents]` and `[batch, levels]`."""
        ids, mask = (torch.from_numpy(values) for values in pad(batch, pad_id))
        pooled = mean_pool(self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask)
        return self.intent(pooled), self.complexity(pooled)

    def weights(self) -> dict[str, torch.Tensor]:
        """Give what was trained in the names and the precision (bf16) of `weights.safetensors`."""
        found = adapters_of(self.encoder)
        for head in ("intent", "complexity"):
            found[f"heads.{head}.weight"] = getattr(self, head).weight
            found[f"heads.{head}.bias"] = getattr(self, head).bias
        return {name: value.detach().to(torch.bfloat16).contiguous().clone() for name, value in found.items()}


def add_adapters(encoder: nn.Module, *, rank: int, alpha: float, dropout: float) -> nn.Module:
    """Freeze an encoder and put a LoRA adapter on each of its linear layers."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft calls a name that transformers is about to change
        wrapped: nn.Module = get_peft_model(encoder, config)
    return wrapped


def adapters_of(encoder: nn.Module) -> dict[str, torch.Tensor]:
    """Give the adapters of `add_adapters` as `lora.<layer>.A` of `[rank, in]` and `lora.<layer>.B` of `[out, rank]`."""
    found: dict[str, torch.Tensor] = {}
    for name, value in encoder.named_parameters():
        for kind in ("A", "B"):
            layer, adapter, _ = name.partition(f".lora_{kind}.")
            if adapter:
                found[f"lora.{layer.removeprefix('base_model.model.')}.{kind}"] = value.detach()
    return found


def loss_of(
    logits: tuple[torch.Tensor, torch.Tensor], intents: torch.Tensor, levels: torch.Tensor, *, smoothing: float
) -> torch.Tensor:
    """Cross entropy of the intent, and `COMPLEXITY_SHARE` of the complexity's."""
    return cross_entropy(logits[0], intents, label_smoothing=smoothing) + COMPLEXITY_SHARE * complexity_loss(
        logits[1], levels
    )


def complexity_loss(logits: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Cross entropy over the rows that have a level (not `IGNORED`); zero when none has."""
    labelled = levels != IGNORED
    return cross_entropy(logits[labelled], levels[labelled]) if labelled.any() else logits.new_zeros(())
