"""Labelled episodes: visited states with the value of every action, kept in files to learn from as often as one likes.

Running all tools is what costs in exact-value learning, not learning. So an agent that is there plays near its own
choice, every tool is run wherever it comes, the agent plays what follows the promising ones to the end, and the values
are kept (`restoration_env.agents.exact_values`). Any number of processes may write into one folder, each with a seed of
its own. What is learned from the files (`restoration_env.agents.fitting`) is the values of that agent's play, the best
of which is at least as good as the agent; a second round begins with what the first one made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from restoration_env.agents.agent import ToolchainAgent
from restoration_env.agents.exact_values import ExactValues, Labelled
from restoration_env.agents.network import UNIT
from restoration_env.distortions import recipe
from restoration_env.errors import InvalidArgument, check_at_least
from restoration_env.files import check_same_configuration, replacing, write_json
from restoration_env.images import ImagePool, damaged_patches

SHARD = 256  # episodes in a file
_BATCH = 16
_FACTS = "labels.json"


@dataclass(frozen=True)
class LabelConfig:
    """Everything that decides what is labelled, apart from the images and the agent.

    Attributes:
        severity: the damage.
        explore: share of actions drawn near the agent's choice instead of taking it.
        temperature: in dB, how near.
        promising: branches that are played to the end at each state, those of the best estimates; 0 plays all.
        discount: of what follows a step.
        soft: share of the patches whose clean image is put out of focus before it is damaged: such photographs there
            are, and blur that was always there is not to be undone.
    """

    severity: str = "every"
    explore: float = 0.4
    temperature: float = 0.5
    promising: int = 4
    discount: float = 0.95
    soft: float = 0.0

    def __post_init__(self) -> None:
        recipe(self.severity)
        check_at_least(0, promising=self.promising)


def label(
    config: LabelConfig,
    agent: ToolchainAgent,
    pool: ImagePool,
    folder: str | Path,
    count: int,
    *,
    seed: int = 0,
    report: Callable[[int], None] = lambda done: None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Label episodes, or go on where this seed stopped: files of 256 episodes appear one by one.

    Args:
        config: what to label.
        agent: plays, and is believed where it was not played to the end.
        pool: clean images.
        folder: receives the files, ``SEED-NUMBER.safetensors``, and what they are, ``labels.json``.
        count: episodes of this seed, rounded up to whole files.
        seed: of the images and of the exploration.
        report: called after every batch with the episodes done.
        facts: further entries of ``labels.json``.

    Raises:
        InvalidArgument: if the folder holds labels of another configuration or agent.
    """
    check_at_least(1, count=count)
    check_at_least(0, seed=seed)
    folder, toolbox = Path(folder), agent.toolbox
    size, device = agent.network.patch_size, next(agent.network.parameters()).device
    pool, damage = pool.fitting(size), recipe(config.severity)
    ours = {
        **asdict(config),
        "tools": list(toolbox.names),
        "toolbox": toolbox.name,
        "max_steps": agent.max_steps,
        "agent": agent.card.get("sha256", ""),
    }
    known = folder / _FACTS
    if known.exists():
        check_same_configuration(json.loads(known.read_text(encoding="utf-8")), ours)
    else:
        write_json(known, {**ours, **(facts or {})})
    agent.network.scale_values(1.0 / UNIT)
    try:
        for first in range(0, count, SHARD):
            path = folder / f"{seed}-{first:06d}.safetensors"
            if path.exists():
                report(first + SHARD)
                continue
            values = ExactValues(
                agent.network,
                max_steps=agent.max_steps,
                memory=SHARD,
                explore=config.explore,
                temperature=config.temperature,
                discount=config.discount,
                promising=config.promising,
                seed=seed * 1_000_003 + first,
            )
            for done in range(first, first + SHARD, _BATCH):
                keys = torch.arange(_BATCH) + (seed << 33) + done
                clean, damaged = damaged_patches(pool, keys, damage, size, device=device, soft=config.soft)
                values.visit(toolbox, clean, damaged)
                report(done + _BATCH)
            held = values.replay.take(torch.arange(SHARD))
            with replacing(path) as temporary:
                save_file({name: part.cpu().contiguous() for name, part in held._asdict().items()}, temporary)
    finally:
        agent.network.scale_values(UNIT)


def read_labels(folders: Sequence[str | Path], tools: Sequence[str]) -> tuple[Labelled, list[dict[str, Any]]]:
    """The labelled episodes of some folders, and what each holds.

    Args:
        folders: that `label` wrote.
        tools: the names of the tools that they must be about.

    Raises:
        InvalidArgument: for a folder without labels, and labels of other tools or another number of steps.
    """
    parts: list[dict[str, torch.Tensor]] = []
    known: list[dict[str, Any]] = []
    for folder in map(Path, folders):
        files = sorted(folder.glob("*-*.safetensors"))
        if not files or not (folder / _FACTS).is_file():
            raise InvalidArgument("labelled", "a folder that `restoration-env label` wrote", folder)
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        if facts["tools"] != list(tools):
            raise InvalidArgument(
                "labelled", f"labels of the tools {', '.join(tools)}", f"{folder}: {facts['toolbox']}"
            )
        if known and facts["max_steps"] != known[0]["max_steps"]:
            raise InvalidArgument(
                "labelled", f"labels of {known[0]['max_steps']} steps", f"{folder}: {facts['max_steps']}"
            )
        held = [load_file(file) for file in files]
        parts += held
        known.append({**facts, "episodes": sum(len(part["last_actions"]) for part in held)})
    return Labelled(*(torch.cat([part[name] for part in parts]) for name in Labelled._fields)), known
