"""How to train: every number that is not data."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of a training; written into the artifact."""

    seed: int = 0
    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup_share: float = 0.06
    weight_decay: float = 0.01
    label_smoothing: float = 0.05
    gradient_norm: float = 1.0
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    held_out_share: float = 0.1
    max_tokens: int = 256
    bf16: bool = False
    """Multiply in bf16 (autocast): about twice as fast on CPUs that have it, slower on those that have not."""
