"""A server that answers at once, and stops now and then when asked to: for measuring the load generator itself.

    python -m loadgen.stub --port 9999 --stall-every-s 10 --stall-s 1

It speaks as much of the service's contract as a load needs: classify, batch and feedback with `X-Cache` by the texts it
has seen, the purge, and exact counters at /metrics. It shares nothing with the service.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any

import typer

CLASSIFICATION = {
    "intent": "question_answering",
    "confidence": 0.97,
    "complexity": "simple",
    "suggested_techniques": ["zero_shot"],
    "metadata": {"model_version": "stub", "source": "model", "tokens": 12, "truncated": False},
}
ONE_CLASSIFICATION = json.dumps(CLASSIFICATION).encode()
JSON = "application/json"
PROBLEM = "application/problem+json"
REASONS = {200: "OK", 201: "Created", 404: "Not Found", 429: "Too Many Requests", 503: "Service Unavailable"}


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How the stub misbehaves: it stops for `stall_s` every `stall_every_s`; every `shed_every`-th call gets a 429."""

    stall_every_s: float = 0.0
    stall_s: float = 0.0
    shed_every: int = 0


class Stub:
    """What the stub remembers: texts it has seen, and counts of what it answered."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._seen: set[str] = set()
        self._requests: Counter[str] = Counter()
        self._feedback: Counter[str] = Counter()
        self._calls = 0
        self._next_stall_s = time.monotonic() + behaviour.stall_every_s

    def answer(self, path: str, body: bytes) -> bytes:
        """The whole response to a request, stalls included."""
        if self._behaviour.stall_s and time.monotonic() >= self._next_stall_s:
            time.sleep(self._behaviour.stall_s)  # on the event loop: everybody waits
            self._next_stall_s = time.monotonic() + self._behaviour.stall_every_s - self._behaviour.stall_s
        if path == "/metrics":
            return _response(200, self._exposition().encode(), "text/plain")
        return self._call(path.rpartition("/api/v1/intents")[2], json.loads(body or b"{}"))

    def _call(self, path: str, payload: Any) -> bytes:
        match path:
            case "/classify":
                return self._classified([payload["text"]], ONE_CLASSIFICATION)
            case "/classify/batch":
                texts = payload["texts"]
                return self._classified(texts, {"results": [CLASSIFICATION] * len(texts), "count": len(texts)})
            case "/feedback":
                self._feedback["recorded"] += 1
                return _response(201, {"status": "recorded"})
            case "/cache/purge":
                deleted = len(self._seen)
                self._seen.clear()
                return _response(200, {"deleted": deleted})
        return _response(404, {"title": f"no path {path}"}, PROBLEM)

    def _classified(self, texts: list[str], answer: object) -> bytes:
        self._calls += 1
        if self._behaviour.shed_every and self._calls % self._behaviour.shed_every == 0:
            self._requests["overloaded"] += len(texts)
            return _response(429, {"title": "overloaded"}, PROBLEM)
        return _response(200, answer, JSON, ", ".join(self._look_up(text) for text in texts))

    def _look_up(self, text: str) -> str:
        key = " ".join(text.lower().split())
        hit = key in self._seen
        self._seen.add(key)
        self._requests["cache_hit" if hit else "success"] += 1
        return "hit-redis" if hit else "miss"

    def _exposition(self) -> str:
        lines = ["# TYPE intent_classification_requests_total counter"]
        lines += [
            f'intent_classification_requests_total{{status="{status}"}} {count}'
            for status, count in (Counter({"success": 0}) | self._requests).items()
        ]
        lines += ["# TYPE intent_feedback_submissions_total counter"]
        lines += [
            f'intent_feedback_submissions_total{{feedback_type="any",status="{status}"}} {count}'
            for status, count in self._feedback.items()
        ]
        return "\n".join([*lines, ""])


def _response(status: int, content: object, media_type: str = JSON, cache: str = "") -> bytes:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    head = f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\n"
    return (head + (f"X-Cache: {cache}\r\n" if cache else "") + "\r\n").encode() + body


class Connection(asyncio.Protocol):
    """Just enough HTTP/1.1: requests with a Content-Length, one after the other."""

    def __init__(self, stub: Stub) -> None:
        self._stub = stub
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = self._received[:end].decode("latin-1")
            length = _content_length(head)
            body_starts = end + len(b"\r\n\r\n")
            if len(self._received) < body_starts + length:
                return
            body = self._received[body_starts : body_starts + length]
            self._received = self._received[body_starts + length :]
            assert self._transport
            self._transport.write(self._stub.answer(head.split(" ", 2)[1], body))


def _content_length(head: str) -> int:
    for line in head.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name.lower() == "content-length":
            return int(value)
    return 0


async def serve(port: int, behaviour: Behaviour) -> None:
    """Answer on 127.0.0.1 until cancelled; port 0 takes a free one. Says which on standard output."""
    stub = Stub(behaviour)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(stub), "127.0.0.1", port)
    sys.stdout.write(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    async with server:
        await server.serve_forever()


def main(
    port: Annotated[int, typer.Option(help="0: any free one.")] = 9999,
    stall_every_s: Annotated[float, typer.Option(help="Stop this often.")] = 10.0,
    stall_s: Annotated[float, typer.Option(help="Stop for so long; 0: never.")] = 0.0,
    shed_every: Annotated[int, typer.Option(help="Answer every so manieth classification 429; 0: none.")] = 0,
) -> None:
    """Answer at once, on loopback, until Ctrl-C."""
    try:
        asyncio.run(serve(port, Behaviour(stall_every_s, stall_s, shed_every)))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    typer.run(main)
