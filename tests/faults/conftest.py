"""The rows of docs/guarantees.md: what was broken, on which broker, what went in, what came out.

EMOSTREAM_FAULTS=full runs each row at its full size (`make test-faults`); otherwise it runs in a smaller one, as in CI.
EMOSTREAM_FAULTS_TABLE names a Markdown file whose table is written anew.
"""

import datetime as dt
import os
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import pytest
from accounts import Account, Ledger, NoteRow, markdown_table

_TABLE = os.environ.get("EMOSTREAM_FAULTS_TABLE")
_BEGINS, _ENDS = "<!-- faults: made by `make test-faults` -->", "<!-- end of faults -->"
_HEADER = ("what was broken", "broker", "posts", "clips", "answered", "dead letters", "answered twice", "lost", "")

_rows: list[tuple[object, ...]] = []


@pytest.fixture
def note_row() -> NoteRow:
    """Note what became of a test's records, and demand that none is lost."""

    def note(fault: str, broker: str, ledger: Ledger, seen: str = "") -> Account:
        account = ledger.account
        _rows.append((fault, broker, *astuple(account), seen))
        assert account.lost == 0, f"lost: {sorted(ledger.missing)[:10]}"
        return account

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _rows:
        return
    terminalreporter.section("what was broken, and what became of the records")
    terminalreporter.write(markdown_table(_HEADER, sorted(_rows, key=str)))


@pytest.fixture(scope="session", autouse=True)
def write_table() -> Iterator[None]:
    """Write the table into the document that EMOSTREAM_FAULTS_TABLE names, after the last test."""
    yield
    if _TABLE and _rows:
        file = Path(_TABLE)
        before, _, rest = file.read_text().partition(_BEGINS)
        _, _, after = rest.partition(_ENDS)
        when = f"Seen {dt.datetime.now(dt.UTC):%Y-%m-%d}, {os.cpu_count()} CPU cores.\n\n"
        file.write_text(f"{before}{_BEGINS}\n{when}{markdown_table(_HEADER, _rows)}{_ENDS}{after}")
