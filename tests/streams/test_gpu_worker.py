"""The GPU worker: a real child process with the real model, killed, stopped, and given what it cannot load."""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry, Counter
from tiny_recordings import write_wav

from emostream.model.checkpoint import SHIPPED
from emostream.model.samples import BatchOutcome, Query, Scored, Unscorable
from emostream.streams.control import CONTROLS
from emostream.streams.errors import ScorerGone, ScorerUnusable, ScoringFailed
from emostream.streams.frames import LANES, Lane, ScorerOptions
from emostream.streams.gpu_worker import GpuWorker, _ChildEnded, _Door

OPTIONS = ScorerOptions(checkpoint="", device="cpu", precision="float32", threads=1)


def make_worker(options: ScorerOptions = OPTIONS, *, deadline_s: float = 60.0) -> tuple[GpuWorker, Counter]:
    restarts = Counter("restarts", "restarts", ["cause"], registry=CollectorRegistry())
    return GpuWorker(options, deadline_s=deadline_s, restarts=restarts), restarts


def queries(*texts: str) -> list[Query]:
    return [Query(text=text) for text in texts]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - the kernel's business
            await asyncio.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children() -> set[int]:
    """Return the pids of this process's children."""
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


async def score_until_answered(worker: GpuWorker, texts: list[str]) -> BatchOutcome:
    while True:
        try:
            return await worker.score("texts", queries(*texts))
        except ScorerGone:
            continue


async def test_it_scores_survives_kill_and_hang_and_ends() -> None:
    worker, restarts = make_worker(deadline_s=4.0)
    info = await worker.start()
    assert (info.device, info.precision) == ("cpu", "float32")
    first = await worker.score("texts", queries("what a lovely day", "i hate this"))
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


async def test_texts_do_not_wait_behind_a_minute_of_speech(tmp_path: Path) -> None:
    worker, _ = make_worker()
    await worker.start()
    minute = write_wav(tmp_path / "minute.wav", seconds=60).read_bytes()
    order: list[str] = []

    async def clips() -> BatchOutcome:
        outcome = await worker.score("clips", [Query(clip=minute)] * 2)
        order.append("clips")
        return outcome

    async def texts() -> None:
        for _ in range(3):
            await worker.score("texts", queries("hello"))
            order.append("texts")

    async with asyncio.timeout(120):
        heard, _ = await asyncio.gather(clips(), texts())
    assert order == ["texts"] * 3 + ["clips"]
    assert heard.audio_s == 120
    await worker.stop()


async def test_each_query_is_answered_by_the_halves_that_it_has(tmp_path: Path) -> None:
    worker, _ = make_worker()
    await worker.start()
    clip = write_wav(tmp_path / "clip.wav", seconds=2).read_bytes()
    asked = [
        Query(text="we won", clip=clip),
        Query(clip=clip),
        Query(text="we won", clip=clip[:30_000]),
        Query(clip=b"this is no recording"),
    ]
    both, voice, text, nothing = (await worker.score("clips", asked)).outcomes
    assert isinstance(both, Scored) and isinstance(voice, Scored) and isinstance(text, Scored)  # noqa: PT018
    assert [each.modalities for each in (both, voice, text)] == [("text", "voice"), ("voice",), ("text",)]
    assert [each.clip_fault and each.clip_fault.reason for each in (both, voice, text)] == [None, None, "audio_damaged"]
    assert isinstance(nothing, Unscorable)
    assert nothing.reason == "audio_undecodable"
    # A partner that was read before, as its vector: the same answer to four digits.
    late = [Query(clip=clip, text_vector=text.text_vector), Query(text="we won", voice_vector=voice.voice_vector)]
    for outcome in (await worker.score("texts", late)).outcomes:
        assert isinstance(outcome, Scored)
        assert outcome.modalities == ("text", "voice")
        assert outcome.scores == pytest.approx(both.scores, abs=2e-3)
        assert outcome.attributes.keys() == both.attributes.keys()
    await worker.stop()


async def test_a_batch_that_wants_to_be_alone_waits_for_the_others_and_holds_back_the_next() -> None:
    door, log = _Door(), []

    async def batch(name: str, *, alone: bool) -> None:
        async with door.passed(alone=alone):
            log.append(f"{name} in")
            await asyncio.sleep(0.01)
            log.append(f"{name} out")

    await asyncio.gather(
        batch("a", alone=False), batch("b", alone=False), batch("c", alone=True), batch("d", alone=False)
    )
    assert log == ["a in", "b in", "a out", "b out", "c in", "c out", "d in", "d out"]


