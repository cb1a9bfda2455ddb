"""A model and a data set -> figures. Called by `emostream evaluate`.

Legend: N examples, C classes.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emostream.model.audio import Recording, decode_recording
from emostream.model.datasets import Dataset, Example
from emostream.model.errors import AudioError, DatasetError
from emostream.model.evaluation import Evaluation, evaluate_scores
from emostream.model.samples import EMOTION, FUSED, TEXT, VOICE, Scored
from emostream.model.scorer import EmotionScorer, Item

_log = logging.getLogger(__name__)

_AT_ONCE = 256
"""Examples between two steps of the progress bar; as many recordings are held decoded at once."""

OnProgress = Callable[[int, int], None]
"""Told how many examples are done, and how many there are."""


def judge(
    scorer: EmotionScorer, dataset: Dataset, *, path: str = "auto", on_progress: OnProgress = lambda *_: None
) -> Evaluation:
    """Score a data set and judge the scores.

    Args:
        scorer: The model.
        dataset: One split.
        path: `text`, `voice` or `fused`; `auto` gives each example the path that it has the halves for.
        on_progress: For a progress bar.

    Raises:
        DatasetError: The path asked for has no examples here, or the model has no head for the data set's labels.
    """
    if EMOTION not in dataset.classes:
        if path in (VOICE, FUSED):
            raise DatasetError(f"{dataset.name} is answered from text alone; it has no path {path!r}")
        return evaluate_scores(dataset, _head_scores(scorer, dataset, on_progress))
    kept: list[Example] = []
    modalities: set[str] = set()
    scores: list[tuple[float, ...]] = []
    unread: list[str] = []
    unanswered = 0
    for start in range(0, len(dataset.examples), _AT_ONCE):
        examples = dataset.examples[start : start + _AT_ONCE]
        readable = [(example, item) for example in examples if (item := _item(example, path, unread)) is not None]
        outcomes = scorer.score([item for _, item in readable]).outcomes if readable else ()
        for (example, _), outcome in zip(readable, outcomes, strict=True):
            if isinstance(outcome, Scored):
                kept.append(example)
                scores.append(outcome.scores)
                modalities.update(outcome.modalities)
            else:
                unanswered += 1
        on_progress(start + len(examples), len(dataset.examples))
    if unread:
        _log.warning("%d recordings cannot be read, the first of them: %s", len(unread), unread[0])
    if not kept:
        raise DatasetError(f"{dataset.name}: no example of split {dataset.split!r} can take the path {path!r}")
    judged = Dataset(dataset.name, dataset.split, dataset.classes, tuple(kept))
    order = tuple(name for name in ("text", "voice") if name in modalities)
    evaluation = evaluate_scores(judged, np.array(scores, dtype=np.float32), modalities=order)
    return msgspec.structs.replace(evaluation, n_unread=len(unread) + unanswered)


def _item(example: Example, path: str, unread: list[str]) -> Item | None:
    """Return what the model is asked about an example; None if it has not what the path needs."""
    text = None if path == VOICE else example.text
    recording = None
    if path != TEXT and example.recording is not None:
        recording = _recording(example.recording, unread)
        if recording is None:
            return None
    if (text is None and recording is None) or (path == FUSED and (text is None or recording is None)):
        return None
    return Item(text=text, recording=recording)


def _recording(file: Path, unread: list[str]) -> Recording | None:
    try:
        return decode_recording(file)
    except (AudioError, OSError) as error:
        unread.append(f"{file}: {error}")
        return None


def _head_scores(scorer: EmotionScorer, dataset: Dataset, on_progress: OnProgress) -> NDArray[np.float32]:
    """Return scores_NC in the order of the data set's classes, each text answered by its own head."""
    columns = {head: _columns(scorer, head, labels) for head, labels in dataset.classes.items()}
    parts: list[Tensor] = []
    for start in range(0, len(dataset.examples), _AT_ONCE):
        examples = dataset.examples[start : start + _AT_ONCE]
        by_head = scorer.head_scores([example.text or "" for example in examples], columns)
        parts += [by_head[example.head][row, columns[example.head]] for row, example in enumerate(examples)]
        on_progress(start + len(examples), len(dataset.examples))
    return torch.stack(parts).numpy()


def _columns(scorer: EmotionScorer, head: str, labels: Sequence[str]) -> list[int]:
    """Return where the head has each class of the data set."""
    known = scorer.head_classes.get(head, ())
    if set(known) != set(labels):
        raise DatasetError(
            f"the model has no head {head!r} for {', '.join(labels)}; it has {dict(scorer.head_classes)}"
        )
    return [known.index(label) for label in labels]
