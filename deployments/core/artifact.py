"""What a model artifact says of itself: labels, techniques, normalisation, and the encoder it belongs to.

An artifact is a folder with `model.yaml` and `weights.safetensors`. This module reads the first and checks the second's
hash; it loads no weights, so the ingress can answer `GET /types` without torch. `core.classifier` computes with it,
`training.train` writes it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from deployments.core.errors import ArtifactError
from deployments.core.text import NORMALISATIONS

DEFAULT_ARTIFACT = Path(__file__).parent.parent / "artifacts" / "default"
MODEL_FILE = "model.yaml"
WEIGHTS_FILE = "weights.safetensors"

OUT_OF_SCOPE = "out_of_scope"
"""What an artifact that may abstain answers when no intent is likely enough."""

# What an uncased BERT tokeniser ignores anyway. Only ASCII is lowercased: Python's and the tokeniser's Unicode
# lowercasing differ (a final sigma, for one), and texts that share a cache key must share their token ids.
NORMALISATION = ("collapse_whitespace", "lowercase_ascii")

LABEL_PATTERN = r"^[^\s\x00-\x1f]{1,64}$"
Label = Annotated[str, Field(pattern=LABEL_PATTERN)]
Line = Annotated[str, Field(min_length=1, pattern=r"^[^\n\r]*$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """The encoder the weights were trained on.

    `source` is an installed package with a `model` folder, or a folder when it starts with `.` or `/` (a relative one
    starts at the artifact). `sha256` is that of its `model.safetensors`.
    """

    source: Annotated[str, Field(min_length=1)]
    sha256: Sha256


@dataclass(frozen=True, slots=True)
class WeightsSpec:
    """What `weights.safetensors` holds: the heads, and LoRA adapters to be scaled by `lora_alpha / lora_rank`."""

    sha256: Sha256
    lora_rank: Annotated[int, Field(ge=1)]
    lora_alpha: Annotated[float, Field(gt=0)]


@dataclass(frozen=True, slots=True)
class Technique:
    """A way to prompt, what it adds, and the publication that showed when it helps."""

    name: Label
    reason: Line
    source: Line


@dataclass(frozen=True, slots=True)
class Intent:
    """A label, what it means, and the prompting techniques that suit it at each complexity level, best first.

    `reasons` say in a line why, level by level.
    """

    name: Label
    description: Line
    techniques: Mapping[str, tuple[str, ...]]
    reasons: Mapping[str, Line]


@dataclass(frozen=True)
class Artifact:
    """The content of `model.yaml`, checked.

    `version` is the file's own version and the first 8 hex digits of the file's sha256. The file names the hash of the
    weights, so whatever changes an answer (weights, temperature, a technique) changes the version and with it every
    prediction key. With `abstain_below`, a text whose best intent is less probable is answered `out_of_scope`.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    folder: Path
    version: str
    encoder: EncoderSpec
    weights: WeightsSpec
    intents: Annotated[tuple[Intent, ...], Field(min_length=2)]
    complexity_levels: Annotated[tuple[Label, ...], Field(min_length=1)]
    techniques: Annotated[tuple[Technique, ...], Field(min_length=1)]
    normalisation: tuple[str, ...]
    max_tokens: Annotated[int, Field(ge=8, le=8192)]
    truncation: Literal["head_tail"]
    temperature: Annotated[float, Field(gt=0)]
    training: dict[str, Any]
    scores: dict[str, Any]
    abstain_below: Annotated[float, Field(ge=0, le=1)] | None = None

    @classmethod
    def load(cls, folder: Path) -> "Artifact":
        """Read and check the artifact in `folder`.

        Raises:
            ArtifactError: One line that names the file, what is wrong and what to do.
        """
        path = folder / MODEL_FILE
        content = _read(path)
        fields = _parse(path, content)
        digest = hashlib.sha256(content).hexdigest()
        artifact = _validate(path, fields | {"folder": folder, "version": f"{fields.get('version', '0')}-{digest[:8]}"})
        check_labels(path, artifact.answers, artifact.complexity_levels, artifact.technique_names)
        _check_normalisation(path, artifact.normalisation)
        _check_weights(artifact)
        return artifact

    @cached_property  # asked for with every text
    def intent_names(self) -> tuple[str, ...]:
        """The intents' names in the order of the model's outputs."""
        return tuple(intent.name for intent in self.intents)

    @cached_property
    def answers(self) -> tuple[Intent, ...]:
        """What a text may be answered: the intents, and `out_of_scope` where the artifact may abstain."""
        return self.intents if self.abstain_below is None else (*self.intents, self._out_of_scope)

    @cached_property
    def answer_names(self) -> tuple[str, ...]:
        """The names of `answers`."""
        return tuple(intent.name for intent in self.answers)

    @cached_property
    def technique_names(self) -> tuple[str, ...]:
        """The techniques' names."""
        return tuple(technique.name for technique in self.techniques)

    def techniques_for(self, intent: str, complexity: str) -> tuple[str, ...]:
        """Give the techniques suggested for an intent at a complexity level, best first.

        Raises:
            KeyError: The artifact has no such answer or level.
        """
        return self._techniques[intent][complexity]

    @cached_property  # asked for with every text
    def _techniques(self) -> dict[str, Mapping[str, tuple[str, ...]]]:
        return {answer.name: answer.techniques for answer in self.answers}

    @property
    def _out_of_scope(self) -> Intent:
        """Nothing is suggested for a text of which only is known what it does not ask for."""
        return Intent(
            OUT_OF_SCOPE,
            "Asks for none of the other intents, as far as the model can tell.",
            dict.fromkeys(self.complexity_levels, ()),
            dict.fromkeys(self.complexity_levels, "What the text asks for is not known."),
        )


