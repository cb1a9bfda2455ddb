"""Breaks the model in a GPU worker's process: Python runs this file at its start when its folder is on PYTHONPATH.

A text that holds POISON makes the model raise. While the file that EMOSTREAM_TEST_LITTLE_MEMORY names exists, the
device has memory for passes of 300 tokens and no more.
"""

import os
import sys
from pathlib import Path

if "emostream.streams.gpu_process" in sys.orig_argv:
    import torch

    from emostream.model.network import TextBranch
    from emostream.model.scorer import EmotionScorer

    little_memory = Path(os.environ.get("EMOSTREAM_TEST_LITTLE_MEMORY", "/nowhere"))
    prepare, forward = EmotionScorer.prepare, TextBranch.forward

    def prepare_or_raise(self, items):
        for item in items:
            if "POISON" in (item.text or ""):
                raise RuntimeError(f"cannot read {item.text!r}")  # as careless libraries do
        return prepare(self, items)

    def forward_or_raise(self, ids_WT):
        if ids_WT.numel() > 300 and little_memory.exists():
            raise torch.OutOfMemoryError(f"no memory for {ids_WT.numel()} tokens")
        return forward(self, ids_WT)

    EmotionScorer.prepare = prepare_or_raise
    TextBranch.forward = forward_or_raise
