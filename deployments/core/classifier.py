"""The model: texts to tokens to predictions.

One object owns the tokeniser and a runtime, which computes the forward pass (`core.runtimes`). It forms no batches
(`core.batching` does) and keeps no state between calls. `forward` computes for as long as a forward pass takes: call it
from an executor thread, never on an event loop.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from deployments.core.artifact import OUT_OF_SCOPE, Artifact
from deployments.core.encoder import encoder_folder
from deployments.core.errors import ArtifactError
from deployments.core.prediction import Prediction
from deployments.core.runtimes import load_runtime

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from deployments.core.runtimes import Place, Precision, Runtime, RuntimeName

SCORE_DECIMALS = 6
WARM_UP_TOKENS = 16
WARM_UP_BATCH = 8
WARM_UP_ROUNDS = 3
"""Few and small: a replica that starts because others are busy takes its time from them."""
MIN_OVERHEAD_TOKENS = 16
"""Measured on a busy machine it may come out as nothing, and then only equal lengths would share a pass."""
LEAST_TOKENS_SHARE = 0.025
"""Part of a pass of `WARM_UP_BATCH` texts that is put down to all but one of them, at least: on a GPU, where eight take
as long as one, an overhead of some thousand tokens is as good as any more."""


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


@dataclass(frozen=True, slots=True)
class PassCost:
    """What a forward pass costs on this machine: it takes (tokens + `overhead_tokens`) / `tokens_per_s` seconds."""

    tokens_per_s: float
    overhead_tokens: int


class Classifier:
    """Answers what texts ask for."""

    def __init__(self, artifact: Artifact, tokeniser: Tokeniser, runtime: Runtime) -> None:
        self.artifact = artifact
        self.runtime = runtime
        self._tokeniser = tokeniser

    @classmethod
    def load(
        cls,
        artifact: Artifact,
        *,
        place: Place = "cpu",
        runtime: RuntimeName = "torch",
        precision: Precision = "fp32",
        threads: int | None = None,
    ) -> Classifier:
        """Load tokeniser, encoder and weights. The defaults are the reference: torch in fp32 on the CPU.

        Arguments and errors are those of `load_runtime`.
        """
        folder = encoder_folder(artifact.encoder, relative_to=artifact.folder)
        tokeniser = Tokeniser.load(folder, artifact.max_tokens)
        chosen = load_runtime(artifact, place=place, runtime=runtime, precision=precision, threads=threads)
        return cls(artifact, tokeniser, chosen)

    def tokenise(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokenise texts, order kept."""
        return self._tokeniser(texts)

    def forward(self, batch: Sequence[Tokens]) -> list[Prediction]:
        """Classify a batch in one forward pass padded to its longest member, order kept.

        An answer depends on its own tokens alone, up to the arithmetic of another batch shape (about 1e-6 in fp32).
        """
        if not batch:
            return []
        intents, complexities = self.logits(batch)
        scores = softmax(intents.astype(np.float64) / self.artifact.temperature)
        best, levels = (each.argmax(axis=-1).tolist() for each in (scores, complexities))
        # Whole arrays at once: number by number, a batch of 512 would take Python longer than its pass takes a GPU.
        rows = zip(batch, scores.round(SCORE_DECIMALS).tolist(), best, levels, strict=True)
        return [self._predict(*row) for row in rows]

    def logits(self, batch: Sequence[Tokens]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Give both heads' outputs before temperature: fp32, `[batch, intents]` and `[batch, levels]`."""
        both = self.runtime(*pad(batch, self._tokeniser.pad_id))
        intents = len(self.artifact.intents)
        return both[:, :intents], both[:, intents:]

    def warm_up(self) -> PassCost:
        """Run forward passes of the usual shape, so that the first request pays for no allocation; tell their cost.

        The cost of a pass is taken as linear in its tokens; what a pass of one text takes beyond that is overhead,
        given as the tokens that take as long.
        """
        tokens = self._warm_up_tokens()
        one_s, many_s = self._passes_s([tokens], [tokens] * WARM_UP_BATCH)
        length = len(tokens.ids)
        token_s = max(many_s - one_s, LEAST_TOKENS_SHARE * many_s) / (length * (WARM_UP_BATCH - 1))
        overhead = max(MIN_OVERHEAD_TOKENS, round(one_s / token_s) - length)
        return PassCost(1 / token_s, overhead)

    def try_out(self) -> None:
        """Classify a text that is known to be fine. Raises what the forward pass raises."""
        self.forward([self._warm_up_tokens()])

    def _warm_up_tokens(self) -> Tokens:
        (tokens,) = self._tokeniser([" ".join(["warm"] * (WARM_UP_TOKENS - 2))])
        return tokens

    def _passes_s(self, *batches: Sequence[Tokens]) -> list[float]:
        """Seconds of each batch's forward pass: the best of some, since whatever disturbs one makes it longer.

        In turn, for the machine is busy with a start: a moment's trouble must not meet one of them alone.
        """
        rounds = [[self._pass_s(batch) for batch in batches] for _ in range(WARM_UP_ROUNDS)]
        return [min(spent_s) for spent_s in zip(*rounds, strict=True)]

    def _pass_s(self, batch: Sequence[Tokens]) -> float:
        started_s = time.perf_counter()
        self.forward(batch)
        return time.perf_counter() - started_s

    def _predict(self, tokens: Tokens, scores: Sequence[float], best: int, level: int) -> Prediction:
        artifact = self.artifact
        confidence = scores[best]
        abstains = artifact.abstain_below is not None and confidence < artifact.abstain_below
        intent = OUT_OF_SCOPE if abstains else artifact.intent_names[best]
        complexity = artifact.complexity_levels[level]
        return Prediction(
            intent=intent,
            confidence=confidence,
            complexity=complexity,
            techniques=artifact.techniques_for(intent, complexity),
            scores=dict(zip(artifact.intent_names, scores, strict=True)),
            tokens=tokens.count,
            truncated=tokens.truncated,
            model_version=artifact.version,
        )


def head_tail(ids: Sequence[int], limit: int) -> Sequence[int]:
    """Keep the first and the last half of `limit` ids; the odd one goes to the head.

    People put the question before a pasted document or after it, seldom in its middle.
    """
    if len(ids) <= limit:
        return ids
    tail = limit // 2
    return [*ids[: limit - tail], *ids[len(ids) - tail :]]


def pad(batch: Sequence[Tokens], pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give ids and mask (1 for a token, 0 for padding), both `[batch, longest]`."""
    longest = max(len(tokens.ids) for tokens in batch)
    ids = np.full((len(batch), longest), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(batch):
        ids[row, : len(tokens.ids)] = tokens.ids
        mask[row, : len(tokens.ids)] = 1
    return ids, mask


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn each row of `[batch, labels]` into probabilities."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)  # type: ignore[no-any-return] # numpy's stubs lose it


def _special_id(tokenizer: Tokenizer, token: str) -> int:
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise ArtifactError(f"the encoder's tokeniser has no {token}; use a BERT-like encoder")
    return found
