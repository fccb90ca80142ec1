"""The environment that every Ray process of a local run inherits."""

from pathlib import Path

from deployments.local.environment import RUN_VARIABLE, knobs, node_environment

URLS = {"REDIS_URL": "redis://127.0.0.1:1/0"}


def environment(
    base: dict[str, str] | None = None, *, haproxy: bool = True, folder: Path = Path("/tmp/x"), cpus: int = 2
):
    return node_environment(
        base or {}, run="r1", folder=folder, haproxy=haproxy, fallback_proxy_port=5, store_urls=URLS, cpus=cpus
    )


def test_haproxy_and_the_throughput_mode_go_together():
    """The throughput mode alone forces one proxy on the head node."""
    on, off = environment(), environment(haproxy=False)

    assert (on["RAY_SERVE_ENABLE_HA_PROXY"], on["RAY_SERVE_THROUGHPUT_OPTIMIZED"]) == ("1", "1")
    assert (off["RAY_SERVE_ENABLE_HA_PROXY"], off["RAY_SERVE_THROUGHPUT_OPTIMIZED"]) == ("0", "0")


def test_authentication_does_not_depend_on_a_file_left_in_the_home_folder():
    """The mode is set, whatever the user's environment has."""
    assert environment({"RAY_AUTH_MODE": "token"})["RAY_AUTH_MODE"] == "disabled"


def test_the_users_own_value_of_a_tuning_knob_stands():
    """What is only faster or fresher yields to what somebody chose."""
    found = environment({"HF_HUB_OFFLINE": "0", "RAY_SERVE_HAPROXY_NBTHREAD": "3"})

    assert (found["HF_HUB_OFFLINE"], found["RAY_SERVE_HAPROXY_NBTHREAD"]) == ("0", "3")


def test_settings_pass_through_and_started_stores_replace_their_urls():
    """Replicas see the named variables of the shell that ran `intents up`."""
    found = environment({"CACHE_TTL": "60", "LOG_LEVEL": "DEBUG", "PATH": "/bin"})

    assert (found["CACHE_TTL"], found["LOG_LEVEL"], found["PATH"]) == ("60", "DEBUG", "/bin")
    assert found["REDIS_URL"] == URLS["REDIS_URL"]
    assert found[RUN_VARIABLE] == "r1"


def test_a_relative_artifact_is_found_from_the_replicas():
    """They need not run in the folder the command was given in."""
    assert environment({"MODEL_ARTIFACT": "mine"})["MODEL_ARTIFACT"] == str(Path.cwd() / "mine")


def test_another_clusters_address_does_not_reach_the_replicas():
    """`RAY_ADDRESS` would send them elsewhere."""
    assert "RAY_ADDRESS" not in environment({"RAY_ADDRESS": "10.0.0.1:6379"})


def test_the_users_own_key_stays_with_the_user():
    """The processes of the service call nobody with it; what reads their environment would have it."""
    assert "INTENTS_API_KEY" not in environment({"INTENTS_API_KEY": "ig_1_s3cret"})


def test_a_freed_port_is_quarantined_longer_than_an_old_haproxy_lives():
    """Otherwise an old HAProxy routes to whoever gets the port next."""
    found = environment()

    assert float(found["RAY_SERVE_PORT_QUARANTINE_S"]) > float(found["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"])


def test_haproxys_sockets_fit_into_a_socket_address():
    """A path has 107 bytes at most; HAProxy adds the node's id and, while binding, its pid."""
    folder = Path("/tmp/intents-abcdefgh")
    node_id, pid = "0" * 56, ".4194304.tmp"

    sockets = [Path(value) for name, value in environment(folder=folder).items() if name.endswith("SOCKET_PATH")]

    assert len(sockets) == 2
    assert all(len(str(path.parent / node_id / path.name) + pid) <= 107 for path in sockets)


def test_haproxys_threads_follow_the_processors():
    """One on two cores, four at most."""
    threads = [environment(cpus=cpus)["RAY_SERVE_HAPROXY_NBTHREAD"] for cpus in (1, 2, 4, 64)]

    assert threads == ["1", "1", "2", "4"]


def test_every_knob_is_one_variable_with_its_reason():
    """The table has no doubles and no unexplained lines."""
    table = knobs(haproxy=True, cpus=2)

    assert len({knob.name for knob in table}) == len(table)
    assert all(knob.reason for knob in table)