def sha256_of(path: Path) -> str:
    """Give a file's sha256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        remedy = "name a folder made by `intents train`"
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    try:
        fields = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: not YAML ({' '.join(str(error).split())}); restore the file") from error
    if not isinstance(fields, dict):
        raise ArtifactError(f"{path}: a mapping is expected, not {type(fields).__name__}; restore the file")
    return fields


def _validate(path: Path, fields: dict[str, Any]) -> Artifact:
    try:
        return TypeAdapter(Artifact).validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}: {place}: {first['msg']}; correct that line or train it again") from error


def check_labels(
    path: Path, intents: Sequence[Intent], complexity_levels: Sequence[str], techniques: Sequence[str]
) -> None:
    """Refuse labels that contradict each other; `path` is the file they stand in.

    Raises:
        ArtifactError: A label is listed twice, or an intent's techniques or reasons miss a level or name a technique
            that is not listed.
    """
    names = [intent.name for intent in intents]
    for kind, labels in (("intent", names), ("complexity level", complexity_levels), ("technique", techniques)):
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ArtifactError(f"{path}: {kind} {twice[0]!r} is listed twice; remove one")
    for intent in intents:
        _check_advice(path, intent, complexity_levels, techniques)


def _check_advice(path: Path, intent: Intent, complexity_levels: Sequence[str], techniques: Sequence[str]) -> None:
    for kind, by_level in (("techniques", intent.techniques), ("reasons", intent.reasons)):
        if set(by_level) != set(complexity_levels):
            expected = ", ".join(complexity_levels)
            found = ", ".join(by_level) or "none"
            raise ArtifactError(f"{path}: intent {intent.name!r} has {kind} for {found}; it needs {expected}")
    for level, suggested in intent.techniques.items():
        unknown = [technique for technique in suggested if technique not in techniques]
        if unknown:
            known = ", ".join(techniques)
            raise ArtifactError(
                f"{path}: intent {intent.name!r} suggests unknown technique {unknown[0]!r} at {level!r}; known: {known}"
            )


def _check_normalisation(path: Path, steps: Sequence[str]) -> None:
    unknown = [step for step in steps if step not in NORMALISATIONS]
    if unknown:
        known = ", ".join(NORMALISATIONS)
        raise ArtifactError(f"{path}: unknown normalisation step {unknown[0]!r}; known: {known}")


def _check_weights(artifact: Artifact) -> None:
    path = artifact.folder / WEIGHTS_FILE
    if not path.is_file():
        raise ArtifactError(f"{path}: missing; copy the whole artifact folder or train it again")
    found = sha256_of(path)
    if found != artifact.weights.sha256:
        raise ArtifactError(
            f"{path}: sha256 is {found}, {MODEL_FILE} names {artifact.weights.sha256}; "
            "copy the whole artifact folder again or train it again"
        )
