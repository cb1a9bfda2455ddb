"""`emostream dlq …`: what could not be answered, looked at and sent once more. Mounted by `cli`."""

import datetime as dt
import sys
from collections.abc import Callable, Iterable, Iterator, Set
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from emostream.connectors.dead_letters import (
    Filter,
    Letter,
    Mark,
    Place,
    list_letters,
    parse_time,
    read_letters,
    spans_of,
)
from emostream.connectors.producer import RecordProducer
from emostream.connectors.reader import Span
from emostream.connectors.replaying import Plan, Rules, plan_replay, replay
from emostream.streams.dlq_show import (
    letter_in_full,
    letter_json,
    letters_table,
    listing_summary,
    plan_lines,
    plan_summary,
    refusal_lines,
)
from emostream.streams.options import takes_settings
from emostream.streams.settings import KAFKA_ACCESS, Settings
from emostream.streams.stopping import stop_on_signals

dlq = typer.Typer(help="Dead letters: look at what could not be answered, and send it once more.", no_args_is_help=True)

_SETTINGS = (*KAFKA_ACCESS, "posts_topic", "clips_topic", "dead_letters_topic")

_Reasons = Annotated[
    list[str] | None, typer.Option("--reason", help="Only what failed for this reason; several may be named.")
]
_Since = Annotated[
    str | None, typer.Option(help="Only what failed since: an age (30m, 2h, 7d) or a time (2026-03-01T12:30:00Z).")
]
_Until = Annotated[str | None, typer.Option(help="Only what failed before: an age or a time.")]
_Topic = Annotated[Literal["posts", "clips"] | None, typer.Option(help="Only what came in as a post, or as a clip.")]

_FULL_WIDTH = 400
"""Columns of a table that does not go to a terminal: nothing is left out."""


