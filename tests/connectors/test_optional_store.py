"""A store that may be away: answers are skipped meanwhile, and it is asked again after a pause."""

import pytest
from answers import make_answer, written

from emostream.connectors.errors import RecordRefused, SinkUnavailable
from emostream.connectors.optional_store import OptionalStore
from emostream.connectors.sinks import Known, ListSink


class Flaky(ListSink):
    """A list that can be away, and counts how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.fault: Exception | None = None
        self.asked = 0

    async def write(self, answers) -> None:
        self.asked += 1
        if self.fault:
            raise self.fault
        await super().write(answers)

    async def look_up(self, post_ids) -> list[Known]:
        self.asked += 1
        if self.fault:
            raise self.fault
        return await super().look_up(post_ids)


async def test_answers_are_skipped_while_it_is_away_and_stored_when_it_is_back() -> None:
    now_s, skipped, store = [0.0], [], Flaky()
    optional = OptionalStore(store, skipped=skipped.append, clock=lambda: now_s[0])
    assert optional.name == "list"
    await optional.write(written(make_answer("a")))
    store.fault = SinkUnavailable("away")
    await optional.write(written(make_answer("b"), make_answer("c")))
    asked = store.asked
    assert await optional.look_up(["a", "b"]) == [None, None]
    await optional.write(written(make_answer("d")))
    assert store.asked == asked, "a store that hangs must not cost every batch its timeout"
    assert skipped == [2, 1]
    now_s[0], store.fault = 6.0, None
    assert (await optional.look_up(["a"]))[0].emotion is not None
    await optional.write(written(make_answer("e")))
    assert set(store.answers) == {"a", "e"}


async def test_a_failed_question_leaves_it_alone_too() -> None:
    store = Flaky()
    store.fault = SinkUnavailable("away")
    optional = OptionalStore(store, skipped=lambda _: None, clock=lambda: 0.0)
    assert await optional.look_up(["a"]) == [None]
    await optional.write(written(make_answer("a")))
    assert store.asked == 1


async def test_what_can_never_be_written_is_said() -> None:
    store = Flaky()
    store.fault = RecordRefused([0], "no hash")
    with pytest.raises(RecordRefused):
        await OptionalStore(store, skipped=lambda _: None).write(written(make_answer("a")))
