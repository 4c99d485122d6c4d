"""How long an entry takes for an image on this machine, one at a time and many at once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from restoration_env.agents.policies import restore_batch
from restoration_env.benchmarks.board import read_result
from restoration_env.benchmarks.comparison import Entry, Oracle, fingerprint
from restoration_env.benchmarks.suites import Suite
from restoration_env.files import write_json

MANY = 256  # images at once
_ALONE = 16  # images, one at a time; the median is taken
_PATIENCE = 20_000.0  # milliseconds: an entry that needs more for 256 images gets fewer at once


@torch.no_grad()
def latency(entry: Entry, suite: Suite) -> dict[str, float | int]:
    """Milliseconds an image at batch 1 (median) and 256 (mean), on patches of a suite.

    Args:
        entry: what to time.
        suite: of patches; they are repeated if there are too few.

    Returns:
        ``batch_1`` and ``batch_256`` in milliseconds, and ``batch``, how many images the large batch held: fewer than
        256 for an entry that would take longer than 20 seconds.
    """
    damaged = suite.patches()[1]
    damaged = damaged.repeat(-(-MANY // len(damaged)), 1, 1, 1)[:MANY]

    def seconds(images: torch.Tensor) -> float:
        began = time.perf_counter()
        restore_batch(entry.policy, entry.toolbox, images, max_steps=entry.max_steps)
        return time.perf_counter() - began

    seconds(damaged[:2])  # what is done once does not count
    alone = 1000.0 * statistics.median(seconds(image[None]) for image in damaged[:_ALONE])
    batch = max(2, min(MANY, int(_PATIENCE / max(alone, 1e-3))))
    together = 1000.0 * seconds(damaged[:batch]) / batch
    return {"batch_1": round(alone, 2), "batch_256": round(together, 2), "batch": batch}


def latencies(
    entries: Mapping[str, Entry],
    suite: Suite,
    path: Path,
    made: Mapping[str, Any],
    tell: Callable[[str], None] = lambda note: None,
) -> dict[str, Any]:
    """The latency of each entry by label, kept in a file; what stands there with the same weights is not timed again.

    Args:
        entries: what to time; oracles are left out, as no one restores images with them.
        suite: patches to time on.
        path: the file.
        made: what the file says of how it was made.
        tell: told of the entry that is timed now.
    """
    held = read_result(path)["rows"] if path.is_file() else {}
    rows: dict[str, Any] = {}
    for entry in entries.values():
        if isinstance(entry.policy, Oracle):
            continue
        key = fingerprint(entry.policy, entry.toolbox)[:24]
        known = held.get(entry.label, {})
        if known.get("key") != key or known.get("device") != made.get("device"):
            tell(entry.label)
            timing = latency(entry, suite)
            known = {"key": key, "device": made.get("device"), "threads": torch.get_num_threads(), **timing}
        rows[entry.label] = known
        write_json(path, {**made, "rows": {**held, **rows}})
    return rows
