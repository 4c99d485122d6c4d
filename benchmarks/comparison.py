"""Policies side by side on the same suites: PSNR, gain, regret to the oracle of their tools, harm, tools used."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from restoration_env.agents.oracles import OracleResult, exhaustive, greedy
from restoration_env.agents.policies import Policy, roll_out
from restoration_env.benchmarks.suites import Suite
from restoration_env.episodes import NO_ACTION, Episodes
from restoration_env.files import replacing
from restoration_env.perceptual import lpips
from restoration_env.provenance import commit
from restoration_env.toolbox import Toolbox

ORACLES: dict[str, Callable[..., OracleResult]] = {"greedy": greedy, "exhaustive": exhaustive}
_BATCH = 128
Row = dict[str, Any]
Note = Callable[[str], None]


@dataclass(frozen=True)
class Entry:
    """A policy in the comparison: what it is called there, and what it cost to train."""

    label: str
    policy: Policy
    toolbox: Toolbox
    training_images: int | None = None
    training_seconds: float | None = None


class Rows:
    """Rows that were measured, kept on disk as they come, so that an interrupted comparison goes on.

    A row counts again where the patches, the policy's weights and the tools' weights are the same; each says which
    commit measured it.

    Args:
        path: a file, one JSON object a line; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: dict[str, Row] = {}
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                held = json.loads(line)
                self.rows[held["key"]] = held["row"]

    def measured(self, key: str, measure: Callable[[], Row]) -> Row:
        """The row of this key, measured now if it is not there yet."""
        if key not in self.rows:
            self.rows[key] = {**measure(), "commit": commit()}
            if self.path is not None:
                lines = [json.dumps({"key": k, "row": row}) for k, row in self.rows.items()]
                with replacing(self.path) as temporary:
                    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return self.rows[key]


def fingerprint(*parts: object) -> str:
    """A digest of all weights in the modules, toolboxes and policies given, and of the names of everything else."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Toolbox):
            digest.update(fingerprint(part.name, *(tool.function for tool in part)).encode())
        elif isinstance(part, nn.Module):
            for name, value in part.state_dict().items():
                digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        else:
            network = getattr(part, "network", None)
            caution = getattr(part, "caution", 0.0)
            label = part if isinstance(part, str) else f"{getattr(part, 'name', type(part).__name__)} {caution}"
            digest.update(label.encode() + (fingerprint(network).encode() if network is not None else b""))
    return digest.hexdigest()[:16]


def compare(
    entries: Sequence[Entry],
    suite: Suite,
    rows: Rows,
    *,
    oracle: str = "greedy",
    looks: bool = False,
    note: Note = lambda text: None,
) -> list[Row]:
    """All rows of one suite: every entry, then the oracle of each toolbox, and everyone's regret to it.

    Args:
        entries: what to compare.
        suite: on what.
        rows: what is known already.
        oracle: "greedy", "exhaustive" or "none".
        looks: also measure LPIPS (AlexNet) against the clean images.
        note: told what is measured now.
    """
    table = []
    for entry in entries:
        note(entry.label)
        key = f"{suite.digest} {fingerprint(entry.label, entry.policy, entry.toolbox)}{' looks' if looks else ''}"
        row = rows.measured(key, partial(evaluate, entry.policy, entry.toolbox, suite, looks=looks))
        cost = {"training_images": entry.training_images, "training_seconds": entry.training_seconds}
        table.append({**row, "policy": entry.label, **cost})
    if oracle == "none":
        return table
    oracles = {}
    for toolbox in {entry.toolbox.name: entry.toolbox for entry in entries if len(entry.toolbox) > 1}.values():
        label = f"{oracle} oracle of {toolbox.name}"
        note(label)
        key = f"{suite.digest} {fingerprint(label, toolbox)}"
        oracles[toolbox.name] = rows.measured(key, partial(evaluate_oracle, oracle, toolbox, suite))
    for row in table:
        if row["toolbox"] not in oracles:
            continue  # a single network has nothing to choose
        best = oracles[row["toolbox"]]["gain"]
        row["regret"] = round(best - row["gain"], 4)
        row["captured"] = round(row["gain"] / best, 4) if best > 0 else None
    return table + [{**row, "regret": 0.0, "captured": 1.0} for row in oracles.values()]


def evaluate_oracle(kind: str, toolbox: Toolbox, suite: Suite) -> Row:
    """One row of the table: an oracle, which sees the clean images."""
    began = time.perf_counter()
    found = ORACLES[kind](toolbox, suite.clean, suite.damaged)
    used = (found.toolchains != NO_ACTION).sum(1).double()
    seconds = time.perf_counter() - began
    return _row(f"{kind} oracle of {toolbox.name}", toolbox, found.psnr - found.gain, found.psnr, used, seconds)


@torch.no_grad()
def evaluate(policy: Policy, toolbox: Toolbox, suite: Suite, *, max_steps: int = 3, looks: bool = False) -> Row:
    """One row of the table: a policy on a suite, with LPIPS if ``looks``."""
    began = time.perf_counter()
    before, after, used, distances = [], [], [], []
    for start in range(0, len(suite.clean), _BATCH):
        rows = slice(start, start + _BATCH)
        episodes = Episodes(toolbox, max_steps=max_steps)
        episodes.begin(suite.damaged[rows], suite.clean[rows])
        roll_out(policy, episodes)
        before.append(episodes.psnr_initial)
        after.append(episodes.psnr)
        taken = (episodes.toolchain != NO_ACTION) & (episodes.toolchain != toolbox.stop)
        used.append(taken.sum(1).double())
        if looks:
            distances.append(lpips(episodes.images.clamp(0.0, 1.0), suite.clean[rows]))
    seconds = time.perf_counter() - began
    row = _row(policy.name, toolbox, torch.cat(before), torch.cat(after), torch.cat(used), seconds)
    return {**row, "lpips": round(torch.cat(distances).mean().item(), 4)} if looks else row


def _row(name: str, toolbox: Toolbox, psnr_in: Tensor, psnr_out: Tensor, tools: Tensor, seconds: float) -> Row:
    gain = psnr_out - psnr_in
    return {
        "policy": name,
        "toolbox": toolbox.name,
        "psnr_in": round(psnr_in.mean().item(), 4),
        "psnr_out": round(psnr_out.mean().item(), 4),
        "gain": round(gain.mean().item(), 4),
        "standard_error": round(gain.std().item() / len(gain) ** 0.5, 4),
        "harmed": round((gain < -1e-6).double().mean().item(), 4),
        "mean_tools": round(tools.mean().item(), 3),
        "ms_per_image": round(1000 * seconds / len(gain), 2),
    }
