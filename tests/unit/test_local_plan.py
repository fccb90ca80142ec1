"""What a local run decides before it starts anything."""

from pathlib import Path

import pytest

from deployments.core.api_keys import KeysFile, changing, utc_now
from deployments.core.errors import StartupError
from deployments.local.files import shipped
from deployments.local.plan import Options, Plan, is_loopback, plan

CONFIG = """
http_options: {host: 10.0.0.1, port: 1, request_timeout_s: 7}
applications:
  - name: intents
    import_path: deployments.graph:build
"""


def planned(tmp_path, config: str = CONFIG, environment: dict[str, str] | None = None, **options) -> Plan:
    path = tmp_path / "serve_config.yaml"
    path.write_text(config)
    own = {"XDG_DATA_HOME": str(tmp_path / "data")}  # the tester's own keys are none of this
    return plan(Options(config=path, data_dir=tmp_path, **options), own | (environment or {}))


def keys_in(path: Path, *names: str) -> Path:
    """A keys file with a key of each name, the first of them revoked."""
    content = KeysFile()
    for name in names:
        content, _ = content.with_new(name, ["classify"], utc_now())
    with changing(path) as write:
        write(content.with_revoked(names[0], utc_now()))
    return path


def test_host_and_port_of_the_command_line_win_and_other_http_options_stay(tmp_path):
    """The configuration is deployed where the command line says, otherwise as written."""
    found = planned(tmp_path, port=8123)

    assert found.config["http_options"] == {"host": "127.0.0.1", "port": 8123, "request_timeout_s": 7}


def test_auth_open_is_an_argument_of_the_application(tmp_path):
    """`--auth-open` says what `auth: open` in `args:` says."""
    found = planned(tmp_path, open_to_all=True)

    assert found.arguments == {"auth": "open"}


def test_unsafe_feedback_is_an_argument_of_the_application(tmp_path):
    """`--unsafe-feedback` says what `unsafe_feedback: true` in `args:` says."""
    assert planned(tmp_path, unsafe_feedback=True).arguments == {"unsafe_feedback": True}


def test_without_a_keys_file_the_service_asks_for_no_key(tmp_path):
    """As it always did."""
    found = planned(tmp_path)

    assert (found.keys_in_force, found.arguments) == (None, {})


def test_the_keys_of_the_command_are_found_where_it_puts_them(tmp_path):
    """Whoever made one means it; revoked ones do not count."""
    file = keys_in(tmp_path / "data" / "intentgraph" / "keys.json", "a", "b", "c")
    found = planned(tmp_path)

    assert (found.keys_in_force, found.arguments) == (2, {"api_keys_file": str(file)})


def test_a_keys_file_that_is_named_wins_over_the_configurations_and_that_over_the_one_found(tmp_path):
    """Replicas get the whole path: their working folder is another."""
    named, configured = keys_in(tmp_path / "n.json", "a", "b"), keys_in(tmp_path / "c.json", "a", "b", "c")
    keys_in(tmp_path / "data" / "intentgraph" / "keys.json", "a")
    config = CONFIG + f"    args: {{api_keys_file: {configured}, cache_ttl: 5}}\n"

    assert planned(tmp_path, config, keys=named).arguments == {"api_keys_file": str(named), "cache_ttl": 5}
    assert planned(tmp_path, config).arguments == {"api_keys_file": str(configured), "cache_ttl": 5}
    assert planned(tmp_path, config).keys_in_force == 2


def test_a_path_of_keys_in_the_configuration_is_taken_from_here(tmp_path, monkeypatch):
    """As everything a user writes on this machine."""
    monkeypatch.chdir(tmp_path)
    keys_in(tmp_path / "c.json", "a")

    assert planned(tmp_path, CONFIG + "    args: {api_keys_file: c.json}\n").arguments == {
        "api_keys_file": str(tmp_path / "c.json")
    }


@pytest.mark.parametrize("content", [None, "{"])
def test_a_keys_file_that_is_missing_or_broken_is_found_before_anything_starts(tmp_path, content):
    """Else the service would come up to refuse to."""
    file = tmp_path / "k.json"
    if content:
        file.write_text(content)

    with pytest.raises(StartupError, match=str(file)):
        planned(tmp_path, keys=file)


@pytest.mark.parametrize(
    ("environment", "started"),
    [
        ({}, ("predictions", "feedback")),
        ({"REDIS_URL": "redis://a"}, ()),
        ({"REDIS_HOST": "a"}, ()),
        ({"FEEDBACK_REDIS_URL": "redis://a"}, ("predictions",)),
        ({"REDIS_URL": "redis://a", "FEEDBACK_REDIS_URL": "redis://b"}, ()),
        ({"REDIS_URL": ""}, ("predictions", "feedback")),
    ],
)
def test_only_stores_without_a_url_are_started(tmp_path, environment, started):
    """The log shares a given prediction store unless it has a URL of its own; an empty variable is none."""
    found = planned(tmp_path, environment=environment)

    assert found.stores == started


def test_a_url_in_the_arguments_counts_as_given(tmp_path):
    """`args:` wins over the environment, so a store it names is not started."""
    found = planned(tmp_path, CONFIG + "    args: {redis_url: redis://a}\n")

    assert found.stores == ()


@pytest.mark.parametrize(
    ("config", "words"),
    [("a: [", "is not YAML"), ("- 1", "no `applications:`"), ("applications: []", "no `applications:`")],
)
def test_a_file_that_is_no_serve_configuration_is_named(tmp_path, config, words):
    """The message has one line, the file and what is wrong with it."""
    with pytest.raises(StartupError, match=words) as error:
        planned(tmp_path, config)

    assert "serve_config.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_haproxy_needs_two_more_ports_which_the_environment_moves(tmp_path):
    """Without HAProxy only the service's port and the dashboard's are fixed."""
    with_haproxy = planned(tmp_path).listening_ports({"RAY_SERVE_HAPROXY_STATS_PORT": "8405"})
    without = planned(tmp_path, haproxy=False).listening_ports({})

    assert set(with_haproxy) == {8000, 8265, 8405, 9101}
    assert set(without) == {8000, 8265}


@pytest.mark.parametrize(("host", "address"), [("0.0.0.0", "http://127.0.0.1:8000"), ("::1", "http://[::1]:8000")])
def test_the_address_shown_is_one_this_machine_can_call(tmp_path, host, address):
    """A host that means every interface is no address to call."""
    assert planned(tmp_path, host=host).address == address


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.2", True), ("localhost", True), ("10.0.0.1", False), ("db", False)]
)
def test_only_loopback_keeps_other_machines_out(host, loopback):
    """A name other than localhost may be anything."""
    assert is_loopback(host) is loopback


def test_the_shipped_configuration_can_be_planned(tmp_path):
    """`intents up` without --config finds the file of the checkout or of the wheel."""
    found = plan(Options(config=shipped("serve_config.yaml"), data_dir=tmp_path), {})

    assert [application["name"] for application in found.config["applications"]] == ["intents"]
