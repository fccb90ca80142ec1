"""`intents feedback` against the real service and its real store."""

import json
import uuid
from pathlib import Path

from redis import Redis

from deployments.core.log_layout import COUNTS, LOG
from deployments.training.rows import read_rows
from tests.service import RECORD, Service
from tests.unit.conftest import DURABLE, ValkeyServer


def test_feedback_is_exported_to_train_with_and_imported_once(service: Service, tmp_path: Path):
    """A correction beside a confirmation; what is imported again counts no more."""
    texts = [f"Export me {uuid.uuid4()}" for _ in range(3)]
    service.feedback({"text": texts[0], "correct_complexity": "simple"})
    agreed = RECORD | {"text": texts[1], "correct_intent": RECORD["original_intent"], "feedback_type": "confirmation"}
    (tmp_path / "more.jsonl").write_text(f"{json.dumps(agreed)}\n{json.dumps(RECORD | {'text': texts[2]})}\n")
    before = service.stats()["total"]
    imports = [service.intents("feedback", "import", str(tmp_path / "more.jsonl")) for _ in range(2)]
    exported = service.intents("feedback", "export", str(tmp_path / "feedback.jsonl"))
    rows = {row.text: (row.intent, row.complexity) for row in read_rows([tmp_path / "feedback.jsonl"])}

    assert [each.stdout.split(", ")[:2] for each in imports] == [
        ["2 recorded", "0 duplicates"],
        ["0 recorded", "2 duplicates"],
    ]
    assert service.stats()["total"] == before + 2
    assert exported.returncode == 0
    assert [rows[text] for text in texts] == [
        ("translation", "simple"),
        ("question_answering", None),
        ("translation", None),
    ]
    acknowledged = service.intents("feedback", *exported.stderr.split("intents feedback ")[1].split())
    assert acknowledged.stdout == "0 records after it\n"


def test_the_running_services_log_is_backed_up_and_restored_elsewhere(service: Service, tmp_path: Path):
    """As many entries, and the same counters."""
    service.feedback({"text": f"Back me up {uuid.uuid4()}"})
    backup = service.intents("feedback", "backup", str(tmp_path / "log.jsonl.gz"))
    elsewhere = ValkeyServer(tmp_path, DURABLE)
    try:
        restored = service.intents("feedback", "restore", "--store", elsewhere.url, str(tmp_path / "log.jsonl.gz"))
        with Redis.from_url(elsewhere.url) as there, Redis.from_url(service.state["stores"]["feedback"]) as here:
            found, expected = ([store.xlen(LOG), store.hgetall(COUNTS)] for store in (there, here))
    finally:
        elsewhere.kill()

    assert (backup.returncode, restored.returncode) == (0, 0)
    assert found == expected
    assert found[0] > 0
