"""Which way to compute the forward pass is fastest on this processor: a trial of some seconds, kept for later starts.

Weights do not matter for it, so one trial serves every artifact of an encoder. It counts processor time, not time: a
service starts on a busy machine. It runs in a process of its own: a replica keeps nothing of the ways that lost.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from deployments.core.artifact import Artifact
from deployments.core.onnx_export import FORMAT, LIBRARIES, cache_folder, replacing, run_apart
from deployments.core.onnx_runtime import SLOWER_FUSIONS
from deployments.core.runtimes import AUTOMATIC, load_way

if TYPE_CHECKING:
    from deployments.core.runtimes import Runtime

SHAPES: Final = ((1, 16), (32, 16), (8, 32), (4, 128))
"""Batch × tokens: a lone text, a full batch of short ones, and longer ones."""
ROUNDS: Final = 3
SCORING: Final = "geometric mean"
"""Each shape counts alike: the longest pass would decide a sum, and somebody waits for the lone text."""


def pass_times(artifact: Artifact, *, threads: int | None) -> dict[str, float]:
    """Give the processor seconds of a pass, the geometric mean over `SHAPES`, by way (`onnx fp32`).

    Raises:
        StartupError: The trial or an export failed.
    """
    conditions = (
        FORMAT,
        SCORING,
        SLOWER_FUSIONS,
        artifact.encoder.sha256,
        threads,
        sorted(processor_flags()),
        [version(name) for name in LIBRARIES],
    )
    path = cache_folder() / f"trial-{hashlib.sha256(repr(conditions).encode()).hexdigest()[:16]}.json"
    if not path.is_file():
        run_apart("deployments.core.speed_trial", str(artifact.folder.absolute()), str(path), str(threads or 0))
    times_s: dict[str, float] = json.loads(path.read_text())
    return times_s


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What the processor can do, in the kernel's words; nothing where they are not to be read."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()[2:])


def trial(artifact: Artifact, *, threads: int | None) -> dict[str, float]:
    """Time each way that `auto` chooses from: the best of some rounds, for what disturbs a pass prolongs it."""
    runtimes = [load_way(artifact, way, place="cpu", threads=threads) for way in AUTOMATIC["cpu"]]
    best = {(runtime.name, shape): float("inf") for runtime in runtimes for shape in SHAPES}
    for _ in range(ROUNDS):
        for runtime in runtimes:
            for shape in SHAPES:
                best[runtime.name, shape] = min(best[runtime.name, shape], _pass_s(runtime, shape))
    return {
        runtime.name: statistics.geometric_mean(best[runtime.name, shape] for shape in SHAPES) for runtime in runtimes
    }


def _pass_s(runtime: Runtime, shape: tuple[int, int]) -> float:
    ids = np.full(shape, 1000, dtype=np.int64)
    mask = np.ones_like(ids)
    started_s = time.process_time()
    runtime(ids, mask)
    return time.process_time() - started_s


if __name__ == "__main__":
    folder, result, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    with replacing(result) as draft:
        draft.write_text(json.dumps(trial(Artifact.load(folder), threads=count or None)))
