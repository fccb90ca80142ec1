"""Settings: arguments over environment over defaults, and no secret on show."""

import pickle

import pytest
from pydantic import ValidationError

from deployments.core.access import RESERVED_NAMES, SCOPES
from deployments.core.errors import StartupError
from deployments.core.settings import ENVIRONMENT_NAMES, Settings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch):
    for name in ENVIRONMENT_NAMES:
        monkeypatch.delenv(name, raising=False)


def test_the_environment_wins_over_the_default_and_arguments_over_the_environment(monkeypatch: pytest.MonkeyPatch):
    """`CACHE_TTL=60` works unless `args:` says otherwise."""
    assert Settings().cache_ttl == 3600
    monkeypatch.setenv("CACHE_TTL", "60")

    assert Settings().cache_ttl == 60
    assert Settings(cache_ttl=5).cache_ttl == 5


def test_only_the_named_variables_are_read(monkeypatch: pytest.MonkeyPatch):
    """A machine's own `DEVICE` or `AUTH` must not turn our knobs."""
    monkeypatch.setenv("DEVICE", "cuda")
    monkeypatch.setenv("AUTH", "open")

    assert (Settings().device, Settings().auth) == ("auto", "local")


def test_every_named_variable_is_a_setting():
    """A name in the list that no field has would be silently ignored."""
    assert {name.lower() for name in ENVIRONMENT_NAMES} <= set(Settings.model_fields)


def test_an_empty_variable_is_no_value(monkeypatch: pytest.MonkeyPatch):
    """Compose files pass unset variables on as empty ones."""
    monkeypatch.setenv("CACHE_TTL", "")

    assert Settings().cache_ttl == 3600


def test_an_unknown_argument_is_refused():
    """Serve lets a misspelt key pass; the service does not."""
    with pytest.raises(ValidationError, match="cahce_ttl"):
        Settings(cahce_ttl=5)


def test_secrets_are_not_shown_nor_repeated_in_errors():
    """Neither by repr nor by a validation error."""
    settings = Settings(redis_url="redis://:hunter2@host:1/0", redis_password="hunter2")
    with pytest.raises(ValidationError) as refused:
        Settings(redis_password=["hunter2"])

    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(refused.value)


def test_the_prediction_url_is_built_from_its_parts_with_the_password_quoted():
    """A password may hold any character."""
    settings = Settings(redis_host="h", redis_port=1, redis_db=2, redis_password="p@ss/word")

    assert settings.predictions_url == "redis://:p%40ss%2Fword@h:1/2"
    assert settings.feedback_url == settings.predictions_url


def test_without_a_store_the_remedy_is_named():
    """Plain `serve run` without a URL fails at start and says what to do."""
    with pytest.raises(StartupError, match=r"REDIS_URL.*intents up"):
        Settings().require_stores()


def test_settings_travel_as_they_are(monkeypatch: pytest.MonkeyPatch):
    """A replica must see what the builder saw, whatever its own environment holds."""
    settings = Settings(cache_ttl=5)
    monkeypatch.setenv("ENABLE_CACHING", "false")

    assert pickle.loads(pickle.dumps(settings)) == settings


@pytest.mark.parametrize(
    ("arguments", "may"),
    [
        ({}, {"classify", "feedback", "correct", "admin"}),
        ({"apply_untrusted": True}, {"classify", "feedback", "correct", "admin"}),
        ({"auth": "open"}, {"classify", "feedback"}),
        ({"auth": "open", "apply_untrusted": True}, {"classify", "feedback", "correct"}),
    ],
)
def test_what_a_caller_may_without_keys_is_a_setting(arguments: dict[str, object], may: set[str]):
    """Everything on this machine; elsewhere never to operate the service."""
    caller = Settings(**arguments).keyless_caller

    assert {scope for scope in SCOPES if caller.may(scope)} == may


def test_whoever_calls_an_open_service_has_a_name_to_be_limited_by():
    """And whoever calls on this machine has none, so is not."""
    assert Settings(auth="open").keyless_caller.name in RESERVED_NAMES
    assert Settings().keyless_caller.name == ""


def test_a_correction_may_not_outlive_the_log():
    """It could not be undone then."""
    with pytest.raises(ValidationError, match="longer than the log keeps a record"):
        Settings(correction_ttl_s=3 * 24 * 3600, feedback_retention_days=2)
