"""What an entry of the leaderboard does on a suite, image by image, and the numbers that follow from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from restoration_env.agents.oracles import OracleResult, beam, exhaustive, greedy
from restoration_env.agents.policies import FixedChain, Policy, StopAtOnce
from restoration_env.benchmarks.suites import Suite
from restoration_env.episodes import NO_ACTION, Episodes
from restoration_env.metrics import ssim
from restoration_env.perceptual import lpips
from restoration_env.toolbox import Toolbox

HARM = -1e-6  # dB; less is rounding
ORACLES: dict[str, Callable[..., OracleResult]] = {"greedy": greedy, "beam": beam, "exhaustive": exhaustive}
_BATCH = 128
_RESAMPLES = 2000
_SMALLEST = {"ssim": 7, "lpips": 31}  # pixels on the shorter side
Row = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """What is compared: a policy with its tools, what it is called, and what it cost to train.

    Attributes:
        label: its name in tables.
        policy: chooses the tools.
        toolbox: holds them.
        training_patches: patches seen in training by the tools and the policy together; None if nobody knows.
        training_seconds: of both together.
        training_data: in words.
        family: "baseline", "toolchain", "single network", "published", "classical" or "oracle".
        max_steps: actions of an episode.
    """

    label: str
    policy: Policy
    toolbox: Toolbox
    training_patches: int | None = None
    training_seconds: float | None = None
    training_data: str | None = None
    family: str = "toolchain"
    max_steps: int = 3


@dataclass
class Measurement:
    """What an entry did on a suite, a number for each image.

    Attributes:
        psnr_in: of the damaged images, in dB; NaN without ground truth, like all that is measured against it.
        psnr_out: of the restored ones.
        ssim: of the restored ones.
        lpips: of the restored ones, values clipped; NaN for images under 31 pixels.
        multiply_adds: of the tools used and of the decisions.
        actions: those taken, stop included.
        rewards: of each, in dB of PSNR.
    """

    psnr_in: list[float] = field(default_factory=list)
    psnr_out: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    lpips: list[float] = field(default_factory=list)
    multiply_adds: list[float] = field(default_factory=list)
    actions: list[list[int]] = field(default_factory=list)
    rewards: list[list[float]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.psnr_in)

    def extend(self, other: Measurement) -> None:
        """Add the images of another one."""
        for name, values in asdict(other).items():
            getattr(self, name).extend(values)

    @property
    def gain(self) -> np.ndarray:
        """The gain in PSNR of each image, in dB."""
        return np.array(self.psnr_out) - np.array(self.psnr_in)


class ChainPlayer:
    """Plays the actions that were written down, one row of them for each image, as a policy."""

    name = "replay"

    def __init__(self, actions: Sequence[Sequence[int]], stop: int) -> None:
        self.actions, self.stop, self.first, self.taken, self.count = actions, stop, 0, 0, 0

    def reset(self, count: int) -> None:
        """The next ``count`` images come."""
        self.first, self.taken, self.count = self.first + self.count, 0, count

    def act(self, observation: Mapping[str, Tensor]) -> Tensor:
        """The action that was written down for this step; stop where nothing was."""
        rows = self.actions[self.first : self.first + self.count]
        step = [row[self.taken] if self.taken < len(row) else self.stop for row in rows]
        self.taken += 1
        return torch.tensor(step, device=observation["last_action"].device)


class Oracle:
    """Sees the clean images: the best chain of each by search. Not a policy, but measured as one.

    Args:
        kind: "greedy", "beam" or "exhaustive".
        toolbox: holds the tools.
        max_steps: the most tools of a chain.
    """

    def __init__(self, kind: str, toolbox: Toolbox, max_steps: int = 3) -> None:
        self.kind, self.toolbox, self.max_steps = kind, toolbox, max_steps
        self.name = f"{kind} oracle of {toolbox.name}, {max_steps} steps"
        self._player = ChainPlayer([], toolbox.stop)

    def look(self, clean: Tensor, damaged: Tensor) -> None:
        """Search the chains of these images."""
        found = ORACLES[self.kind](self.toolbox, clean, damaged, max_steps=self.max_steps).toolchains
        chains = [[action for action in row if action != NO_ACTION] for row in found.tolist()]
        self._player = ChainPlayer(chains, self.toolbox.stop)

    def reset(self, count: int) -> None:
        """Begin the chains."""
        self._player.reset(count)

    def act(self, observation: Mapping[str, Tensor]) -> Tensor:
        """The next tools of the chains."""
        return self._player.act(observation)


@torch.no_grad()
def measure(policy: Policy, toolbox: Toolbox, suite: Suite, *, max_steps: int = 3, looks: bool = True) -> Measurement:
    """Let a policy restore a suite.

    Args:
        policy: chooses the tools.
        toolbox: holds them.
        suite: what to restore.
        max_steps: actions of an episode.
        looks: also measure LPIPS.
    """
    measured = Measurement()
    for clean, damaged in suite.batches(_BATCH):
        if isinstance(policy, Oracle):
            policy.look(clean, damaged)
        measured.extend(_play(policy, toolbox, clean, damaged, max_steps, looks))
    return measured


def _play(policy: Policy, toolbox: Toolbox, clean: Tensor, damaged: Tensor, max_steps: int, looks: bool) -> Measurement:
    episodes = Episodes(toolbox, max_steps=max_steps)
    episodes.begin(damaged, clean)
    policy.reset(len(episodes))
    costs = torch.tensor([*(tool.cost for tool in toolbox), 0.0], dtype=torch.float64) * clean[0, 0].numel()
    spent, rewards = torch.zeros(len(clean), dtype=torch.float64), []
    while not bool(episodes.done.all()):
        with FlopCounterMode(display=False) as counter:
            actions = policy.act(episodes.observation())
        deciding = counter.get_total_flops() / 2 / len(clean)
        spent += torch.where(episodes.done, 0.0, deciding + costs[actions])
        rewards.append(episodes.step(actions))
    kept = (episodes.toolchain != NO_ACTION).sum(1).tolist()
    steps = torch.stack(rewards, 1).tolist() if rewards else [[] for _ in kept]
    restored, known = episodes.images, not bool(clean.isnan().any())
    side = min(clean.shape[-2:])
    similar = ssim(restored, clean).tolist() if known and side >= _SMALLEST["ssim"] else [torch.nan] * len(clean)
    seen = looks and known and side >= _SMALLEST["lpips"]
    return Measurement(
        episodes.psnr_initial.tolist(),
        episodes.psnr.tolist(),
        similar,
        lpips(restored.clamp(0.0, 1.0), clean).tolist() if seen else [torch.nan] * len(clean),
        spent.tolist(),
        [row[:count] for row, count in zip(episodes.toolchain.tolist(), kept, strict=True)],
        [row[:count] for row, count in zip(steps, kept, strict=True)],
    )


def summarise(measured: Measurement, toolbox: Toolbox) -> Row:
    """The numbers of a measurement: means over its images, and the 95 % interval of the mean gain.

    The interval is a percentile bootstrap over images (2,000 resamples, always the same ones). Without ground truth
    only what does not need it is there.

    Args:
        measured: what an entry did.
        toolbox: its tools. Multiply-adds are None if one of those that were used says nothing of its own.
    """
    used = [[action for action in actions if action != toolbox.stop] for actions in measured.actions]
    row: Row = {"images": len(measured)}
    if np.isfinite(measured.psnr_in).all():
        gain = measured.gain
        low, high = bootstrap_interval(gain)
        row |= {
            "psnr_in": _mean(measured.psnr_in),
            "psnr_out": _mean(measured.psnr_out),
            "gain": _mean(gain),
            "gain_low": low,
            "gain_high": high,
            "ssim": _mean(measured.ssim),
            "lpips": _mean(measured.lpips),
            "harmed": _mean(gain < HARM),
        }
    counted = all(toolbox.tools[action].cost for action in {action for actions in used for action in actions})
    spent = round(float(np.mean(measured.multiply_adds))) if counted else None
    return row | {"mean_tools": _mean([len(actions) for actions in used]), "multiply_adds": spent}


def bootstrap_interval(values: np.ndarray, share: float = 0.95) -> tuple[float, float]:
    """The percentile bootstrap interval of a mean, always by the same 2,000 resamples."""
    values = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(len(values))
    means = [values[generator.integers(0, len(values), len(values))].mean() for _ in range(_RESAMPLES)]
    low, high = np.quantile(means, [0.5 - share / 2, 0.5 + share / 2])
    return round(float(low), 4), round(float(high), 4)


def _mean(values: Any) -> float | None:
    mean = float(np.mean(values))
    return round(mean, 4) if np.isfinite(mean) else None


def evaluate(policy: Policy, toolbox: Toolbox, suite: Suite, *, max_steps: int = 3, looks: bool = False) -> Row:
    """The numbers of a policy on a suite."""
    measured = measure(policy, toolbox, suite, max_steps=max_steps, looks=looks)
    return {"policy": policy.name, "toolbox": toolbox.name, **summarise(measured, toolbox)}


def parameters(entry: Entry) -> int | None:
    """Weights that an entry needs: those of its policy and its tools; None if none of them has any to count."""
    tools = entry.toolbox.tools if not isinstance(entry.policy, StopAtOnce) else ()
    if isinstance(entry.policy, FixedChain):
        used = {action for action in entry.policy.chain if action != entry.toolbox.stop}
        tools = tuple(tools[action] for action in sorted(used))
    modules = [tool.function for tool in tools] + networks(entry.policy)
    known = [module for module in modules if isinstance(module, nn.Module)]
    weights = {id(weight): weight.numel() for module in known for weight in module.parameters()}
    return sum(weights.values()) if known else None


def networks(policy: Policy) -> list[nn.Module]:
    """The networks that a policy decides with."""
    model = getattr(policy, "model", None)
    candidates = (getattr(policy, "network", None), getattr(model, "policy", None), model)
    return [module for module in candidates if isinstance(module, nn.Module)][:1]


def fingerprint(*parts: object) -> str:
    """A digest of all weights in the modules, toolboxes and policies given, and of the names of everything else."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Toolbox):
            digest.update(fingerprint(part.name, *(f"{t.name} {t.precision}" for t in part)).encode())
            digest.update(fingerprint(*(tool.function for tool in part)).encode())
        elif isinstance(part, nn.Module):
            for name, value in part.state_dict().items():
                digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        elif isinstance(part, str):
            digest.update(part.encode())
        else:
            settings = [getattr(part, name, "") for name in ("name", "chain", "caution", "views", "deterministic")]
            settings += [part.risk] if hasattr(part, "risk") else []
            digest.update(repr(settings).encode() + fingerprint(*networks(part)).encode())  # type: ignore[arg-type]
    return digest.hexdigest()
