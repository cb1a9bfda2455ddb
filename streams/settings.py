"""Every setting, its default and what it means. Built once, at the command line; nothing else reads the environment.

`python -m emostream.streams.settings README.md` writes the table of settings into a file anew.
"""

import itertools
import sys
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis.asyncio.connection import parse_url

from emostream.connectors import messages
from emostream.connectors.broker import KafkaAccess, Mechanism, Protocol
from emostream.connectors.redis_access import RedisAccess

VARIABLES_ONLY = ("kafka_password", "redis_password")
"""Settings that are no options: those show in the list of processes."""


class Settings(BaseSettings):
    """Settings of the worker and of the commands that talk to Kafka and Redis.

    Each is an environment variable, `EMOSTREAM_` and its name in capitals, and an option of `emostream worker`, except
    for passwords.
    """

    model_config = SettingsConfigDict(env_prefix="EMOSTREAM_", frozen=True, extra="ignore", hide_input_in_errors=True)

    kafka: str = Field("localhost:9092", description="Kafka's addresses, comma-separated.")
    kafka_protocol: Protocol = Field(
        "PLAINTEXT", description="What Kafka's listener speaks: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL."
    )
    kafka_ca: Path | None = Field(
        None, description="PEM file that Kafka's certificate is checked against; the system's if not given."
    )
    kafka_certificate: Path | None = Field(
        None, description="PEM file of the client's own certificate, where Kafka asks for one."
    )
    kafka_key: Path | None = Field(
        None, description="PEM file of its private key, without a passphrase; the certificate's file if not given."
    )
    kafka_mechanism: Mechanism = Field(
        "SCRAM-SHA-512", description="How SASL proves the password: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512."
    )
    kafka_user: str = Field("", description="Kafka's user, for SASL; password: EMOSTREAM_KAFKA_PASSWORD.")
    kafka_password: SecretStr = Field(SecretStr(""), description="Their password; no option, since those show in `ps`.")

    redis: SecretStr = Field(
        SecretStr("redis://localhost:6379/0"),
        description="URL of Redis; rediss:// for TLS. With a password set the variable: options show in `ps`.",
    )
    redis_ca: Path | None = Field(
        None, description="PEM file that Redis' certificate is checked against; the system's if not given."
    )
    redis_certificate: Path | None = Field(
        None, description="PEM file of the client's own certificate, where Redis asks for one."
    )
    redis_key: Path | None = Field(
        None, description="PEM file of its private key, without a passphrase; the certificate's file if not given."
    )
    redis_user: str = Field("", description="Redis' user (ACL), if not in the URL; password: EMOSTREAM_REDIS_PASSWORD.")
    redis_password: SecretStr = Field(
        SecretStr(""), description="Their password, if not in the URL; no option, since those show in `ps`."
    )
    redis_prefix: str = Field("", description="Put before every Redis key and the channel.")
    redis_outage: Literal["wait", "skip"] = Field(
        "wait",
        description="While Redis is away: wait (the lag grows), or skip: answers stay in Kafka alone.",
    )
    redis_keep_s: int = Field(86_400, ge=60, description="Seconds that answers and trends live in Redis.")

    posts_topic: str = Field(messages.POSTS, description="Topic that posts come in on.")
    clips_topic: str = Field(
        messages.CLIPS, description="Topic that voice clips come in on; as many partitions as the posts'."
    )
    emotions_topic: str = Field(messages.EMOTIONS, description="Topic that answers go to.")
    dead_letters_topic: str = Field(messages.DEAD_LETTERS, description="Topic for records that cannot be answered.")
    create_topics: bool = Field(True, description="Create topics that are missing when the worker starts.")
    partitions: int = Field(
        8,
        ge=1,
        description="Partitions of topics that emostream creates (posts or clips: as many as the other has); "
        "the most workers that can share them.",
    )
    replication: int = Field(
        -1, ge=-1, description="Replicas of topics that emostream creates; -1 takes the broker's default."
    )
    group: str = Field("emostream", description="Consumer group; workers of one group share the partitions.")

    session_timeout_s: float = Field(
        6.0,
        ge=1,
        description="Seconds of silence until a dead worker's partitions go to others; Kafka takes 6 or more.",
    )
    commit_interval_s: float = Field(
        0.2,
        gt=0,
        le=10,
        description="Seconds between commits; what was answered since the last one is answered again after a crash.",
    )

    checkpoint: Path | None = Field(None, description="Checkpoint folder of the model; the shipped one if not given.")
    device: str = Field("auto", description="auto (CUDA when there is one), cpu, cuda, cuda:1 …")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto takes bfloat16 where the device computes it natively."
    )
    attributes: str = Field(
        "",
        description="Further answers about a text, comma-separated; sentiment,irony,offensive,hate if not given.",
    )
    threads: int = Field(
        0,
        ge=0,
        description="CPU threads of the model; 0 takes one for each core. Workers on one machine must share them out.",
    )

    join_grace_s: float = Field(
        5.0, ge=0, le=30, description="Seconds that a clip, or a post that announces one, waits for its other half."
    )
    join_waiting_mb: float = Field(
        64.0,
        gt=0,
        description="MiB of posts, and of clips, that may wait for their other half (beyond, the oldest post goes on "
        "alone, no clip is read), and as many of each that may wait for the model.",
    )
    late_s: int = Field(
        600, ge=1, description="Seconds in which a half that comes late is still joined: pooled vectors live in Redis."
    )

    max_wait_ms: float = Field(20.0, ge=0, description="Milliseconds that the oldest post of a batch waits for others.")
    batch_posts: int = Field(256, ge=1, description="Most posts of a batch.")
    batch_tokens: int = Field(
        8192, ge=64, description="Most tokens of a batch, without padding, estimated from its characters."
    )
    batches_in_flight: int = Field(
        4, ge=1, description="Batches of texts, and as many of clips, between intake and acknowledgement."
    )
    queue_posts: int = Field(512, ge=1, description="Posts that wait for a batch; a full queue stops consumption.")
    batch_audio_s: float = Field(
        60.0, gt=0, description="Most seconds of audio of a batch of clips, estimated from their bytes."
    )
    queue_clips: int = Field(32, ge=1, description="Clips that wait for a batch; a full queue stops consumption.")
    inference_deadline_s: float = Field(
        60.0, gt=0, description="Seconds without a sign of the GPU worker, while a batch waits, until it is restarted."
    )

    stop_grace_s: float = Field(
        45.0, gt=0, description="Seconds that a stopping worker takes to answer and commit what it has taken."
    )

    http_host: str = Field("127.0.0.1", description="Address that /metrics, /healthz and /readyz listen on.")
    http_port: int = Field(8008, ge=0, le=65535, description="Their port; 0 takes a free one.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What is logged.")

    @property
    def kafka_access(self) -> KafkaAccess:
        """Where Kafka is, and how to get in."""
        return KafkaAccess(
            self.kafka,
            protocol=self.kafka_protocol,
            ca=self.kafka_ca,
            certificate=self.kafka_certificate,
            key=self.kafka_key,
            mechanism=self.kafka_mechanism,
            user=self.kafka_user,
            password=self.kafka_password.get_secret_value(),
        )

    @property
    def redis_access(self) -> RedisAccess:
        """Where Redis is, and how to get in."""
        return RedisAccess(
            self.redis.get_secret_value(),
            ca=self.redis_ca,
            certificate=self.redis_certificate,
            key=self.redis_key,
            user=self.redis_user,
            password=self.redis_password.get_secret_value(),
        )

    @property
    def topics(self) -> list[str]:
        """Every topic, those that are read first."""
        return [self.posts_topic, self.clips_topic, self.emotions_topic, self.dead_letters_topic]

    @property
    def topics_of_halves(self) -> list[str]:
        """Those whose records meet by key; they must have equally many partitions."""
        return [self.posts_topic, self.clips_topic]

    @field_validator("kafka")
    @classmethod
    def _is_addresses(cls, value: str) -> str:
        for address in value.split(","):
            host, _, port = address.strip().rpartition(":")
            if not host or "/" in host or not port.isdecimal():
                raise ValueError("expected HOST:PORT, several separated by commas")
        return value

    @field_validator("redis")
    @classmethod
    def _is_redis_url(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("expected redis://HOST:PORT/DATABASE, rediss://… for TLS, or unix://PATH")
        try:
            parse_url(value.get_secret_value())
        except ValueError:  # whose text may hold a part of the password
            raise ValueError("is no URL; percent-encode user and password, or give them apart") from None
        return value

    @field_validator("kafka_protocol", "kafka_mechanism", mode="before")
    @classmethod
    def _in_capitals(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @field_validator("kafka_ca", "kafka_certificate", "kafka_key", "redis_ca", "redis_certificate", "redis_key")
    @classmethod
    def _is_file(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError("expected a file that exists")
        return value

    # What does not go together is refused: a setting that is passed over in silence is worse than an error.

    @model_validator(mode="after")
    def _has_four_topics(self) -> Self:
        names = ("posts_topic", "clips_topic", "emotions_topic", "dead_letters_topic")
        for one, other in itertools.combinations(names, 2):
            if (topic := getattr(self, one)) == getattr(self, other):
                both = f"EMOSTREAM_{one.upper()} and EMOSTREAM_{other.upper()}"
                raise ValueError(
                    f"{both} are {topic!r}: a worker must not read what it writes, nor take one for another"
                )
        return self

    @model_validator(mode="after")
    def _keeps_answers_for_their_halves(self) -> Self:
        if self.late_s > self.redis_keep_s:
            raise ValueError(
                f"EMOSTREAM_LATE_S is {self.late_s}, EMOSTREAM_REDIS_KEEP_S {self.redis_keep_s}: when a late half is "
                "joined, the answer must still be there"
            )
        return self

    @model_validator(mode="after")
    def _gets_into_kafka(self) -> Self:
        access, protocol = self.kafka_access, f"EMOSTREAM_KAFKA_PROTOCOL is {self.kafka_protocol}"
        login = {"EMOSTREAM_KAFKA_USER": access.user, "EMOSTREAM_KAFKA_PASSWORD": access.password}
        missing = [name for name, value in login.items() if not value]
        if access.logs_in and missing:
            raise ValueError(f"{protocol}: set {' and '.join(missing)}, too")
        if not access.logs_in and len(missing) < len(login):
            raise ValueError(f"{protocol}, which knows no users; SASL_SSL does, or leave user and password away")
        if not access.speaks_tls and (access.ca or access.certificate or access.key):
            raise ValueError(f"{protocol}, which knows no certificates; SSL and SASL_SSL do")
        if access.key and not access.certificate:
            raise ValueError("EMOSTREAM_KAFKA_KEY is given: set EMOSTREAM_KAFKA_CERTIFICATE, too")
        return self

    @model_validator(mode="after")
    def _gets_into_redis(self) -> Self:
        access, url = self.redis_access, parse_url(self.redis.get_secret_value())
        if (access.ca or access.certificate or access.key) and not access.url.startswith("rediss://"):
            raise ValueError("EMOSTREAM_REDIS has no TLS, and so no certificates; begin it with rediss://")
        if access.key and not access.certificate:
            raise ValueError("EMOSTREAM_REDIS_KEY is given: set EMOSTREAM_REDIS_CERTIFICATE, too")
        for name, apart in (("username", access.user), ("password", access.password)):
            if apart and name in url:
                raise ValueError(f"Redis' {name} is given twice: in EMOSTREAM_REDIS and apart from it")
        return self


KAFKA_ACCESS = tuple(name for name in Settings.model_fields if name == "kafka" or name.startswith("kafka_"))
"""The settings that every command needs which talks to Kafka."""


def default_shown(default: Any) -> str:
    """Return a default as documentation shows it; empty where there is none to show."""
    value = default.get_secret_value() if isinstance(default, SecretStr) else default
    return "" if value in (None, "") else str(value)


def settings_table() -> str:
    """Return every setting as a Markdown table, by the name of its environment variable."""
    rows = (
        f"| `EMOSTREAM_{name.upper()}` | {default_shown(field.default)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    )
    return "\n".join(["| variable | default | what it is |", "|---|---|---|", *rows]) + "\n"


def _write_table(file: Path) -> None:
    before, _, rest = file.read_text().partition(_TABLE_BEGINS)
    _, _, after = rest.partition(_TABLE_ENDS)
    file.write_text(f"{before}{_TABLE_BEGINS}\n{settings_table()}{_TABLE_ENDS}{after}")


_TABLE_BEGINS, _TABLE_ENDS = "<!-- settings: made by `make docs` -->", "<!-- end of settings -->"

if __name__ == "__main__":
    _write_table(Path(sys.argv[1]))
