"""The command line. `emostream --help` lists the commands; each says what it does and which settings it takes."""

import asyncio
import contextlib
import importlib
import logging
import os
import signal
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, NoReturn

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from emostream.connectors.errors import ConnectorError
from emostream.connectors.jsonl import MalformedRow, Pace, Tally, bounded_lines, ingest_lines, lines_until
from emostream.connectors.messages import Post, decode_emotion, decode_post, encode_post
from emostream.connectors.producer import PostProducer
from emostream.connectors.reader import read_records
from emostream.connectors.topics import create_topics, describe_topics
from emostream.model import cli as model_cli
from emostream.model.errors import ModelError
from emostream.streams.errors import StreamError
from emostream.streams.options import takes_settings
from emostream.streams.settings import Settings
from emostream.streams.show import answer_line, text_cells

if TYPE_CHECKING:
    from emostream.streams.worker import Worker

app = typer.Typer(
    help="Streaming emotion analysis for social media: posts in over Kafka, calibrated emotions out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
ingest = typer.Typer(help="Bring posts in from outside.", no_args_is_help=True)
topics = typer.Typer(help="Create and describe the topics.", no_args_is_help=True)
app.add_typer(ingest, name="ingest")
app.add_typer(topics, name="topics")
app.command()(model_cli.train)
app.command()(model_cli.evaluate)
app.command()(model_cli.predict)

_EXPECTED = (ConnectorError, ModelError, StreamError)
"""What a command may fail with: said in one sentence, without a traceback."""

_QUIET_LOGGERS = ("faust", "mode", "aiokafka", "kafka", "aiohttp")
"""Libraries that log each rebalance at length; their warnings are shown, the rest is not."""


@app.command()
def demo(
    rate: Annotated[float, typer.Option(min=0, help="Posts per second to play in; 0 is as fast as it goes.")] = 40.0,
) -> None:
    """See it run: embedded broker and Redis, a worker, 300 posts played in, answers as they come, a summary."""
    from emostream.streams.demo import run_demo

    run_demo(Console(), rate=rate, stopping=_stop_on_signals())


@app.command()
def up() -> None:
    """Start the same stack, empty, and keep it running until Ctrl-C: publish to it from anywhere on this machine."""
    from emostream.streams.demo import run_up

    run_up(Console(), stopping=_stop_on_signals())


@app.command()
@takes_settings()
def worker(settings: Settings) -> None:
    """Run a stream worker against the Kafka and Redis of the settings, until SIGTERM or Ctrl-C.

    It ends by itself, with exit code 1, when it can do no good: Kafka away at the start, a checkpoint that cannot be
    loaded. What it had taken and not answered is delivered to the next worker.
    """
    from emostream.streams.worker import Worker

    _log_to_stderr(settings)
    log = logging.getLogger("emostream")

    def on_listening(address: str) -> None:
        log.info("metrics and probes: %s/metrics, /healthz, /readyz", address)

    _run_to_the_end(Worker(settings, on_listening=on_listening))


@app.command()
@takes_settings("kafka", "posts_topic")
def publish(
    settings: Settings,
    text: Annotated[str, typer.Argument(help="What the post says.")],
    post_id: Annotated[str | None, typer.Option("--id", help="The post's id; a new one if not given.")] = None,
    source: Annotated[str | None, typer.Option(help="Where it was posted.")] = None,
) -> None:
    """Publish one post, and print its id."""
    try:
        value = encode_post(Post(id=post_id or uuid.uuid4().hex, text=text, source=source))
    except UnicodeEncodeError as error:
        raise typer.BadParameter("the text is not UTF-8", param_hint="TEXT") from error
    post = decode_post(value)  # what the worker would refuse is refused here
    with _producer(settings) as producer:
        producer.publish(key=post.id, value=value)
        producer.flush()
    sys.stdout.write(f"{post.id}\n")


@app.command()
@takes_settings("kafka", "emotions_topic")
def watch(
    settings: Settings,
    as_json: Annotated[bool, typer.Option("--json", help="Print each answer as it stands in Kafka.")] = False,
    from_beginning: Annotated[bool, typer.Option(help="Start with the oldest answer.")] = False,
    count: Annotated[int, typer.Option(min=0, help="End after so many answers; 0 goes on until Ctrl-C.")] = 0,
) -> None:
    """Show answers as they come."""
    stopping = _stop_on_signals()
    console = Console()
    records = read_records(
        settings.kafka,
        [settings.emotions_topic],
        from_beginning=from_beginning,
        stopping=stopping.is_set,
    )
    for shown, record in enumerate(records, start=1):
        if as_json:
            sys.stdout.write((record.value or b"").decode() + "\n")
            sys.stdout.flush()
        else:
            try:
                answer = decode_emotion(record.value or b"")
                console.print(answer_line(answer, text_cells=text_cells(console)), soft_wrap=True)
            except msgspec.DecodeError as error:
                console.print(f"[red]{record.topic}/{record.partition}/{record.offset} is no answer: {error}[/]")
        if shown == count:
            return


@ingest.command("jsonl")
@takes_settings("kafka", "posts_topic")
def ingest_jsonl(
    settings: Settings,
    file: Annotated[Path, typer.Argument(help="File with one post (a JSON object) a line; - is standard input.")],
    rate: Annotated[float, typer.Option(min=0, help="Most posts per second; 0 is as fast as Kafka takes them.")] = 0.0,
    unchecked: Annotated[
        bool,
        typer.Option(help="Publish malformed rows as well; the worker turns them into dead letters."),
    ] = False,
) -> None:
    """Publish posts from a JSONL file or standard input.

    Rows that are no posts are reported with their line number and counted. SIGTERM and Ctrl-C end it cleanly: what was
    handed over is confirmed, and the line reached is said. Exit code 0: all rows published; 3: some were malformed;
    1: some were not delivered.
    """
    stopping = _stop_on_signals()
    errors = Console(stderr=True)
    tally = Tally()

    def report(row: MalformedRow) -> None:
        errors.print(f"line {row.line}: {row.reason}: {row.error}", style="yellow", markup=False)

    with _producer(settings) as producer, _opened(file) as stream, _ingest_progress(errors) as bar:
        task = bar.add_task("publishing", total=_count_lines(file), malformed=0)
        for tally in ingest_lines(
            lines_until(stopping.is_set, bounded_lines(stream)),
            producer=producer,
            pace=Pace(rate or None, sleep=stopping.wait),
            on_malformed=report,
            checked=not unchecked,
        ):
            bar.update(task, completed=tally.lines, malformed=tally.malformed)
        producer.flush()
    if stopping.is_set():
        errors.print(f"stopped after line {tally.lines}")
    errors.print(f"{tally.published} posts published and confirmed, {tally.malformed} malformed rows")
    if tally.malformed and not unchecked:
        raise typer.Exit(3)


@topics.command("create")
@takes_settings("kafka", "posts_topic", "emotions_topic", "dead_letters_topic", "partitions", "replication")
def topics_create(settings: Settings) -> None:
    """Create the topics that are missing."""
    states = create_topics(
        settings.kafka,
        _topic_names(settings),
        partitions=settings.partitions,
        replication=settings.replication,
    )
    for state in states:
        sys.stdout.write(f"{state.name}: {state.partitions} partitions\n")


@topics.command("describe")
@takes_settings("kafka", "posts_topic", "emotions_topic", "dead_letters_topic")
def topics_describe(settings: Settings) -> None:
    """Say which topics exist, and with how many partitions."""
    table = Table("topic", "partitions")
    for state in describe_topics(settings.kafka, _topic_names(settings)):
        table.add_row(state.name, str(state.partitions) if state.partitions else "[red]missing[/]")
    Console().print(table)


def main() -> None:
    """Run the command line; what went wrong is one line on standard error and exit code 1."""
    try:
        app()
    except _EXPECTED as error:
        _print_error(error)
        raise SystemExit(1) from error


def _topic_names(settings: Settings) -> list[str]:
    return [settings.posts_topic, settings.emotions_topic, settings.dead_letters_topic]


def _producer(settings: Settings) -> PostProducer:
    return PostProducer(bootstrap=settings.kafka, topic=settings.posts_topic)


def _stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM, Ctrl-C and a closed terminal set; a second signal ends the process at once."""
    stopping = threading.Event()

    def stop(number: int, _frame: object) -> None:
        stopping.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    return stopping


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    if str(file) == "-":
        # A stream of its own that nobody closes: at the end a thread may still wait in it, holding its lock.
        yield os.fdopen(os.dup(sys.stdin.fileno()), "rb")
        return
    try:
        stream = file.open("rb")
    except OSError as error:
        raise typer.BadParameter(f"{file} cannot be read: {error.strerror}") from error
    with stream:
        yield stream


def _count_lines(file: Path) -> int | None:
    """Return how many lines a regular file has; None where only reading it would tell."""
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        return sum(1 for _ in bounded_lines(stream))


def _ingest_progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[malformed]} malformed"), console=console,
    )  # fmt: skip


def _log_to_stderr(settings: Settings) -> None:
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    if settings.log_level != "debug":
        for name in _QUIET_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)


def _run_to_the_end(service: "Worker") -> NoReturn:
    """Run a worker and end the process with 0, or with 1 if it failed.

    The end is hard: Faust's consumer runs in a thread that is no daemon, and some of its tasks do not heed their
    cancellation; a worker that could not drain would wait for them for ever, as closing the loop would. What was not
    acknowledged is delivered to the next worker.
    """
    loops = importlib.import_module("asyncio" if sys.platform == "win32" else "uvloop")
    loop = loops.new_event_loop()
    asyncio.set_event_loop(loop)
    code = 1
    try:
        loop.run_until_complete(service.run())
        code = 0
    except _EXPECTED as error:
        _print_error(error)
    except Exception:  # whatever it is, it is said, and the process ends
        logging.getLogger("emostream").exception("the worker failed")
    finally:
        logging.shutdown()
        sys.stderr.flush()
        os._exit(code)


def _print_error(error: Exception) -> None:
    Console(stderr=True).print("[red]error:[/]", Text(str(error)), highlight=False)


if __name__ == "__main__":
    main()
