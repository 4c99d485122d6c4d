"""The whole recipe in one command: tools, alone and in chains, an agent for them, both together, the agent once more.

``restoration-env train system`` runs the five stages one after the other. Each stage stops and resumes by itself,
and a finished one is not run again, so the command is repeated until it ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from restoration_env.agents.agent import load_agent
from restoration_env.agents.exact import ExactConfig, train_exact
from restoration_env.agents.joint import JointConfig, train_joint
from restoration_env.agents.network import UNIT
from restoration_env.cli import progress_bar
from restoration_env.devices import find_device, keep_freed_memory
from restoration_env.files import read_weights
from restoration_env.images import ImagePool, load_images
from restoration_env.provenance import provenance
from restoration_env.tools.catalogue import NAMES, TOOLBOXES, cnn_toolbox
from restoration_env.tools.chain_training import ChainConfig, train_in_chains
from restoration_env.tools.lessons import RECIPES, lessons, lessons_done
from restoration_env.tools.together import first_tools
from restoration_env.tools.training import Progress, train_tool

Tell = Callable[[str, int, int, str], None]  # stage, done, total, note


@dataclass(frozen=True)
class Budget:
    """How much of each stage.

    Attributes:
        tools: times the iterations of the recipe.
        tool_batch: patches a step.
        chains: iterations of training in chains.
        chain_batch: images in each.
        episodes: images for the agent, before joint training and after it.
        agent_batch: of them side by side.
        joint: iterations of joint training.
        joint_batch: images in each.
        branched: of them with all tools run, for the agent.
    """

    tools: float
    tool_batch: int
    chains: int
    chain_batch: int
    episodes: int
    agent_batch: int
    joint: int
    joint_batch: int
    branched: int


BUDGETS = {
    "trial": Budget(0.002, 4, 4, 4, 32, 4, 4, 4, 1),
    "cpu": Budget(1.0, 16, 3_000, 32, 5_000, 8, 3_000, 16, 1),
    "gpu": Budget(4.0, 64, 30_000, 128, 100_000, 256, 30_000, 64, 8),
}


def train_system(
    budget: Budget,
    toolbox: str,
    train: ImagePool,
    validation: ImagePool,
    folder: str | Path,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    tell: Tell = lambda stage, done, total, note: None,
    card: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run all stages that are not done yet.

    Args:
        budget: how much of each.
        toolbox: "cnn12-joint" or "cnn12-modern".
        train: clean images to learn from.
        validation: other clean images, to choose weights by.
        folder: receives ``tools/``, ``chains/``, ``agent.safetensors``, ``joint/`` and ``toolchain.safetensors``.
        seed: of everything random.
        device: where everything runs.
        tell: called on the way.
        card: further entries of all cards.

    Returns:
        The card of the final agent.
    """
    folder, alone = Path(folder), toolbox if toolbox in RECIPES else "cnn12"
    more: dict[str, Any] = {"card": dict(card or {}), "device": device}
    stages = lessons(NAMES, alone, batch=budget.tool_batch, seed=seed, times=budget.tools)
    for number, config in enumerate(stages[lessons_done(stages, folder / "tools") :], 1):
        title = f"tool {config.tool} (lesson {number} of those left)"
        train_tool(config, train, validation, folder / "tools", report=partial(_tell_tool, tell, title), **more)
    if not (folder / "chains" / f"{NAMES[-1]}.safetensors").exists():
        tied = len({config.tool for config in stages}) < len(NAMES)  # not all were trained alone: they begin as one
        tools, cards = first_tools(toolbox, str(folder / "tools"), tied=tied, device=device)
        train_in_chains(
            ChainConfig(iterations=budget.chains, batch=budget.chain_batch, seed=seed),
            tools,
            train,
            validation,
            folder / "chains",
            report=lambda p: tell("chains", p.iteration, p.iterations, _gains(p.validation)),
            cards=cards,
            **more,
        )
    first, last = folder / "agent.safetensors", folder / "toolchain.safetensors"
    agent = ExactConfig(episodes=budget.episodes, batch=budget.agent_batch, seed=seed)
    if not first.exists():
        tools = cnn_toolbox(toolbox, folder / "chains", device=device)
        train_exact(
            agent,
            tools,
            train,
            validation,
            first,
            report=lambda p: tell("agent", p.images, p.total, _gains(p.validation)),
            **more,
        )
    joint = folder / "joint"
    if not (joint / "agent.safetensors").exists():
        tools = cnn_toolbox(toolbox, folder / "chains", device=device)
        network = load_agent(first, toolbox=tools, device=str(device)).network
        network.scale_values(1.0 / UNIT)
        train_joint(
            JointConfig(iterations=budget.joint, batch=budget.joint_batch, branched=budget.branched, seed=seed),
            tools,
            network,
            train,
            validation,
            joint,
            report=lambda p: tell("joint", p.iteration, p.iterations, _gains(p.validation)),
            cards=_cards(folder / "chains"),
            **more,
        )
    if not last.exists():
        tools = cnn_toolbox(toolbox, joint, device=device)
        final = ExactConfig(
            episodes=budget.episodes,
            batch=budget.agent_batch,
            start=str(joint / "agent.safetensors"),
            pretraining=0,
            learning_rate=3e-4,
            seed=seed + 1,
        )
        train_exact(
            final,
            tools,
            train,
            validation,
            last,
            report=lambda p: tell("agent again", p.images, p.total, _gains(p.validation)),
            **more,
        )
    return read_weights(last)[1]


def _cards(folder: Path) -> dict[str, dict[str, Any]]:
    return {name: read_weights(folder / f"{name}.safetensors")[1] for name in NAMES}


def _tell_tool(tell: Tell, title: str, progress: Progress) -> None:
    gain = progress.validation_gain
    tell(title, progress.iteration, progress.iterations, "" if gain is None else f"validation {gain:+.2f} dB")


def _gains(gains: Any) -> str:
    return "" if gains is None else "validation " + " ".join(f"{name} {gain:+.2f}" for name, gain in gains.items())


@click.command()
@click.option("--images", default="bundled", show_default=True, help="Clean images: a folder or a name.")
@click.option("--out", default="runs/system", show_default=True, help="Folder of everything.")
@click.option(
    "--toolbox",
    type=click.Choice([name for name in TOOLBOXES if name in ("cnn12-joint", "cnn12-modern")]),
    default="cnn12-joint",
    show_default=True,
)
@click.option("--budget", type=click.Choice(list(BUDGETS)), help="How much.  [default: gpu on a GPU, else cpu]")
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice.")
def system(images: str, out: str, toolbox: str, budget: str | None, seed: int, device: str, threads: int) -> None:
    """Train tools, agent and both together, as one. A killed run goes on where it stopped."""
    where = find_device(device)
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    chosen = budget or ("gpu" if where.type == "cuda" else "cpu")
    pool, validation = load_images(images, "train"), load_images(images, "validation")
    command = f"restoration-env train system --images {Path(images).name} --toolbox {toolbox} --budget {chosen}"
    data = f"{Path(images).name}: {len(pool)} images train, {len(validation)} validate"
    with progress_bar() as bar:
        task = bar.add_task("", total=None, note="")

        def tell(stage: str, done: int, total: int, note: str) -> None:
            bar.update(task, description=stage, completed=done, total=total)
            if note:
                bar.update(task, note=note)

        card = {"data": data, **provenance(command, where)}
        train_system(BUDGETS[chosen], toolbox, pool, validation, out, seed=seed, device=where, tell=tell, card=card)
