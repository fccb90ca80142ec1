"""What the URL of a store says: one server, Sentinel or Redis Cluster, and how to connect.

    redis://[user:password@]host[:6379][/db]                                       one server
    redis+sentinel://[user:password@]host[:26379],host…/service[/db]               the master Sentinel names
    redis+cluster://[user:password@]host[:6379],host…                              Redis Cluster
    unix:///path[?db=n]                                                            one server on this machine

`rediss` for `redis` is TLS. User and password are the store's; Sentinel's own are `sentinel_username` and
`sentinel_password`. Options are given as `?name=value`; waits are not among them, the caller's settings bound those.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from deployments.core.errors import StartupError

Kind = Literal["server", "sentinel", "cluster"]
Address = tuple[str, int]

_KINDS: dict[str, Kind] = {
    "redis": "server",
    "rediss": "server",
    "unix": "server",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
}
_PORTS: dict[Kind, int] = {"server": 6379, "sentinel": 26379, "cluster": 6379}


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """A store's URL, understood. `options` are redis-py's for each connection to the store, by its names.

    `nodes` are the server, the Sentinels or some nodes of the cluster; none for a socket's path. `service` is the name
    Sentinel knows the master by, `sentinel_options` are those of the connections to Sentinel.
    """

    kind: Kind
    tls: bool
    nodes: tuple[Address, ...]
    options: Mapping[str, Any] = field(repr=False)
    service: str = ""
    sentinel_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, url: str) -> "StoreUrl":
        """Read a URL.

        Raises:
            StartupError: it is malformed. The message shows nothing of it but scheme and option names: what was meant
                as a password may stand anywhere in a malformed URL.
        """
        parts = _split(url)
        kind = _KINDS[parts.scheme]
        user_info, _, hosts = parts.netloc.rpartition("@")
        nodes = () if parts.scheme == "unix" else tuple(_addresses(hosts, kind))
        service, path = _path(parts, kind)
        tls = parts.scheme.startswith("rediss")
        given = _options(parts.query, kind, tls=tls)
        db = _database(given.pop("db", None) or path, kind)
        own = {name.removeprefix("sentinel_"): given.pop(name) for name in _SENTINEL if name in given}
        return cls(
            kind=kind,
            tls=tls,
            nodes=nodes,
            options=given | _credentials(user_info) | db | ({"path": parts.path} if parts.scheme == "unix" else {}),
            service=service,
            sentinel_options=given | own if kind == "sentinel" else {},
        )


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError:  # its words may repeat the password
        raise StartupError("it is no URL; redis://host:6379/0 is one") from None
    if "://" not in url:
        raise StartupError("it has no scheme; redis://host:6379/0 has one")
    if parts.scheme not in _KINDS:
        raise StartupError(f"its scheme `{parts.scheme}` is none of {', '.join(_KINDS)}")
    if parts.fragment or "@" in parts.path + parts.query:
        raise StartupError("percent-encode what is special in its password, such as `/` as %2F, `@` as %40, `#` as %23")
    return parts


def _addresses(hosts: str, kind: Kind) -> Iterator[Address]:
    named = hosts.split(",")
    if kind == "server" and len(named) > 1:
        raise StartupError("it names several hosts; that takes redis+sentinel:// or redis+cluster://")
    for index, each in enumerate(named, start=1):
        try:
            parts = urlsplit(f"//{each}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or port == 0:
            raise StartupError(f"its host {index} of {len(named)} is not `host` or `host:port`, port 1 to 65535")
        yield host, port or _PORTS[kind]


def _path(parts: SplitResult, kind: Kind) -> tuple[str, str]:
    """Sentinel's service name, and what names the database."""
    if parts.scheme == "unix":
        return "", ""
    path = unquote(parts.path).strip("/")
    if kind != "sentinel":
        return "", path
    service, _, database = path.partition("/")
    if not service:
        raise StartupError("it lacks the name Sentinel knows the master by: redis+sentinel://host:26379/name/0")
    return service, database


def _database(named: object, kind: Kind) -> dict[str, object]:
    text = str(named or "0")
    if not (text.isascii() and text.isdigit()):
        raise StartupError("its database is no number")
    if kind == "cluster" and int(text):
        raise StartupError("Redis Cluster has database 0 only")
    return {"db": int(text)} if int(text) else {}


def _credentials(user_info: str) -> dict[str, object]:
    user, _, password = user_info.partition(":")
    named = {"username": unquote(user), "password": unquote(password)}
    return {name: value for name, value in named.items() if value}


def _flag(value: str) -> bool:
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[value.lower()]


def _requirement(value: str) -> str:
    return {name: name for name in ("none", "optional", "required")}[value]


_COMMON: dict[str, Callable[[str], object]] = {"client_name": str, "db": str}
_TLS: dict[str, Callable[[str], object]] = {
    "ssl_ca_certs": str,
    "ssl_ca_data": str,
    "ssl_cert_reqs": _requirement,
    "ssl_certfile": str,
    "ssl_check_hostname": _flag,
    "ssl_ciphers": str,
    "ssl_keyfile": str,
}
_SENTINEL: dict[str, Callable[[str], object]] = {"sentinel_password": str, "sentinel_username": str}


def _options(query: str, kind: Kind, *, tls: bool) -> dict[str, object]:
    known = _COMMON | (_TLS if tls else {}) | (_SENTINEL if kind == "sentinel" else {})
    options: dict[str, object] = {}
    for name, value in parse_qsl(query):
        if name in _TLS and not tls:
            raise StartupError(f"its option `{name}` needs TLS: rediss for redis")
        if name not in known:
            raise StartupError(f"its option `{name}` is none of {', '.join(known)}")
        try:
            options[name] = known[name](value)
        except KeyError:
            raise StartupError(f"its option `{name}` has no value it can have") from None
    return options
