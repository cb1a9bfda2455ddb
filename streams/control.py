"""What the model can always answer: asked before a record is blamed for the death of the model's process."""

import io
import random
import wave

from emostream.model.samples import Query
from emostream.streams.frames import Lane

_RATE_HZ = 16_000


def _second_of_noise() -> bytes:
    """Return one second of noise as a WAV file, 16 bits, mono."""
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setparams((1, 2, _RATE_HZ, 0, "NONE", "not compressed"))
        wav.writeframes(random.Random(0).randbytes(2 * _RATE_HZ))
    return file.getvalue()


_TEXT, _CLIP = "I am so happy today", _second_of_noise()

CONTROLS: dict[Lane, list[Query]] = {
    "texts": [Query(text=_TEXT)],
    "clips": [Query(clip=_CLIP), Query(text=_TEXT, clip=_CLIP)],
}
"""A short text; a short recording, alone and with a text: each takes the way of its lane's records."""
