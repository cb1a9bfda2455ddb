"""The model's process is killed, hangs, runs out of memory, cannot start again, or dies of what it is asked."""

import os
import shutil
import signal
import uuid
from pathlib import Path

import pytest
from accounts import FULL, ROW_S, NoteRow, Traffic, sized
from support import BROKERS, Broker, RunningWorker, await_true, running_worker, with_broken_model

from emostream.model.checkpoint import SHIPPED
from emostream.streams.settings import Settings

# What becomes of the model's process does not depend on the broker: in the smaller size one shows it.
pytestmark = pytest.mark.parametrize("broker", BROKERS if FULL else BROKERS[-1:], indirect=True, scope="session")


def test_killed(shared_worker: RunningWorker, broker: Broker, note_row: NoteRow) -> None:
    worker, name = shared_worker, uuid.uuid4().hex[:8]
    died = worker.metric("emostream_gpu_worker_restarts_total", cause="died")
    kills = int(sized(5, 1))
    with Traffic(worker.settings, int(sized(5_000, 500)), name=name) as traffic:
        for _ in range(kills):
            answered = worker.metric("emostream_answers_total")
            await_true(lambda least=answered: worker.metric("emostream_answers_total") > least, within_s=60)
            await_true(lambda: worker.get("/readyz")[0] == 200, within_s=60)  # else the one that starts is killed
            os.kill(worker.gpu_worker(), signal.SIGKILL)
        ledger = traffic.settle(within_s=ROW_S)
    assert worker.metric("emostream_gpu_worker_restarts_total", cause="died") - died == kills
    assert worker.process.poll() is None
    account = note_row("GPU worker killed (SIGKILL)", broker.name, ledger)
    assert account.dead_letters == 0


def test_hangs_past_the_deadline(settings: Settings, broker: Broker, note_row: NoteRow, tmp_path: Path) -> None:
    settings = settings.model_copy(update={"inference_deadline_s": sized(20.0, 12.0)})
    with running_worker(settings, tmp_path / "log") as worker, Traffic(settings, int(sized(2_000, 300))) as traffic:
        await_true(lambda: worker.metric("emostream_answers_total") > 0, within_s=60)
        os.kill(worker.gpu_worker(), signal.SIGSTOP)
        ledger = traffic.settle(within_s=ROW_S)
        assert worker.metric("emostream_gpu_worker_restarts_total", cause="deadline") >= 1
    account = note_row("GPU worker hangs (SIGSTOP) past its deadline", broker.name, ledger)
    assert account.dead_letters == 0


def test_runs_out_of_memory(settings: Settings, broker: Broker, note_row: NoteRow, tmp_path: Path) -> None:
    """There is no GPU to fill here: the process raises what torch raises when one is full (broken_model)."""
    switch = tmp_path / "little-memory"
    environment = {"PYTHONPATH": with_broken_model(), "EMOSTREAM_TEST_LITTLE_MEMORY": str(switch)}
    with running_worker(settings, tmp_path / "log", environment=environment) as worker:
        switch.touch()
        with Traffic(settings, int(sized(5_000, 400))) as traffic:
            ledger = traffic.settle(within_s=ROW_S)
        halved = worker.metric("emostream_out_of_memory_total")
        assert worker.metric("emostream_gpu_worker_restarts_total") == 0
    account = note_row("device out of memory", broker.name, ledger, f"passes halved {halved:.0f} times, for good")
    assert halved == 2, "1024 tokens do not fit, nor do 512; 256 do, and that is remembered"
    assert account.dead_letters == 0


def test_cannot_start_again(settings: Settings, broker: Broker, note_row: NoteRow, tmp_path: Path) -> None:
    """The weights are broken while it runs: each new process says why it ends, pauses grow, and mending them helps."""
    checkpoint = Path(shutil.copytree(SHIPPED, tmp_path / "checkpoint"))
    weights = checkpoint / "model.safetensors"
    settings = settings.model_copy(update={"checkpoint": checkpoint})
    with running_worker(settings, tmp_path / "log") as worker, Traffic(settings, int(sized(2_000, 300))) as traffic:
        await_true(lambda: worker.metric("emostream_answers_total") > 0, within_s=60)
        sound = weights.read_bytes()
        weights.unlink()
        weights.write_bytes(sound[: len(sound) // 2])
        os.kill(worker.gpu_worker(), signal.SIGKILL)
        await_true(lambda: "next try in 1.0 s" in worker.log.read_text(), within_s=90)
        assert worker.get("/readyz")[0] == 503
        weights.write_bytes(sound)
        ledger = traffic.settle(within_s=ROW_S)
        tries = said_why(worker)
    note_row("weights broken while it runs", broker.name, ledger, f"{tries} starts failed, with pauses")
    assert tries >= 2


def test_dies_of_one_post(settings: Settings, broker: Broker, note_row: NoteRow, tmp_path: Path) -> None:
    """A post with a clip ends the process (broken_model): it is found and dies alone, and its clip is answered."""
    count = int(sized(2_000, 60))
    killer = count // 2

    def text(number: int) -> str:
        return f"{'KILLER ' * (number == killer)}what a day ({number})"

    environment = {"PYTHONPATH": with_broken_model()}
    with running_worker(settings, tmp_path / "log", environment=environment) as worker:
        with Traffic(settings, count, text=text, rate=sized(0.0, 20.0)) as traffic:  # small batches, few deaths
            ledger = traffic.settle(within_s=ROW_S)
        deaths = worker.metric("emostream_gpu_worker_restarts_total", cause="died")
    seen = f"the process died {deaths:.0f} times"
    account = note_row("one post ends the model's process", broker.name, ledger, seen)
    assert ledger.dead == {("text", traffic.posts[killer])}
    assert account.answers == count + len(traffic.clips) - 1
    assert set(ledger.reasons.values()) == {"kills_scorer"}


def test_dies_of_each_batch(settings: Settings, broker: Broker, note_row: NoteRow, tmp_path: Path) -> None:
    """The device is broken such that the model starts well: no record is to blame, the worker ends, another goes on."""
    switch = tmp_path / "deadly"
    environment = {"PYTHONPATH": with_broken_model(), "EMOSTREAM_TEST_DEADLY": str(switch)}
    traffic = Traffic(settings, int(sized(2_000, 400)), rate=50.0)
    with running_worker(settings, tmp_path / "log", environment=environment) as worker, traffic:
        await_true(lambda: worker.metric("emostream_answers_total") > 0, within_s=60)
        switch.touch()
        assert worker.process.wait(timeout=120) == 1
        assert "the model starts, and dies of whatever it is asked about" in worker.log.read_text()
    switch.unlink()
    with running_worker(settings, tmp_path / "log-of-another", environment=environment):
        ledger = traffic.settle(within_s=ROW_S)
    seen = "the worker ended, another went on"
    account = note_row("the model's process starts well and dies of each batch", broker.name, ledger, seen)
    assert account.dead_letters == 0
    assert not ledger.dead


def said_why(worker: RunningWorker) -> int:
    """Return how many failed starts the log explains."""
    said = [line for line in worker.log.read_text().splitlines() if "GPU worker does not start" in line]
    assert all("model.safetensors" in line for line in said), said
    return len(said)
