"""The network behind an artifact: the encoder with its LoRA adapters merged in, and the two heads, in torch.

It is the reference for every other way to compute it. Serving on a CPU needs none of it once it was exported
(`core.onnx_export`).
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.core.artifact import WEIGHTS_FILE, Artifact, EncoderSpec, sha256_of
from deployments.core.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


def load_network(artifact: Artifact) -> torch.nn.Module:
    """Load the network in fp32 on the CPU; one to three seconds.

    It maps ids and mask (1 for a token, 0 for padding), both int64 `[batch, longest]`, to the logits of both heads:
    fp32 `[batch, intents + levels]`.

    Raises:
        ArtifactError: The encoder is missing or is not the one the weights were trained on, or the weights do not fit
            the labels.
    """
    from safetensors.torch import load_file

    folder = encoder_folder(artifact.encoder, relative_to=artifact.folder)
    check_encoder(folder, artifact.encoder)
    weights = load_file(artifact.folder / WEIGHTS_FILE)
    encoder = load_encoder(folder)
    merge_lora(encoder, weights, scale=artifact.weights.lora_alpha / artifact.weights.lora_rank)
    return _network(encoder, *heads_of(weights, artifact))


def _network(encoder: torch.nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> torch.nn.Module:
    import torch

    class Network(torch.nn.Module):
        """Encoder, mean pooling in fp32, and both heads as one linear layer."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder
            self.heads = torch.nn.Linear(weight.shape[1], weight.shape[0])
            self.heads.load_state_dict({"weight": weight, "bias": bias})

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            logits: torch.Tensor = self.heads(mean_pool(hidden.float(), attention_mask))
            return logits

    return Network().eval()


def heads_of(weights: Mapping[str, torch.Tensor], artifact: Artifact) -> tuple[torch.Tensor, torch.Tensor]:
    """Take both heads out of an artifact's weights: weight `[intents + levels, width]` and bias, fp32.

    Raises:
        ArtifactError: A head is missing or has another number of outputs than there are labels.
    """
    import torch

    outputs = {"intent": len(artifact.intents), "complexity": len(artifact.complexity_levels)}
    for name, expected in outputs.items():
        found = len(weights.get(f"heads.{name}.weight", ()))
        if found != expected:
            raise ArtifactError(
                f"{artifact.folder / WEIGHTS_FILE}: the {name} head has {found} outputs for {expected} labels; "
                "train the artifact again"
            )
    weight, bias = (
        torch.cat([weights[f"heads.{name}.{part}"].float() for name in outputs]) for part in ("weight", "bias")
    )
    return weight, bias


def mean_pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Average the hidden states of real tokens: `[batch, longest, width]` to `[batch, width]`."""
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1)


def merge_lora(encoder: torch.nn.Module, weights: Mapping[str, torch.Tensor], *, scale: float) -> None:
    """Add each adapter to the linear layer it was trained for: W += scale · B·A (Hu et al. 2021).

    `weights` hold `lora.<layer>.A` of shape `[rank, in]` and `lora.<layer>.B` of shape `[out, rank]`. Merged, an
    adapter costs nothing at inference, and serving needs no adapter library.
    """
    import torch

    layers = sorted(name.removeprefix("lora.").removesuffix(".A") for name in weights if name.endswith(".A"))
    with torch.no_grad():
        for layer in layers:
            a, b = weights[f"lora.{layer}.A"].float(), weights[f"lora.{layer}.B"].float()
            encoder.get_parameter(f"{layer}.weight").add_(b @ a, alpha=scale)


def encoder_folder(spec: EncoderSpec, *, relative_to: Path) -> Path:
    """Find the encoder's files: the `model` folder of an installed package, or a folder of its own.

    Raises:
        ArtifactError: There is no such package or folder.
    """
    if spec.source.startswith((".", "/")):
        folder = relative_to / spec.source
        remedy = "copy the encoder there"
    else:
        folder, remedy = _package_folder(spec.source), f"pip install {spec.source.replace('_', '-')}"
    if not (folder / "model.safetensors").is_file():
        raise ArtifactError(f"{folder}: no encoder there (model.safetensors is missing); {remedy}")
    return folder


def check_encoder(folder: Path, spec: EncoderSpec) -> None:
    """Refuse an encoder that is not the one the weights were trained on; reads the whole file, about 0.1 s.

    Raises:
        ArtifactError: The hash differs.
    """
    found = sha256_of(folder / "model.safetensors")
    if found != spec.sha256:
        raise ArtifactError(
            f"{folder / 'model.safetensors'}: sha256 is {found}, the artifact was trained on {spec.sha256}; "
            f"install the version of {spec.source} it names or train it again"
        )


def load_encoder(folder: Path) -> torch.nn.Module:
    """Load the encoder in fp32 from local files only; no network, whatever the environment says.

    Raises:
        ArtifactError: The folder's weights do not fill the architecture its `config.json` names.
    """
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel

    # Dropout is for training alone; in the attention it costs torch its fused kernel and a step 1.3 times the time.
    config = AutoConfig.from_pretrained(folder, local_files_only=True, attention_probs_dropout_prob=0.0)
    encoder: torch.nn.Module = AutoModel.from_config(config, add_pooling_layer=False, attn_implementation="sdpa")
    # Not `from_pretrained`: it prints a report and a progress bar in every replica for the pooler we do not use.
    missing = encoder.load_state_dict(load_file(folder / "model.safetensors"), strict=False).missing_keys
    if missing:
        raise ArtifactError(
            f"{folder}: model.safetensors lacks {missing[0]} of its architecture; copy the encoder again"
        )
    return encoder.eval()


def _package_folder(package: str) -> Path:
    try:
        return Path(str(files(package))) / "model"
    except ModuleNotFoundError as error:
        remedy = f"pip install {package.replace('_', '-')}"
        raise ArtifactError(f"encoder package {package!r} is not installed; {remedy}") from error
