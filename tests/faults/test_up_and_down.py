"""Starting and stopping as a user does, the second time with keys; last of those that share a service: it ends it."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.e2e.test_logs import SERVE_LOGS, request_lines
from tests.service import API, RECORD, ROOT, STOP_TIMEOUT_S, Answer, Service, request, wait_for

REVOKED_WITHIN_S = 2
BURST = 3
SCOPES = {"app": ("classify", "feedback"), "robot": ("feedback",), "operator": ("admin",)}


@dataclass(frozen=True)
class Keyed:
    """The service, started again with keys: what the log had before, what Ctrl-C left, what `up` said; and its keys."""

    service: Service
    total: int
    left: list[str]
    up: str
    app: str
    robot: str
    operator: str

    def ask(self, call: str, body: object = None, *, key: str = "", url: str = "", **headers: str) -> Answer:
        """Make a call under the API with a key, or none; header names are given with underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        bearer = {"Authorization": f"Bearer {key}"} if key else {}
        return request(f"{url or self.service.url}{API}{call}", body, headers=named | bearer)


def make_key(service: Service, name: str, *scopes: str) -> str:
    """The key that the command prints."""
    made = service.intents("keys", "add", name, *(word for scope in scopes for word in ("--scope", scope)))
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


@pytest.fixture(scope="module")
def keyed(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Keyed:
    """Ctrl-C, then `--detach` at once: it finds keys now. Each may send three records, and then hardly any."""
    total = service.stats()["total"]
    service.interrupt()
    left = service.left_processes()
    with ThreadPoolExecutor(len(SCOPES)) as hands:
        made = hands.map(lambda name: make_key(service, name, *SCOPES[name]), SCOPES)
        keys = dict(zip(SCOPES, made, strict=True))
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["applications"][0]["args"] |= {"feedback_burst": BURST, "feedback_rate_per_s": 0.01}
    file = tmp_path_factory.mktemp("keyed") / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    up = service.intents("up", "--detach", "--port", str(service.port), "--config", str(file), timeout_s=120)
    assert up.returncode == 0, up.stdout + up.stderr
    return Keyed(service, total, left, up.stdout, **keys)


def test_a_second_service_says_which_port_is_taken(service: Service):
    """One line, exit code 1, and the first one goes on."""
    second = service.intents("up", "--port", str(service.port))

    assert second.returncode == 1
    assert str(service.port) in second.stdout + second.stderr
    assert "Traceback" not in second.stdout + second.stderr
    assert service.get("/health/live").status == 200


def test_ctrl_c_leaves_nothing_and_starting_again_at_once_works(keyed: Keyed):
    """The log's records survive both."""
    answer = keyed.ask("/classify", {"text": "Write a haiku about autumn"}, key=keyed.app)

    assert keyed.left == []
    assert answer.json()["intent"] == "creative_writing"
    assert keyed.ask("/feedback/stats", key=keyed.app).json()["total"] == keyed.total


def test_a_call_needs_a_key_with_its_scope_on_every_replica(keyed: Keyed):
    """401 without one, 403 with another's, whatever the proxy in front does; probes need none."""
    body = {"text": f"Is it {uuid.uuid4()}?"}
    for url in keyed.service.replica_urls():
        assert keyed.ask("/classify", body, url=url).status == 401
        assert keyed.ask("/classify", body, url=url, key=keyed.app).status == 200
        assert keyed.ask("/classify", body, url=url).status == 401  # it is at hand by now
    refused = keyed.ask("/cache/purge", {"all": True}, key=keyed.app)
    huge = keyed.ask("/classify", b"x" * 1024 * 1024)

    assert "in force: 3" in keyed.up
    assert (refused.status, refused.json()["type"]) == (403, "forbidden")
    assert "`admin`" in refused.json()["detail"]
    assert (huge.status, huge.headers["WWW-Authenticate"]) == (401, 'Bearer realm="intents"')
    assert keyed.service.get("/health/ready").status == 200


def test_a_correction_without_the_scope_for_it_changes_no_answer_until_it_is_approved(keyed: Keyed):
    """On any replica."""
    text = f"Correct me {uuid.uuid4()}"
    before = keyed.ask("/classify", {"text": text}, key=keyed.app).json()
    receipt = keyed.ask("/feedback", RECORD | {"text": text}, key=keyed.app).json()
    items = keyed.ask("/feedback?state=pending", key=keyed.operator).json()["items"]
    (waiting,) = (item for item in items if item["text"] == text)

    def sources() -> set[str]:
        answers = [
            keyed.ask("/classify", {"text": text}, url=url, key=keyed.app) for url in keyed.service.replica_urls()
        ]
        return {answer.json()["metadata"]["source"] for answer in answers}

    assert (receipt["cache_updated"], waiting["feedback_id"], waiting["by"]) == (False, receipt["feedback_id"], "app")
    assert sources() == {before["metadata"]["source"]} == {"model"}
    assert keyed.ask(f"/feedback/{receipt['feedback_id']}/approve", b"", key=keyed.app).status == 403
    assert keyed.ask(f"/feedback/{receipt['feedback_id']}/approve", b"", key=keyed.operator).status == 200
    wait_for(lambda: sources() == {"correction"}, 5, lambda: "an approved correction never showed")


def test_a_key_that_sends_too_fast_is_429_and_no_other_is(keyed: Keyed):
    """Counted in one place, whichever replica it was sent to; the time told is the rate's."""
    record = RECORD | {"text": f"Too often {uuid.uuid4()}"}
    urls = keyed.service.replica_urls()
    answers = [keyed.ask("/feedback", record, key=keyed.robot, url=urls[each % len(urls)]) for each in range(BURST + 2)]

    assert [answer.status for answer in answers] == [201] * BURST + [429] * 2
    assert 0 < int(answers[-1].headers["Retry-After"]) <= 100
    assert keyed.ask("/feedback", record, key=keyed.operator).status == 201


def test_a_key_that_is_made_or_revoked_meanwhile_counts_within_two_seconds(keyed: Keyed):
    """On every replica, also for what is at hand there; nothing is restarted."""
    service, body = keyed.service, {"text": "Write a haiku about autumn"}
    key = make_key(service, "passing", "classify")

    def statuses() -> set[int]:
        return {keyed.ask("/classify", body, url=url, key=key).status for url in service.replica_urls()}

    wait_for(lambda: statuses() == {200}, REVOKED_WITHIN_S, lambda: f"a new key is answered {statuses()}")
    assert service.intents("keys", "revoke", "passing").returncode == 0
    wait_for(lambda: statuses() == {401}, REVOKED_WITHIN_S, lambda: f"a revoked key is answered {statuses()}")
    assert keyed.ask("/classify", body, key=keyed.app).status == 200


def test_with_a_broken_keys_file_the_service_goes_on(keyed: Keyed):
    """With the keys that it knew."""
    file = keyed.service.folder / "data" / "intentgraph" / "keys.json"
    whole = file.read_text()
    file.write_text("{")
    try:
        wait_for(lambda: "read last stay in force" in ingress_log(), 10, lambda: "the broken file was not told of")
        assert keyed.ask("/types", key=keyed.app).status == 200
        assert keyed.ask("/types").status == 401
    finally:
        file.write_text(whole)


def test_commands_take_the_key_of_the_environment(keyed: Keyed):
    """Without it one line says what is wanted."""
    without = keyed.service.intents("classify", "Write a haiku about autumn")
    keyed.service.environment["INTENTS_API_KEY"] = keyed.app
    try:
        with_key = keyed.service.intents("classify", "Write a haiku about autumn")
    finally:
        del keyed.service.environment["INTENTS_API_KEY"]

    assert (without.returncode, with_key.returncode) == (1, 0)
    assert "unauthorized" in without.stderr
    assert len(without.stderr.splitlines()) == 1
    assert "creative_writing" in with_key.stdout


def test_the_log_has_names_and_no_keys(keyed: Keyed):
    """Neither Serve's files nor what `intents up` says; a hit's line names its caller too."""
    ids = [uuid.uuid4().hex, uuid.uuid4().hex]
    for request_id in ids:
        keyed.ask("/classify", {"text": "Who am I?"}, key=keyed.app, X_Request_ID=request_id)
    wait_for(lambda: all(request_lines(each) for each in ids), 5, lambda: "the lines never came")
    written = "".join(path.read_text(errors="replace") for path in logs(keyed))

    assert [line["caller"] for each in ids for line in request_lines(each)] == ["app", "app"]
    assert not any(key.split("_", 2)[2] in written for key in (keyed.app, keyed.robot, keyed.operator))


def test_down_leaves_nothing(keyed: Keyed):
    """Whatever `up` started is gone."""
    service = keyed.service
    service.remember_processes()

    assert service.intents("down").returncode == 0
    wait_for(lambda: not service.left_processes(), STOP_TIMEOUT_S, lambda: f"left: {service.left_processes()}")


def test_without_a_service_each_command_says_so(service: Service):
    """`down` has nothing to do, `status` and `classify` fail with one line."""
    down, status = service.intents("down"), service.intents("status")
    classify = service.intents("classify", "--url", service.url, "hello")

    assert (down.returncode, status.returncode, classify.returncode) == (0, 1, 1)
    assert all("Traceback" not in command.stdout + command.stderr for command in (down, status, classify))


def ingress_log() -> str:
    return "".join(path.read_text(errors="replace") for path in SERVE_LOGS.glob("replica_intents_Ingress*.log"))


def logs(keyed: Keyed) -> list[Path]:
    """Every file that somebody writes lines to."""
    state = keyed.service.folder / "state" / "intentgraph"
    return [keyed.service.output, *state.glob("*.log"), *SERVE_LOGS.parent.rglob("*.log")]
