"""Turns on the device, on a clock of the test's own."""

import pytest

from emostream.streams.frames import Lane
from emostream.streams.turns import Turns


class Device:
    """Takes steps of both lanes, each as long as the test says; a lane without work has steps of 0 s."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.had_s: dict[Lane, float] = {"texts": 0.0, "clips": 0.0}
        self._turns = Turns(lambda: self.now_s)
        self._busy: set[Lane] = set()

    def run(self, seconds: float, *, texts_s: float, clips_s: float) -> float:
        """Work for some seconds, and return the share of the time that clips had."""
        end_s, before_s = self.now_s + seconds, dict(self.had_s)
        steps_s: dict[Lane, float] = {"texts": texts_s, "clips": clips_s}
        for lane, step_s in steps_s.items():
            if not step_s and lane in self._busy:
                self._busy.remove(lane)
                self._turns.end(lane)
            elif step_s and lane not in self._busy:
                self._busy.add(lane)
                self._turns.begin(lane)
        while self.now_s < end_s:
            lane = self._turns.next_of(self._busy)
            self.now_s += steps_s[lane]
            self.had_s[lane] += steps_s[lane]
            self._turns.pay(lane, steps_s[lane])
            self._turns.end(lane)  # and the next batch is there at once
            self._turns.begin(lane)
        texts_had_s, clips_had_s = (self.had_s[lane] - before_s[lane] for lane in steps_s)
        return clips_had_s / (texts_had_s + clips_had_s)


@pytest.mark.parametrize("texts_s", [0.02, 0.07, 0.5, 2.0], ids=lambda s: f"batches of {s} s")
def test_a_burst_of_clips_gets_a_quarter_and_clips_that_are_behind_get_half(texts_s: float) -> None:
    device = Device()
    device.run(60, texts_s=texts_s, clips_s=0)
    assert device.run(25, texts_s=texts_s, clips_s=0.02) == pytest.approx(1 / 4, abs=0.05)
    device.run(10, texts_s=texts_s, clips_s=0.02)
    assert device.run(60, texts_s=texts_s, clips_s=0.02) == pytest.approx(1 / 2, abs=0.05)
    # They catch up, and are no longer behind.
    device.run(2, texts_s=texts_s, clips_s=0)
    assert device.run(25, texts_s=texts_s, clips_s=0.02) == pytest.approx(1 / 4, abs=0.05)


@pytest.mark.parametrize("alone", ["texts", "clips"])
def test_a_lane_that_had_nothing_to_do_is_owed_nothing(alone: Lane) -> None:
    device = Device()
    device.run(1000, texts_s=0.05 * (alone == "texts"), clips_s=0.02 * (alone == "clips"))
    share = device.run(20, texts_s=0.05, clips_s=0.02)
    assert 0.2 < share < 0.55, "neither has the device for itself"


def test_texts_that_come_one_by_one_wait_for_one_step_of_a_clip() -> None:
    device = Device()
    waited_s = []
    for _ in range(100):
        device.run(0.3, texts_s=0, clips_s=0.02)
        before_s = device.had_s["clips"]
        device.run(0.05, texts_s=0.05, clips_s=0.02)
        waited_s.append(device.had_s["clips"] - before_s)
    assert max(waited_s) < 0.05
