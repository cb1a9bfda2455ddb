"""Breaks the model in a GPU worker's process: Python runs this file at its start when its folder is on PYTHONPATH.

A text that holds POISON makes the model raise, one that holds KILLER ends the process. While the file that
EMOSTREAM_TEST_LITTLE_MEMORY names exists, the device has memory for passes of 300 tokens and no more; while there is
the one that EMOSTREAM_TEST_DEADLY names, the process starts well, and ends of whatever it is asked.
"""

import os
import sys
from pathlib import Path

if "emostream.streams.gpu_process" in sys.orig_argv:
    import torch

    from emostream.model import queries
    from emostream.model.network import TextBranch
    from emostream.model.scorer import EmotionScorer

    little_memory = Path(os.environ.get("EMOSTREAM_TEST_LITTLE_MEMORY", "/nowhere"))
    deadly = Path(os.environ.get("EMOSTREAM_TEST_DEADLY", "/nowhere"))
    prepare, forward, answer = EmotionScorer.prepare, TextBranch.forward, queries.answer_in_steps

    def prepare_or_raise(self, items):
        for item in items:
            if "POISON" in (item.text or ""):
                raise RuntimeError(f"cannot read {item.text!r}")  # as careless libraries do
            if "KILLER" in (item.text or ""):
                os._exit(1)
        return prepare(self, items)

    def forward_or_raise(self, ids_WT):
        if ids_WT.numel() > 300 and little_memory.exists():
            raise torch.OutOfMemoryError(f"no memory for {ids_WT.numel()} tokens")
        return forward(self, ids_WT)

    def answer_or_die(scorer, prepared):
        if deadly.exists():
            os._exit(1)
        return (yield from answer(scorer, prepared))

    EmotionScorer.prepare = prepare_or_raise
    queries.answer_in_steps = answer_or_die
    TextBranch.forward = forward_or_raise
