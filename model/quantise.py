"""Weights as int8 rows with a scale each: a quarter of float32 on disk. Called by `checkpoint` alone.

Widened at load time: this makes the file small, not the arithmetic fast. Symmetric, per row (output channel):
row = scale * q with q in -127..127, so the largest error of a weight is half of its row's scale.

Convolutions are few and suffer more: as int8 rows they cost 1.3 points of recall on RAVDESS. They are kept in float16.
"""

import torch
from torch import Tensor

_SCALE = ".scale"
_STEPS = 127
_CONVOLUTION_AXES = 4


def quantise_rows(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return matrices as int8 with a float32 `NAME.scale` beside each, convolutions in float16, vectors in float32."""
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if tensor.dim() < 2:
            stored[name] = tensor.float().contiguous()
            continue
        if tensor.dim() == _CONVOLUTION_AXES:
            stored[name] = tensor.half().contiguous()
            continue
        rows = tensor.float().flatten(1)
        scale = rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / _STEPS
        stored[name] = (rows / scale).round().to(torch.int8).view(tensor.shape).contiguous()
        stored[name + _SCALE] = scale.squeeze(1).contiguous()
    return stored


def widen_rows(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the float32 state that `quantise_rows` stored."""
    state: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name.endswith(_SCALE):
            continue
        wide = tensor.float()
        if (scale := stored.get(name + _SCALE)) is not None:
            wide = (wide.flatten(1) * scale.unsqueeze(1)).view(tensor.shape)
        state[name] = wide
    return state
