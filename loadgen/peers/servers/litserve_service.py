"""LitServe with its own dynamic batching in front of the encoder; no cache."""

# No postponed annotations: LitServe reads those of the hooks where they stand.
import argparse
from collections.abc import Sequence
from typing import Any

import litserve  # type: ignore[import-not-found]

from .encoder import Answer, Encoder

PATH = "/api/v1/intents/classify"


class Classifier(litserve.LitAPI):  # type: ignore[misc]
    """The hooks LitServe calls in each of its workers."""

    threads = 1

    def setup(self, device: str) -> None:
        """Load the encoder."""
        del device
        self._encoder = Encoder(self.threads)

    def decode_request(self, request: dict[str, Any]) -> str:
        """Take the text out of the body."""
        text: str = request["text"]
        return text

    def predict(self, texts: Sequence[str]) -> list[Answer]:
        """Answer a batch."""
        return self._encoder(texts)

    def encode_response(self, answer: Answer) -> dict[str, Any]:
        """Give the answer as the body."""
        return answer


def main() -> None:
    """Serve until ended."""
    options = _options()
    classifier = Classifier(
        max_batch_size=options.max_batch, batch_timeout=options.batch_timeout_ms / 1000, api_path=PATH
    )
    classifier.threads = options.threads
    server = litserve.LitServer(
        classifier, accelerator="cpu", workers_per_device=options.workers, fast_queue=options.fast_queue
    )
    server.run(host="127.0.0.1", port=options.port, log_level="warning", generate_client_file=False)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--batch-timeout-ms", type=float, default=5.0)
    parser.add_argument("--fast-queue", action=argparse.BooleanOptionalAction, default=False)
    return parser.parse_args()


if __name__ == "__main__":
    main()
