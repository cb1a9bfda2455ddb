"""Where Kafka is, and how to get in. Made by the settings, taken by everything that talks to Kafka."""

import ssl
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Literal

from emostream.connectors.errors import BrokerError

Protocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]


@dataclass(frozen=True)
class KafkaAccess:
    """Where Kafka is, and how to get in. Shown without the password.

    Attributes:
        addresses: HOST:PORT, comma-separated.
        protocol: What the broker's listener speaks.
        ca: Certificates (PEM) that the broker's is checked against; those of the system if not given.
        certificate: The client's own certificate (PEM), where the broker asks for one.
        key: Its private key; in the same file if not given.
        mechanism: How the password is proven. PLAIN sends it, SCRAM does not.
        user: Who logs in, where the protocol is one of SASL.
        password: Theirs.
    """

    addresses: str
    _: KW_ONLY
    protocol: Protocol = "PLAINTEXT"
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    mechanism: Mechanism = "SCRAM-SHA-512"
    user: str = ""
    password: str = field(default="", repr=False)

    @property
    def servers(self) -> list[str]:
        """The addresses, one by one."""
        return [address.strip() for address in self.addresses.split(",")]

    @property
    def logs_in(self) -> bool:
        """Whether the protocol is one of SASL."""
        return self.protocol.startswith("SASL_")

    @property
    def speaks_tls(self) -> bool:
        """Whether the protocol is one over TLS."""
        return self.protocol.endswith("SSL")

    def tls(self) -> ssl.SSLContext | None:
        """Return what TLS needs; None where the protocol has none.

        Raises:
            BrokerError: A file cannot be read, or holds something else.
        """
        if not self.speaks_tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                # An empty password: OpenSSL would otherwise ask for one at the terminal if the key is encrypted.
                context.load_cert_chain(self.certificate, self.key, password="")
        except OSError as error:
            files = ", ".join(str(file) for file in (self.ca, self.certificate, self.key) if file is not None)
            raise BrokerError(
                f"TLS to Kafka cannot be set up from {files} ({error}); PEM files are wanted, and a key without a "
                "passphrase"
            ) from error
        return context

    def client_settings(self) -> dict[str, Any]:
        """Return the keyword arguments that kafka-python's clients and aiokafka's both take.

        Raises:
            BrokerError: TLS cannot be set up.
        """
        settings: dict[str, Any] = {
            "bootstrap_servers": self.servers,
            "security_protocol": self.protocol,
            "ssl_context": self.tls(),
        }
        if self.logs_in:
            settings |= {
                "sasl_mechanism": self.mechanism,
                "sasl_plain_username": self.user,
                "sasl_plain_password": self.password,
            }
        return settings
