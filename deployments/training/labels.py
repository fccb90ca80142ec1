"""Which labels an artifact knows: read from a YAML file, or taken from the data when there is none."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from deployments.core.artifact import Intent, Label, Technique, check_labels
from deployments.core.errors import StartupError

SHIPPED_LABELS: Final = Path(__file__).parent / "labels.yaml"
DEFAULT_TECHNIQUES: Final[Mapping[str, tuple[str, ...]]] = {
    "simple": ("zero_shot",),
    "moderate": ("few_shot",),
    "complex": ("chain_of_thought",),
}
DEFAULT_REASONS: Final[Mapping[str, str]] = {
    "simple": "A plain request needs no scaffolding.",
    "moderate": "Examples show the form wanted.",
    "complex": "Steps written out before the answer make it surer.",
}


@dataclass(frozen=True)
class Labels:
    """The intents in the order of the model's outputs, the complexity levels, and the techniques they suggest."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    intents: tuple[Intent, ...]
    complexity_levels: tuple[Label, ...]
    techniques: tuple[Technique, ...]

    @property
    def intent_names(self) -> tuple[str, ...]:
        """The intents' names in order."""
        return tuple(intent.name for intent in self.intents)


def read_labels(path: Path) -> Labels:
    """Read a label file; `deployments/training/labels.yaml` is the example.

    Raises:
        StartupError: The file is missing, is not YAML, does not have the form, or contradicts itself.
    """
    try:
        content: Any = yaml.safe_load(path.read_text("utf-8"))
        labels = TypeAdapter(Labels).validate_python(content)
    except OSError as error:
        raise StartupError(f"{path}: cannot be read ({error.strerror}); name a label file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StartupError(f"{path}: not YAML ({' '.join(str(error).split())}); correct it") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise StartupError(f"{path}: {place}: {first['msg']}; see {SHIPPED_LABELS.name} for the form") from error
    check_labels(path, labels.intents, labels.complexity_levels, [technique.name for technique in labels.techniques])
    return labels


def labels_of(names: Iterable[str]) -> Labels:
    """Make a label set from the names in the data, sorted; what the shipped labels do not describe gets defaults."""
    shipped = read_labels(SHIPPED_LABELS)
    described = {intent.name: intent for intent in shipped.intents}
    intents = tuple(
        described.get(name) or Intent(name, f"Texts labelled {name!r}.", DEFAULT_TECHNIQUES, DEFAULT_REASONS)
        for name in sorted(set(names))
    )
    return Labels(intents, shipped.complexity_levels, shipped.techniques)
