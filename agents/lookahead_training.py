"""How the lookahead agent learns to judge: all tools run along a chain, and every outcome is a labelled pair."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from restoration_env.agents.agent import load_agent, save_agent
from restoration_env.agents.critic import OutcomeCritic
from restoration_env.agents.lookahead import LookaheadAgent
from restoration_env.agents.validation import mean_gains, validation_batches
from restoration_env.distortions import recipe
from restoration_env.errors import InvalidArgument, check_at_least
from restoration_env.files import check_same_configuration
from restoration_env.images import ImagePool, damaged_patches
from restoration_env.metrics import psnr
from restoration_env.pixels import eight_bit
from restoration_env.runs import resumed
from restoration_env.schedules import cosine
from restoration_env.toolbox import Toolbox

_FIRST_KEY = 1 << 46  # of the training patches, so that no other training draws the same
_AVERAGING = 0.99


@dataclass(frozen=True)
class LookaheadConfig:
    """Everything that decides the outcome of a training run, apart from images and tools.

    Attributes:
        episodes: damaged images to see; every tool is run on each, at every step.
        batch: images side by side.
        updates: updates after each batch.
        sample: remembered images in an update.
        severity: the damage to train on.
        max_steps: tools of a chain.
        learning_rate: at the start; falls to zero along a cosine.
        temperature: in dB, how near the best outcome the one is that a chain goes on with.
        own: share of the chains that go on with what the critic likes best, so that it sees what it overrates.
        closeness: in dB, how far behind the best an outcome may be before its gain matters little.
        ranking: weight of the loss that only asks which outcome is best.
        start: a lookahead agent, by name or path, whose critic to start from, or "".
        width: of the beam of the finished agent.
        evaluate_every: batches between two validations.
        validation_images: images of each severity in a validation.
        seed: of the first weights and of everything random.
    """

    episodes: int = 6_000
    batch: int = 16
    updates: int = 24
    sample: int = 16
    severity: str = "every"
    max_steps: int = 3
    learning_rate: float = 2e-3
    temperature: float = 0.3
    own: float = 0.4
    closeness: float = 1.0
    ranking: float = 0.5
    start: str = ""
    width: int = 2
    evaluate_every: int = 20
    validation_images: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        recipe(self.severity)
        counts = {name: getattr(self, name) for name in ("episodes", "batch", "sample", "max_steps", "width")}
        check_at_least(1, **counts, evaluate_every=self.evaluate_every, validation_images=self.validation_images)
        check_at_least(0, updates=self.updates, seed=self.seed)


class Outcomes(NamedTuple):
    """What tools made of N images along chains of T steps.

    Attributes:
        before: float16 (N, S), statistics of the damaged images.
        after: float16 (N, T, tools, S), statistics of what each tool made at each step.
        gains: float32 (N, T, tools), the gain of that over the damaged image, in dB.
    """

    before: Tensor
    after: Tensor
    gains: Tensor


@dataclass(frozen=True)
class LookaheadProgress:
    """What training reports after every batch.

    ``validation`` is, for each severity, the mean gain in dB of the outcomes that the critic likes best among those
    of held-out chains, or of leaving the image alone.
    """

    images: int
    total: int
    loss: float
    validation: Mapping[str, float] | None


def train_lookahead(
    config: LookaheadConfig,
    toolbox: Toolbox,
    train: ImagePool,
    validation: ImagePool,
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    checkpoint_seconds: float = 120.0,
    report: Callable[[LookaheadProgress], None] = lambda progress: None,
    card: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a lookahead agent, or go on where a killed run of the same configuration stopped.

    Args:
        config: how to train.
        toolbox: what the actions do.
        train: clean images to learn from.
        validation: other clean images, to judge on.
        path: the safetensors file to write; the checkpoint stands beside it on the way.
        device: where everything runs.
        checkpoint_seconds: time between two checkpoints; a Ctrl-C writes one too.
        report: called after every batch.
        card: further entries of the weights' card.

    Returns:
        The card of the finished weights.

    Raises:
        InvalidArgument: if there is a checkpoint of another configuration or toolbox, or ``start`` names an agent
            of another kind.
    """
    path = Path(path)
    checkpoint = path.with_suffix(".checkpoint")
    run = _Run(config, toolbox, device)
    size, damage = run.learner.patch_size, recipe(config.severity)
    train = train.fitting(size)
    held_out = validation_batches(validation, config.validation_images, size, device)
    judged_on = {name: run.branch(*pair, torch.Generator().manual_seed(0)) for name, pair in held_out.items()}
    with resumed(run, checkpoint, checkpoint_seconds) as stepped:
        while run.images < config.episodes:
            keys = torch.arange(config.batch) + (config.seed << 32) + _FIRST_KEY + run.images
            pair = damaged_patches(train, keys, damage, size, device=device)
            loss, judged = run.step(*pair), None
            if run.images >= config.episodes or (run.images // config.batch) % config.evaluate_every == 0:
                judged = {name: run.judge(outcomes) for name, outcomes in judged_on.items()}
                rounded = {name: round(gain, 4) for name, gain in judged.items()}
                run.history.append({"images": run.images, **rounded})
            stepped()
            report(LookaheadProgress(run.images, config.episodes, loss, judged))
    agent = run.agent()
    gains = mean_gains(agent, held_out)
    facts = {
        "training": {"algorithm": "lookahead", **asdict(config)},
        "images_seen": run.images + run.seen_before,
        "seconds": round(run.seconds, 1),
        "device": str(device),
        "validation_gain_db": round(sum(gains.values()) / len(gains), 4),
        "validation_gains_db": {name: round(gain, 4) for name, gain in gains.items()},
        "history": run.history,
        **(card or {}),
    }
    save_agent(path, agent, facts)
    checkpoint.unlink(missing_ok=True)
    return facts


class _Run:
    """The state of a training run."""

    def __init__(self, config: LookaheadConfig, toolbox: Toolbox, device: torch.device | str) -> None:
        self.config, self.toolbox, self.device = config, toolbox, torch.device(device)
        torch.manual_seed(config.seed)
        self.learner, self.scaled, self.seen_before = OutcomeCritic().to(self.device), False, 0
        if config.start:
            known = load_agent(config.start, toolbox=toolbox, device=str(device))
            if not isinstance(known, LookaheadAgent):
                raise InvalidArgument("start", "a lookahead agent", f"{config.start}, whose network is another")
            self.learner.load_state_dict(known.network.state_dict())
            self.scaled, self.seen_before = True, known.card.get("images_seen", 0)
        self.average = copy.deepcopy(self.learner).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(self.learner.parameters(), config.learning_rate, weight_decay=1e-2)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.memory: list[Outcomes] = []
        self.images, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []

    def agent(self) -> LookaheadAgent:
        """The agent of the averaged weights."""
        agent = LookaheadAgent(self.average, self.toolbox, self.config.max_steps)
        agent.width = self.config.width
        return agent

    def step(self, clean: Tensor, damaged: Tensor) -> float:
        """See a batch of images and learn from all that were seen; returns the mean loss."""
        self.memory.append(self.branch(clean, damaged, self.generator))
        self.images += len(clean)
        if not self.scaled or (not self.config.start and self.images <= self.config.episodes // 10):
            for network in (self.learner, self.average):
                network.scale_to(*(torch.cat(column) for column in list(zip(*self.memory, strict=True))[:2]))
            self.scaled = True
        share = cosine(self.images, self.config.episodes)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * share
        losses = [self.learn() for _ in range(self.config.updates)]
        return sum(losses) / max(1, len(losses))

    @torch.no_grad()
    def branch(self, clean: Tensor, damaged: Tensor, generator: torch.Generator) -> Outcomes:
        """Run every tool at every step of a chain that goes on with good outcomes, or with what the critic likes."""
        n, start, device = len(clean), psnr(damaged, clean), clean.device
        before = eight_bit(damaged)
        seen, images, after, gains = self.average.see_before(before), damaged, [], []
        own = torch.rand(n, generator=generator).to(device) < (self.config.own if self.scaled else 0.0)
        for _ in range(self.config.max_steps):
            outcomes = torch.stack([tool(images).to(images.dtype) for tool in self.toolbox], 1)
            gain = torch.stack([psnr(outcome, clean) for outcome in outcomes.unbind(1)], 1) - start[:, None]
            after.append(self.average.see_after(before, eight_bit(outcomes)))
            gains.append(gain.float())
            chances = 0.9 * torch.softmax(gain / self.config.temperature, 1) + 0.1 / len(self.toolbox)
            drawn = torch.multinomial(chances.cpu(), 1, generator=generator)[:, 0].to(device)
            chosen = torch.where(own, self.average(seen, after[-1]).argmax(1), drawn)
            images = outcomes[torch.arange(n, device=device), chosen]
        return Outcomes(seen.half(), torch.stack(after, 1).half(), torch.stack(gains, 1))

    def learn(self) -> float:
        """One update on remembered images; returns the loss."""
        batches, config = len(self.memory), self.config
        where = torch.randint(batches * config.batch, (config.sample,), generator=self.generator)
        rows = [Outcomes(*(part[i % config.batch] for part in self.memory[i // config.batch])) for i in where.tolist()]
        before, after, gains = (torch.stack(column) for column in zip(*rows, strict=True))
        steps = after.shape[1]
        self.learner.train()
        judged = self.learner(before.repeat_interleave(steps, 0), after.flatten(0, 1))
        self.learner.eval()
        alone = torch.zeros_like(judged[:, :1])  # leaving the image alone
        goal, judged = torch.cat((gains.flatten(0, 1), alone), 1), torch.cat((judged, alone), 1)
        # What decides is which outcome is best: those that are, and seem, far behind it need no exact gain.
        behind = (goal.max(1, keepdim=True).values - torch.maximum(goal, judged.detach())).clamp_min(0.0)
        weight = 0.1 + torch.exp(-behind / config.closeness)
        loss = (weight * F.smooth_l1_loss(judged, goal, reduction="none", beta=0.5)).sum(1).mean()
        which = torch.softmax(goal / 0.3, 1) * torch.log_softmax(judged / 0.3, 1)
        loss = loss - config.ranking * which.sum(1).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.learner.parameters(), 10.0)
        self.optimizer.step()
        for mine, theirs in zip(self.learner.parameters(), self.average.parameters(), strict=True):
            theirs.lerp_(mine.detach(), 1.0 - _AVERAGING)
        return loss.item()

    @torch.no_grad()
    def judge(self, outcomes: Outcomes) -> float:
        """Mean gain in dB of the outcome of each held-out chain that the critic likes best, or of none."""
        n, steps = outcomes.after.shape[:2]
        judged = self.average(outcomes.before.repeat_interleave(steps, 0), outcomes.after.flatten(0, 1))
        best = judged.view(n, -1).max(1)
        gains = outcomes.gains.view(n, -1).gather(1, best.indices[:, None])[:, 0]
        return torch.where(best.values > 0.0, gains, 0.0).mean().item()

    def state(self) -> dict[str, Any]:
        """All that `restore` needs, what was seen included: seeing is what takes long."""
        return {
            "config": self._identity(),
            "learner": self.learner.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "dropped_out": torch.get_rng_state(),
            "memory": [tuple(batch) for batch in self.memory],
            "images": self.images,
            "seconds": self.seconds,
            "history": self.history,
            "scaled": self.scaled,
            "seen_before": self.seen_before,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same configuration and tools; another one is refused."""
        check_same_configuration(state["config"], self._identity())
        for name in ("learner", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["dropped_out"])
        self.memory = [Outcomes(*(part.to(self.device) for part in batch)) for batch in state["memory"]]
        for name in ("images", "seconds", "history", "scaled", "seen_before"):
            setattr(self, name, state[name])

    def _identity(self) -> dict[str, Any]:
        return {**asdict(self.config), "tools": ", ".join(self.toolbox.names)}
