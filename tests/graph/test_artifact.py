"""Another label set is another artifact, not another program: trained in seconds, served by one setting."""

from pathlib import Path
from typing import Any

import pytest

from deployments.training.recipe import Recipe
from deployments.training.train import train
from tests.graph.rollout import roll_over
from tests.service import API, Service, Traffic
from tests.unit.rows import greetings_and_sums, write

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = Recipe(epochs=8, patience=8, learning_rate=3e-3, max_tokens=16, batch_size=8, lora_rank=2, lora_alpha=4)


def test_the_service_takes_a_newly_trained_artifact_by_one_setting(
    service: Service, config: dict[str, Any], tmp_path: Path
):
    """Its labels are listed, answered, abstained from and accepted in corrections.

    Changed settings roll over every deployment, there and back, without a failed request.
    """
    data = greetings_and_sums(tmp_path / "rows.jsonl")
    strange = write(
        tmp_path / "strange.jsonl", *({"text": f"zebras {n} on mars", "intent": "out_of_scope"} for n in range(8))
    )
    artifact = train([data, strange], tmp_path / "model", recipe=TINY)
    (application,) = config["applications"]

    with Traffic(
        service, pause_s=0.05
    ) as traffic:  # at full speed it would bring another, slow replica in mid-rollover
        application["args"] |= {"model_artifact": str(artifact.folder), "cache_ttl": 1800, "runtime": "torch"}
        roll_over(service, config)
        types = service.get(f"{API}/types").json()
        known, unknown = (service.classify(text).json() for text in ("hello my friend", "zebras 4 on mars"))
        receipt = service.feedback(
            {"text": "howdy", "original_intent": "out_of_scope", "correct_intent": "greeting"}
        ).json()
        corrected = service.classify("howdy").json()
        stats = service.stats()
        for setting in ("model_artifact", "cache_ttl", "runtime"):
            del application["args"][setting]
        roll_over(service, config)

    assert [intent["name"] for intent in types["intents"]] == ["greeting", "sum", "out_of_scope"]
    assert types["model_version"] == artifact.version
    assert known["intent"] == "greeting"
    assert (unknown["intent"], unknown["suggested_techniques"]) == ("out_of_scope", [])
    assert unknown["confidence"] < (artifact.abstain_below or 0)
    assert receipt["cache_updated"]
    assert corrected["intent"] == "greeting"
    assert stats["cache_ttl_hours"] == 0.5
    assert len(service.get(f"{API}/types").json()["intents"]) == 10
    assert set(traffic.outcomes) == {200}
