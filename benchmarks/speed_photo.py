"""Three tools on a photograph of 1920x1080 pixels: seconds and memory, each way in a process of its own.

``python -m restoration_env.benchmarks.speed_photo WAY`` measures one way and prints JSON; `photograph` calls it for
each way, in turns.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from restoration_env.devices import keep_freed_memory
from restoration_env.registry import load_toolbox
from restoration_env.tiling import apply_tools

WIDTH, HEIGHT = 1920, 1080
TOOLS = ("dejpeg-3", "denoise-2", "deblur-3")
WHOLE = "whole image, float32"


def picture(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A bundled photograph, enlarged and made noisy, uint8 (H, W, 3)."""
    import skimage

    file = Path(skimage.__file__).parent / "data" / "coffee.png"
    enlarged = np.asarray(Image.open(file).convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
    random, rows = np.random.default_rng(0), []
    for row in enlarged:  # one by one: noise for all of it would take more memory than the tools that are measured
        rows.append(np.clip(row + random.normal(0.0, 20.0, row.shape), 0, 255).astype(np.uint8))
    return np.stack(rows)


def measure(way: str, threads: int, device: str = "cpu") -> dict[str, Any]:
    """Restore the picture in one way, in this process.

    Args:
        way: `WHOLE`, or a backend and a precision, as "torch bfloat16": then tile by tile.
        threads: of torch.
        device: where the tools compute.

    Returns:
        ``seconds`` (of the second of two runs in tiles, so that compilation is not in it, and ``first_seconds``),
        ``peak_mib`` of the process, ``above_import_mib`` of that above what it had once the tools were loaded, and
        the mean of the result, ``mean``.
    """
    torch.set_num_threads(threads)
    image, whole = picture(), way == WHOLE
    backend, precision = ("torch", "float32") if whole else way.split()
    box = load_toolbox("cnn12", backend=backend, precision=precision, device=device)
    tools = [box[name] for name in TOOLS]
    before = _memory("VmRSS", device)

    def run() -> np.ndarray:
        if not whole:
            return apply_tools(image, tools, device=device)[-1]
        with torch.no_grad():
            pixels = torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float() / 255.0
            for tool in tools:
                pixels = tool(pixels)
            return (pixels[0] * 255.0).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()

    if not whole:
        keep_freed_memory()
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - began)
    peak = _memory("VmHWM", device)
    return {
        "seconds": round(min(seconds), 3),
        "first_seconds": round(seconds[0], 3),
        "peak_mib": round(peak, 1),
        "above_import_mib": round(peak - before, 1),
        "mean": float(result.mean()),
    }


def _memory(what: str, device: str) -> float:
    """Memory in MiB: of the process now (VmRSS) or at most so far (VmHWM); on a GPU what torch holds there."""
    if device.startswith("cuda"):
        held = torch.cuda.max_memory_allocated() if what == "VmHWM" else torch.cuda.memory_allocated()
        return held / 2**20
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(what):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"the system does not say {what}")


def photograph(ways: Sequence[str], device: str, *, turns: int, note: Callable[[str], None]) -> dict[str, Any]:
    """Each way and the whole image at once, in turns, each time in a fresh process; the medians, and the ratios."""
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in (WHOLE, *ways)}
    for turn in range(turns):
        for way, rows in runs.items():
            note(f"1080p, {way}: turn {turn + 1} of {turns}")
            command = [sys.executable, "-m", __name__, way, str(torch.get_num_threads()), device]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append(json.loads(done.stdout))
    result: dict[str, Any] = {"width": WIDTH, "height": HEIGHT, "tools": list(TOOLS)}
    middle = {
        way: {name: float(np.median([row[name] for row in rows])) for name in rows[0]} for way, rows in runs.items()
    }
    for way, row in middle.items():
        ratios = {
            "times_faster": round(
                float(np.median([w["seconds"] / r["seconds"] for w, r in zip(runs[WHOLE], runs[way], strict=True)])), 2
            ),
            "times_less_memory": round(middle[WHOLE]["peak_mib"] / row["peak_mib"], 2),
            "times_less_memory_above_import": round(middle[WHOLE]["above_import_mib"] / row["above_import_mib"], 2),
        }
        result[way] = {**row, **({} if way == WHOLE else ratios)}
    return result


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
