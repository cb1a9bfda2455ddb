"""What can go wrong in the model.

    ModelError
    ├── CheckpointError   loading or saving a checkpoint folder: missing, incomplete, wrong version
    ├── DeviceError       choosing where to compute: no such device or precision
    ├── DatasetError      reading a data set: missing file, malformed row (says file, line, expectation)
    │   └── NoSuchSplit       it is whole, but for this split
    ├── RecipeError       reading a training recipe: unknown key, wrong type, impossible value
    └── AudioError        decoding a recording: nothing to hear in it; its reason says why

What is wrong with one text is no exception: it is a `samples.Unscorable` in that text's place.
"""


class ModelError(Exception):
    """Base of every error the model raises."""

    reason: str = "model"
    retriable: bool = False


class CheckpointError(ModelError):
    """A checkpoint folder cannot be used."""

    reason = "checkpoint"


class DeviceError(ModelError):
    """There is no such device or precision here."""

    reason = "device"


class DatasetError(ModelError):
    """A data set is missing or malformed."""

    reason = "dataset"


class NoSuchSplit(DatasetError):
    """A data set has no such split here."""


class RecipeError(ModelError):
    """A training recipe is malformed."""

    reason = "recipe"


class AudioError(ModelError):
    """A recording in which there is nothing to hear.

    Args:
        reason: A short stable word: metric label and dead-letter header. `audio_empty` (no bytes, no samples),
            `audio_undecodable` (corrupt, cut off too early, or no format that is taken), `audio_no_stream` (a file
            without sound), `audio_damaged` (a part is missing), `audio_rate` (an impossible sample rate),
            `audio_too_short`, `audio_silent` (digital silence) or `audio_not_finite` (samples that are NaN or
            infinite).
        error: One sentence for a person.
    """

    def __init__(self, reason: str, error: str) -> None:
        super().__init__(error)
        self.reason = reason
