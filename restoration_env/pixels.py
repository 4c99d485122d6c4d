"""Images as they are seen and saved: eight bits a channel."""

from __future__ import annotations

import torch
from torch import Tensor


def eight_bit(images: Tensor) -> Tensor:
    """Float images, 1 for white, rounded and clipped: uint8 of the same shape."""
    levels = (images.detach() * 255.0).round_().clamp_(0.0, 255.0)
    # A processor takes many numbers at once to 16 bits and from there to eight, but not all the way.
    return (levels.to(torch.int16) if levels.device.type == "cpu" else levels).to(torch.uint8)
