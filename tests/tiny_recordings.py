"""Recordings small or long, quickly made: a hummed tone in four syllables a second."""

import wave
from pathlib import Path

import numpy as np


def write_wav(file: Path, seconds: float, *, rate_hz: int = 16_000, channels: int = 1) -> Path:
    """Write a WAV of 16 bits, and return its path."""
    at_s = np.arange(round(seconds * rate_hz)) / rate_hz
    hum = 8000 * np.sin(2 * np.pi * 200 * at_s) * (1 - np.cos(2 * np.pi * 4 * at_s)) / 2
    file.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(file), "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(2)
        writer.setframerate(rate_hz)
        writer.writeframes(np.repeat(hum.astype("<i2"), channels).tobytes())
    return file
