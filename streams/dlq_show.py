"""How dead letters look: a table, one in full, as JSON. Used by `dlq_cli`. What strangers wrote is made harmless."""

import base64
import datetime as dt
import json
from collections import Counter
from typing import Any

import msgspec
from rich.table import Table
from rich.text import Text

from emostream.connectors.dead_letters import Letter, Listing
from emostream.connectors.replaying import Plan
from emostream.streams.show import printable

_BEGINNING_CHARACTERS = 400
_BEGINNING_BYTES = 64
"""How much is shown of a value that is no JSON."""


def letters_table(listing: Listing) -> Table:
    """Return a line for each letter, the newest last. On a narrow terminal strangers' words are cut, never ids."""
    table = Table(box=None, pad_edge=False)
    for name in ("id", "failed at"):
        table.add_column(name, no_wrap=True)
    for name in ("bytes", "attempts", "replayed"):
        table.add_column(name, no_wrap=True, justify="right")
    for name in ("reason", "origin", "key"):
        table.add_column(name)
    for letter in listing.newest:
        table.add_row(
            str(letter.place), _time(letter.failed_at), str(letter.size), str(letter.attempts),
            "yes" if letter.place in listing.replayed else "no",
            _cell(letter.reason, style="red"), _cell(letter.origin), _cell(_text(letter.key)),
        )  # fmt: skip
    return table


def _cell(text: str, *, style: str = "") -> Text:
    return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")


def listing_summary(listing: Listing) -> str:
    """Return one line: how many letters there are, by reason."""
    if not listing.reasons:
        return f"no dead letters; {count_by_reason(listing.others)} of others" if listing.others else "no dead letters"
    shown = len(listing.newest)
    newest = f", the newest {shown} of them shown" if shown < listing.reasons.total() else ""
    return f"{count_by_reason(listing.reasons)}{newest}"


def plan_summary(plan: Plan, *, done: str) -> str:
    """Return lines: what is replayed, by reason and topic, and what is not, and why not.

    Args:
        plan: The plan.
        done: How the first line begins.
    """
    reasons = count_by_reason(Counter(chosen.reason for chosen in plan.chosen.values()))
    topics = Counter(chosen.topic for chosen in plan.chosen.values())
    to = ", ".join(f"{count} to {topic}" for topic, count in sorted(topics.items()))
    lines = [f"{done}: {reasons}" + (f"; {to}" if to else "")]
    refused = Counter(plan.refused.values())
    lines += [f"left alone: {count} ({refusal})" for refusal, count in sorted(refused.items())]
    return "\n".join(lines)


def plan_lines(plan: Plan) -> list[str]:
    """Return a line for each letter of a plan: what is replayed, then what is not."""
    return [
        *(
            f"{place}: {printable(chosen.reason)}, to {chosen.topic}, attempt {chosen.attempt}"
            for place, chosen in plan.chosen.items()
        ),
        *refusal_lines(plan),
    ]


def refusal_lines(plan: Plan) -> list[str]:
    """Return a line for each letter that is not replayed."""
    return [f"{place} stays where it is: {refusal}" for place, refusal in plan.refused.items()]


def count_by_reason(reasons: Counter[str]) -> str:
    """Return `3 dead letters (2 not_json, 1 empty)`, the most frequent first."""
    total = reasons.total()
    named = ", ".join(f"{count} {printable(reason) or '(without a reason)'}" for reason, count in reasons.most_common())
    return f"{total} dead letter{'' if total == 1 else 's'}" + (f" ({named})" if named else "")


def letter_in_full(letter: Letter) -> Text:
    """Return everything about a letter: why it failed, and the record as it was."""
    fields = [
        ("failed at", _time(letter.failed_at)), ("reason", letter.reason), ("error", letter.error),
        ("origin", letter.origin), ("attempts", str(letter.attempts)),
        ("key", _text(letter.key) if letter.key is not None else "none"),
        *(("header", f"{name}: {_text(value)}") for name, value in letter.headers),
        ("value", _size(letter)),
    ]  # fmt: skip
    shown = Text(f"{letter.place}\n", style="bold")
    for name, value in fields:
        shown.append(f"  {name:<10}", style="dim not bold").append(f"{printable(value)}\n", style="not bold")
    return shown.append(_value(letter.value or b""), style="not bold")


def letter_json(letter: Letter, *, replayed: bool | None = None, in_full: bool = False) -> str:
    """Return a letter as one line of ASCII: bytes that are no UTF-8 stand in Base64 under a name that says so.

    Args:
        letter: The letter.
        replayed: Whether it was replayed, where that is known.
        in_full: Whether headers and value are wanted.
    """
    fields: dict[str, Any] = {
        "id": str(letter.place),
        "failed_at": _time(letter.failed_at) if letter.failed_at else None,
        "reason": letter.reason,
        "error": letter.error,
        "origin": letter.origin,
        "attempts": letter.attempts,
        **_named("key", letter.key),
        "size": letter.size,
        "whole_bytes": letter.whole_bytes,
    }
    if replayed is not None:
        fields["replayed"] = replayed
    if in_full:
        fields["headers"] = [{"name": name, **_named("value", value)} for name, value in letter.headers]
        fields |= _named("value", letter.value)
    return json.dumps(fields)


def _value(value: bytes) -> str:
    """Return JSON in readable lines, of anything else the beginning."""
    try:
        return printable(msgspec.json.format(value, indent=2).decode(), keep="\n") + "\n" if value else ""
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    # Four bytes is the longest character; the last one may be cut in two.
    beginning = value[: 4 * _BEGINNING_CHARACTERS].decode(errors="replace")[:_BEGINNING_CHARACTERS]
    if beginning.rstrip("\ufffd").count("\ufffd"):
        return value[:_BEGINNING_BYTES].hex(" ") + (" …\n" if len(value) > _BEGINNING_BYTES else "\n")
    return printable(beginning) + (" …\n" if len(value) > len(beginning.encode()) else "\n")


def _size(letter: Letter) -> str:
    whole = f" of {letter.whole_bytes}: it was too large to be kept whole" if letter.whole_bytes is not None else ""
    return f"{letter.size} bytes{whole}"


def _named(name: str, value: bytes | None) -> dict[str, str | None]:
    try:
        return {name: value.decode() if value is not None else None}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value or b"").decode()}


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="backslashreplace")


def _time(instant: dt.datetime | None) -> str:
    """Return a time as `--since` takes it, to the second."""
    return f"{instant:%Y-%m-%dT%H:%M:%SZ}" if instant else "unknown"
