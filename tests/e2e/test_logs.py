"""The log a user finds: JSON, one line a request, nobody's words."""

import json
import uuid
from pathlib import Path

from tests.service import Service, wait_for

SERVE_LOGS = Path("/tmp/ray/session_latest/logs/serve")  # Ray's own place, whoever starts it


def request_lines(request_id: str) -> list[dict[str, object]]:
    lines = [line for path in SERVE_LOGS.glob("replica_intents_Ingress*.log") for line in path.read_text().splitlines()]
    parsed = [json.loads(line) for line in lines]
    return [line for line in parsed if line.get("http_request_id") == request_id]


def test_a_request_is_one_line_of_json_without_its_text(service: Service):
    """It comes within seconds, also on a quiet service."""
    request_id, secret = uuid.uuid4().hex, uuid.uuid4().hex
    service.classify(f"Translate {secret}", X_Request_ID=request_id)
    wait_for(lambda: request_lines(request_id), 5, lambda: "the line never came")
    (line,) = request_lines(request_id)

    assert line["status"] == 200
    assert line["cache"] == ["miss"]
    assert line["text_lengths"] == [len(f"Translate {secret}")]
    assert secret not in "".join(path.read_text() for path in SERVE_LOGS.glob("*.log"))


def test_a_requests_line_says_which_replica_answered_it(service: Service):
    """With everything that Serve's own lines have, and the caller's request id under Serve's name too."""
    request_id = uuid.uuid4().hex
    service.classify("Where was I answered?", X_Request_ID=request_id)
    wait_for(lambda: request_lines(request_id), 5, lambda: "the line never came")
    (line,) = request_lines(request_id)

    assert line["request_id"] == request_id
    assert (line["application"], line["deployment"], line["component_name"]) == (
        "intents",
        "intents_Ingress",
        "replica",
    )
    assert line["route"] == "/api/v1/intents/classify"
    assert {"replica", "worker_id", "node_id", "actor_id", "actor_name", "timestamp_ns"} <= line.keys()
    assert "skip_context_filter" not in line
