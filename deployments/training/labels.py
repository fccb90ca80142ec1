"""Which labels an artifact knows: read from a YAML file, or taken from the data when there is none."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from deployments.core.artifact import COMPLEXITY_LEVELS, TECHNIQUES, Intent, Label
from deployments.core.errors import StartupError

SHIPPED_LABELS = Path(__file__).parent / "labels.yaml"
DEFAULT_TECHNIQUES: Mapping[str, tuple[str, ...]] = {
    "simple": ("zero_shot",),
    "moderate": ("few_shot",),
    "complex": ("chain_of_thought",),
}


@dataclass(frozen=True)
class Labels:
    """The intents in the order of the model's outputs, and the complexity levels."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    intents: tuple[Intent, ...]
    complexity_levels: tuple[Label, ...] = COMPLEXITY_LEVELS
    techniques: tuple[Label, ...] = TECHNIQUES

    @property
    def intent_names(self) -> tuple[str, ...]:
        """The intents' names in order."""
        return tuple(intent.name for intent in self.intents)


def read_labels(path: Path) -> Labels:
    """Read a label file; `deployments/training/labels.yaml` is the example.

    Raises:
        StartupError: The file is missing, is not YAML, or does not have the form.
    """
    try:
        content: Any = yaml.safe_load(path.read_text("utf-8"))
        return TypeAdapter(Labels).validate_python(content)
    except OSError as error:
        raise StartupError(f"{path}: cannot be read ({error.strerror}); name a label file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StartupError(f"{path}: not YAML ({' '.join(str(error).split())}); correct it") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise StartupError(f"{path}: {place}: {first['msg']}; see {SHIPPED_LABELS.name} for the form") from error


def labels_of(names: Iterable[str]) -> Labels:
    """Make a label set from the names in the data, sorted; what the shipped labels do not describe gets defaults."""
    shipped = {intent.name: intent for intent in read_labels(SHIPPED_LABELS).intents}
    return Labels(
        tuple(
            shipped.get(name) or Intent(name, f"Texts labelled {name!r}.", DEFAULT_TECHNIQUES)
            for name in sorted(set(names))
        )
    )
