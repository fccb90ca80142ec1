"""The README's examples run as they stand, and its answer is the real one."""

import json
import re
import sys

import pytest

from tests.service import ROOT, Service

README = (ROOT / "README.md").read_text()


def block(mark: str) -> str:
    """The fenced block after the comment `<!-- mark -->`."""
    found = re.search(rf"<!-- {mark} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, f"the README has no block marked {mark}"
    return found.group(1)


def run(service: Service, script: str, *command: str) -> str:
    """Run a block, against the service's own port."""
    return service.job(*command, script.replace("localhost:8000", f"127.0.0.1:{service.port}"))


def test_the_first_curl_gives_the_answer_shown(service: Service):
    """Word for word, the confidence to two places: processors round differently."""
    real, written = json.loads(run(service, block("run: curl"), "bash", "-ec")), json.loads(block("answer"))

    assert real.pop("confidence") == pytest.approx(written.pop("confidence"), abs=0.01)
    assert real == written


def test_the_feedback_example_corrects_an_answer(service: Service):
    """Receipt, corrected answer, statistics; the block may be run again."""
    for _ in range(2):
        output = run(service, block("run: bash"), "bash", "-ec")
    receipt, _, rest = output.partition("}")

    assert '"cache_updated":true' in receipt
    assert '"intent":"data_analysis","confidence":1.0' in rest
    assert '"total":' in rest


def test_the_ray_job_uses_the_handle(service: Service):
    """As it stands, in a process of its own."""
    output = run(service, block("run: job"), sys.executable, "-c")

    assert output.splitlines()[0] == "creative_writing"