@dlq.command("list")
@takes_settings(*_SETTINGS)
def dlq_list(
    settings: Settings,
    reason: _Reasons = None,
    since: _Since = None,
    until: _Until = None,
    topic: _Topic = None,
    limit: Annotated[int, typer.Option(min=0, help="Show the newest N; 0 is all.", metavar="N")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print an object a line.")] = False,
) -> None:
    """List dead letters, the newest last, and count them by reason.

    An id, such as 3/128, is the letter's own place on the topic of dead letters: partition and offset. "attempts" says
    how often the record had been replayed before it failed this time, "replayed" that this letter has been since.
    """
    chosen = _filter(settings, reason, since, until, topic)
    with Console(stderr=True).status("reading dead letters"):
        listing = list_letters(_read(settings, since=chosen.since), admits=chosen.admits, most=limit)
    if as_json:
        for letter in listing.newest:
            sys.stdout.write(letter_json(letter, replayed=letter.place in listing.replayed) + "\n")
        return
    console = Console()
    if listing.newest:
        console.width = console.width if console.is_terminal else _FULL_WIDTH
        console.print(letters_table(listing))
    console.print(listing_summary(listing), soft_wrap=True, markup=False, highlight=False)


@dlq.command("show")
@takes_settings(*KAFKA_ACCESS, "dead_letters_topic")
def dlq_show(
    settings: Settings,
    ids: Annotated[list[str], typer.Argument(help="Ids as `list` shows them.", metavar="PARTITION/OFFSET")],
    raw: Annotated[bool, typer.Option("--raw", help="Write the bytes of the values, and nothing else.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print an object a line, with headers and value.")] = False,
) -> None:
    """Show dead letters: why each failed, its key, headers and value; of a value that is no JSON the beginning.

    This prints what people wrote. Control characters and escape sequences in it are spelt out; --raw writes all bytes
    as they are, and therefore to files and pipes only; --json prints all of a letter, too.
    """
    if raw and sys.stdout.isatty():
        raise typer.BadParameter("a stranger's bytes can do things to a terminal: send them to a file or a pipe")
    places = _places(ids)
    console = Console()
    found: set[Place] = set()
    for letter in _letters(_read(settings, spans=[Span(at.partition, at.offset, at.offset + 1) for at in places])):
        found.add(letter.place)
        if raw:
            sys.stdout.buffer.write(letter.value or b"")
        elif as_json:
            sys.stdout.write(letter_json(letter, in_full=True) + "\n")
        else:
            console.print(letter_in_full(letter), soft_wrap=True, end="")
    _end(set(places), found=found)


@dlq.command("replay")
@takes_settings(*_SETTINGS)
def dlq_replay(
    settings: Settings,
    ids: Annotated[
        list[str] | None, typer.Argument(help="Ids as `list` shows them.", metavar="PARTITION/OFFSET")
    ] = None,
    reason: _Reasons = None,
    since: _Since = None,
    until: _Until = None,
    topic: _Topic = None,
    everything: Annotated[bool, typer.Option("--all", help="Every dead letter.")] = False,
    max_attempts: Annotated[
        int, typer.Option(min=1, help="How often a record may be replayed in all.", metavar="N")
    ] = 3,
    again: Annotated[bool, typer.Option("--again", help="Also letters that were replayed, but not N times.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, letter by letter.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Publish what failed once more, to the topic and partition it came from.

    Key, value and headers are what they were; a header emostream-attempt counts. What fails again becomes a new dead
    letter that says how often it was replayed, and is replayed N times at most. Name ids, give filters, or take
    --all.

    Run it twice, and nothing is replayed twice: each letter replayed is marked as such on the topic of dead letters,
    once Kafka has confirmed its record. After a crash (the last 200 letters), when a connection breaks, or when two
    people run it at the same moment, some are replayed twice all the same; that does no harm, Redis counts a post once.

    Letters stay where they are; Kafka's retention removes them. Exit code 0: done; 1: Kafka did not take some, some ids
    were not replayed, or you said no.
    """
    chosen = _filter(settings, reason, since, until, topic)
    if bool(ids) + (chosen != Filter()) + everything != 1:
        raise typer.BadParameter("name ids, or give filters, or take --all: one of the three")
    if not (yes or dry_run or sys.stdin.isatty()):
        raise typer.BadParameter("there is no terminal to ask at: --yes or --dry-run is needed")
    errors = Console(stderr=True)
    places = frozenset(_places(ids or []))
    with errors.status("reading dead letters"):
        plan = plan_replay(
            _read(settings, spans=spans_of(places, to_the_end=True) if places else None, since=chosen.since),
            admits=(lambda letter: letter.place in places) if places else chosen.admits,
            rules=Rules(frozenset(_topics(settings).values()), most_attempts=max_attempts, again=again),
        )
    if dry_run:
        sys.stdout.writelines(f"{line}\n" for line in plan_lines(plan))
    elif places:
        _say(errors, *refusal_lines(plan))
    _say(errors, plan_summary(plan, done="would be replayed" if dry_run else "to be replayed"))
    failed = bool(places & plan.refused.keys())
    if plan.chosen and not dry_run:
        if not yes and not typer.confirm("Replay?", err=True):
            _say(errors, "nothing was replayed")
            raise typer.Exit(1)
        failed |= not _replay(settings, plan, errors)
    _end(places, found=plan.chosen.keys() | plan.refused.keys(), failed=failed)


def _replay(settings: Settings, plan: Plan, errors: Console) -> bool:
    """Replay what was chosen, and say whether Kafka took it all; SIGTERM and Ctrl-C end it between two letters."""
    stopping = stop_on_signals()
    letters = _letters(_read(settings, spans=plan.spans, stopping=stopping.is_set))
    chosen = (letter for letter in letters if letter.place in plan.chosen and not stopping.is_set())
    done = failed = 0

    def on_failed(place: Place, fault: BaseException | None) -> None:
        nonlocal failed
        failed += 1
        _say(errors, f"{place} was not taken by Kafka: {fault!r}")

    with RecordProducer(settings.kafka_access, idempotent=False) as producer, _progress(errors) as bar:
        task = bar.add_task("replaying", total=len(plan.chosen))
        for done in replay(chosen, producer, dead_letters_topic=settings.dead_letters_topic, on_failed=on_failed):
            bar.update(task, completed=done)
    if stopping.is_set():
        _say(errors, "stopped; the same command goes on from there")
    _say(errors, f"{done} of {len(plan.chosen)} records replayed and confirmed")
    if done + failed < len(plan.chosen) and not stopping.is_set():
        _say(errors, f"{len(plan.chosen) - done - failed} are gone: Kafka has removed them in the meantime")
    return not failed


def _read(
    settings: Settings,
    *,
    spans: Iterable[Span] | None = None,
    since: dt.datetime | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Letter | Mark]:
    return read_letters(settings.kafka_access, settings.dead_letters_topic, spans, since=since, stopping=stopping)


def _letters(read: Iterable[Letter | Mark]) -> Iterator[Letter]:
    return (letter for letter in read if isinstance(letter, Letter))


def _topics(settings: Settings) -> dict[str, str]:
    """Return the topics that letters come from, by what the user calls them."""
    return {"posts": settings.posts_topic, "clips": settings.clips_topic}


def _filter(
    settings: Settings, reasons: list[str] | None, since: str | None, until: str | None, topic: str | None
) -> Filter:
    return Filter(
        reasons=frozenset(reasons or ()),
        since=_time(since, "--since"),
        until=_time(until, "--until"),
        topic=_topics(settings)[topic] if topic else None,
    )


def _time(text: str | None, option: str) -> dt.datetime | None:
    try:
        return parse_time(text, now=dt.datetime.now(dt.UTC)) if text is not None else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def _places(ids: Iterable[str]) -> list[Place]:
    try:
        return list(dict.fromkeys(map(Place.parse, ids)))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="PARTITION/OFFSET") from error


def _end(places: Set[Place], *, found: Set[Place], failed: bool = False) -> None:
    """End with exit code 1 if something failed, or places hold no letter; name these."""
    if absent := sorted(places - found):
        _say(Console(stderr=True), f"no dead letter stands at {', '.join(map(str, absent))}")
    if absent or failed:
        raise typer.Exit(1)


def _say(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console,
    )  # fmt: skip
