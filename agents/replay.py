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
        """Draw episodes with replacement."""
        return self.take(self.draw(size, generator))

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        """The rows of so many episodes, drawn uniformly with replacement, int64 (size,)."""
        return torch.randint(self.count, (size,), generator=generator)

    def take(self, rows: Tensor) -> Batch:
        """The episodes of these rows."""
        if self._store is None:
            raise RuntimeError("the replay memory is empty")
        rows = to_device(rows, self._store[0].device)
        return _like(self._store, [part[rows] for part in self._store])


class PrioritisedReplay(EpisodeReplay[Batch]):
    """Draws more often what was predicted badly (Schaul et al., "Prioritized Experience Replay", ICLR 2016).

    Args:
        capacity: episodes kept.
        exponent: how much more often; 0 draws uniformly, 1 in proportion to the error.
    """

    def __init__(self, capacity: int, exponent: float) -> None:
        super().__init__(capacity)
        self.exponent, self.priorities = exponent, torch.zeros(capacity, dtype=torch.float64)

    def add(self, batch: Batch) -> None:
        """Store episodes in the place of the oldest, with the highest priority so far: all shall be seen once."""
        rows = (self._next + torch.arange(len(batch[0]))) % self.capacity
        self.priorities[rows] = max(1.0, self.priorities.max().item())
        super().add(batch)

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        """The rows of so many episodes, drawn by priority with replacement, int64 (size,)."""
        return torch.multinomial(self._chances(), size, replacement=True, generator=generator)

    def weights(self, rows: Tensor, correction: float) -> Tensor:
        """What makes up for being drawn too often, float32 (N,), at most 1; fully with a ``correction`` of 1."""
        weights = (self.count * self._chances()[rows]) ** -correction
        return (weights / weights.max()).float()

    def update(self, rows: Tensor, errors: Tensor) -> None:
        """Set the priorities of episodes by the errors of their steps, (N, T), NaN where there was no step.

        As in R2D2 (Kapturowski et al., ICLR 2019), nine tenths of the largest error and a tenth of the mean.
        """
        sizes = errors.detach().abs().double().cpu()
        largest, mean = sizes.nan_to_num(0.0).amax(1), sizes.nanmean(1)
        self.priorities[rows] = 0.9 * largest + 0.1 * mean + 1e-3

    def _chances(self) -> Tensor:
        weighed = self.priorities[: self.count] ** self.exponent
        return weighed / weighed.sum()


def _like(batch: Batch, parts: list[Tensor]) -> Batch:
    kind: Any = type(batch)
    made: Batch = kind(*parts)
    return made
