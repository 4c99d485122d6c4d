"""Random numbers as a pure function of a 64-bit key, the same on every device.

An episode has one key, and everything random about it (image, place, strengths, noise) is computed from that
key with integer arithmetic (SplitMix64; Steele, Lea and Flood 2014). So a batch of episodes is drawn without
a loop over generators, and an episode can be made again anywhere from one number.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from restoration_env.devices import has_loops, kernels, loops
from restoration_env.workers import by_parts

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB
_CONSTANTS = tuple(number & (1 << 64) - 1 for number in (_GOLDEN, _MIX1, _MIX2))
_BLOCK = 1 << 32  # counters that one stream may use
_NUMBERS = 32 * 3 * 80 * 80  # normal ones at once, on a processor: what they need on the way stays in its cache


def _shift_right(x: Tensor, bits: int, out: Tensor | None = None) -> Tensor:
    """Logical (not arithmetic) right shift of int64."""
    return torch.bitwise_right_shift(x, bits, out=out).bitwise_and_((1 << (64 - bits)) - 1)


def hashed(keys: Tensor, count: int, stream: int) -> Tensor:
    """The first ``count`` 64-bit words of a stream: int64 (N,) keys to int64 (N, count)."""
    counter = torch.arange(1, count + 1, device=keys.device).add_(stream * _BLOCK).mul_(_GOLDEN)
    z = keys[:, None] + counter
    shifted = torch.empty_like(z)
    for bits, mix in ((30, _MIX1), (27, _MIX2)):
        z.bitwise_xor_(_shift_right(z, bits, shifted)).mul_(mix)
    return z.bitwise_xor_(_shift_right(z, 31, shifted))


def uniform(keys: Tensor, count: int, stream: int = 0) -> Tensor:
    """Uniform numbers in [0, 1): int64 (N,) keys to float64 (N, count)."""
    return _shift_right(hashed(keys, count, stream), 11).double() * 2.0**-53


def normal(keys: Tensor, shape: tuple[int, ...], stream: int = 1, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers (Box-Muller): int64 (N,) keys to float (N, *shape).

    In float64 they are the same numbers with fewer rounding errors.
    """
    size = math.prod(shape)

    def drawn(keys: Tensor) -> tuple[Tensor]:
        low, high = _halves(keys, -(-size // 2), stream, dtype)
        radius = high.add_(1.0).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
        angle = low.mul_(2.0 * math.pi * 2.0**-32)
        pairs = radius.new_empty(len(keys), 2 * low.shape[1])
        for half, part in zip((torch.cos, torch.sin), pairs.chunk(2, 1), strict=True):
            half(angle, out=part).mul_(radius)
        return (pairs[:, :size],)

    return by_parts(drawn, keys, part=max(1, _NUMBERS // size))[0].reshape(len(keys), *shape)


def _halves(keys: Tensor, count: int, stream: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The lower and the upper 32 bits of `hashed` words, as numbers (N, count)."""
    if has_loops(keys.device):
        low, high = (torch.empty(len(keys), count, dtype=dtype) for _ in range(2))
        loops().words(keys.numpy(), stream * _BLOCK, *_CONSTANTS, low.numpy(), high.numpy())
        return low, high
    words = hashed(keys, count, stream)
    high = _shift_right(words, 32).to(dtype)
    return words.bitwise_and_(0xFFFFFFFF).to(dtype), high


def noisy_in_one(images: Tensor, scales: Tensor, keys: Tensor, stream: int) -> Tensor:
    """Images (N, C, H, W) plus `normal` numbers times scales (N,), clipped, on a GPU in one kernel (Triton).

    Where the scale is 0 an image stays as it is, unclipped too.
    """
    _, channels, height, width = images.shape
    size, block = channels * height * width, 1024
    pairs = -(-size // 2)
    made = torch.empty(images.shape, dtype=images.dtype, device=images.device)
    kernels().noisy[(len(images), -(-pairs // block))](
        images, scales, keys, made,
        pairs, size, width, height * width, stream * _BLOCK, *images.stride(),
        GOLDEN=_GOLDEN, MIX1=_MIX1, MIX2=_MIX2, TURN=2.0 * math.pi * 2.0**-32, BLOCK=block,
    )  # fmt: skip
    return made


def draw_keys(generator: np.random.Generator, count: int) -> np.ndarray:
    """Fresh keys, int64 (count,), from a NumPy generator."""
    return generator.integers(0, 2**63 - 1, size=count, dtype=np.int64)


def generator(*numbers: int) -> torch.Generator:
    """A CPU generator for these numbers (a seed, an iteration, ...), each of which matters.

    torch's own seeds only count to 2**32: of a seed shifted beyond that, nothing is left.
    """
    key = torch.zeros(1, dtype=torch.int64)
    for number in numbers:
        key = hashed(key ^ number, 1, stream=5)[0]
    return torch.Generator().manual_seed(int(key) & 0xFFFFFFFF)
