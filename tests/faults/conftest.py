"""What every row of docs/guarantees.md does with its count."""

import gc
import warnings
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import pytest
from accounts import FAULT, Account, Ledger, NoteRow

# kafka-python leaves sockets open when its broker dies. Those that are collected in the midst of a test are as harmless
# as those that `forget_broken_connections` collects after it.
_LEFT_OPEN = "ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let no test of this folder fail for what kafka-python left open."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(_LEFT_OPEN))


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
