import contextlib
import datetime as dt
from collections.abc import Iterable, Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emostream.connectors import replaying
from emostream.connectors.dead_letters import (
    Filter,
    Letter,
    Mark,
    Place,
    list_letters,
    parse_time,
    spans_of,
    to_letter,
)
from emostream.connectors.errors import BrokerError
from emostream.connectors.kafka_sink import _cut
from emostream.connectors.messages import ATTEMPT, REPLAYED, DeadLetter, DeadLetterHeaders
from emostream.connectors.reader import Received, Span
from emostream.connectors.replaying import Refusal, Rules, plan_replay, replay

NOW = dt.datetime(2026, 3, 1, 12, 0, tzinfo=dt.UTC)
RULES = Rules(frozenset({"posts", "clips"}), most_attempts=3)

Headers = Sequence[tuple[str, bytes]]


def received(headers: Headers, *, at: str = "0/0", value: bytes | None = b"v", s: float = 1.0) -> Received:
    place = Place.parse(at)
    return Received("dead-letters", place.partition, place.offset, s, b"k", value, tuple(headers))


def why(reason: str = "not_json", origin: str = "posts/2/17", failed_at: dt.datetime = NOW) -> DeadLetterHeaders:
    return DeadLetterHeaders(reason=reason, error="because", origin=origin, failed_at=failed_at)


def letter(at: str = "0/0", original: Headers = (), **more: object) -> Letter:
    found = to_letter(received([*original, *why(**more).encode()], at=at))
    assert isinstance(found, Letter)
    return found


def everything(_letter: Letter) -> bool:
    return True


class Delivered:
    """What became of a record."""

    def __init__(self, exception: Exception | None = None) -> None:
        self.exception = exception

    def failed(self) -> bool:
        return self.exception is not None


class ListPublisher:
    """A producer that is a list; it settles so many times, takes no value that says so, and no marks if told."""

    def __init__(self, confirms: int = 1000, *, takes_marks: bool = True) -> None:
        self._takes_marks = takes_marks
        self.records: list[tuple[str, bytes | None, bytes | None, list[tuple[str, bytes]], int | None]] = []
        self._confirms = confirms

    def publish(
        self, topic: str, *, key: bytes | None, value: bytes | None, headers: Headers, partition: int | None
    ) -> Delivered:
        if value == b"forbidden":
            raise BrokerError("not allowed")
        self.records.append((topic, key, value, list(headers), partition))
        refused = value == b"too large" or (not value and not self._takes_marks)
        return Delivered(ValueError("refused") if refused else None)

    def settle(self) -> None:
        self._confirms -= 1
        if self._confirms < 0:
            raise BrokerError("the broker is away")


class TestTimes:
    @pytest.mark.parametrize(
        ("text", "time"),
        [
            ("90s", NOW - dt.timedelta(seconds=90)),
            ("30m", NOW - dt.timedelta(minutes=30)),
            ("2h", NOW - dt.timedelta(hours=2)),
            ("7d", NOW - dt.timedelta(days=7)),
            ("1w", NOW - dt.timedelta(days=7)),
            ("2026-03-01T12:00:00Z", NOW),
            ("2026-03-01T13:00:00.000+01:00", NOW),
        ],
    )
    def test_ages_and_times_are_read(self, text: str, time: dt.datetime) -> None:
        assert parse_time(text, now=NOW) == time

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "yesterday",
            "30",
            "m",
            "-5m",
            "1.5h",
            "999999999d",
            "٣m",
            "2026-03-01T12:00:00",
            "0001-01-01T00:00+14:00",
        ],
    )
    def test_anything_else_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="neither an age"):
            parse_time(text, now=NOW)

    @given(st.text())
    def test_no_text_does_more_than_be_refused(self, text: str) -> None:
        with contextlib.suppress(ValueError):
            assert parse_time(text, now=NOW).tzinfo


