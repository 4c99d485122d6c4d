"""What a number or a set of weights says about how it came to be."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any


def provenance(command: str, device: object = "cpu") -> dict[str, Any]:
    """The command, the version and the machine behind a result, for cards and result files."""
    import torch

    from restoration_env import __version__

    on_gpu = str(device).startswith("cuda")
    return {
        "command": command,
        "version": __version__,
        "commit": commit(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
    }


def commit() -> str:
    """The commit of the checkout this runs from, or "unknown" outside one."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"
