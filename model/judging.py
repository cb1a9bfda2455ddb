"""A model and a data set -> figures. Called by `emostream evaluate`.

Legend: N examples, C classes.
"""

import logging
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emostream.model.audio import decode_recording, require_whole
from emostream.model.datasets import PAIRS, Dataset, Example
from emostream.model.errors import AudioError, DatasetError
from emostream.model.evaluation import Evaluation, evaluate_scores
from emostream.model.samples import EMOTION, FUSED, LABELS, TEXT, VOICE, Scored
from emostream.model.sampling import pair_by_label
from emostream.model.scorer import RECORDINGS_AT_ONCE, TEXTS_AT_ONCE, EmotionScorer, Item

_log = logging.getLogger(__name__)

AUTO = "auto"
"""In place of a path: whichever an example has the halves for."""

_PAIRING_SEED = 7
"""Pairs of the same sets are the same ones each time."""

OnProgress = Callable[[int, int], None]
"""Told how many examples are done, and how many there are."""


def judge(
    scorer: EmotionScorer, dataset: Dataset, *, path: str = AUTO, on_progress: OnProgress = lambda *_: None
) -> Evaluation:
    """Score a data set and judge the scores.

    Args:
        scorer: The model.
        dataset: One split.
        path: `text`, `voice` or `fused`; `auto` gives each example the path that it has the halves for, as the worker
            does: one whose recording cannot be read, or whose recording the model has no voice branch for, is answered
            from its text.
        on_progress: For a progress bar.

    Raises:
        DatasetError: The path asked for has no examples here, or the model has no head for the data set's labels.
        CheckpointError: There are recordings and nothing else, and the model has no voice branch.
    """
    check_path(dataset, path)
    if EMOTION not in dataset.classes:
        evaluation = evaluate_scores(dataset, _head_scores(scorer, dataset, on_progress))
        return msgspec.structs.replace(evaluation, model=scorer.info)
    kept: list[Example] = []
    modalities: set[str] = set()
    scores: list[tuple[float, ...]] = []
    unread: list[tuple[Example, str]] = []
    unanswered = 0
    hears = scorer.voice_width > 0
    listens = hears and path != TEXT and any(example.recording is not None for example in dataset.examples)
    at_once = RECORDINGS_AT_ONCE if listens else TEXTS_AT_ONCE
    for start in range(0, len(dataset.examples), at_once):
        examples = dataset.examples[start : start + at_once]
        asked = [(example, _item(example, path, unread, hears=hears)) for example in examples]
        readable = [(example, item) for example, item in asked if item is not None]
        outcomes = scorer.score([item for _, item in readable]).outcomes if readable else ()
        for (example, _), outcome in zip(readable, outcomes, strict=True):
            if isinstance(outcome, Scored):
                kept.append(example)
                scores.append(outcome.scores)
                modalities.update(outcome.modalities)
            else:
                unanswered += 1
        on_progress(start + len(examples), len(dataset.examples))
    saved = sum(path == AUTO and example.text is not None for example, _ in unread)
    if unread:
        _log.warning(
            "%d recordings cannot be read, the first of them: %s; for %d of them there is a text to go by",
            len(unread), unread[0][1], saved,
        )  # fmt: skip
    if not kept:
        raise _nothing_for(path, dataset)
    judged = msgspec.structs.replace(dataset, examples=tuple(kept))
    order = tuple(name for name in ("text", "voice") if name in modalities)
    evaluation = evaluate_scores(judged, np.array(scores, dtype=np.float32), modalities=order)
    return msgspec.structs.replace(evaluation, n_unread=len(unread) - saved + unanswered, model=scorer.info)


def check_path(dataset: Dataset, path: str) -> None:
    """Find out whether a data set has something to judge a path by, before a model is loaded.

    Raises:
        DatasetError: It has not.
    """
    if EMOTION not in dataset.classes and path in (VOICE, FUSED):
        raise DatasetError(f"{dataset.name} is answered from text alone; it has no path {path!r}")
    lacks_text = path in (TEXT, FUSED) and all(example.text is None for example in dataset.examples)
    lacks_voice = path in (VOICE, FUSED) and all(example.recording is None for example in dataset.examples)
    if lacks_text or lacks_voice:
        raise _nothing_for(path, dataset)


def _nothing_for(path: str, dataset: Dataset) -> DatasetError:
    return DatasetError(f"{dataset.name}: no example of split {dataset.split!r} can take the path {path!r}")


def match_by_label(texts: Dataset, recordings: Dataset) -> Dataset:
    """Return pairs made of each recording and five texts of its label: no public set here has both of one person.

    What is known of a recording's own words is replaced.

    Raises:
        DatasetError: They are not labelled with the seven emotions, or share no label.
    """
    written = [example for example in texts.examples if example.text and example.head == EMOTION]
    spoken = [example for example in recordings.examples if example.recording and example.head == EMOTION]
    pairs = pair_by_label([e.labels for e in written], [e.labels for e in spoken], seed=_PAIRING_SEED)
    if not pairs:
        raise DatasetError(f"texts of {texts.name} and recordings of {recordings.name} have no emotion in common")
    examples = tuple(msgspec.structs.replace(spoken[recording], text=written[text].text) for text, recording in pairs)
    return Dataset(f"{PAIRS}/{texts.name}+{recordings.name}", texts.split, {EMOTION: LABELS}, examples)


def _item(example: Example, path: str, unread: list[tuple[Example, str]], *, hears: bool) -> Item | None:
    """Return what the model is asked about an example; None if it has not what the path needs."""
    text = None if path == VOICE else example.text
    recording = None
    if example.recording is not None and path != TEXT and (hears or text is None or path == FUSED):
        try:
            recording = require_whole(decode_recording(example.recording))  # the worker takes nothing else, either
        except (AudioError, OSError) as error:
            unread.append((example, f"{example.recording}: {error}"))
    if (text is None and recording is None) or (path == FUSED and (text is None or recording is None)):
        return None
    return Item(text=text, recording=recording)


def _head_scores(scorer: EmotionScorer, dataset: Dataset, on_progress: OnProgress) -> NDArray[np.float32]:
    """Return scores_NC in the order of the data set's classes, each text answered by its own head."""
    columns = {head: _columns(scorer, head, labels) for head, labels in dataset.classes.items()}
    parts: list[Tensor] = []
    for start in range(0, len(dataset.examples), TEXTS_AT_ONCE):
        examples = dataset.examples[start : start + TEXTS_AT_ONCE]
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
