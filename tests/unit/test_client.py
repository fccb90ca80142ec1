"""The HTTP client where a service, or what stands before it, asks it to wait."""

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest

from deployments.client import HttpClient


class Busy(BaseHTTPRequestHandler):
    """Refuses each call, and says until when."""

    retry_after: ClassVar[str]

    def do_GET(self) -> None:
        self.send_response(503)
        self.send_header("Retry-After", self.retry_after)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def address() -> Iterator[str]:
    """Where that service listens."""
    server = HTTPServer(("127.0.0.1", 0), Busy)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("retry_after", ["Wed, 21 Oct 2026 07:28:00 GMT", ""])
def test_a_wait_that_is_no_number_of_seconds_does_not_hide_the_refusal(address: str, retry_after: str):
    """A proxy before the service may give a date."""
    Busy.retry_after = retry_after

    async def ask() -> None:
        async with HttpClient(address, attempts=1) as client:
            await client.feedback_stats()

    with pytest.raises(RuntimeError, match=r"^503: "):
        asyncio.run(ask())
