"""Stores reached over TLS, against a real server that speaks it: the wheel's Valkey does not, the system's Redis does.

Debian's package redis-tools holds that server as well and starts none. Without it these tests are skipped, or failed
where `SYSTEM_TOOLS` is `required`, as in `.ci/run`.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import shutil
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis import Redis as RedisNow
from redis.asyncio import Redis

from deployments.core.connection import subscribe
from deployments.core.masters import Guides, master_pool
from deployments.core.metrics import NoMetrics
from deployments.core.prediction_cache import PredictionCache
from deployments.core.prediction_store import open_store
from tests.unit.conftest import ValkeyServer, free_port, missing
from tests.unit.fakes import prediction
from tests.unit.stores import until

if TYPE_CHECKING:
    from collections.abc import Iterator


def certificates(folder: Path) -> None:
    """An authority's certificate and one it gave to 127.0.0.1, good for client and server."""
    now = dt.datetime.now(dt.UTC)
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "own")}
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    extensions = {"ca": x509.BasicConstraints(ca=True, path_length=0), "own": alternative}
    for name, key in keys.items():
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(extensions[name], critical=True)
            .sign(keys["ca"], hashes.SHA256())
        )
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / f"{name}.key").write_bytes(secret)


class TlsServer(ValkeyServer):
    """Redis with a second port that speaks TLS, and asks for a certificate there if it is told to."""

    def __init__(self, folder: Path, program: str, *args: str) -> None:
        self.program = Path(program)
        self.tls_port = free_port()
        certificates(folder)
        files = ("--tls-ca-cert-file", "ca.pem", "--tls-cert-file", "own.pem", "--tls-key-file", "own.key")
        super().__init__(folder, ("--tls-port", str(self.tls_port), *files, *args))
        self.where = f"127.0.0.1:{self.tls_port}"
        self.ca = f"ssl_ca_certs={folder}/ca.pem"
        self.own = f"ssl_certfile={folder}/own.pem&ssl_keyfile={folder}/own.key"

    def command(self) -> list[str]:
        """By the name that makes the program the server."""
        return ["redis-server", *super().command()[1:]]


@pytest.fixture(scope="module")
def program() -> str:
    """The system's Redis, under either of the names it may have."""
    found = shutil.which("redis-server") or shutil.which("redis-check-rdb")
    if not found:
        missing("no Redis server that speaks TLS; on Debian: apt-get install redis-tools")
    return found


@pytest.fixture(scope="module")
def secure(program: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    """A server that asks for no certificate; it is a cluster by itself, which answers like one server too."""
    cluster = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--tls-cluster", "yes")
    server = TlsServer(tmp_path_factory.mktemp("tls"), program, "--tls-auth-clients", "no", *cluster)
    with RedisNow(port=server.port) as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        until(lambda: "cluster_state:ok" in str(client.execute_command("CLUSTER", "INFO")), "never served")
    yield server
    server.kill()


async def keeps(url: str) -> bool:
    """Whether a prediction is a hit after it was kept, and health agrees; nothing may be raised."""
    store = open_store(url, timeout_s=1)
    predictions = PredictionCache(store, ttl_s=60, ttl_jitter=0, timeout_s=1, recorder=NoMetrics())
    await predictions.put_many({"a": prediction()})
    hit = await predictions.get_many(["a"]) == [prediction()]
    assert await predictions.ping() == hit
    await store.aclose()
    return hit


@pytest.mark.parametrize("scheme", ["rediss", "rediss+cluster"])
async def test_predictions_are_kept_where_the_authority_is_known(secure: TlsServer, scheme: str):
    """On one server and on a cluster."""
    assert await keeps(f"{scheme}://{secure.where}?{secure.ca}")


@pytest.mark.parametrize(
    "url",
    [
        "rediss://{where}",
        "rediss+cluster://{where}",
        "redis://{where}",
        "rediss://localhost:{tls_port}?{ca}",
    ],
)
async def test_without_tls_on_both_ends_a_known_authority_and_the_right_name_all_are_misses(
    secure: TlsServer, url: str
):
    """Nothing is raised, and nothing sent to who cannot show who they are."""
    assert not await keeps(url.format(**vars(secure)))


async def test_checks_can_be_left_out_one_by_one(secure: TlsServer):
    """The name's, and all."""
    assert await keeps(f"rediss://localhost:{secure.tls_port}?{secure.ca}&ssl_check_hostname=no")
    assert await keeps(f"rediss://{secure.where}?ssl_cert_reqs=none")


async def test_a_server_that_asks_for_a_certificate_gets_it(program: str, tmp_path: Path):
    """By the names redis-py has for it."""
    server = TlsServer(tmp_path, program, "--tls-auth-clients", "yes")
    try:
        assert await keeps(f"rediss://{server.where}?{server.ca}&{server.own}")
        assert not await keeps(f"rediss://{server.where}?{server.ca}")
    finally:
        server.kill()


@pytest.mark.parametrize("scheme", ["rediss", "rediss+cluster"])
async def test_a_subscription_speaks_tls(secure: TlsServer, scheme: str):
    """At the same URL as the predictions."""
    url = f"{scheme}://{secure.where}?{secure.ca}"
    store = open_store(url, timeout_s=1)
    async with subscribe(url, "a", timeout_s=1) as messages:
        await store.publish("a", b"1")

        assert await anext(messages) == b"1"
    await store.aclose()


class Naming(Guides):
    """Names one master."""

    def __init__(self, server: TlsServer) -> None:
        super().__init__([], self.discover_master, "")
        self._address = "127.0.0.1", server.tls_port

    async def discover_master(self, service: str) -> tuple[str, int]:
        return self._address


async def test_the_master_that_sentinel_names_is_reached_over_tls(secure: TlsServer):
    """The wheel's Sentinel speaks none, so it is a stand-in here."""
    pool = master_pool(Naming(secure), "s", tls=True, ssl_ca_certs=f"{secure.folder}/ca.pem", protocol=3, timeout=1)
    async with aclosing(Redis.from_pool(pool)) as client:
        assert await client.set("a", "b")