class TestReading:
    def test_a_letter_says_where_when_and_why(self) -> None:
        found = letter("3/128", [("trace", b"\x01"), (ATTEMPT, b"2")])
        assert (str(found.place), found.failed_at, found.reason, found.error) == ("3/128", NOW, "not_json", "because")
        assert (found.origin_topic, found.origin_partition, found.attempts) == ("posts", 2, 2)
        assert found.headers == (("trace", b"\x01"), (ATTEMPT, b"2"))

    def test_headers_that_a_source_named_like_ours_stay_with_the_record(self) -> None:
        own = [("reason", b"birthday"), ("origin", b"clips/0/0"), ("failed_at", b"never"), ("whole_bytes", b"1")]
        found = letter(original=own)
        assert (found.reason, found.origin, found.failed_at, found.whole_bytes) == ("not_json", "posts/2/17", NOW, None)
        assert found.headers == tuple(own)

    def test_a_mark_names_a_letter(self) -> None:
        assert to_letter(received([(REPLAYED, b"3/128")])) == Mark(Place(3, 128))

    def test_a_letter_whose_record_looked_like_a_mark_is_a_letter(self) -> None:
        assert letter(original=[(REPLAYED, b"3/128")]).reason == "not_json"

    def test_a_letter_that_was_cut_says_so(self) -> None:
        whole = DeadLetter(b"k", b"x" * 2_000_000, (("h", b"v"),), why())
        found = to_letter(received(_cut(whole).headers))
        assert isinstance(found, Letter)
        assert found.whole_bytes == 2_000_000

    @pytest.mark.parametrize(
        "headers",
        [
            [],
            [("reason", b"\xff\xfe")],
            [("reason", b""), ("origin", b"posts"), ("failed_at", b"noon")],
            [("origin", b"posts/1/1"), ("reason", b"x")],
            [("reason", b"x"), ("origin", b"posts/-1/5"), ("failed_at", b"2026-03-01")],
            [("reason", b"x"), ("origin", b"po sts/1/5")],
            [(REPLAYED, b"x/y")],
            [(REPLAYED, b"\xff")],
        ],
    )
    def test_what_strangers_write_is_a_letter_that_cannot_be_replayed(self, headers: Headers) -> None:
        found = to_letter(received(headers, s=1.5))
        assert isinstance(found, Letter)
        assert found.failed_at == dt.datetime.fromtimestamp(1.5, dt.UTC)
        assert RULES.refusal(found) is Refusal.NO_ORIGIN

    @given(st.lists(st.tuples(st.text(), st.binary())), st.floats(), st.none() | st.binary())
    def test_nothing_crashes_it(self, headers: list[tuple[str, bytes]], s: float, value: bytes | None) -> None:
        assert to_letter(received(headers, s=s, value=value)) is not None

    @pytest.mark.parametrize("value", [b"-1", b"", b"x", b"1e3", "٣".encode(), b"1" * 10])
    def test_a_count_of_attempts_that_is_none_counts_as_zero(self, value: bytes) -> None:
        assert letter(original=[(ATTEMPT, value)]).attempts == 0

    @pytest.mark.parametrize("text", ["3", "3/", "/3", "3/4/5", "-3/4", "3/ 4", "٣/4", "posts/3/4"])
    def test_an_id_that_is_none_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="PARTITION/OFFSET"):
            Place.parse(text)

    def test_spans_cover_their_places(self) -> None:
        places = [Place(1, 9), Place(0, 4), Place(1, 3)]
        assert spans_of(places, to_the_end=False) == [Span(0, 4, 5), Span(1, 3, 10)]
        assert spans_of(places, to_the_end=True) == [Span(0, 4, None), Span(1, 3, None)]