@pytest.mark.parametrize("manner", ["it raises", "it gives no number"])
async def test_a_device_that_fails_for_good_is_no_posts_fault(
    manner: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A model that fails on everything, its warm-up texts included, ends its process; the next one is sound."""
    broken = tmp_path / "broken"
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if os.path.exists(os.environ['BROKEN_DEVICE']):\n"
        "    os.remove(os.environ['BROKEN_DEVICE'])\n"
        "    import msgspec\n"
        "    from emostream.model.samples import NOT_A_NUMBER, Unscorable\n"
        "    from emostream.model.scorer import EmotionScorer\n"
        "    steps, calls = EmotionScorer.steps, []\n"
        "    def failing(self, batch):\n"
        "        calls.append(1)\n"
        "        outcome = yield from steps(self, batch)\n"
        "        if len(calls) <= 3:  # its warm-up goes well\n"
        "            return outcome\n"
        f"        if {manner == 'it raises'}:\n"
        "            raise RuntimeError('CUDA error: an illegal memory access was encountered')\n"
        "        numberless = [Unscorable(NOT_A_NUMBER, 'no number') for _ in outcome.outcomes]\n"
        "        return msgspec.structs.replace(outcome, outcomes=tuple(numberless))\n"
        "    EmotionScorer.steps = failing\n"
    )
    broken.touch()
    monkeypatch.setenv("BROKEN_DEVICE", str(broken))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    worker, restarts = make_worker()
    await worker.start()
    with pytest.raises(ScorerGone):
        await worker.score("texts", queries("hello"))
    async with asyncio.timeout(120):
        assert len((await score_until_answered(worker, ["hello"])).outcomes) == 1
    assert restarts.labels("died")._value.get() == 1
    await worker.stop()


@pytest.mark.parametrize(
    ("children", "suspect"),
    [(["sound"], True), (["raises"], True), (["dies", "sound"], False), (["dies", "dies"], None)],
)
async def test_a_batch_is_blamed_only_if_the_next_child_is_sound(
    children: list[str], suspect: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Children after the one that the batch was alone with, each asked its control: what becomes of the batch."""
    worker, _ = make_worker()
    await worker.start()
    left = iter(["dies", *children])

    async def ask(lane: Lane, asked: Sequence[Query]) -> BatchOutcome:
        match next(left):
            case "dies":
                raise _ChildEnded
            case "raises":
                raise ScoringFailed("as it does where there is no voice branch")
            case _:
                return BatchOutcome((), 0, 0, 0.0, 0.0)

    monkeypatch.setattr(worker, "_ask", ask)
    failed = asyncio.create_task(worker.wait_failed())
    with pytest.raises(ScorerUnusable if suspect is None else ScorerGone) as raised:
        await worker.score("clips", queries("hello"), alone=True)
    assert getattr(raised.value, "suspect", None) is suspect
    assert not list(left)
    if suspect is None:
        with pytest.raises(ScorerUnusable, match="whatever it is asked about clips"):
            await failed
    failed.cancel()
    await worker.stop()


async def test_a_child_that_dies_of_its_control_now_and_then_is_not_asked_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A control that is answered on the second attempt is no end; a batch that is answered makes up for it."""
    worker, _ = make_worker()
    await worker.start()
    left = iter(["dies", "dies", "sound", "sound", "dies", "dies", "sound", "dies", "dies"])

    async def ask(lane: Lane, asked: Sequence[Query]) -> BatchOutcome:
        if next(left) == "dies":
            raise _ChildEnded
        return BatchOutcome((), 0, 0, 0.0, 0.0)

    monkeypatch.setattr(worker, "_ask", ask)
    for raised in (ScorerGone, None, ScorerGone, ScorerUnusable):
        with pytest.raises(raised) if raised else contextlib.nullcontext():
            await worker.score("texts", queries("hello"), alone=True)
    assert not list(left)
    with pytest.raises(ScorerUnusable):
        await worker.wait_failed()
    await worker.stop()


@pytest.mark.parametrize("lane", LANES)
async def test_controls_are_answered_whole(lane: Lane) -> None:
    worker, _ = make_worker()
    await worker.start()
    outcomes = (await worker.score(lane, CONTROLS[lane])).outcomes
    assert {each.modalities for each in outcomes if isinstance(each, Scored)} == (
        {("text",)} if lane == "texts" else {("voice",), ("text", "voice")}
    )
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


async def test_a_successor_with_another_model_ends_the_worker(tmp_path: Path) -> None:
    """Answers, vectors in Redis and metrics name the first one: a worker has one model for as long as it lives."""
    shutil.copytree(SHIPPED, tmp_path, dirs_exist_ok=True)
    worker, _ = make_worker(msgspec.structs.replace(OPTIONS, checkpoint=str(tmp_path)))
    info = await worker.start()
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace(f'"version": "{info.version}"', '"version": "next"'))
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    async with asyncio.timeout(120):
        with pytest.raises(ScorerUnusable, match=f"has become emostream next on cpu.* name {info}"):
            await worker.wait_failed()
    assert not worker.ready
    await worker.stop()


async def test_the_child_heeds_no_signal_that_the_whole_group_gets() -> None:
    worker, _ = make_worker()
    await worker.start()
    first = worker.pid
    assert first is not None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(first, number)
    assert len((await worker.score("texts", queries("hello"))).outcomes) == 1
    assert worker.pid == first
    await worker.stop()


async def test_a_child_that_is_loading_ends_with_the_worker() -> None:
    """The first one is cancelled while it starts, its successor when the worker stops."""
    before = children()
    worker, _ = make_worker()
    starting = asyncio.create_task(worker.start())
    await until(lambda: children() - before)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert children() == before

    await worker.start()
    assert worker.pid is not None
    first = children()
    os.kill(worker.pid, signal.SIGKILL)
    await until(lambda: children() - first)
    await worker.stop()
    assert children() == before


@pytest.mark.parametrize(
    ("wrong", "said"), [("missing", r"config\.json is missing"), ("cut off", r"model\.safetensors")]
)
async def test_weights_that_cannot_be_loaded_are_named(wrong: str, said: str, tmp_path: Path) -> None:
    if wrong == "cut off":
        shutil.copytree(SHIPPED, tmp_path, dirs_exist_ok=True)
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1_000_000])
    worker, _ = make_worker(msgspec.structs.replace(OPTIONS, checkpoint=str(tmp_path)))
    with pytest.raises(ScorerUnusable, match=said):
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
    while is_running(child):
        assert time.monotonic() < deadline_s, "the child outlived its parent"
        time.sleep(0.05)
