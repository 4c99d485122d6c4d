"""What a result file says about how it came to be."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from restoration_env import __version__


def provenance(command: str, device: str = "cpu") -> dict[str, Any]:
    """The command, version and machine behind a number."""
    return {
        "command": command,
        "version": __version__,
        "commit": commit(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine(),
        "threads": torch.get_num_threads(),
    }


def commit() -> str:
    """The checkout's commit, or "unknown" outside one."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"
