"""The forward pass behind one seam, and which of several ways to compute it serves on this machine.

    on CUDA     torch in fp16
    on a CPU    ONNX Runtime or torch in fp32, whichever is faster on this processor

torch in fp32 on the CPU is the reference. `auto` takes only what keeps to its labels: another one for at most 1 % of
texts, and only where its two best are within 0.02. bf16 and int8 miss that by a hair and must be asked for.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal, Protocol

from deployments.core.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from deployments.core.artifact import Artifact

RuntimeName = Literal["auto", "onnx", "torch"]
Precision = Literal["auto", "fp32", "fp16", "bf16", "int8"]
Place = Literal["cpu", "cuda"]
Way = tuple[Literal["onnx", "torch"], Literal["fp32", "fp16", "bf16", "int8"]]

WAYS: dict[Place, tuple[Way, ...]] = {
    "cpu": (("onnx", "fp32"), ("torch", "fp32"), ("torch", "bf16"), ("onnx", "int8")),
    "cuda": (("torch", "fp16"), ("torch", "bf16"), ("torch", "fp32")),
}
"""What there is."""
AUTOMATIC: dict[Place, tuple[Way, ...]] = {"cpu": WAYS["cpu"][:2], "cuda": WAYS["cuda"][:1]}
"""What `auto` chooses from."""

logger = logging.getLogger(__name__)


class Runtime(Protocol):
    """A way to compute the forward pass. Safe to repeat; one call at a time."""

    name: str
    """Such as `onnx fp32`."""

    def __call__(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Map token ids and mask (1 for a token, 0 for padding), both `[batch, longest]`, to the logits of both heads.

        Returns:
            `[batch, intents + levels]`.
        """


def load_runtime(
    artifact: Artifact,
    *,
    place: Place = "cpu",
    runtime: RuntimeName = "auto",
    precision: Precision = "auto",
    threads: int | None = None,
) -> Runtime:
    """Load what computes an artifact's forward pass; a second, or half a minute the first time ONNX Runtime serves it.

    Args:
        artifact: What to serve.
        place: Where it computes.
        runtime: `onnx` or `torch`, or whichever is fastest.
        precision: Of the arithmetic, or whichever is fastest.
        threads: Threads of a forward pass on the CPU, for the whole process; the runtime's own choice when None.

    Raises:
        ArtifactError: The encoder is missing or is not the one the weights were trained on, or the weights do not fit
            the labels.
        StartupError: torch sees no GPU, or there is no such combination of place, runtime and precision, or the export
            failed.
    """
    if place == "cuda":
        _require_cuda()
    ways = _ways(place, runtime, precision)
    way = ways[0] if len(ways) == 1 else _fastest(artifact, ways, threads)
    return load_way(artifact, way, place=place, threads=threads)


def load_way(artifact: Artifact, way: Way, *, place: Place, threads: int | None) -> Runtime:
    """Load one way to compute the forward pass."""
    name, precision = way
    if name == "onnx":
        from deployments.core.onnx_runtime import OnnxRuntime

        return OnnxRuntime.load(artifact, precision, threads=threads)
    from deployments.core.torch_runtime import TorchRuntime

    return TorchRuntime.load(artifact, precision, place=place, threads=threads)


def _require_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        raise StartupError(
            "device is cuda and torch sees none: give the replica a GPU (`num_gpus`) and torch's CUDA build"
        )


def _ways(place: Place, runtime: RuntimeName, precision: Precision) -> tuple[Way, ...]:
    """Give the combinations that were asked for; with the precision left open, of those that `auto` chooses from."""
    known = AUTOMATIC[place] if precision == "auto" else WAYS[place]
    ways = tuple(way for way in known if runtime in ("auto", way[0]) and precision in ("auto", way[1]))
    if not ways:
        there = ", ".join(" ".join(way) for way in WAYS[place])
        raise StartupError(f"no runtime {runtime!r} with precision {precision!r} on {place}; there are: {there}")
    return ways


def _fastest(artifact: Artifact, ways: Iterable[Way], threads: int | None) -> Way:
    from deployments.core.speed_trial import pass_times

    times_s = pass_times(artifact, threads=threads)
    best = min(ways, key=lambda way: times_s[" ".join(way)])
    shown = ", ".join(
        f"{name} {1000 * spent_s:.0f} ms" for name, spent_s in sorted(times_s.items(), key=lambda each: each[1])
    )
    logger.info("the forward pass runs on %s; a pass of the trial took: %s", " ".join(best), shown)
    return best
