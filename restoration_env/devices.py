"""Where things compute, and how to compute well there."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from restoration_env.errors import InvalidArgument


def find_device(name: str = "auto") -> torch.device:
    """A torch device by name; "auto" is the GPU when there is one, else the CPU.

    Raises:
        InvalidArgument: for a name torch does not know and for a device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InvalidArgument("device", "'auto', 'cpu', 'cuda' or 'cuda:N'", repr(name)) from None
    if device.type not in ("cpu", "cuda"):
        raise InvalidArgument("device", "'auto', 'cpu', 'cuda' or 'cuda:N'", repr(name))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidArgument("device", "one of this machine's", f"{name!r} ({torch.cuda.device_count()} CUDA devices)")
    return device


def must_not_wait(device: torch.device) -> bool:
    """Whether reading a value computed there makes the host wait, so that a step must not do it."""
    return device.type != "cpu"


@lru_cache(maxsize=1)
def has_kernels() -> bool:
    """Whether the project's own kernels for a GPU can be compiled: whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def kernels() -> Any:
    """The module of the project's own kernels for a GPU."""
    return importlib.import_module("restoration_env.kernels")


@lru_cache(maxsize=8)
def has_loops(device: torch.device) -> bool:
    """Whether the project's own loops compute there: whether it is a processor, and numba is installed."""
    return device.type == "cpu" and importlib.util.find_spec("numba") is not None


def loops() -> Any:
    """The module of the project's own loops for a processor."""
    return importlib.import_module("restoration_env.loops")


@lru_cache(maxsize=256)
def constant(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of fixed numbers (nested tuples), made once for each device: copying them there makes the host wait."""
    return torch.tensor(values, device=device, dtype=dtype)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Values of the host on a device, without waiting until they are there; those already there as they are."""
    if device.type == "cpu" or values.device == device:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16, and torch's library for it is there; others imitate it."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def imitates_bfloat16(device: torch.device | str) -> bool:
    """Whether a device is a processor that imitates bfloat16, which takes it many times as long as float32."""
    return torch.device(device).type == "cpu" and not multiplies_bfloat16()


def processor_units() -> list[str]:
    """The units of the processor that decide how fast it computes convolutions, as Linux names them; elsewhere none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    flags = set(next((line for line in text.splitlines() if line.startswith("flags")), "").split())
    return [unit for unit in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8") if unit in flags]


def keep_freed_memory() -> None:
    """Let the C library keep freed blocks for the next step instead of giving them back to the system.

    Training and stepping free and allocate the same tens of megabytes again and again; giving them back costs
    a page fault for every page of every step. Does nothing where there is no glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, top_pad, mmap_threshold, gigabyte = -1, -2, -3, 1 << 30
        mallopt(mmap_threshold, gigabyte)
        mallopt(trim_threshold, gigabyte)
        mallopt(top_pad, 64 << 20)
