"""The GPU worker: a real child process with the real model, killed, stopped, and given what it cannot load."""

import asyncio
import os
import signal
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry, Counter

from emostream.model.checkpoint import SHIPPED
from emostream.model.samples import BatchOutcome
from emostream.streams.errors import ScorerGone, ScorerUnusable
from emostream.streams.frames import ScorerOptions
from emostream.streams.gpu_worker import GpuWorker

OPTIONS = ScorerOptions(checkpoint="", device="cpu", precision="float32", threads=1)


def make_worker(options: ScorerOptions = OPTIONS, *, deadline_s: float = 60.0) -> tuple[GpuWorker, Counter]:
    restarts = Counter("restarts", "restarts", ["cause"], registry=CollectorRegistry())
    return GpuWorker(options, deadline_s=deadline_s, restarts=restarts), restarts


async def score_until_answered(worker: GpuWorker, texts: list[str]) -> BatchOutcome:
    while True:
        try:
            return await worker.score(texts)
        except ScorerGone:
            continue


async def test_it_scores_survives_kill_and_hang_and_ends() -> None:
    worker, restarts = make_worker(deadline_s=4.0)
    info = await worker.start()
    assert (info.device, info.precision) == ("cpu", "float32")
    first = await worker.score(["what a lovely day", "i hate this"])
    assert len(first.outcomes) == 2

    # Killed with batches on their way: each fails as retriable, and is answered by the next child.
    killed = worker.pid
    assert killed is not None
    waiting = [asyncio.create_task(score_until_answered(worker, ["so long"] * 200)) for _ in range(3)]
    await asyncio.sleep(0.2)
    os.kill(killed, signal.SIGKILL)
    async with asyncio.timeout(120):
        batches = await asyncio.gather(*waiting)
    assert [len(batch.outcomes) for batch in batches] == [200] * 3
    assert worker.pid != killed
    assert restarts.labels("died")._value.get() == 1

    # Hanging: past the deadline it is killed and replaced.
    hung = worker.pid
    assert hung is not None
    os.kill(hung, signal.SIGSTOP)
    async with asyncio.timeout(120):
        again = await score_until_answered(worker, ["what a lovely day", "i hate this"])
    assert again.outcomes == first.outcomes
    assert restarts.labels("deadline")._value.get() == 1

    last = worker.pid
    assert last is not None
    await worker.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)


async def test_a_device_that_fails_for_good_is_no_posts_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A model that raises on everything, its warm-up texts included, ends its process; the next one is sound."""
    broken = tmp_path / "broken"
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if os.path.exists(os.environ['BROKEN_DEVICE']):\n"
        "    os.remove(os.environ['BROKEN_DEVICE'])\n"
        "    from emostream.model.scorer import EmotionScorer\n"
        "    compute, calls = EmotionScorer.compute, []\n"
        "    def failing(self, batch):\n"
        "        calls.append(1)\n"
        "        if len(calls) > 2:  # its warm-up went well\n"
        "            raise RuntimeError('CUDA error: an illegal memory access was encountered')\n"
        "        return compute(self, batch)\n"
        "    EmotionScorer.compute = failing\n"
    )
    broken.touch()
    monkeypatch.setenv("BROKEN_DEVICE", str(broken))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker, restarts = make_worker()
    await worker.start()
    with pytest.raises(ScorerGone):
        await worker.score(["hello"])
    async with asyncio.timeout(120):
        assert len((await score_until_answered(worker, ["hello"])).outcomes) == 1
    assert restarts.labels("died")._value.get() == 1
    await worker.stop()


async def test_a_child_that_cannot_be_started_just_now_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, _ = make_worker()
    await worker.start()
    real, tries = asyncio.create_subprocess_exec, []

    async def failing_once(*arguments: object, **options: object) -> object:
        tries.append(1)
        if len(tries) == 1:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return await real(*arguments, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", failing_once)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    async with asyncio.timeout(120):
        assert len((await score_until_answered(worker, ["hello"])).outcomes) == 1
    assert len(tries) == 2
    await worker.stop()


async def test_weights_that_cannot_be_loaded_are_named(tmp_path: Path) -> None:
    worker, _ = make_worker(msgspec.structs.replace(OPTIONS, checkpoint=str(tmp_path)))
    with pytest.raises(ScorerUnusable, match=r"config\.json is missing"):
        await worker.start()
    await worker.stop()


async def test_a_device_that_is_not_there_is_named() -> None:
    worker, _ = make_worker(msgspec.structs.replace(OPTIONS, device="cuda:99"))
    with pytest.raises(ScorerUnusable):
        await worker.start()
    await worker.stop()


def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    """A parent that is killed leaves no process behind that owns the device."""
    import subprocess
    import sys
    import time

    script = (
        "import asyncio, sys\n"
        "from emostream.streams.frames import ScorerOptions\n"
        "from emostream.streams.gpu_worker import GpuWorker\n"
        "from prometheus_client import CollectorRegistry, Counter\n"
        "async def main():\n"
        "    counter = Counter('r', 'r', ['cause'], registry=CollectorRegistry())\n"
        f"    worker = GpuWorker(ScorerOptions('{SHIPPED}', 'cpu', 'float32', 1), deadline_s=60, restarts=counter)\n"
        "    await worker.start()\n"
        "    print(worker.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    deadline_s = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline_s, "the child outlived its parent"
        time.sleep(0.05)
