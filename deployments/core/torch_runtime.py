"""The forward pass with torch: the reference on a CPU, and the way to compute on CUDA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from deployments.core.encoder import load_network

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from deployments.core.artifact import Artifact
    from deployments.core.runtimes import Place

LENGTH_BUCKET = 16
"""On CUDA lengths are rounded up to it: few shapes, each with its kernels and memory at hand, and full tiles."""


DTYPES: Final = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class TorchRuntime:
    """A torch network on a device; the heads compute in fp32 whatever the encoder does.

    Args:
        network: As `load_network` gives it, on `device`.
        device: Where it lies.
        name: What it is called, such as `torch fp32`.
        length_bucket: Lengths are padded to a multiple of it, at most to `max_tokens`.
        max_tokens: The longest text.
    """

    def __init__(
        self, network: torch.nn.Module, device: torch.device, *, name: str, length_bucket: int, max_tokens: int
    ) -> None:
        self.name = name
        self._network = network
        self._device = device
        self._length_bucket = length_bucket
        self._max_tokens = max_tokens

    @classmethod
    def load(
        cls,
        artifact: Artifact,
        precision: str,
        *,
        place: Place,
        threads: int | None = None,
    ) -> TorchRuntime:
        """Load an artifact. See `load_runtime`."""
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        device = torch.device(place)
        network = load_network(artifact).to(device)
        network.get_submodule("encoder").to(getattr(torch, DTYPES[precision]))
        bucket = LENGTH_BUCKET if place == "cuda" else 1
        return cls(network, device, name=f"torch {precision}", length_bucket=bucket, max_tokens=artifact.max_tokens)

    def __call__(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Compute a batch. See `Runtime`."""
        import torch

        with torch.inference_mode():
            logits = self._network(self._placed(ids), self._placed(mask))
            return logits.float().cpu().numpy()  # type: ignore[no-any-return] # torch's stubs lose it

    def _placed(self, values: NDArray[np.int64]) -> torch.Tensor:
        """Give `[batch, longest]` on the device, padded to the bucket: what is masked may hold any token."""
        import torch

        length = values.shape[1]
        bucketed = max(length, min(-(-length // self._length_bucket) * self._length_bucket, self._max_tokens))
        tensor = torch.from_numpy(np.pad(values, ((0, 0), (0, bucketed - length))))
        if self._device.type == "cpu":
            return tensor
        # Only from pinned memory does a copy run beside the computation.
        return tensor.pin_memory().to(self._device, non_blocking=True)
