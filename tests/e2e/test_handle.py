"""Python handles from another Ray job, whose process has none of our code."""

import json
import sys

from tests.service import Service

JOB = """
import json, sys
sys.modules["deployments"] = None  # as where it is not installed: importing it fails
import ray
from ray import serve

ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
intents = serve.get_app_handle("intents")

def failure(call):
    try:
        call.result()
    except Exception as error:
        return [isinstance(error, ValueError), str(error)]

record = {"text": "a job", "original_intent": "reasoning", "correct_intent": "translation", "original_confidence": 0.5}
print(json.dumps({
    "one": intents.classify.remote("Write a haiku about autumn").result(),
    "batch": intents.classify_batch.remote(["Write a haiku about autumn", "hello there"]).result(),
    "blank": failure(intents.classify.remote(" ")),
    "surrogate": failure(intents.classify.remote("\\ud800")),
    "bytes": failure(intents.classify.remote(b"x")),
    "receipt": intents.submit_feedback.remote(record, "job-key").result(),
    "again": intents.submit_feedback.remote(record, idempotency_key="job-key").result(),
    "unknown": failure(intents.submit_feedback.remote(record | {"correct_intent": "poetry"})),
    "total": intents.feedback_stats.remote().result()["total"],
}))
"""


def test_a_second_job_without_our_code_uses_the_four_methods(service: Service):
    """Plain dicts in and out, `ValueError` for what the contract does not take."""
    said = json.loads(service.job(sys.executable, "-c", JOB).strip().splitlines()[-1])

    assert said["one"]["intent"] == "creative_writing"
    assert said["batch"][0] == said["one"]
    for name in ("blank", "surrogate", "bytes", "unknown"):
        is_value_error, message = said[name]
        assert is_value_error, (name, message)
    assert "known:" in said["unknown"][1]
    assert said["receipt"]["status"] == "recorded"
    assert (said["again"]["status"], said["again"]["feedback_id"]) == ("duplicate", said["receipt"]["feedback_id"])
    assert said["total"] >= 1
