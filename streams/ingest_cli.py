"""`emostream ingest …`: what brings posts and voice clips in from outside. Mounted by `cli`."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from emostream.connectors.errors import BrokerError
from emostream.connectors.jsonl import MalformedRow, Pace, Tally, bounded_lines, ingest_lines, lines_until
from emostream.connectors.producer import RecordProducer
from emostream.streams.options import takes_settings
from emostream.streams.settings import KAFKA_ACCESS, Settings
from emostream.streams.stopping import stop_on_signals

if TYPE_CHECKING:
    from emostream.connectors.clips import ClipsTally, MalformedRecording

ingest = typer.Typer(help="Bring posts and voice clips in from outside.", no_args_is_help=True)


@ingest.command("jsonl")
@takes_settings(*KAFKA_ACCESS, "posts_topic")
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
    handed over is confirmed, and the line reached is said. It also ends once Kafka does not take a post, and says how
    many of those handed over by then were not delivered.

    Exit code 0: all rows published, or those read before it was told to stop; 3: some were malformed; 1: some were not
    delivered.
    """
    stopping = stop_on_signals()
    errors = Console(stderr=True)
    tally = Tally()

    def report(row: MalformedRow) -> None:
        errors.print(f"line {row.line}: {row.reason}: {row.error}", style="yellow", markup=False)

    with RecordProducer(settings.kafka_access) as producer, _opened(file) as stream, _ingest_progress(errors) as bar:
        task = bar.add_task("publishing", total=_count_lines(file), malformed=0)
        try:
            for _ in ingest_lines(
                lines_until(lambda: stopping.is_set() or producer.failed > 0, bounded_lines(stream)),
                producer=producer,
                topic=settings.posts_topic,
                pace=Pace(rate or None, sleep=stopping.wait),
                on_malformed=report,
                checked=not unchecked,
                tally=tally,
            ):
                bar.update(task, completed=tally.lines, malformed=tally.malformed)
            producer.flush()
        except BrokerError:
            errors.print(f"stopped at line {tally.lines}; not every post up to it was delivered")
            raise
    if stopping.is_set():
        errors.print(f"stopped after line {tally.lines}")
    errors.print(f"{tally.published} posts published and confirmed, {tally.malformed} malformed rows")
    if tally.malformed and not unchecked:
        raise typer.Exit(3)


@ingest.command("clips")
@takes_settings(*KAFKA_ACCESS, "posts_topic", "clips_topic")
def ingest_clips(
    settings: Settings,
    folder: Annotated[
        Path, typer.Argument(help="Folder with the recordings.", exists=True, file_okay=False, show_default=False)
    ],
    source: Annotated[str | None, typer.Option(help="Source of the posts that say none.")] = None,
    rate: Annotated[
        float, typer.Option(min=0, help="Most recordings per second; 0 is as fast as Kafka takes them.")
    ] = 0.0,
    id_prefix: Annotated[str, typer.Option(help="Put before a recording's path to make its id.")] = "",
    state: Annotated[
        Path | None,
        typer.Option(help="File that keeps what was published; FOLDER/.emostream-ingested if not given."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Forget what was published, and publish everything.")] = False,
    unchecked: Annotated[
        bool,
        typer.Option("--unchecked", help="Publish what is no recording as well; the worker makes it a dead letter."),
    ] = False,
) -> None:
    """Publish the recordings of a folder, and the posts beside them.

    Takes .wav .flac .ogg .opus .oga .mp3 .m4a .aac .mp4 .webm in the folder and all folders in it, but
    for links to folders. talk/monday.wav is a voice clip of its own, under the id talk/monday.wav. With a
    talk/monday.txt (its words) or a talk/monday.json (a post with a "text"; its "id" counts, if it has one) beside it,
    post and clip go out under one id.

    What is longer than a minute or larger than 1 MiB is transcoded to its first 61 seconds; the worker hears 60 and
    flags the answer as truncated.

    Run it again, and it goes on where it stopped: only what is new or has changed is published. For another Kafka,
    name another --state or take --again. SIGTERM and Ctrl-C end it cleanly.

    Exit code 0: all were published, or those before it was told to stop; 3: some were malformed and left out; 1: some
    were not delivered.
    """
    from emostream.connectors.clips import ClipIngest, ClipPublisher
    from emostream.connectors.ledger import LEDGER, Ledger
    from emostream.connectors.recordings import find_recordings

    stopping = stop_on_signals()
    errors = Console(stderr=True)

    def report(row: "MalformedRecording") -> None:
        shown = row.name.encode(errors="replace").decode()
        errors.print(f"{shown}: {row.reason}: {row.error}", style="yellow", markup=False, soft_wrap=True)

    recordings = find_recordings(folder)
    ledger = Ledger(state or folder / LEDGER, again=again)
    with RecordProducer(settings.kafka_access) as producer:
        publisher = ClipPublisher(producer, posts_topic=settings.posts_topic, clips_topic=settings.clips_topic)
        run = ClipIngest(
            publisher, ledger, on_malformed=report, id_prefix=id_prefix, source=source, checked=not unchecked
        )
        try:
            with _ingest_progress(errors) as bar:
                task = bar.add_task("publishing", total=len(recordings), malformed=0)
                pace = Pace(rate or None, sleep=stopping.wait)
                for tally in run.run(recordings, pace=pace, stopping=stopping.is_set):
                    bar.update(task, completed=tally.seen, malformed=tally.malformed)
        finally:
            _say_clips(errors, run.tally, total=len(recordings))
    if run.tally.malformed:
        raise typer.Exit(3)


def _say_clips(console: Console, tally: "ClipsTally", *, total: int) -> None:
    if tally.seen < total:
        console.print(f"stopped after {tally.seen} of {total} recordings; the same command goes on from there")
    if tally.before:
        console.print(f"{tally.before} recordings were published before (--again publishes them once more)")
    console.print(
        f"{tally.confirmed} recordings published and confirmed ({tally.with_post} with a post, {tally.transcoded} "
        f"transcoded), {tally.malformed} malformed",
        soft_wrap=True,
    )


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
