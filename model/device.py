"""Where the network runs and in which precision. Asked by the scorer and by training."""

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import nn

from emostream.model.errors import DeviceError

_NO_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What CPUs, CUDA's driver and its libraries say of it."""

_KINDS = ("cpu", "cuda")

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_KEPT_BYTES = 32_000_000
"""Just below the most that glibc learns from."""


def choose_device(wish: str) -> torch.device:
    """Return the device for a wish: `auto` takes CUDA when there is one, `cpu`, `cuda` and `cuda:1` are torch's names.

    Raises:
        DeviceError: There is no such device here, or it is of a kind that emostream does not run on.
    """
    if wish == "auto":
        wish = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wish)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch says both, of an unknown name and of a missing device
        raise DeviceError(f"device {wish!r} cannot be used: {str(error).splitlines()[0]}") from error
    if device.type not in _KINDS:
        raise DeviceError(f"device {wish!r} cannot be used: emostream runs on {' and '.join(_KINDS)}")
    return device


def choose_precision(wish: str, device: torch.device) -> torch.dtype:
    """Return the type that matrix products are computed in.

    `auto` takes bfloat16 where the device computes it natively (CUDA since Ampere; CPUs with AVX512-BF16 or
    AMX), which measured 2.9 times float32 on an AVX512-BF16 CPU, and float32 elsewhere.
    """
    if wish == "auto":
        native = torch.cuda.is_bf16_supported(False) if device.type == "cuda" else _cpu_computes_bf16()
        return torch.bfloat16 if native else torch.float32
    if wish not in _PRECISIONS:
        raise DeviceError(f"precision {wish!r} is not known; there are auto, {', '.join(_PRECISIONS)}")
    return _PRECISIONS[wish]


def keep_freed_memory() -> None:
    """Have glibc keep what is freed, up to 64 MB, for what comes next; of another C library this asks nothing.

    Else it hands blocks back to the system page by page, and takes them anew for each batch, until it has seen a large
    one freed (mallopt(3), `M_MMAP_THRESHOLD`). A new page costs about as much as computing what it holds.
    """
    torch.empty(_KEPT_BYTES, dtype=torch.uint8)


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[object]:
    """Return the context in which the network computes in that precision, whatever its weights are held in."""
    if precision == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=precision)


def hold_in(precision: torch.dtype, network: nn.Module) -> None:
    """Keep matrices and kernels in the precision that `autocast` computes in, for a branch that learns no more.

    `autocast` would convert them in every forward pass. On a CPU what comes out is the same to the bit.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(precision)


def precision_name(precision: torch.dtype) -> str:
    """Return `float32` or `bfloat16`."""
    return str(precision).removeprefix("torch.")


def is_out_of_memory(error: Exception) -> bool:
    """Say whether an error means that the device had no memory left: torch's own class, or else it takes reading.

    What oneDNN says of too little memory ("could not create a primitive") is not counted: smaller passes need the same.
    """
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in said for words in _NO_MEMORY)


def _cpu_computes_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
