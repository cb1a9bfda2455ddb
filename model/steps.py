"""Work that pauses: a generator that yields between steps and returns its result.

The GPU worker's process takes steps of several batches in turn; everyone else takes all at once.
"""

from collections.abc import Generator
from typing import TypeVar

Result = TypeVar("Result")


def exhaust(steps: Generator[None, None, Result]) -> Result:
    """Take every step at once, and return what the last one returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result
