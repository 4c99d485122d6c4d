"""The keys of the episodes to come, laid ready on the device, so that the next ones begin without asking the host."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from restoration_env.devices import to_device


class KeyQueue:
    """For each of N rows its next keys, in the order in which its own generator draws them.

    Which rows took a key is known on the device only. Every ``ahead`` takes the host looks at a copy of the counts
    that was begun as many takes before, so it is there already, and lays new keys in the place of those used up.

    Args:
        draw: the next key of a row.
        rows: N.
        device: where keys are taken.
        ahead: takes between two refills; twice as many keys lie ready.
    """

    def __init__(self, draw: Callable[[int], int], rows: int, device: torch.device, ahead: int = 64) -> None:
        self._draw, self._ahead, self._device = draw, ahead, device
        self._drawn: list[deque[int]] = [deque() for _ in range(rows)]  # not known to be used
        self._every = torch.arange(rows, device=device)
        self._takes = 0
        self._used = torch.zeros(rows, dtype=torch.int64, device=device)
        self._known = np.zeros(rows, np.int64)
        self._copy: Tensor | None = None
        self._event: torch.cuda.Event | None = None
        self._ring = torch.zeros(rows, 2 * ahead, dtype=torch.int64, device=device)
        self._laid = False

    def take(self, rows: Tensor) -> Tensor:
        """The next key of every row, int64 (N,); those where ``rows``, bool (N,), is true are used up by that."""
        if self._takes % self._ahead == 0:
            self._refill()
        self._takes += 1
        keys = self._ring[self._every, self._used % self._ring.shape[1]]
        self._used = self._used + rows
        return keys

    def pop(self, row: int) -> int:
        """The next key of one row, for the host; `settle` comes first."""
        return self._drawn[row].popleft() if self._drawn[row] else self._draw(row)

    def settle(self, fresh: list[int]) -> None:
        """Wait for the device and take out what was used; forget the keys of rows with a new generator."""
        self._account(self._used.cpu().numpy())
        for row in fresh:
            self._drawn[row].clear()
        self._used = torch.zeros_like(self._used)
        self._known = np.zeros_like(self._known)
        self._copy, self._takes, self._laid = None, 0, False

    def _refill(self) -> None:
        if self._copy is not None:
            if self._event is not None:
                self._event.synchronize()  # happened long ago
            self._account(self._copy.numpy())
            self._laid = False
        self.lay()
        on_gpu = self._device.type == "cuda"
        self._copy = torch.empty(self._used.shape, dtype=torch.int64, pin_memory=on_gpu)
        self._copy.copy_(self._used, non_blocking=True)
        if on_gpu:
            self._event = torch.cuda.Event()
            self._event.record()

    def lay(self) -> None:
        """Lay keys ready, if none are: the first take after `settle` would do it."""
        if self._laid:
            return
        ring = np.empty(self._ring.shape, np.int64)
        size = ring.shape[1]
        for row, drawn in enumerate(self._drawn):
            while len(drawn) < size:
                drawn.append(self._draw(row))
            ring[row, (self._known[row] + np.arange(size)) % size] = drawn
        self._ring = to_device(torch.from_numpy(ring), self._device)
        self._laid = True

    def _account(self, used: np.ndarray) -> None:
        """Take out the keys that are now known to be used."""
        for drawn, count in zip(self._drawn, used - self._known, strict=True):
            for _ in range(int(count)):
                drawn.popleft()
        self._known = used.copy()
