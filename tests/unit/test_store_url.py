"""What a store's URL says, and what is refused at start."""

import pytest

from deployments.core.errors import StartupError
from deployments.core.settings import Settings
from deployments.core.store_url import StoreUrl

LOGIN = {"username": "u", "password": "p"}


@pytest.mark.parametrize(
    ("url", "understood"),
    [
        ("redis://h", StoreUrl("server", False, (("h", 6379),), {})),
        ("redis://:p%2Fw@h:1/2", StoreUrl("server", False, (("h", 1),), {"password": "p/w", "db": 2})),
        ("redis://u:p@[::1]:1?db=2", StoreUrl("server", False, (("::1", 1),), LOGIN | {"db": 2})),
        ("unix:///run/s.sock?db=2", StoreUrl("server", False, (), {"path": "/run/s.sock", "db": 2})),
        (
            "rediss://h?ssl_ca_certs=/ca.pem&ssl_check_hostname=no&ssl_cert_reqs=none",
            StoreUrl(
                "server",
                True,
                (("h", 6379),),
                {"ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False, "ssl_cert_reqs": "none"},
            ),
        ),
        (
            "redis+sentinel://:p@a:1,b/main/3?sentinel_username=s&sentinel_password=t",
            StoreUrl(
                "sentinel",
                False,
                (("a", 1), ("b", 26379)),
                {"password": "p", "db": 3},
                "main",
                {"username": "s", "password": "t"},
            ),
        ),
        (
            "rediss+sentinel://a/main?ssl_ca_certs=c",
            StoreUrl("sentinel", True, (("a", 26379),), {"ssl_ca_certs": "c"}, "main", {"ssl_ca_certs": "c"}),
        ),
        ("redis+cluster://u:p@a,b:1/0", StoreUrl("cluster", False, (("a", 6379), ("b", 1)), LOGIN)),
        ("rediss+cluster://a", StoreUrl("cluster", True, (("a", 6379),), {})),
    ],
)
def test_a_url_is_understood(url: str, understood: StoreUrl):
    """Each form, with its defaults; TLS reaches Sentinel too."""
    assert StoreUrl.parse(url) == understood


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("hunter2", "no scheme"),
        (":hunter2@h:1", "no scheme"),
        ("http://:hunter2@h", "scheme `http`"),
        ("redis+sentinels://:hunter2@h/main", r"scheme `redis\+sentinels`"),
        ("redis://:hunter2", "host 1 of 1"),
        ("redis://:hunter2@", "host 1 of 1"),
        ("redis://:hunter2@h:port", "host 1 of 1"),
        ("redis://:hunter2@h:0", "host 1 of 1"),
        ("redis://:hunter2@h:65536", "host 1 of 1"),
        ("redis://:hunter2@[::1", "no URL"),
        ("redis://:hunter2\u2100@h", "no URL"),
        ("redis://:hun/ter2@h", "%2F"),
        ("redis://:hun#ter2@h", "%2F"),
        ("redis://:hun?ter2@h", "%2F"),
        ("redis://:hunter2@a,b", "several hosts"),
        ("redis://:hunter2@h/main", "database is no number"),
        ("redis://:hunter2@h/-1", "database is no number"),
        ("redis://:hunter2@h?db=x", "database is no number"),
        ("redis://:hunter2@h?socket_timeout=5", "`socket_timeout` is none of"),
        ("redis://:hunter2@h?ssl_ca_certs=c", "`ssl_ca_certs` needs TLS"),
        ("redis://:hunter2@h?sentinel_password=hunter2", "`sentinel_password` is none of"),
        ("rediss://:hunter2@h?ssl_cert_reqs=some", "`ssl_cert_reqs` has no value"),
        ("rediss://:hunter2@h?ssl_check_hostname=perhaps", "`ssl_check_hostname` has no value"),
        ("redis+sentinel://:hunter2@h", "name Sentinel knows"),
        ("redis+sentinel://:hunter2@a,,b/main", "host 2 of 3"),
        ("redis+sentinel://:hunter2@a/main/x", "database is no number"),
        ("redis+cluster://:hunter2@h/1", "database 0 only"),
    ],
)
def test_a_malformed_url_is_refused_at_start_without_its_password(url: str, wrong: str):
    """What is wrong is named; where the password stands in a malformed URL nobody knows, so nothing of it is shown."""
    with pytest.raises(StartupError, match=wrong) as refused:
        Settings(redis_url=url).require_stores()
    with pytest.raises(StartupError, match=f"FEEDBACK_REDIS_URL.*{wrong}"):
        Settings(redis_url="redis://h", feedback_redis_url=url).require_stores()

    assert str(refused.value).startswith("REDIS_URL")
    assert not any(part in f"{refused.value!r}{refused.value.__cause__!r}" for part in ("hunter2", "hun", "ter2"))


def test_a_password_never_shows_in_a_repr():
    """A log line may hold one."""
    store = StoreUrl.parse("redis+sentinel://:hunter2@a/main?sentinel_password=hunter3")

    assert "hunter" not in repr(store)


@pytest.mark.parametrize(
    ("stores", "kinds"),
    [
        (
            {"redis_url": "redis+cluster://h", "feedback_redis_url": "redis+sentinel://h/main"},
            ("cluster", "sentinel"),
        ),
        ({"redis_host": "h", "redis_password": "p@ss/word#1?"}, ("server", "server")),
        ({"redis_url": "redis+cluster://h"}, ("cluster", "cluster")),
    ],
)
def test_either_store_may_be_of_any_kind(stores: dict[str, str], kinds: tuple[str, str]):
    """Both of the same, or each of another; and a password may be what it likes."""
    settings = Settings(**stores)
    settings.require_stores()

    assert tuple(StoreUrl.parse(url).kind for url in (settings.predictions_url, settings.feedback_url)) == kinds
