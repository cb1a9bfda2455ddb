"""What the README shows is true: its commands run, its messages are valid, its table lists every setting."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import BROKERS, READY_S, Broker, await_true, make_settings, running_up, running_worker
from tiny_data import write_goemotions, write_ravdess, write_tweeteval
from tiny_encoder import save_tiny_bert

from emostream.connectors.messages import decode_emotion, decode_post
from emostream.model.checkpoint import SHIPPED, load_checkpoint
from emostream.streams.settings import settings_table
from emostream.streams.stack import Stack

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"(?:<!-- (?P<mark>[^>]*?) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL)
BLOCKS = [(found["mark"], found["language"], found["code"]) for found in BLOCK.finditer(README)]
BIN = Path(sys.executable).parent

pytestmark = pytest.mark.xdist_group("readme")  # they share a stack


def blocks(mark: str | None, language: str) -> list[str]:
    return [code for m, lang, code in BLOCKS if m == mark and lang == language]


def test_every_block_of_commands_is_covered_here() -> None:
    """A new block must say how it is run, or why not."""
    marks = {(mark, language) for mark, language, _ in BLOCKS}
    assert marks == {
        (None, "bash"),
        (None, "mermaid"),
        ("run: stack", "bash"),
        ("run: stack", "python"),
        ("run: kcat on Apache Kafka", "bash"),
        ("run: data", "bash"),
        ("check: posts", "json"),
        ("check: emotions", "json"),
        ("not run: needs a Docker engine", "bash"),
        ("not run: needs a Kafka with TLS and users", "bash"),
    }


@pytest.fixture(scope="module")
def stack_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a user beside a running `emostream up`."""
    with running_up(tmp_path_factory.mktemp("up") / "log") as (_, environment):
        yield environment


def run(script: str, environment: dict[str, str], *, cwd: Path = ROOT) -> str:
    """Run lines of shell, stopping at the first that fails."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def without_setup(code: str) -> str:
    """Leave out the lines that enter the virtual environment and set addresses: the fixture did both."""
    return "\n".join(line for line in code.splitlines() if not line.startswith(("source ", "export ")))


def test_tests_that_documents_name_exist() -> None:
    known = set(re.findall(r"def (test_\w+)", "".join(file.read_text() for file in (ROOT / "tests").rglob("*.py"))))
    known |= {file.stem for file in (ROOT / "tests").rglob("test_*.py")}
    for document in (ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")):
        named = set(re.findall(r"\btest_\w+", document.read_text()))
        assert named <= known, f"{document} names {named - known}"


def test_the_first_two_commands_are_demo_and_test() -> None:
    (first,) = blocks(None, "bash")
    assert first.split("\n")[:2] == ["make demo", "make test"]
    assert "make test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.skipif(not (ROOT / ".venv" / "installed").exists(), reason="`make install` was not run in this checkout")
def test_make_demo_runs() -> None:
    said = run("make demo", dict(os.environ))
    assert "300: 292 answered, 8 dead letters" in said


def test_commands_beside_up_run(stack_environment: dict[str, str]) -> None:
    setup, clips, dead_letters = blocks("run: stack", "bash")
    said = run(without_setup(setup), stack_environment)
    assert "3 recordings published" in run(clips, stack_environment)
    assert said.count("5 posts published and confirmed, 0 malformed rows") == 2
    first, rest = dead_letters.split("\n", 1)
    run(first, stack_environment)
    await_true(lambda: "1 dead letter (1 not_json)" in run("emostream dlq list", stack_environment), within_s=READY_S)
    said = run(rest, stack_environment)
    assert "would be replayed: 1 dead letter (1 not_json); 1 to posts" in said
    assert "1 of 1 records replayed and confirmed" in said


def test_publishing_from_python_runs(stack_environment: dict[str, str]) -> None:
    (code,) = blocks("run: stack", "python")
    done = subprocess.run([sys.executable, "-c", code], env=stack_environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    watched = run("emostream watch --from-beginning --json --count 1 >/dev/null", stack_environment)
    assert watched == ""


@pytest.mark.skipif(shutil.which("kcat") is None, reason="kcat is not installed (Debian: apt-get install kcat)")
@pytest.mark.skipif("kafka" not in BROKERS, reason="kcat cannot speak to the embedded broker")
def test_kcat_publishes_and_reads(kafka_bootstrap: str, stack: Stack, tmp_path: Path) -> None:
    settings = make_settings(Broker("kafka", kafka_bootstrap), stack)
    (code,) = blocks("run: kcat on Apache Kafka", "bash")
    named = code.replace("-t posts", f"-t {settings.posts_topic}").replace(
        "-t emotions", f"-t {settings.emotions_topic}"
    )
    publish, read = named.strip().splitlines()
    environment = {**os.environ, "EMOSTREAM_KAFKA": kafka_bootstrap}
    with running_worker(settings, tmp_path / "log"):
        run(publish, environment)
        assert '"post_id":"k-1"' in run(read, environment)


def test_training_and_evaluation_run_on_a_small_folder(tmp_path: Path, stack_environment: dict[str, str]) -> None:
    """The commands as they stand, on data and an encoder made for the test: the full run takes hours."""
    data = tmp_path / "DATA"
    save_tiny_bert(data / "encoders" / "bge-small-en-v1.5")
    write_goemotions(data / "goemotions" / "ekman")
    write_tweeteval(data / "tweeteval", classes=load_checkpoint(SHIPPED).config.attributes)
    write_ravdess(data / "ravdess")
    (code,) = blocks("run: data", "bash")
    train_and_evaluate, worker = code.strip().rsplit("\n", 1)
    said = run(train_and_evaluate, stack_environment, cwd=tmp_path)
    assert "mean of the seven official metrics" in said
    assert "pairs/goemotions+ravdess dev, from text and voice" in said
    assert '"task":"ravdess","split":"dev","n":18' in said
    assert "runs/mine/best" in said
    pictures = list((tmp_path / "figures").glob("tweeteval-*.png"))
    assert len(pictures) == 2 * 7
    assert sum(picture.name.endswith(".calibration.png") for picture in pictures) == 7
    assert worker == "EMOSTREAM_CHECKPOINT=runs/mine/best emostream worker"
    log = tmp_path / "worker.log"
    variables = {**stack_environment, "EMOSTREAM_CHECKPOINT": "runs/mine/best", "EMOSTREAM_HTTP_PORT": "0"}
    with (
        log.open("wb") as sink,
        subprocess.Popen(
            [BIN / "emostream", "worker"], env=variables, cwd=tmp_path, stdout=sink, stderr=sink
        ) as process,
    ):
        await_true(lambda: "model emostream-permissive 2" in log.read_text(), within_s=READY_S, what=log.read_text)
        process.terminate()


def test_messages_shown_are_valid() -> None:
    (post,), (answer,) = blocks("check: posts", "json"), blocks("check: emotions", "json")
    assert decode_post(post.encode()).id == "shop-4711"
    decoded = decode_emotion(answer.encode())
    scores = json.loads(answer)["scores"]
    assert sum(scores.values()) == pytest.approx(1)
    assert decoded.confidence == max(scores.values()) == scores[decoded.emotion]


def test_settings_table_is_up_to_date() -> None:
    assert settings_table() in README, "run `make docs`"


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
