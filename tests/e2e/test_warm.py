"""Warming over real HTTP: what is warmed is a hit at its first request, on every replica."""

import json
import re
import subprocess
import uuid
from pathlib import Path

from tests.service import API, INTENTS, ROOT, Service, request


def unseen(count: int) -> list[str]:
    """Texts that nobody has asked for."""
    return [f"Warm me {uuid.uuid4()} {number}" for number in range(count)]


def states(service: Service, texts: list[str]) -> set[str]:
    """Where the answers to texts come from, each asked for once."""
    return {service.classify(text).headers["X-Cache"] for text in texts}


def test_warmed_texts_are_hits_at_their_first_request(service: Service):
    """However they are written, and with the body that a miss has."""
    known, *cold = unseen(40)
    miss = service.classify(known)
    service.warm([known])
    answer = request(f"{service.url}{API}/cache/warm", {"texts": [known, *cold, f"  {cold[0].upper()}"]})
    hit = service.classify(cold[0])

    assert (answer.status, answer.json()) == (200, {"requested": 41, "already_cached": 1, "computed": 39})
    assert hit.headers["X-Cache"] == "hit-redis"
    assert hit.json().keys() == miss.json().keys()
    assert states(service, cold[1:]) == {"hit-redis"}
    assert states(service, unseen(1)) == {"miss"}


def test_the_command_warms_a_file_and_a_second_time_finds_it_done(service: Service, tmp_path: Path):
    """From rows of JSON, in several requests."""
    texts = unseen(130)
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, *texts[:50]]))
    first, second = service.intents("warm", str(file)), service.intents("warm", str(file))

    assert (first.returncode, first.stdout) == (0, "130 texts: 130 computed, 0 cached already\n"), first.stderr
    assert (second.returncode, second.stdout) == (0, "130 texts: 0 computed, 130 cached already\n")
    assert states(service, texts) == {"hit-redis"}


def test_the_command_warms_the_most_frequent_texts_of_standard_input(service: Service):
    """The others stay cold."""
    often, seldom = unseen(2)
    result = subprocess.run(
        [*INTENTS, "warm", "--top", "1", "-"],
        input=f"{seldom}\n{often}\n{often}\n",
        capture_output=True,
        text=True,
        env=service.environment,
        cwd=ROOT,
        timeout=60,
        check=False,
    )

    assert (result.returncode, result.stdout) == (0, "1 text: 1 computed, 0 cached already\n"), result.stderr
    assert states(service, [often]) == {"hit-redis"}
    assert states(service, [seldom]) == {"miss"}


def test_a_warming_out_of_time_goes_on_where_it_ended(service: Service):
    """What its message says was computed is found the next time."""
    texts = unseen(1000)
    url = f"{service.url}{API}/cache/warm"
    late = request(url, {"texts": texts}, headers={"X-Request-Timeout-Seconds": "1"})
    again = request(url, {"texts": texts[:100]}).json()
    told = re.search(r"0 cached already, (\d+) computed and kept; sent again", late.json()["detail"])

    assert (late.status, late.json()["type"]) == (503, "deadline-exceeded")
    assert told
    assert 0 < min(int(told[1]), 100) <= again["already_cached"]
    assert again["already_cached"] + again["computed"] == 100


def test_a_warming_of_more_than_1000_texts_is_refused(service: Service):
    """The message says how many there were and how many there may be."""
    refusal = request(f"{service.url}{API}/cache/warm", {"texts": unseen(1020)})

    assert refusal.status == 422
    assert "1,020 items; the limit is 1,000" in refusal.json()["detail"]
