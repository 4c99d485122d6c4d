"""The ideas of joint training, each left out once: an ablation of `restoration_env.agents.joint`.

RL-Restore's Algorithm 1 (Yu et al., CVPR 2018, Section 3.4) lets the agent pick the chains and divides each tool's
gradient by its uses. What was added here is trained with and without, on equal budgets from the same tools and agent,
and everything is judged on validation images: what the agent gains, what the greedy oracle gains, what the tools gain
on pure damage of their own bands, and how seldom the least used tool was used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from restoration_env.agents.agent import load_agent
from restoration_env.agents.joint import JointConfig, train_joint
from restoration_env.agents.network import UNIT
from restoration_env.agents.oracles import greedy
from restoration_env.agents.validation import mean_gains, validation_batches
from restoration_env.files import check_same_configuration, read_weights
from restoration_env.images import ImagePool
from restoration_env.tools.catalogue import CATALOGUE, NAMES, cnn_toolbox
from restoration_env.tools.restoring import mean_gain
from restoration_env.tools.together import first_tools
from restoration_env.tools.training import TrainingConfig, validation_patches

SIDE = 63
TOOLBOX, AGENT = "cnn12", "toolchain"
BEFORE = "before joint training"
ALL: Mapping[str, Any] = {
    "batch": 16,
    "severity": "every",
    "learning_rate": 2e-4,
    "explore": 0.3,
    "temperature": 0.3,
    "earlier": 0.2,
    "unstopped": 4,
    "own": 4,
    "branched": 1,
    "common": 0.0,
    "averaging": 0.99,
}
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Idea:
    """A row of the ablation: what is changed from joint training with everything, in words and as settings."""

    words: str
    changes: Mapping[str, Any] = field(default_factory=dict)

    def config(self, iterations: int, seed: int = 0) -> JointConfig:
        """How it is trained."""
        settings = {**ALL, **self.changes, "iterations": iterations, "evaluate_every": iterations, "seed": seed}
        return JointConfig(**settings)


IDEAS = (
    Idea("everything"),
    Idea("the agent does not learn", {"branched": 0}),
    Idea("moderate damage alone", {"severity": "moderate"}),
    Idea("no single distortions", {"severity": "any"}),
    Idea("always the agent's choice", {"explore": 0.0}),
    Idea("no images of the tools' own bands", {"own": 0}),
    Idea("the last step alone counts", {"earlier": 0.0}),
    Idea("all chains may stop", {"unstopped": 0}),
    Idea("half of each step common to all alike", {"common": 0.5}),
    Idea(
        "as published",
        {"branched": 0, "severity": "moderate", "explore": 0.0, "own": 0, "earlier": 0.0, "unstopped": 0},
    ),
)


def joint_study(
    ideas: Sequence[Idea],
    iterations: int,
    train: ImagePool,
    validation: ImagePool,
    folder: str | Path,
    *,
    count: int = 96,
    precision: str = "float32",
    tell: Tell = lambda text: None,
) -> list[dict[str, Any]]:
    """Train with each of some ideas left out, and measure all of these and where they began.

    What a killed run finished is not trained again, and what it had begun goes on.

    Args:
        ideas: the rows.
        iterations: batches of each training.
        train: images to learn from.
        validation: other images, to measure on.
        folder: keeps tools and agents, a folder for each idea.
        count: patches of each severity, and of each band.
        precision: of the tools.
        tell: called before each training and each measurement.

    Returns:
        A row for where all began and for each idea: mean gains in dB of the agent and of the greedy oracle on each
        severity, the mean over the tools of the gain on their own bands, the least used tool and its share.

    Raises:
        InvalidArgument: if the folder holds a training of another configuration.
    """
    held_out = validation_batches(validation, count, SIDE, "cpu")
    bands = [validation_patches(validation, spec, TrainingConfig(spec.name, slight=0.0), count) for spec in CATALOGUE]
    rows = []
    for idea in (None, *ideas):
        words, where = (BEFORE, None) if idea is None else (idea.words, Path(folder) / idea.words.replace(" ", "-"))
        if idea is not None and where is not None:
            tell(f"{words}: training")
            _trained(idea.config(iterations), train, validation, where, precision)
        tell(f"{words}: measuring")
        box = cnn_toolbox(TOOLBOX, where, precision=precision)
        agent = load_agent(where / "agent.safetensors" if where else AGENT, toolbox=box)
        with torch.no_grad():
            own = [mean_gain(tool, *band) for tool, band in zip(box, bands, strict=True)]  # type: ignore[arg-type]
        row = {
            "words": words,
            "changes": dict(idea.changes) if idea else {},
            "agent": mean_gains(agent, held_out),
            "oracle": {name: greedy(box, *batch).gain.mean().item() for name, batch in held_out.items()},
            "own_band": round(sum(own) / len(own), 4),
            **(_least_used(where) if where else {}),
        }
        for who in ("agent", "oracle"):
            row[who] = {name: round(gain, 4) for name, gain in row[who].items()}
            row[f"{who}_mean"] = round(sum(row[who].values()) / len(row[who]), 4)
        rows.append(row)
    return rows


def _trained(config: JointConfig, train: ImagePool, validation: ImagePool, folder: Path, precision: str) -> None:
    """Train into a folder, unless it was done."""
    if (folder / "agent.safetensors").exists():
        done = JointConfig(**{k: v for k, v in _card(folder, "agent")["training"].items() if k != "iterations_done"})
        check_same_configuration(vars(done), vars(config))
        return
    tools, cards = first_tools(TOOLBOX, TOOLBOX, precision=precision)
    network = load_agent(AGENT, toolbox=tools).network
    network.scale_values(1.0 / UNIT)
    bands = [spec.band for spec in CATALOGUE]
    train_joint(config, tools, network, train, validation, folder, bands=bands, cards=cards)


def _card(folder: Path, name: str) -> dict[str, Any]:
    return read_weights(folder / f"{name}.safetensors")[1]


def _least_used(folder: Path) -> dict[str, Any]:
    """The tool that training used least, and its share of all uses."""
    uses = {name: int(_card(folder, name)["uses"]) for name in NAMES}
    least = min(uses, key=lambda name: uses[name])
    return {"least_used": least, "least_share": round(uses[least] / max(1, sum(uses.values())), 5)}


def joint_study_table(result: Mapping[str, Any]) -> str:
    """The ablation as Markdown."""
    suites = list(result["rows"][0]["agent"])
    heads = [*(f"agent, {suite}" for suite in suites), "agent, mean", "oracle, mean", "own bands", "least used tool"]
    lines = [f"| joint training, gain in dB | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for row in result["rows"]:
        gains = [*(row["agent"][suite] for suite in suites), row["agent_mean"], row["oracle_mean"], row["own_band"]]
        least = f"{row['least_used']}, {row['least_share']:.1%}" if "least_used" in row else ""
        lines.append(f"| {row['words']} | {' | '.join(f'{gain:+.2f}' for gain in gains)} | {least} |")
    return "\n".join(lines)
