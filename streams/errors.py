"""What can go wrong in the stream.

    StreamError
    ├── ScorerGone        the GPU worker died, or missed its deadline, while it had a batch (retriable)
    ├── ScoringFailed     the model raised on a batch: the pipeline splits it to find the post
    ├── ScorerUnusable    the GPU worker ends before it is ready for the first time, or dies of whatever it is asked:
    │                     the worker ends, too
    └── StackError        the embedded broker or Redis does not start

A plain StreamError ends the worker: a port that is taken, a Faust that gave up.
"""


class StreamError(Exception):
    """Base of every error of the stream."""

    reason: str = "stream"
    retriable: bool = False


class ScorerGone(StreamError):
    """The GPU worker died or missed its deadline; the batch may be sent again.

    Args:
        suspect: Whether it had this batch and no other, and its successor is sound: then this batch has killed it.
    """

    reason = "scorer_gone"
    retriable = True

    def __init__(self, *, suspect: bool) -> None:
        super().__init__("the GPU worker ended")
        self.suspect = suspect


class ScoringFailed(StreamError):
    """The model raised on this batch, and would again."""

    reason = "scoring_failed"


class ScorerUnusable(StreamError):
    """The GPU worker cannot be started, or starts and cannot answer anything."""

    reason = "scorer_unusable"


class StackError(StreamError):
    """The embedded broker or Redis does not start."""

    reason = "stack"
