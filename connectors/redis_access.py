"""Where Redis is, and how to get in. Made by the settings, used by the worker."""

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from redis.asyncio import Redis


@dataclass(frozen=True)
class RedisAccess:
    """Where Redis is, and how to get in. Shown without the URL, which may hold a password, and without the password.

    Attributes:
        url: redis://, rediss:// (TLS) or unix://, with user and password or without.
        ca: Certificates (PEM) that Redis' is checked against; those of the system if not given.
        certificate: The client's own certificate (PEM), where Redis asks for one.
        key: Its private key; in the same file if not given.
        user: Who logs in, if the URL does not say; Redis' default user if neither does.
        password: Theirs, if the URL does not say.
    """

    url: str = field(repr=False)
    _: KW_ONLY
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    user: str = ""
    password: str = field(default="", repr=False)

    def client(self, *, timeout_s: float = 10.0) -> Redis:
        """Return a client, which connects when it is used; nothing that it asks may take longer than the timeout."""
        return Redis.from_url(
            self.url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, **self._login(), **self._tls()
        )

    def _login(self) -> dict[str, Any]:
        given = {"username": self.user, "password": self.password}
        return {name: value for name, value in given.items() if value}

    def _tls(self) -> dict[str, Any]:
        given = {
            "ssl_ca_certs": self.ca,
            "ssl_certfile": self.certificate,
            "ssl_keyfile": self.key or self.certificate,
        }
        return {name: str(value) for name, value in given.items() if value}
