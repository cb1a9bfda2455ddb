"""What can go wrong in the model.

    ModelError
    ├── CheckpointError   loading or saving a checkpoint folder: missing, incomplete, wrong version
    ├── DeviceError       choosing where to compute: no such device or precision
    ├── DatasetError      reading a data set: missing file, malformed row (says file, line, expectation)
    └── RecipeError       reading a training recipe: unknown key, wrong type, impossible value

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


class RecipeError(ModelError):
    """A training recipe is malformed."""

    reason = "recipe"
