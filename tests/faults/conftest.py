"""What every row of docs/guarantees.md does with its count."""

import gc
import warnings
from collections.abc import Iterator
from dataclasses import astuple

import pytest
from accounts import FAULT, Account, Ledger, NoteRow


@pytest.fixture(autouse=True)
def forget_broken_connections() -> Iterator[None]:
    """Collect sockets that kafka-python leaves open when its broker dies, before another test is blamed for them."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def note_row(request: pytest.FixtureRequest) -> NoteRow:
    """Note what became of a test's records, and demand that none is lost."""

    def note(fault: str, broker: str, ledger: Ledger, seen: str = "") -> Account:
        account = ledger.account
        request.node.user_properties.append((FAULT, (fault, broker, *astuple(account), seen)))
        assert account.lost == 0, f"lost: {sorted(ledger.missing)[:10]}"
        return account

    return note
