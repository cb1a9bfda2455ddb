"""What can go wrong at the edges.

    ConnectorError
    ├── MalformedRecord   decoding a record of `posts` or `clips`: its reason is the dead letter's; reading a recording
    ├── RecordingsError   `ingest clips`: the folder cannot be read, its state cannot be kept
    ├── BrokerError       creating topics, publishing: the broker is away or refuses
    │   └── BrokerAway        connecting: none answers; one may later (retriable)
    ├── AccessRefused     connecting: Kafka or Redis answers, but does not let us in: TLS, user, password, rights
    └── SinkError         writing answers
        ├── SinkUnavailable   away or overloaded; writing the same again may succeed (retriable)
        └── RecordRefused     some records can never be written (too large); carries which

The pipeline handles the two sink errors; everything else is said to the user.
"""

from collections.abc import Sequence


class ConnectorError(Exception):
    """Base of every error raised at the edges."""

    reason: str = "connector"
    retriable: bool = False


class MalformedRecord(ConnectorError):
    """A record that is no post.

    Args:
        reason: A short stable word: metric label and dead-letter header.
        error: One sentence for a person; never the text of the post.
    """

    def __init__(self, reason: str, error: str) -> None:
        super().__init__(error)
        self.reason = reason


class RecordingsError(ConnectorError):
    """A folder of recordings cannot be read, or what was published of it cannot be kept."""

    reason = "recordings"


class BrokerError(ConnectorError):
    """The broker is away or refuses."""

    reason = "broker"


class BrokerAway(BrokerError):
    """No broker answers; one may later."""

    reason = "broker_away"
    retriable = True


class AccessRefused(ConnectorError):
    """Kafka or Redis answers and does not let us in; it would say the same again."""

    reason = "access_refused"


class SinkError(ConnectorError):
    """Answers cannot be written."""

    reason = "sink"


class SinkUnavailable(SinkError):
    """A sink is away or overloaded; the same write may succeed later."""

    reason = "sink_unavailable"
    retriable = True


class RecordRefused(SinkError):
    """Some records of a write can never be written; `positions` says which."""

    reason = "record_refused"

    def __init__(self, positions: Sequence[int], error: str) -> None:
        super().__init__(error)
        self.positions = tuple(positions)