class TestFilter:
    @pytest.mark.parametrize(
        ("chosen", "admitted"),
        [
            (Filter(), True),
            (Filter(reasons=frozenset({"not_json", "empty"})), True),
            (Filter(reasons=frozenset({"empty"})), False),
            (Filter(topic="posts"), True),
            (Filter(topic="clips"), False),
            (Filter(since=NOW), True),
            (Filter(since=NOW + dt.timedelta(seconds=1)), False),
            (Filter(until=NOW), False),
            (Filter(until=NOW + dt.timedelta(seconds=1)), True),
        ],
    )
    def test_all_that_is_given_must_fit(self, chosen: Filter, admitted: bool) -> None:
        assert chosen.admits(letter()) is admitted

    def test_a_letter_of_no_known_time_is_in_no_period(self) -> None:
        timeless = to_letter(received([], s=-0.001))
        assert isinstance(timeless, Letter)
        assert timeless.failed_at is None
        assert Filter().admits(timeless)
        assert not Filter(since=NOW).admits(timeless)
        assert not Filter(until=NOW).admits(timeless)


class TestListing:
    def test_the_newest_are_kept_in_their_order_and_all_are_counted(self) -> None:
        minutes = [5, 1, 9, 3, 7]
        letters = [letter(f"{m % 2}/{m}", failed_at=NOW + dt.timedelta(minutes=m)) for m in minutes]
        others = [letter("0/90", reason="empty"), Mark(Place(1, 9)), Mark(Place(1, 3))]
        listing = list_letters(iter([*letters, *others]), admits=Filter(reasons=frozenset({"not_json"})).admits, most=3)
        assert [str(each.place) for each in listing.newest] == ["1/5", "1/7", "1/9"]
        assert (listing.reasons, listing.others) == ({"not_json": 5}, {"empty": 1})
        assert listing.replayed == {Place(1, 9), Place(1, 3)}
        assert all(each.value is None and each.size == 1 for each in listing.newest)

    def test_zero_keeps_all(self) -> None:
        assert len(list_letters((letter(f"0/{i}") for i in range(200)), admits=everything, most=0).newest) == 200


class TestPlan:
    def test_each_letter_is_chosen_or_refused_for_a_reason(self) -> None:
        cut = to_letter(received(_cut(DeadLetter(b"k", b"x" * 9, (), why())).headers, at="0/3"))
        plan = plan_replay(
            [
                letter("0/0"),
                to_letter(received([], at="0/1")),
                letter("0/2", origin="passwords/0/0"),
                cut,
                letter("0/4", [(ATTEMPT, b"3")]),
                letter("0/5", origin="clips/1/1"),
                Mark(Place(0, 5)),
                letter("0/6", [(ATTEMPT, b"2")], reason="audio_rate", origin="clips/1/1"),
                Mark(Place(7, 7)),
                letter("0/7", reason="unreadable"),
            ],
            admits=everything,
            rules=RULES,
        )
        assert [(str(at), chosen.topic, chosen.attempt) for at, chosen in plan.chosen.items()] == [
            ("0/0", "posts", 1),
            ("0/6", "clips", 3),
        ]
        assert {str(place): refusal for place, refusal in plan.refused.items()} == {
            "0/1": Refusal.NO_ORIGIN,
            "0/2": Refusal.OTHER_TOPIC,
            "0/3": Refusal.CUT,
            "0/4": Refusal.ATTEMPTS,
            "0/5": Refusal.REPLAYED,
            "0/7": Refusal.UNREADABLE,
        }
        assert plan.spans == [Span(0, 0, 7)]

    def test_again_passes_over_marks_and_over_nothing_else(self) -> None:
        rules = Rules(RULES.targets, most_attempts=1, again=True)
        letters = [letter("0/0"), Mark(Place(0, 0)), letter("0/1", [(ATTEMPT, b"1")]), Mark(Place(0, 1))]
        plan = plan_replay(letters, admits=everything, rules=rules)
        assert list(plan.chosen) == [Place(0, 0)]
        assert plan.refused == {Place(0, 1): Refusal.ATTEMPTS}

    def test_what_is_not_meant_is_neither(self) -> None:
        plan = plan_replay([letter("0/0"), letter("0/1")], admits=lambda each: each.place == Place(0, 1), rules=RULES)
        assert list(plan.chosen) == [Place(0, 1)]
        assert not plan.refused


