"""Exports an artifact's network for ONNX Runtime, once for each artifact and set of library versions.

    load_network ──▶ torch.onnx ──▶ fp32.onnx ──▶ block-wise int8 weights ──▶ int8.onnx

The files are kept in the user's cache folder under a hash of whatever goes into them. Exporting takes a quarter of a
minute and the memory of torch, so it runs in a process of its own: a replica that finds the files starts in half a
second and never loads torch.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deployments.core.artifact import Artifact
from deployments.core.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx

INPUTS: Final = ("input_ids", "attention_mask")
"""The model's inputs, in the order of the network's arguments; its one output is the logits."""
FORMAT: Final = 1
"""Raise it when this module writes other files for the same artifact."""
LIBRARIES: Final = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")
INT8_BLOCK: Final = 32
"""Weights and activations share a scale over so many values of a row: an answer does not depend on its batch."""
INT8_COMPUTE: Final = 4
"""`accuracy_level` of the operator MatMulNBits: products of int8 with int8."""
EXPORT_TIMEOUT_S: Final = 300

logger = logging.getLogger(__name__)


def exported(artifact: Artifact, precision: str) -> Path:
    """Give the ONNX file of an artifact, `fp32` or `int8`; exports it when it is not there yet.

    Raises:
        StartupError: The export failed.
    """
    folder = cache_folder() / digest(artifact)
    path = folder / f"{precision}.onnx"
    if not path.is_file():
        logger.info("exporting %s for ONNX Runtime, once, into %s", artifact.version, folder)
        run_apart("deployments.core.onnx_export", str(artifact.folder.absolute()), str(folder))
    return path


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where exports are kept: the user's cache folder, or one of this user's below /tmp where there is no home."""
    base = environment.get("XDG_CACHE_HOME")
    try:
        folder = (Path(base) if base else Path.home() / ".cache") / "intentgraph" / "models"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):
        pass
    folder = Path(tempfile.gettempdir()) / f"intentgraph-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise StartupError(f"{folder} belongs to another user; set XDG_CACHE_HOME to a folder that can be written")
    return folder


def digest(artifact: Artifact) -> str:
    """Hash whatever decides about the exported files."""
    weights = artifact.weights
    parts = (FORMAT, artifact.encoder.sha256, weights.sha256, weights.lora_alpha / weights.lora_rank)
    versions = [version(name) for name in LIBRARIES]
    return hashlib.sha256(repr((parts, versions)).encode()).hexdigest()[:16]


def run_apart(module: str, *arguments: str) -> None:
    """Run a module of this package as a process of its own.

    Raises:
        StartupError: It failed; the last line it wrote says why.
    """
    command = [sys.executable, "-m", module, *arguments]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=EXPORT_TIMEOUT_S)  # noqa: S603
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
        raise StartupError(
            f"preparing the model failed ({module}: {reason}); `runtime: torch` serves without it"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise StartupError(
            f"preparing the model took over {EXPORT_TIMEOUT_S} s; `runtime: torch` serves without it"
        ) from error


def export(artifact: Artifact, folder: Path) -> None:
    """Write `fp32.onnx` and `int8.onnx`."""
    import onnx

    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "fp32.onnx") as draft:
        _write(artifact, draft)
    with replacing(folder / "int8.onnx") as draft:
        quantise(onnx.load(folder / "fp32.onnx"), draft)


def _write(artifact: Artifact, path: Path) -> None:
    import torch

    from deployments.core.encoder import load_network

    shape = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=2, max=artifact.max_tokens)}
    # Two tensors: given one twice, the exporter takes both inputs for the same.
    ids, mask = (torch.ones((2, artifact.max_tokens), dtype=torch.int64) for _ in INPUTS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of shared axes and of operators nobody uses here
        program = torch.onnx.export(
            load_network(artifact),
            (ids, mask),
            dynamo=True,
            dynamic_shapes=dict.fromkeys(INPUTS, shape),
            input_names=INPUTS,
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    program.save(path, include_initializers=True)


def quantise(model: onnx.ModelProto, path: Path) -> None:
    """Write a model with the weights of its matrix products in int8, a scale for every `INT8_BLOCK` values of a row."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantiser = MatMulNBitsQuantizer(
        model, bits=8, block_size=INT8_BLOCK, is_symmetric=True, accuracy_level=INT8_COMPUTE
    )
    quantiser.process()
    quantiser.model.save_model_to_file(str(path))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to that becomes `path` at once: two processes may prepare the same, neither sees half."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".draft-") as folder:
        draft = Path(folder) / path.name
        yield draft
        draft.replace(path)


if __name__ == "__main__":
    export(Artifact.load(Path(sys.argv[1])), Path(sys.argv[2]))
