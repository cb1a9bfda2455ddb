"""Three times what the model can do, then silence."""

import threading
import time
from pathlib import Path

from accounts import NoteRow, Traffic, capacity, sized
from faulty import resident_mib
from support import Broker, RunningWorker, await_true, running_worker

from emostream.streams.settings import Settings

_PADDING = 30_000
_MOST_GROWTH_MIB = 300.0
"""Full queues of both topics, and what oneDNN keeps of shapes of batches, of so many at most: 150 to 260 were seen,
level once the queues are full. In the end two thirds of the posts are behind, 10,000 to 35,000 at full size: their
padding would show above this."""


class Watch:
    """Looks at a worker five times a second: its memory and whether it is ready."""

    def __init__(self, worker: RunningWorker) -> None:
        self._worker = worker
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.mib: list[float] = []
        self.not_ready = 0

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.2):
            self.mib.append(resident_mib(self._worker.process.pid))
            self.not_ready += self._worker.get("/readyz")[0] != 200


def latency_s(worker: RunningWorker, settings: Settings, name: str) -> float:
    """Return the mean latency of a few posts, one after the other."""

    def total() -> tuple[float, float]:
        names = ("emostream_latency_seconds_sum", "emostream_latency_seconds_count")
        return worker.metric(names[0]), worker.metric(names[1])

    before_s, before = total()
    with Traffic(settings, 20, rate=5, name=name, clip_every=0):
        pass
    await_true(lambda: total()[1] >= before + 20, within_s=60)
    after_s, after = total()
    return (after_s - before_s) / (after - before)


def test_overload(settings: Settings, broker: Broker, note_row: NoteRow, tmp_path: Path) -> None:
    lasts_s = sized(120, 8)
    settings = settings.model_copy(update={"session_timeout_s": 6})  # as it is shipped
    with running_worker(settings, tmp_path / "log") as worker:
        posts_a_second = capacity(worker, 600, clip_every=10)
        calm_s = latency_s(worker, settings, "before")
        rebalances = worker.metric("emostream_rebalances_total")
        with Watch(worker) as watch:
            rate = 3 * posts_a_second
            with Traffic(settings, int(rate * lasts_s), rate=rate, padding=_PADDING) as traffic:
                time.sleep(0.9 * lasts_s)
                queued = worker.metric("emostream_queued_items")
                traffic.settle(within_s=6 * lasts_s + 60)
            await_true(worker.idle, within_s=30)
            ledger = traffic.count()
        recovered_s = latency_s(worker, settings, "after")
        grown_mib = max(watch.mib) - watch.mib[0]
        seen = (
            f"{rate:.0f} posts/s for {lasts_s:.0f} s; memory grew by {grown_mib:.0f} MiB; "
            f"latency {calm_s * 1000:.0f} ms before, {recovered_s * 1000:.0f} ms after"
        )
        account = note_row("overload, three times what the model can do", broker.name, ledger, seen)
        assert watch.not_ready == 0, "readiness stays true"
        assert worker.metric("emostream_rebalances_total") == rebalances, "no heartbeat was missed"
    assert queued > 0, "more came than it could do"
    assert account.duplicates == 0
    assert grown_mib < _MOST_GROWTH_MIB
    assert recovered_s < 2 * calm_s + sized(0.5, 2.0), "latency recovers"
