"""How much an agent could gain that knew more: the ceilings of agents, by what is known when a toolchain is chosen.

The greedy oracle sees the clean image, and with it the very noise that was drawn, so a part of its gain is luck that
nobody can foresee. Two others know less. One is told the clean image and all of the damage but which noise was drawn:
it takes the tools that are best in the mean of many other draws. One is told the damage alone, blur, noise and JPEG to
the digit, but not the image: it takes the tools that are best in the mean of other photographs damaged likewise. What
an agent leaves against the latter it could win by judging damage better; what that one leaves against the former, by
looking at the image; and what the former leaves against the oracle, not at all.

Tools are chosen one after the other, as the greedy oracle does, and in the mean of finitely many images, so a ceiling
is a little higher than measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from restoration_env.agents.agent import RestorationAgent
from restoration_env.agents.oracles import OracleResult, greedy, play
from restoration_env.agents.validation import restored
from restoration_env.benchmarks.leaderboard import PATCH_SUITES
from restoration_env.benchmarks.suites import Suite, patch_keys, patch_suite
from restoration_env.distortions import Recipe, recipe
from restoration_env.episodes import NO_ACTION
from restoration_env.errors import check_at_least
from restoration_env.images import ImagePool, damaged_patches, load_images
from restoration_env.randomness import hashed
from restoration_env.toolbox import Toolbox

KNOWN = {
    "everything": "the greedy oracle",
    "all but the noise drawn": "the clean image and the damage; the best tools in the mean of other draws",
    "the damage alone": "its three strengths; the best tools in the mean of other photographs",
    "what it sees": "the agent",
}
_NOISE, _PLACES = 6, 7  # streams of the keys of other noise and of other places
_AT_ONCE = 1024  # images that are held together
_SIDE = 63

Rows = list[dict[str, Any]]


def measure_ceilings(
    agents: Mapping[str, RestorationAgent],
    images: str,
    split: str,
    others: str,
    *,
    count: int = 300,
    draws: int = 12,
    note: Callable[[str], None] = lambda text: None,
) -> tuple[Rows, dict[str, Suite]]:
    """A row for each agent and each entry of `KNOWN`, on the mild, moderate and severe suites.

    Args:
        agents: by name; the ceilings are those of their toolboxes.
        images: the source of the suites' images.
        split: which part of it.
        others: the source of the other photographs, its training part.
        count: patches of each severity.
        draws: other draws of the noise, and other photographs, for each patch.
        note: told what is measured now.

    Returns:
        Rows of "toolbox", "knows", "policy" (of an agent), and for each severity the mean gain in dB, its share of the
        oracle's, the share of images made worse and the mean number of tools; and the suites.
    """
    check_at_least(1, count=count, draws=draws)
    pool, beside = load_images(images, split).fitting(_SIDE), load_images(others, "train").fitting(_SIDE)
    suites = {name: patch_suite(images, split, recipe(name), count, size=_SIDE) for name in PATCH_SUITES}
    rows: Rows = []
    for label, agent in agents.items():
        toolbox, steps = agent.toolbox, agent.max_steps
        made: dict[str, dict[str, dict[str, float]]] = {known: {} for known in KNOWN}
        for name, suite in suites.items():
            clean, damaged = suite.patches()
            told = partial(
                _told, toolbox, steps, (clean, damaged), patch_keys(recipe(name), count), recipe(name), draws
            )
            players: dict[str, Callable[[], OracleResult]] = {
                "everything": partial(greedy, toolbox, clean, damaged, max_steps=steps),
                "all but the noise drawn": partial(told, pool),
                "the damage alone": partial(told, beside, elsewhere=True),
                "what it sees": partial(_played, agent, clean, damaged),
            }
            for known, player in players.items():
                note(f"{toolbox.name}, {name}: {known}")
                made[known][name] = _figures(player())
        for known, figures in made.items():
            for name, found in figures.items():
                found["share"] = round(found["gain"] / made["everything"][name]["gain"], 4)
            policy = {"policy": label} if known == "what it sees" else {}
            rows.append({"toolbox": toolbox.name, "knows": known, **policy, **figures})
    return rows, suites


def other_draws(
    pool: ImagePool, keys: Tensor, damage: Recipe, draws: int, *, elsewhere: bool = False
) -> tuple[Tensor, Tensor]:
    """The patches of these keys with other noise, and perhaps cut elsewhere: their damage has the same strengths.

    Args:
        pool: where they are cut.
        keys: int64 (N,).
        damage: the recipe of the strengths.
        draws: how many for each key.
        elsewhere: cut other patches, instead of the same.

    Returns:
        Clean and damaged, float32 (N * draws, 3, 63, 63) in [0, 1], those of one key side by side.
    """
    noise = hashed(keys, draws, _NOISE).flatten()
    every = keys.repeat_interleave(draws)
    places = hashed(keys, draws, _PLACES).flatten() if elsewhere else every
    return damaged_patches(pool, every, damage, _SIDE, place_keys=places, noise_keys=noise)


def _told(
    toolbox: Toolbox,
    steps: int,
    images: tuple[Tensor, Tensor],
    keys: Tensor,
    damage: Recipe,
    draws: int,
    pool: ImagePool,
    elsewhere: bool = False,
) -> OracleResult:
    """What the toolchains bring to the clean and damaged images of these keys that are best in the mean of others."""
    chains = []
    for few in keys.split(max(1, _AT_ONCE // draws)):
        clean, damaged = other_draws(pool, few, damage, draws, elsewhere=elsewhere)
        chains.append(greedy(toolbox, clean, damaged, max_steps=steps, together=draws).toolchains[::draws])
    return play(toolbox, *images, torch.cat(chains))


def _played(agent: RestorationAgent, clean: Tensor, damaged: Tensor) -> OracleResult:
    ((_, episodes),) = restored(agent, {"": (clean, damaged)})
    tools = torch.where(episodes.toolchain == agent.toolbox.stop, NO_ACTION, episodes.toolchain)
    return OracleResult(episodes.psnr - episodes.psnr_initial, tools, episodes.psnr)


def _figures(found: OracleResult) -> dict[str, float]:
    used = (found.toolchains != NO_ACTION).sum(1).double()
    return {
        "gain": round(found.gain.mean().item(), 4),
        "harmed": round((found.gain < 0).double().mean().item(), 4),
        "tools": round(used.mean().item(), 3),
    }


def ceilings_table(result: Mapping[str, Any]) -> str:
    """The rows as Markdown."""
    heads = [f"{name}: gain, of the oracle's, harmed" for name in PATCH_SUITES]
    lines = [f"| tools | known when a tool is chosen | {' | '.join(heads)} |", "|---|---|" + "---|" * len(heads)]
    for row, cells in zip(result["rows"], table_cells(result["rows"]), strict=True):
        lines.append(f"| {row['toolbox']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Of each row what is known, and gain, share and harm on each severity, in words."""
    return [
        [
            row["knows"] + (f" ({row['policy']})" if "policy" in row else ""),
            *(
                f"{row[name]['gain']:+.2f}, {row[name]['share']:.0%}, {row[name]['harmed']:.1%}"
                for name in PATCH_SUITES
            ),
        ]
        for row in rows
    ]
