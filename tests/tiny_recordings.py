"""Recordings small or long, quickly made: a hummed tone in four syllables a second; and any samples in any format."""

import io
import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.floating[Any]]


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


def encode(
    channels: Samples,
    *,
    rate_hz: int,
    container: str,
    codec: str,
    layout: str = "mono",
    muxer: dict[str, str] | None = None,
    picture: bool = False,
) -> bytes:
    """Encode float samples of shape (channels, samples)."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options=muxer or {}) as output:
        if picture:
            pictures = output.add_stream("mpeg4", rate=25)
            pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        options = {"strict": "experimental"} if codec == "vorbis" else {}
        sound = output.add_stream(codec, rate=rate_hz, layout=layout, options=options)
        sound.codec_context.open()
        if picture:
            for number in range(25):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number, np.uint8), format="rgb24")
                frame.pts = number
                output.mux(pictures.encode(frame))
            output.mux(pictures.encode(None))
        packed = np.ascontiguousarray(channels.T.reshape(1, -1), np.float32)
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, 0, Fraction(1, rate_hz)
        fit = av.AudioResampler(sound.codec_context.format, layout, rate_hz, sound.codec_context.frame_size or None)
        for part in (*fit.resample(frame), *fit.resample(None)):
            output.mux(sound.encode(part))
        output.mux(sound.encode(None))
    return buffer.getvalue()
