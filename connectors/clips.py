"""`emostream ingest clips`: the recordings of a folder, and the posts beside them, into `clips` and `posts`."""

import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from emostream.connectors.errors import MalformedRecord
from emostream.connectors.jsonl import Pace
from emostream.connectors.ledger import Ledger
from emostream.connectors.messages import CONTENT_TYPE, Post, decode_clip, encode_post
from emostream.connectors.producer import RecordProducer
from emostream.connectors.recordings import Recording, read_post
from emostream.connectors.transcode import FittedClip, fit_clip

GROUP = 50
"""Recordings between two confirmations: what a run that is killed may publish twice. Waiting for the broker costs some
10 ms a group."""

GROUP_S = 5.0
"""Seconds after which a smaller group is confirmed, too."""


class MalformedRecording(msgspec.Struct, frozen=True):
    """A recording that was left out: its name within the folder, and why."""

    name: str
    reason: str
    error: str


class ClipsTally(msgspec.Struct):
    """What an ingest of recordings has done so far.

    Attributes:
        seen: Recordings looked at.
        before: Those of them that an earlier run had published.
        malformed: Those that were left out.
        confirmed: Those that are published and confirmed.
        with_post: Those of the confirmed that a post was published with.
        transcoded: Those of the confirmed that were too long or too large.
    """

    seen: int = 0
    before: int = 0
    malformed: int = 0
    confirmed: int = 0
    with_post: int = 0
    transcoded: int = 0


class ClipPublisher:
    """Publishes a clip, and its post before it.

    Args:
        producer: What publishes them.
        posts_topic: Where posts go.
        clips_topic: Where recordings go.
    """

    def __init__(self, producer: RecordProducer, *, posts_topic: str, clips_topic: str) -> None:
        self._producer = producer
        self._posts_topic, self._clips_topic = posts_topic, clips_topic

    def publish(self, post_id: str, clip: FittedClip, *, post: Post | None) -> None:
        """Hand a clip over, and its post if it has one, under the same id.

        Raises:
            MalformedRecord: The worker would refuse the clip; neither is published.
            BrokerError: The broker takes no more.
        """
        headers = [(CONTENT_TYPE, clip.content_type.encode())]
        try:
            fault = decode_clip(post_id.encode(), clip.audio, headers).fault
        except UnicodeEncodeError as error:
            raise MalformedRecord("not_utf8", "the id is not UTF-8") from error
        if fault is not None:
            raise fault
        if post is not None:
            self._producer.publish(self._posts_topic, key=post_id, value=encode_post(post))
        self._producer.publish(self._clips_topic, key=post_id, value=clip.audio, headers=headers)

    def flush(self) -> None:
        """Wait until everything handed over is confirmed.

        Raises:
            BrokerError: Something was not delivered.
        """
        self._producer.flush()


class _Sent(msgspec.Struct, frozen=True):
    recording: Recording
    post_id: str
    with_post: bool
    transcoded: bool


class ClipIngest:
    """One run over a folder. `tally` says what came of it, also after an error.

    Args:
        publisher: What publishes the recordings.
        ledger: What was published before, and what is published now.
        on_malformed: Told about each recording that is left out.
        id_prefix: Put before a recording's name to make its id.
        source: Source of posts that say none.
        checked: Leave out what ffmpeg cannot open; otherwise it is published as it stands, if it is small enough, and
            the worker turns it into a dead letter.
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        publisher: ClipPublisher,
        ledger: Ledger,
        *,
        on_malformed: Callable[[MalformedRecording], None],
        id_prefix: str = "",
        source: str | None = None,
        checked: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tally = ClipsTally()
        self._publisher, self._ledger = publisher, ledger
        self._on_malformed = on_malformed
        self._id_prefix, self._source, self._checked = id_prefix, source, checked
        self._clock = clock
        self._owners: dict[str, str] = {}
        self._group: list[_Sent] = []
        self._group_began_s = clock()

    def run(self, recordings: Sequence[Recording], *, pace: Pace, stopping: Callable[[], bool]) -> Iterator[ClipsTally]:
        """Publish what was not published before, and yield the running tally after each recording.

        When it ends, everything it published is confirmed and in the ledger.

        Raises:
            BrokerError: The broker is away, or something was not delivered; the next run publishes it again.
            RecordingsError: The ledger cannot be written.
        """
        before = [recording for recording in recordings if self._ledger.holds(recording)]
        self._owners = {self._ledger.id_of(recording): recording.name for recording in before}
        self.tally.seen = self.tally.before = len(before)
        done = {recording.name for recording in before}
        for recording in recordings:
            if recording.name in done:
                continue
            pace.wait()
            if stopping():
                break
            self._take(recording)
            yield self.tally
        self._confirm()
        yield self.tally

    def _take(self, recording: Recording) -> None:
        self.tally.seen += 1
        try:
            self._publish(recording)
        except MalformedRecord as fault:
            self.tally.malformed += 1
            self._on_malformed(MalformedRecording(recording.name, fault.reason, str(fault)))
        if len(self._group) >= GROUP or self._clock() - self._group_began_s >= GROUP_S:
            self._confirm()

    def _publish(self, recording: Recording) -> None:
        try:
            post_id, post = read_post(recording, id_prefix=self._id_prefix, source=self._source)
            owner = self._owners.get(post_id, recording.name)
            if owner != recording.name:
                raise MalformedRecord("duplicate_id", f"the id {post_id!r} is that of {owner}")
            clip = fit_clip(recording.path, checked=self._checked)
        except OSError as error:
            raise MalformedRecord("unreadable", error.strerror or str(error)) from error
        self._publisher.publish(post_id, clip, post=post)
        self._owners[post_id] = recording.name
        self._group.append(_Sent(recording, post_id, post is not None, clip.transcoded))

    def _confirm(self) -> None:
        group, self._group = self._group, []
        if group:
            self._publisher.flush()
            self._ledger.add((sent.recording, sent.post_id) for sent in group)
        self.tally.confirmed += len(group)
        self.tally.with_post += sum(sent.with_post for sent in group)
        self.tally.transcoded += sum(sent.transcoded for sent in group)
        self._group_began_s = self._clock()
