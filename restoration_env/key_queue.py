"""The keys of the episodes to come, laid ready on the device, so that the next ones begin without asking the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from restoration_env.devices import to_device


class KeyQueue:
    """For each of N rows its next keys, in the order in which its own generator draws them.

    Which rows took a key is known on the device only. Every ``ahead`` takes the host looks at a copy of the counts
    that was begun as many takes before, so it is there already, and lays new keys in the place of those used up.

    Args:
        draw: the next keys of a row, so many: int64 (count,).
        rows: N.
        device: where keys are taken.
        ahead: takes between two refills; two to four times as many keys lie ready.
    """

    def __init__(
        self, draw: Callable[[int, int], np.ndarray], rows: int, device: torch.device, ahead: int = 64
    ) -> None:
        self._draw, self._ahead, self._device = draw, ahead, device
        self._size = 4 * ahead
        self._held = np.zeros((rows, self._size), np.int64)  # key number k of a row is at k modulo the size
        self._known = np.zeros(rows, np.int64)  # how many of each row are known to be used
        self._drawn = np.zeros(rows, np.int64)  # how many there were in all
        self._every = torch.arange(rows, device=device)
        self._takes = 0
        self._used = torch.zeros(rows, dtype=torch.int64, device=device)
        self._ring = torch.zeros(rows, self._size, dtype=torch.int64, device=device)
        self._copy: Tensor | None = None
        self._event: torch.cuda.Event | None = None
        self._laid = False

    def take(self, rows: Tensor) -> Tensor:
        """The next key of every row, int64 (N,); those where ``rows``, bool (N,), is true are used up by that."""
        if self._takes % self._ahead == 0:
            self._refill()
        self._takes += 1
        keys = self._ring[self._every, self._used % self._size]
        self._used = self._used + rows
        return keys

    def pop(self, rows: Sequence[int]) -> np.ndarray:
        """The next key of some rows, int64 (len(rows),), for the host; `settle` comes first."""
        places = np.asarray(rows, np.int64)
        self._fill(places, 1)
        keys = self._held[places, self._known[places] % self._size]
        self._known[places] += 1
        self._laid = False
        return keys

    def settle(self, fresh: Sequence[int]) -> None:
        """Wait for the device and take out what was used; forget the keys of rows with a new generator."""
        if self._laid:
            self._known = self._used.cpu().numpy().copy()
        places = np.asarray(fresh, np.int64)
        self._drawn[places] = self._known[places]
        self._copy, self._takes, self._laid = None, 0, False

    def lay(self) -> None:
        """Lay keys ready, if none are: the first take after `settle` would do it."""
        if self._laid:
            return
        self._lay_keys()
        self._used = to_device(torch.from_numpy(self._known.copy()), self._device)
        self._laid = True

    def _refill(self) -> None:
        if self._copy is not None:
            if self._event is not None:
                self._event.synchronize()  # happened long ago
            self._known = self._copy.numpy().copy()
            self._lay_keys()
        self.lay()
        on_gpu = self._device.type == "cuda"
        self._copy = torch.empty(self._used.shape, dtype=torch.int64, pin_memory=on_gpu)
        self._copy.copy_(self._used, non_blocking=True)
        if on_gpu:
            self._event = torch.cuda.Event()
            self._event.record()

    def _lay_keys(self) -> None:
        self._fill(np.arange(len(self._known)), 2 * self._ahead)
        self._ring = to_device(torch.from_numpy(self._held.copy()), self._device)

    def _fill(self, rows: np.ndarray, least: int) -> None:
        """Draw keys for those of the rows that have fewer than ``least``."""
        for row in rows[self._drawn[rows] - self._known[rows] < least].tolist():
            count = int(self._known[row] + self._size - self._drawn[row])
            places = (self._drawn[row] + np.arange(count)) % self._size
            self._held[row, places] = self._draw(row, count)
            self._drawn[row] += count
