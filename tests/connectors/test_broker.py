"""How to get into Kafka: what the clients are told, and that no password shows."""

import socket
import ssl
import threading
from pathlib import Path

import pytest
from support import make_certificate

from emostream.connectors.broker import KafkaAccess
from emostream.connectors.connecting import knock
from emostream.connectors.errors import AccessRefused, BrokerAway, BrokerError


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate and its key in one file."""
    return make_certificate(tmp_path_factory.mktemp("tls") / "client.pem")


def test_plaintext_says_nothing_of_tls_or_users() -> None:
    assert KafkaAccess("one:1, two:2").client_settings() == {
        "bootstrap_servers": ["one:1", "two:2"],
        "security_protocol": "PLAINTEXT",
        "ssl_context": None,
    }


def test_sasl_over_tls_checks_the_broker_and_proves_the_user(certificate: Path) -> None:
    access = KafkaAccess("one:1", protocol="SASL_SSL", ca=certificate, user="ada", password="hunter2")
    settings = access.client_settings()
    tls = settings.pop("ssl_context")
    assert settings == {
        "bootstrap_servers": ["one:1"],
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "ada",
        "sasl_plain_password": "hunter2",
    }
    assert tls.verify_mode is ssl.CERT_REQUIRED
    assert tls.check_hostname
    assert [dict(name[0] for name in ca["subject"]) for ca in tls.get_ca_certs()] == [{"commonName": "client"}]


def test_the_systems_authorities_count_where_no_other_is_given() -> None:
    assert KafkaAccess("one:1", protocol="SSL").tls().get_ca_certs() == ssl.create_default_context().get_ca_certs()


def test_a_certificate_may_hold_its_key(certificate: Path) -> None:
    assert KafkaAccess("one:1", protocol="SSL", certificate=certificate).tls()


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("hello")
    for files in ({"ca": nonsense}, {"certificate": nonsense}, {"ca": tmp_path / "missing.pem"}):
        with pytest.raises(BrokerError, match=r"cannot be set up from .*\.pem"):
            KafkaAccess("one:1", protocol="SSL", **files).tls()


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    file = make_certificate(tmp_path / "locked.pem", passphrase="abcd")
    with pytest.raises(BrokerError, match="passphrase"):
        KafkaAccess("one:1", protocol="SSL", certificate=file).tls()


def test_the_password_is_not_shown() -> None:
    access = KafkaAccess("one:1", protocol="SASL_SSL", user="ada", password="hunter2")
    assert "hunter2" not in f"{access!r} {access}"
    assert "ada" in repr(access)


async def test_nobody_answers() -> None:
    with pytest.raises(BrokerAway, match=r"no Kafka answers at 127\.0\.0\.1:1 "):
        await knock(KafkaAccess("127.0.0.1:1"))


async def test_a_refusal_says_more_than_a_silence(certificate: Path) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def serve() -> None:
            while True:
                try:
                    tls.wrap_socket(server.accept()[0], server_side=True).close()
                except ssl.SSLError:
                    continue
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(AccessRefused, match=f"{port} speaks TLS; set EMOSTREAM_KAFKA_PROTOCOL"):
            await knock(KafkaAccess(f"127.0.0.1:1,127.0.0.1:{port}"))
        with pytest.raises(AccessRefused, match=r"not trusted \(self.signed certificate\); EMOSTREAM_KAFKA_CA"):
            await knock(KafkaAccess(f"127.0.0.1:{port}", protocol="SSL"))
        with pytest.raises(AccessRefused, match=r"not trusted \(IP address mismatch"):
            await knock(KafkaAccess(f"127.0.0.1:{port}", protocol="SSL", ca=certificate))
        server.shutdown(socket.SHUT_RDWR)


async def test_something_else_listens_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def serve() -> None:
            for _ in range(2):
                peer, _ = server.accept()
                peer.recv(1024)
                peer.close()

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(BrokerAway, match=f"{port} hangs up on PLAINTEXT"):
            await knock(KafkaAccess(f"127.0.0.1:{port}"))
