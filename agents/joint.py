"""Joint training of tools and agent: Algorithm 1 of RL-Restore (Yu et al., CVPR 2018, Section 3.4).

A tool trained alone has never seen what another tool leaves behind. Here the agent chooses a toolchain for every
image of a batch, the chain is run, and the gradient of the final error goes back through the whole chain into
every tool that took part, divided by the number of its uses. The authors never released this step. Five things
go beyond their description, each an option:

- the agent learns too, from all tools run on a few of the images (`restoration_env.agents.exact_values`);
- chains are drawn near the agent's choice, so that no tool starves;
- mild, moderate and severe damage and single distortions are all in the data;
- the results of the earlier steps count a little, so that each tool keeps a meaning of its own;
- a few images more in each batch have pure damage of one tool's own band and get that tool alone, so that it does
  not forget what nobody asks of it on mixed damage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from restoration_env.agents.agent import ToolchainAgent, save_agent
from restoration_env.agents.exact_values import ExactValues, Step, near_choice
from restoration_env.agents.network import UNIT, ToolchainNetwork
from restoration_env.agents.objectives import Decibels, Objective
from restoration_env.agents.validation import mean_gain, restored, validation_batches
from restoration_env.distortions import SEVERITY_RANGES, Recipe, recipe
from restoration_env.episodes import Episodes
from restoration_env.errors import InvalidArgument, UnknownName, check_at_least
from restoration_env.files import check_same_configuration
from restoration_env.images import ImagePool, damaged_patches
from restoration_env.runs import resumed
from restoration_env.schedules import cosine
from restoration_env.toolbox import Toolbox
from restoration_env.tools.optimizers import OPTIMIZERS
from restoration_env.tools.together import ToolsTogether, copied


@dataclass(frozen=True)
class JointConfig:
    """Everything that decides the outcome of joint training, apart from images and first weights.

    Attributes:
        iterations: batches of images.
        batch: images in each.
        severity: the damage to train on.
        max_steps: actions of an episode.
        learning_rate: of the tools, at the peak of a cosine schedule.
        optimizer: of the tools, "adamw" or "muon" (`restoration_env.tools.optimizers`).
        muon_rate: Muon's learning rate at the peak.
        common: share of each step that all networks of one kind take together, along their mean gradient.
        agent_learning_rate: of the agent, at the peak of the same.
        explore: share of actions drawn near the agent's choice instead of taking it.
        temperature: in dB, how near.
        averaging: decay of the average of the tools' weights, which is what is judged and kept.
        earlier: weight of the results of the earlier steps against that of the last.
        unstopped: images of a batch whose chains take all steps: where an agent stops early, the tools of the last
            steps have nothing to learn from.
        own: images more in each batch, with damage of one tool's own band and that tool as their chain; the tools
            take turns.
        branched: images of a batch on which all tools are run for the agent, which learns the reward of the chosen
            tool from the others; 0 leaves the agent as it is.
        agent_every: iterations between two updates of the agent.
        agent_sample: remembered episodes in an update.
        memory: episodes remembered for them.
        evaluate_every: iterations between two validations.
        validation_images: images of each severity in a validation.
        seed: of everything random.
    """

    iterations: int = 4_000
    batch: int = 16
    severity: str = "every"
    max_steps: int = 3
    learning_rate: float = 3e-4
    optimizer: str = "adamw"
    muon_rate: float = 2e-3
    common: float = 0.0
    agent_learning_rate: float = 5e-4
    explore: float = 0.2
    temperature: float = 0.5
    averaging: float = 0.995
    earlier: float = 0.2
    unstopped: int = 0
    own: int = 0
    branched: int = 1
    agent_every: int = 2
    agent_sample: int = 32
    memory: int = 16_000
    evaluate_every: int = 200
    validation_images: int = 96
    seed: int = 0

    def __post_init__(self) -> None:
        recipe(self.severity)
        if self.optimizer not in OPTIMIZERS:
            raise UnknownName("optimizer", self.optimizer, OPTIMIZERS)
        if not 0.0 <= self.common <= 1.0:
            raise InvalidArgument("common", "a share, 0 to 1", self.common)
        counts = {name: getattr(self, name) for name in ("iterations", "batch", "max_steps", "evaluate_every")}
        check_at_least(1, **counts, validation_images=self.validation_images)
        check_at_least(
            0,
            unstopped=self.unstopped,
            own=self.own,
            branched=self.branched,
            agent_every=self.agent_every,
            seed=self.seed,
        )


@dataclass(frozen=True)
class JointProgress:
    """What training reports after every iteration; ``validation`` is the gain in dB for each severity."""

    iteration: int
    iterations: int
    gain: float
    agent_loss: float
    validation: dict[str, float] | None


class JointRun:
    """Tools and agent in training, and all that a checkpoint holds.

    Args:
        config: how to train.
        toolbox: tools whose functions are the networks to train.
        network: the agent's.
        device: where everything runs.
        objective: what the tools are trained for; the PSNR if None.
    """

    def __init__(
        self,
        config: JointConfig,
        toolbox: Toolbox,
        network: ToolchainNetwork,
        device: torch.device | str = "cpu",
        objective: Objective | None = None,
    ) -> None:
        self.config, self.toolbox, self.device = config, toolbox, torch.device(device)
        self.objective = objective or Decibels()
        rates = config.learning_rate, config.optimizer, config.muon_rate
        self.tools = ToolsTogether(toolbox, config.averaging, *rates, config.common)
        self.network = network.requires_grad_(True)
        self.values = ExactValues(
            network,
            max_steps=config.max_steps,
            learning_rate=config.agent_learning_rate,
            explore=config.explore,
            temperature=config.temperature,
            memory=config.memory,
            seed=config.seed,
        )
        self.agent = ToolchainAgent(self.values.target, toolbox, config.max_steps)  # an average of the learner
        self.generator = torch.Generator().manual_seed(config.seed)
        self.iteration, self.seconds = 0, 0.0
        self.best_gain, self.best = -math.inf, self._weights()
        self.history: list[dict[str, float]] = []

    def _weights(self) -> dict[str, dict[str, Tensor]]:
        """The averaged tools and the agent, copied."""
        return {"tools": copied(self.tools.average), "network": copied(self.values.target.state_dict())}

    def turn(self) -> int:
        """The tool whose own band has its turn in this iteration."""
        return self.iteration % len(self.toolbox)

    def step(self, clean: Tensor, damaged: Tensor) -> tuple[float, float]:
        """One iteration; returns the mean gain in dB of the chains and the agent's loss.

        Args:
            clean: float (N, 3, H, W); the last ``own`` of them for the tool of `turn` alone.
            damaged: the same, damaged.
        """
        rate = cosine(self.iteration, self.config.iterations, warmup=100, floor=0.02)
        agent_loss = 0.0
        if self.config.branched and self.iteration % self.config.agent_every == 0:
            rows = slice(0, self.config.branched)
            self.values.visit(self.toolbox, clean[rows], damaged[rows])
            for group in self.values.optimizer.param_groups:
                group["lr"] = rate * self.config.agent_learning_rate
            agent_loss = self.values.learn(self.config.agent_sample)
        gain = self._train_tools(clean, damaged, rate)
        self.iteration += 1
        return gain, agent_loss

    def _train_tools(self, clean: Tensor, damaged: Tensor, rate: float) -> float:
        """Run the agent's chains and step every tool that took part."""
        episodes = Episodes(self.toolbox, max_steps=self.config.max_steps)
        episodes.begin(damaged, clean)
        state, decibels = self.network.initial_state(len(clean)), Decibels()
        earlier, steps, own = torch.zeros(len(clean), device=clean.device), list[Step](), self.config.own
        for step in range(self.config.max_steps):
            if step:
                earlier = earlier + decibels(episodes.images, clean) / max(1, self.config.max_steps - 1)
            with torch.no_grad():
                seen = episodes.observation()
                q, state = self.network(seen["image"], seen["last_action"], state)
            temperature, going = self.config.temperature / self.values.unit, ~episodes.done
            q[: self.config.unstopped, self.toolbox.stop] = -math.inf
            actions = near_choice(q, self.config.explore, temperature, self.generator)
            if own:
                actions[-own:] = self.toolbox.stop if step else self.turn()
            rewards = episodes.step(actions).detach()
            steps.append(Step(seen["image"], seen["last_action"], actions, rewards, going))
        loss = (self.objective(episodes.images, clean) + self.config.earlier * earlier).mean()
        self.tools.descend(loss, episodes.toolchain, rate)
        self.objective.learn(episodes.images.detach(), clean)
        chosen = slice(None, len(clean) - own)  # by the agent
        if self.config.branched:
            self.values.remember([Step(*(part[chosen] for part in step)) for step in steps])
        return (episodes.psnr - episodes.psnr_initial)[chosen].mean().item()

    @torch.no_grad()
    def judge(self, held_out: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
        """The greedy agent's gain in dB on each severity with the averaged tools.

        The weights are kept if they gain more than all before, on the mean of the severities, in what they are
        trained for: dB, or LPIPS.
        """
        gains, gained, worth = dict[str, float](), 0.0, self.objective.worth
        with self.tools.averaged():
            for name, episodes in restored(self.agent, held_out):
                gains[name] = mean_gain(episodes)
                more = worth(episodes.images, episodes.clean) - worth(episodes.damaged, episodes.clean)
                gained += more.mean().item() / len(held_out)
        facts = {**gains, "worth": gained}
        self.history.append({"iteration": self.iteration, **{k: round(v, 4) for k, v in facts.items()}})
        if gained > self.best_gain:
            self.best_gain, self.best = gained, self._weights()
        return gains

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        return {
            "config": {**asdict(self.config), "tools": ", ".join(self.toolbox.names)},
            "tools": self.tools.state(),
            "values": self.values.state(),
            "objective": self.objective.state(),
            "generator": self.generator.get_state(),
            "iteration": self.iteration,
            "seconds": self.seconds,
            "best": self.best,
            "best_gain": self.best_gain,
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same configuration and tools; another one is refused."""
        check_same_configuration(state["config"], self.state()["config"])
        self.tools.restore(state["tools"])
        self.values.restore(state["values"])
        self.objective.restore(state["objective"])
        self.generator.set_state(state["generator"])
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.best, self.best_gain, self.history = state["best"], state["best_gain"], state["history"]


def train_joint(
    config: JointConfig,
    toolbox: Toolbox,
    network: ToolchainNetwork,
    train: ImagePool,
    validation: ImagePool,
    folder: str | Path,
    *,
    objective: Objective | None = None,
    device: torch.device | str = "cpu",
    checkpoint_seconds: float = 120.0,
    report: Callable[[JointProgress], None] = lambda progress: None,
    bands: Sequence[Recipe] = (),
    cards: Mapping[str, Mapping[str, Any]] | None = None,
    card: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train tools and agent together, or go on where a killed run of the same configuration stopped.

    Args:
        config: how to train.
        toolbox: tools whose functions are networks (`torch.nn.Module`); trained in place.
        network: the agent's network, its values scaled to units of ten dB (`scale_values`); trained in place.
        train: clean images to learn from.
        validation: other clean images; the weights with the best gain on their damage are kept.
        folder: receives a safetensors file and a card for every tool and ``agent.safetensors``, and on the way
            ``joint.checkpoint``.
        objective: what the tools are trained for; the PSNR if None.
        device: where everything runs.
        checkpoint_seconds: time between two checkpoints.
        report: called after every iteration.
        bands: pure damage of each tool's own band, needed if the configuration asks for images of it.
        cards: the tools' cards before, by name; what they say of network and description is kept.
        card: further entries of all cards.

    Returns:
        The agent's card.

    Raises:
        InvalidArgument: if there is a checkpoint of another configuration or toolbox, or not a band for every tool.
        TrainingDiverged: if the loss is no longer a number; the last good checkpoint stays.
    """
    if config.own and len(bands) != len(toolbox):
        raise InvalidArgument("bands", f"one for each of the {len(toolbox)} tools", len(bands))
    folder = Path(folder)
    checkpoint = folder / "joint.checkpoint"
    run = JointRun(config, toolbox, network, device, objective)
    size = network.patch_size
    train = train.fitting(size)
    held_out = validation_batches(validation, config.validation_images, size, device)
    with resumed(run, checkpoint, checkpoint_seconds) as stepped:
        while run.iteration < config.iterations:
            key = (config.seed << 40) + (1 << 39) + run.iteration * (config.batch + config.own)
            keys = torch.arange(key, key + config.batch + config.own)
            grid = "aligned" if run.iteration % 2 else "random"
            draw = partial(damaged_patches, train, size=size, grid=grid, device=device, turns=True)
            clean, damaged = draw(keys[: config.batch], recipe(config.severity))
            if config.own:
                own = draw(keys[config.batch :], bands[run.turn()])
                clean, damaged = (torch.cat(parts) for parts in zip((clean, damaged), own, strict=True))
            gain, agent_loss = run.step(clean, damaged)
            judged = None
            if run.iteration % config.evaluate_every == 0 or run.iteration == config.iterations:
                judged = run.judge(held_out)
            stepped(agent_loss)
            report(JointProgress(run.iteration, config.iterations, gain, agent_loss, judged))
    return _write(run, folder, cards or {}, card or {})


def _mean_gain_of_best(run: JointRun) -> float:
    kept = max(run.history, key=lambda entry: entry["worth"])
    return sum(kept[name] for name in SEVERITY_RANGES) / len(SEVERITY_RANGES)


def _write(
    run: JointRun, folder: Path, cards: Mapping[str, Mapping[str, Any]], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the best weights of all tools and of the agent."""
    run.values.target.load_state_dict(run.best["network"])
    facts = {
        "training": {**asdict(run.config), "iterations_done": run.iteration},
        "seconds": round(run.seconds, 1),
        "device": str(run.device),
        "validation_gain_db": round(_mean_gain_of_best(run), 4),
        "history": run.history,
        **extra,
    }
    run.tools.write(folder, run.best["tools"], cards, facts)
    run.values.target.scale_values(UNIT)
    save_agent(folder / "agent.safetensors", run.agent, facts)
    (folder / "joint.checkpoint").unlink(missing_ok=True)
    return facts
