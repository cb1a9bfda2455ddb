"""The bare scorer on this machine: texts a second by precision and group size, what attributes cost, and recordings.

One process, one run, turn by turn; what a figure is compared with stands in the same table. Run with
`make bench-scorer`. The texts are the demo's, the recordings the project's spoken examples.
"""

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from bench_pipeline import demo_texts
from rich.console import Console
from rich.table import Table

from emostream.model import pooling
from emostream.model.audio import decode_recording
from emostream.model.scorer import EmotionScorer, Item

CLIPS = Path(__file__).parents[2] / "docs" / "examples" / "clips"
GROUPS = (512, 1024, 2048, 4096)


def rate(scorer: EmotionScorer, items: Sequence[Item]) -> float:
    started = time.perf_counter()
    for first in range(0, len(items), 256):
        scorer.score(items[first : first + 256])
    return len(items) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    texts = [Item(text=text) for text in demo_texts()] * 2
    clips = [Item(recording=decode_recording(file)) for file in sorted(CLIPS.glob("*.ogg"))] * 20
    pairs = [Item(text="we got the flat!", recording=clip.recording) for clip in clips]
    usual = EmotionScorer.load(device=arguments.device)
    every = EmotionScorer.load(device=arguments.device, attributes=tuple(usual.head_classes))
    exact = EmotionScorer.load(device=arguments.device, precision="float32")
    cases = {
        f"texts, {usual.info.precision}": (usual, texts),
        "texts, float32": (exact, texts),
        f"texts, all {len(usual.head_classes)} heads": (every, texts),
        "recordings": (usual, clips),
        "texts with recordings": (usual, pairs),
    }
    device = usual.info.device.split(":")[0]
    shipped = pooling.MOST_PADDED_TOKENS[device]
    rates: dict[str, list[float]] = {}
    for scorer in (usual, every, exact):
        scorer.warm_up()
    for _ in range(arguments.rounds):
        for name, (scorer, items) in cases.items():
            rates.setdefault(name, []).append(rate(scorer, items))
        for group in GROUPS:
            pooling.MOST_PADDED_TOKENS[device] = group
            rates.setdefault(f"texts, groups of {group} tokens", []).append(rate(usual, texts))
        pooling.MOST_PADDED_TOKENS[device] = shipped
    base = statistics.median(rates[next(iter(cases))])
    table = Table("", "a second", "beside the first")
    for name, measured in rates.items():
        table.add_row(name, f"{statistics.median(measured):.1f}", f"{statistics.median(measured) / base:.2f}")
    console = Console()
    info = usual.info
    console.print(
        f"{info.name} {info.version} on {info.device}, {torch.get_num_threads()} threads; groups of {shipped}"
    )
    console.print(table)


if __name__ == "__main__":
    main()
