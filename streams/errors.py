"""What can go wrong in the stream.

StreamError
├── ScorerGone        the GPU worker died or missed its deadline while a batch was with it (retriable)
├── ScoringFailed     the model raised on a batch: the pipeline splits it to find the post
├── ScorerUnusable    the GPU worker ends before it is ready, again and again: the worker gives up
└── StackError        the embedded broker or Redis does not start
"""


class StreamError(Exception):
    """Base of every error of the stream."""

    reason: str = "stream"
    retriable: bool = False


class ScorerGone(StreamError):
    """The GPU worker died or missed its deadline; the batch may be sent again."""

    reason = "scorer_gone"
    retriable = True


class ScoringFailed(StreamError):
    """The model raised on this batch, and would again."""

    reason = "scoring_failed"


class ScorerUnusable(StreamError):
    """The GPU worker cannot be started."""

    reason = "scorer_unusable"


class StackError(StreamError):
    """The embedded broker or Redis does not start."""

    reason = "stack"
