"""Starting and stopping as a user does. Runs last of those that share a service: it ends it."""

from tests.service import STOP_TIMEOUT_S, Service, wait_for


def test_a_second_service_says_which_port_is_taken(service: Service):
    """One line, exit code 1, and the first one goes on."""
    second = service.intents("up", "--port", str(service.port))

    assert second.returncode == 1
    assert str(service.port) in second.stdout + second.stderr
    assert "Traceback" not in second.stdout + second.stderr
    assert service.get("/health/live").status == 200


def test_ctrl_c_leaves_nothing_and_starting_again_at_once_works(service: Service):
    """Foreground and Ctrl-C, then `--detach` and `intents down`; the log's records survive both."""
    total = service.stats()["total"]
    service.interrupt()
    assert service.left_processes() == []

    up = service.intents("up", "--detach", "--port", str(service.port), timeout_s=120)
    assert up.returncode == 0, up.stdout + up.stderr
    assert service.classify("Write a haiku about autumn").json()["intent"] == "creative_writing"
    assert service.stats()["total"] == total

    service.remember_processes()
    down = service.intents("down")
    assert down.returncode == 0
    wait_for(lambda: not service.left_processes(), STOP_TIMEOUT_S, lambda: f"left: {service.left_processes()}")


def test_without_a_service_each_command_says_so(service: Service):
    """`down` has nothing to do, `status` and `classify` fail with one line."""
    down, status = service.intents("down"), service.intents("status")
    classify = service.intents("classify", "--url", service.url, "hello")

    assert (down.returncode, status.returncode, classify.returncode) == (0, 1, 1)
    assert all("Traceback" not in command.stdout + command.stderr for command in (down, status, classify))