class TestReplay:
    def replayed(self, letters: Iterable[Letter], publisher: ListPublisher) -> list[int]:
        self.failed: list[str] = []
        on_failed = lambda place, fault: self.failed.append(f"{place}: {fault!r}")  # noqa: E731
        return list(replay(letters, publisher, dead_letters_topic="dead-letters", on_failed=on_failed))

    def test_the_record_goes_back_as_it_was_and_then_the_letter_is_marked(self) -> None:
        publisher = ListPublisher()
        assert self.replayed([letter("3/128", [("trace", b"\x01"), (ATTEMPT, b"1")])], publisher) == [1]
        assert publisher.records == [
            ("posts", b"k", b"v", [("trace", b"\x01"), (ATTEMPT, b"2")], 2),
            ("dead-letters", None, b"", [(REPLAYED, b"3/128")], 3),
        ]

    def test_nothing_is_marked_that_is_not_confirmed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(replaying, "_UNCONFIRMED", 2)
        publisher = ListPublisher(confirms=2)
        with pytest.raises(BrokerError):
            self.replayed([letter(f"0/{i}") for i in range(5)], publisher)
        marks = [headers for topic, _, _, headers, _ in publisher.records if topic == "dead-letters"]
        assert marks == [[(REPLAYED, b"0/0")], [(REPLAYED, b"0/1")]]
        assert len(publisher.records) == 2 + 2 + 2

    def marked(self, publisher: ListPublisher) -> list[bytes]:
        return [headers[0][1] for topic, _, _, headers, _ in publisher.records if topic == "dead-letters"]

    def test_what_kafka_does_not_take_is_named_and_its_neighbours_go_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(replaying, "_UNCONFIRMED", 2)
        publisher = ListPublisher()
        letters = [letter(f"0/{i}") for i in range(5)]
        letters[2] = msgspec.structs.replace(letters[2], value=b"too large")
        assert self.replayed(letters, publisher) == [2, 3, 4]
        assert self.failed == ["0/2: ValueError('refused')"]
        assert self.marked(publisher) == [b"0/0", b"0/1", b"0/3", b"0/4"]

    def test_what_went_out_before_something_forbidden_is_marked(self) -> None:
        publisher = ListPublisher()
        letters = [letter(f"0/{i}") for i in range(3)]
        letters[2] = msgspec.structs.replace(letters[2], value=b"forbidden")
        with pytest.raises(BrokerError, match="not allowed"):
            self.replayed(letters, publisher)
        assert self.marked(publisher) == [b"0/0", b"0/1"]

    def test_a_letter_that_cannot_be_marked_is_an_error(self) -> None:
        with pytest.raises(BrokerError, match="2 letters are replayed and cannot be marked"):
            self.replayed([letter("0/0"), letter("0/1")], ListPublisher(takes_marks=False))

    def test_progress_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(replaying, "_UNCONFIRMED", 2)
        assert self.replayed([letter(f"0/{i}") for i in range(5)], ListPublisher()) == [2, 4, 5]
        assert self.replayed([], ListPublisher()) == [0]

    @given(
        st.lists(st.tuples(st.sampled_from(["reason", "error", "origin", "trace", REPLAYED]) | st.text(), st.binary())),
        st.binary() | st.none(),
        st.integers(0, 6),
    )
    def test_failing_again_and_again_changes_nothing_but_the_count(
        self, original: list[tuple[str, bytes]], value: bytes | None, times: int
    ) -> None:
        own = [(name, held) for name, held in original if name != ATTEMPT]
        headers: Headers = own
        for _ in range(times):
            failed = to_letter(received(DeadLetter(b"k", value, tuple(headers), why()).headers, value=value))
            assert isinstance(failed, Letter)
            publisher = ListPublisher()
            self.replayed([failed], publisher)
            (_, key, held, headers, _) = publisher.records[0]
            assert (key, held) == (b"k", value)
        last = to_letter(received(DeadLetter(b"k", value, tuple(headers), why()).headers, value=value))
        assert isinstance(last, Letter)
        assert last.attempts == times
        assert [pair for pair in last.headers if pair[0] != ATTEMPT] == own
        assert len(last.headers) == len(own) + (times > 0)
