"""A replay memory of whole episodes that stores every image once, in eight bits."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from restoration_env.devices import to_device


class EpisodeBatch(NamedTuple):
    """Episodes side by side: N of them, T steps each.

    Attributes:
        images: uint8 (N, T, 3, H, W), what was seen before each action.
        last_actions: int64 (N, T), what had been done before it.
        actions: int64 (N, T).
        rewards: float32 (N, T).
        valid: bool (N, T), whether the step was taken.
    """

    images: Tensor
    last_actions: Tensor
    actions: Tensor
    rewards: Tensor
    valid: Tensor


Batch = TypeVar("Batch", bound=tuple[Tensor, ...])


class EpisodeReplay(Generic[Batch]):
    """Keeps the newest ``capacity`` episodes on one device; memory is taken when it is first needed.

    An episode is a row of a named tuple of tensors, such as `EpisodeBatch`.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.count, self._next = capacity, 0, 0
        self._store: Batch | None = None

    def __len__(self) -> int:
        return self.count

    def add(self, batch: Batch) -> None:
        """Store episodes in the place of the oldest."""
        if self._store is None:
            self._store = _like(batch, [part.new_zeros((self.capacity, *part.shape[1:])) for part in batch])
        size = len(batch[0])
        rows = (self._next + torch.arange(size, device=batch[0].device)) % self.capacity
        for held, part in zip(self._store, batch, strict=True):
            held[rows] = part
        self._next = (self._next + size) % self.capacity
        self.count = min(self.count + size, self.capacity)

    def sample(self, size: int, generator: torch.Generator) -> Batch:
        """Draw episodes uniformly, with replacement."""
        if self._store is None:
            raise RuntimeError("the replay memory is empty")
        rows = to_device(torch.randint(self.count, (size,), generator=generator), self._store[0].device)
        return _like(self._store, [part[rows] for part in self._store])


def _like(batch: Batch, parts: list[Tensor]) -> Batch:
    kind: Any = type(batch)
    made: Batch = kind(*parts)
    return made
