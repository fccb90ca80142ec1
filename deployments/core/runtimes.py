"""The forward pass behind one seam, and which of several ways to compute it serves on this machine.

    on CUDA     torch in bf16
    on a CPU    the fastest of ONNX Runtime in int8 and fp32 and torch in bf16 and fp32, as measured on this processor

torch in fp32 is the reference: every other way is held to its labels by a test.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from deployments.core.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from deployments.core.artifact import Artifact

RuntimeName = Literal["auto", "onnx", "torch"]
Precision = Literal["auto", "fp32", "bf16", "int8"]
Device = Literal["auto", "cpu", "cuda"]
Way = tuple[Literal["onnx", "torch"], Literal["fp32", "bf16", "int8"]]

CPU_WAYS: tuple[Way, ...] = (("onnx", "int8"), ("onnx", "fp32"), ("torch", "bf16"), ("torch", "fp32"))
CUDA_WAYS: tuple[Way, ...] = (("torch", "bf16"), ("torch", "fp32"))
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Processor flags, x86's and Arm's, without which bf16 is emulated and some 50 times slower than fp32."""

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
    device: Device = "auto",
    runtime: RuntimeName = "auto",
    precision: Precision = "auto",
    threads: int | None = None,
) -> Runtime:
    """Load what computes an artifact's forward pass; a second, or half a minute the first time ONNX Runtime serves it.

    Args:
        artifact: What to serve.
        device: `auto` takes CUDA when there is one.
        runtime: `onnx` or `torch`, or whichever is fastest.
        precision: Of the arithmetic, or whichever is fastest.
        threads: Threads of a forward pass on the CPU, for the whole process; the runtime's own choice when None.

    Raises:
        ArtifactError: The encoder is missing or is not the one the weights were trained on, or the weights do not fit
            the labels.
        StartupError: There is no such combination of device, runtime and precision, or the export failed.
    """
    place = _place(device)
    ways = _ways(place, runtime, precision)
    if place == "cpu" and len(ways) > 1:
        ways = (_fastest(artifact, ways, threads),)
    return load_way(artifact, ways[0], place=place, threads=threads)


def load_way(artifact: Artifact, way: Way, *, place: Literal["cpu", "cuda"], threads: int | None) -> Runtime:
    """Load one way to compute the forward pass."""
    name, precision = way
    if name == "onnx":
        from deployments.core.onnx_runtime import OnnxRuntime

        return OnnxRuntime.load(artifact, precision, threads=threads)
    from deployments.core.torch_runtime import TorchRuntime

    return TorchRuntime.load(artifact, precision, place=place, threads=threads)


def _place(device: Device) -> Literal["cpu", "cuda"]:
    if device != "auto":
        return device
    if not Path("/proc/driver/nvidia").exists():  # importing torch to ask takes two seconds and 300 MB
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _ways(place: Literal["cpu", "cuda"], runtime: RuntimeName, precision: Precision) -> tuple[Way, ...]:
    """Give the combinations that were asked for; where the precision is left open, only those that `auto` may take."""
    known = CUDA_WAYS if place == "cuda" else automatic_ways() if precision == "auto" else CPU_WAYS
    ways = tuple(way for way in known if runtime in ("auto", way[0]) and precision in ("auto", way[1]))
    if not ways:
        there = ", ".join(" ".join(way) for way in known)
        raise StartupError(f"no runtime {runtime!r} with precision {precision!r} on {place}; there are: {there}")
    return ways


def automatic_ways() -> tuple[Way, ...]:
    """Give the ways on a CPU that keep to the reference's labels and are not emulated on this processor."""
    bf16_is_native = bool(BF16_FLAGS & processor_flags())
    return tuple(way for way in CPU_WAYS if way[1] == "fp32" or (way[1] == "bf16" and bf16_is_native))


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What the processor can do, in the kernel's words; nothing where they are not to be read."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()[2:])


def _fastest(artifact: Artifact, ways: Iterable[Way], threads: int | None) -> Way:
    from deployments.core.speed_trial import pass_times

    times_s = pass_times(artifact, threads=threads)
    best = min(ways, key=lambda way: times_s[" ".join(way)])
    shown = ", ".join(
        f"{name} {1000 * spent_s:.0f} ms" for name, spent_s in sorted(times_s.items(), key=lambda each: each[1])
    )
    logger.info("the forward pass runs on %s; the trial took: %s", " ".join(best), shown)
    return best
