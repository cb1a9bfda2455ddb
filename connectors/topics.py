"""Which topics exist, creating what is missing, and the right to read them as a group.

Called when the worker starts and by `emostream topics`.
"""

import logging
from collections.abc import Sequence

import msgspec
from kafka import KafkaAdminClient
from kafka.admin import MemberToRemove, NewTopic
from kafka.errors import GroupAuthorizationFailedError, KafkaError, TopicAlreadyExistsError
from tenacity import Retrying, retry_if_not_result, stop_after_delay, wait_fixed

from emostream.connectors.broker import KafkaAccess
from emostream.connectors.connecting import connect
from emostream.connectors.errors import AccessRefused, BrokerError
from emostream.connectors.producer import MOST_REQUEST_BYTES

_log = logging.getLogger(__name__)

_TOPIC_SETTINGS = {"max.message.bytes": str(MOST_REQUEST_BYTES)}
"""A clip of 1 MiB and what is said about it must fit into `clips`, and into the dead letters."""

_HEARD_OF_WITHIN_S, _LOOK_EVERY_S = 10.0, 0.1
"""How long a broker may take to hear of a topic that the controller has created."""

_NOT_THERE = "none: it does not exist, or this user may not see it"


class TopicState(msgspec.Struct, frozen=True):
    """One topic: its name, and its partitions (0 where it does not exist)."""

    name: str
    partitions: int


def describe_topics(access: KafkaAccess, names: Sequence[str]) -> list[TopicState]:
    """Return the state of each topic, in order.

    Raises:
        BrokerError: The broker is away or refuses.
    """
    admin = connect(KafkaAdminClient, access)
    try:
        return _describe(admin, names)
    except KafkaError as error:
        raise BrokerError(f"{access.addresses}: topics cannot be described: {error!r}") from error
    finally:
        admin.close()


def require_equal_partitions(states: Sequence[TopicState]) -> None:
    """Make sure that topics whose records are to meet by key have the same number of partitions.

    Raises:
        BrokerError: They have not, or one does not exist.
    """
    found = ", ".join(f"{state.name!r} has {state.partitions or _NOT_THERE}" for state in states)
    if len({state.partitions for state in states}) > 1 or not all(state.partitions for state in states):
        raise BrokerError(
            f"a post and its clip meet only where both topics have the same number of partitions: {found}; "
            "`kafka-topics --alter --topic TOPIC --partitions N` adds some to the smaller one"
        )


def require_group(access: KafkaAccess, group: str) -> None:
    """Make sure that we may read as a consumer group: Faust waits for ever, and says nothing, where we may not.

    Nobody is asked who has not said who they are.

    Raises:
        AccessRefused: We may not.
        BrokerError: The broker is away.
    """
    if not (access.logs_in or access.certificate):
        return
    admin = connect(KafkaAdminClient, access)
    try:
        # Taking leave needs the right that joining needs, and nobody misses a member that is not there.
        admin.remove_group_members(group, [MemberToRemove(member_id="emostream-nobody")])
    except GroupAuthorizationFailedError as error:
        who = access.user or "this certificate"
        raise AccessRefused(f"{who!r} may not read as group {group!r}; its ACL must allow Read on the group") from error
    except KafkaError:  # the group's coordinator is not there yet: the consumer waits for it
        return
    finally:
        admin.close()


def create_topics(
    access: KafkaAccess, names: Sequence[str], *, partitions: int, replication: int, alike: Sequence[str] = ()
) -> list[TopicState]:
    """Create the topics that are missing, leave the others alone, and return the state of all once the broker knows it.

    Args:
        access: Where Kafka is, and how to get in.
        names: The topics.
        partitions: Partitions of a new topic.
        replication: Replicas of a new topic; -1 takes the broker's default.
        alike: Topics whose records are to meet by key: a new one of these gets as many partitions as another has.

    Raises:
        BrokerError: The broker is away or refuses.
    """
    admin = connect(KafkaAdminClient, access)
    try:
        found = _describe(admin, names)
        of_alike = max((state.partitions for state in found if state.name in alike), default=0) or partitions
        for name in (state.name for state in found if not state.partitions):
            number = of_alike if name in alike else partitions
            try:
                admin.create_topics([NewTopic(name, number, replication, topic_configs=_TOPIC_SETTINGS)])
            except TopicAlreadyExistsError:  # another worker was quicker
                continue
        heard_of = Retrying(
            retry=retry_if_not_result(lambda states: all(state.partitions for state in states)),
            stop=stop_after_delay(_HEARD_OF_WITHIN_S),
            wait=wait_fixed(_LOOK_EVERY_S),
            retry_error_callback=lambda last: last.outcome.result() if last.outcome else [],
        )
        states: list[TopicState] = heard_of(_describe, admin, names)
        if unheard := [state.name for state in states if not state.partitions]:
            _log.warning("%s: created, but %s sees %s", ", ".join(unheard), access.user or "this client", _NOT_THERE)
        return states
    except KafkaError as error:
        raise BrokerError(f"{access.addresses}: topics cannot be created: {error!r}") from error
    finally:
        admin.close()


def _describe(admin: KafkaAdminClient, names: Sequence[str]) -> list[TopicState]:
    # All topics are listed first, because asking about one by name may create it where auto-creation is on.
    listed = set(admin.list_topics())
    existing = [name for name in names if name in listed]
    described = admin.describe_topics(existing) if existing else []
    partitions = {topic["name"]: len(topic["partitions"]) for topic in described}
    return [TopicState(name=name, partitions=partitions.get(name, 0)) for name in names]
