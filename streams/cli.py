"""The command line. `emostream --help` lists the commands; each says what it does and which settings it takes."""

import asyncio
import importlib
import logging
import os
import sys
import uuid
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from emostream.connectors.errors import ConnectorError, MalformedRecord
from emostream.connectors.messages import Post, decode_emotion, decode_post, encode_post
from emostream.connectors.producer import RecordProducer
from emostream.connectors.reader import read_records
from emostream.connectors.topics import create_topics, describe_topics
from emostream.model import cli as model_cli
from emostream.model.errors import ModelError
from emostream.streams.dlq_cli import dlq
from emostream.streams.errors import StreamError
from emostream.streams.ingest_cli import ingest
from emostream.streams.options import takes_settings
from emostream.streams.settings import KAFKA_ACCESS, Settings
from emostream.streams.show import answer_line, text_cells
from emostream.streams.stopping import stop_on_signals

if TYPE_CHECKING:
    from emostream.connectors.transcode import FittedClip
    from emostream.streams.worker import Worker

app = typer.Typer(
    help="Streaming emotion analysis for social media: posts in over Kafka, calibrated emotions out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
topics = typer.Typer(help="Create and describe the topics.", no_args_is_help=True)
app.add_typer(ingest, name="ingest")
app.add_typer(dlq, name="dlq")
app.add_typer(topics, name="topics")
app.command()(model_cli.train)
app.command()(model_cli.evaluate)
app.command()(model_cli.predict)

_EXPECTED = (ConnectorError, ModelError, StreamError)
"""What a command may fail with: said in one sentence, without a traceback."""

_TOPIC_SETTINGS = (*KAFKA_ACCESS, "posts_topic", "clips_topic", "emotions_topic", "dead_letters_topic")

_QUIET_LOGGERS = ("faust", "mode", "aiokafka", "kafka", "aiohttp")
"""Libraries that log each rebalance at length; their warnings are shown, the rest is not."""

_TELLTALE_LOGGERS = ("aiokafka", "kafka")
"""Libraries whose debug log shows settings and requests as they are, passwords included. It stays off."""


@app.command()
def demo(
    rate: Annotated[float, typer.Option(min=0, help="Posts per second to play in; 0 is as fast as it goes.")] = 40.0,
) -> None:
    """See it run: embedded broker and Redis, a worker, 300 posts played in, answers as they come, a summary."""
    from emostream.streams.demo import run_demo

    run_demo(Console(), rate=rate, stopping=stop_on_signals())


@app.command()
def up() -> None:
    """Start the same stack, empty, and keep it running until Ctrl-C: publish to it from anywhere on this machine."""
    from emostream.streams.demo import run_up

    run_up(Console(), stopping=stop_on_signals())


@app.command()
@takes_settings()
def worker(settings: Settings) -> None:
    """Run a stream worker against the Kafka and Redis of the settings, until SIGTERM, Ctrl-C or a closed terminal.

    It ends by itself, with exit code 1, when it can do no good: Kafka away at the start, a checkpoint that cannot be
    loaded, a device on which the model dies of whatever it is asked. What it had taken and not answered is delivered to
    the next worker.
    """
    from emostream.streams.worker import Worker

    _log_to_stderr(settings)
    log = logging.getLogger("emostream")

    def on_listening(address: str) -> None:
        log.info("metrics and probes: %s/metrics, /healthz, /readyz", address)

    _run_to_the_end(Worker(settings, on_listening=on_listening))


@app.command()
@takes_settings(*KAFKA_ACCESS, "posts_topic", "clips_topic")
def publish(
    settings: Settings,
    text: Annotated[str | None, typer.Argument(help="What the post says; may be left away with --clip.")] = None,
    clip: Annotated[
        Path | None, typer.Option(help="Recording of the post: WAV, FLAC, Ogg, Opus, MP3, M4A, AAC, MP4 or WebM.")
    ] = None,
    post_id: Annotated[str | None, typer.Option("--id", help="The post's id; a new one if not given.")] = None,
    source: Annotated[str | None, typer.Option(help="Where it was posted.")] = None,
) -> None:
    """Publish one post, a voice clip, or both, and print the id.

    With TEXT and --clip, both go out under one id, and their answers are joined. What is longer than a minute or
    larger than 1 MiB is transcoded to its first 61 seconds.
    """
    if text is None and clip is None:
        raise typer.BadParameter("a text, a --clip, or both are needed", param_hint="TEXT")
    if text is None and source is not None:
        raise typer.BadParameter("it belongs to a post's text; there is none", param_hint="--source")
    new_id = post_id or uuid.uuid4().hex
    # What the worker would refuse is refused here, before anything is sent.
    post = _checked_post(Post(id=new_id, text=text, source=source, clip=clip is not None)) if text is not None else None
    fitted = _fitted(clip) if clip is not None else None
    with RecordProducer(settings.kafka_access) as producer:
        if fitted is not None:
            from emostream.connectors.clips import ClipPublisher

            publisher = ClipPublisher(producer, posts_topic=settings.posts_topic, clips_topic=settings.clips_topic)
            publisher.publish(new_id, fitted, post=post)
        elif post is not None:
            producer.publish(settings.posts_topic, key=new_id, value=encode_post(post))
        producer.flush()
    sys.stdout.write(f"{new_id}\n")


@app.command()
@takes_settings(*KAFKA_ACCESS, "emotions_topic")
def watch(
    settings: Settings,
    as_json: Annotated[bool, typer.Option("--json", help="Print each answer as it stands in Kafka.")] = False,
    from_beginning: Annotated[bool, typer.Option(help="Start with the oldest answer.")] = False,
    count: Annotated[int, typer.Option(min=0, help="End after so many answers; 0 goes on until Ctrl-C.")] = 0,
) -> None:
    """Show answers as they come."""
    stopping = stop_on_signals()
    console = Console()
    records = read_records(
        settings.kafka_access,
        [settings.emotions_topic],
        from_beginning=from_beginning,
        stopping=stopping.is_set,
    )
    for shown, record in enumerate(records, start=1):
        if as_json:
            sys.stdout.write((record.value or b"").decode(errors="backslashreplace") + "\n")
            sys.stdout.flush()
        else:
            try:
                answer = decode_emotion(record.value or b"")
                console.print(answer_line(answer, text_cells=text_cells(console)), soft_wrap=True)
            except msgspec.DecodeError as error:
                said = f"{record.topic}/{record.partition}/{record.offset} is no answer: {error}"
                console.print(said, style="red", markup=False, soft_wrap=True)
        if shown == count:
            return


@topics.command("create")
@takes_settings(*_TOPIC_SETTINGS, "partitions", "replication")
def topics_create(settings: Settings) -> None:
    """Create the topics that are missing."""
    states = create_topics(
        settings.kafka_access,
        settings.topics,
        partitions=settings.partitions,
        replication=settings.replication,
        alike=settings.topics_of_halves,
    )
    for state in states:
        sys.stdout.write(f"{state.name}: {state.partitions} partitions\n")


@topics.command("describe")
@takes_settings(*_TOPIC_SETTINGS)
def topics_describe(settings: Settings) -> None:
    """Say which topics exist, and with how many partitions."""
    table = Table("topic", "partitions")
    for state in describe_topics(settings.kafka_access, settings.topics):
        table.add_row(state.name, str(state.partitions) if state.partitions else "[red]missing[/]")
    Console().print(table)


def main() -> None:
    """Run the command line; what went wrong is one line on standard error and exit code 1."""
    if not sys.stdout.isatty() and isinstance(sys.stdout, TextIOWrapper):
        # JSON is nothing else, and not every encoding has emoji.
        sys.stdout.reconfigure(encoding="utf-8", errors=sys.stdout.errors)
    try:
        app()
    except _EXPECTED as error:
        _print_error(error)
        raise SystemExit(1) from error


def _checked_post(post: Post) -> Post:
    try:
        return decode_post(encode_post(post))
    except UnicodeEncodeError as error:
        raise typer.BadParameter("the text is not UTF-8", param_hint="TEXT") from error


def _fitted(clip: Path) -> "FittedClip":
    from emostream.connectors.transcode import fit_clip

    try:
        return fit_clip(clip)
    except MalformedRecord as fault:
        raise typer.BadParameter(f"{clip}: {fault.reason}: {fault}", param_hint="--clip") from fault
    except OSError as error:
        raise typer.BadParameter(f"{clip} cannot be read: {error.strerror}", param_hint="--clip") from error


def _log_to_stderr(settings: Settings) -> None:
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    if settings.log_level != "debug":
        for name in _QUIET_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
    else:
        for name in _TELLTALE_LOGGERS:
            logging.getLogger(name).setLevel(logging.INFO)


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
    Console(stderr=True).print("[red]error:[/]", Text(str(error)), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
