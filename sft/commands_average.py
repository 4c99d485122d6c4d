"""The command ``restoration-env sft-average``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from restoration_env.errors import InvalidArgument
from restoration_env.files import read_weights, save_weights
from restoration_env.provenance import provenance
from restoration_env.sft.training import shape_of

_TOLD = ("name", "sha256", "stage", "iterations_done", "seconds", "validation", "started_from", "training", "command")


@click.command()
@click.argument("weights", nargs=-1)
@click.option("-o", "--output", required=True, help="The safetensors file to write, its card beside it.")
def average(weights: tuple[str, ...], output: str) -> None:
    """The mean of generators' weights that went on from each other, each from the end of the one before.

    Stochastic weight averaging (Izmailov et al., UAI 2018): where the learning rate falls to nothing again and again,
    the mean of the ends is often better than the last of them.
    """
    if Path(output).suffix != ".safetensors":
        raise InvalidArgument("--output", "a path that ends in .safetensors", repr(output))
    tensors, card = averaged(weights)
    words = f"restoration-env sft-average {' '.join(Path(one).stem for one in weights)} -o {Path(output).name}"
    save_weights(output, tensors, {"name": Path(output).stem, **card, **provenance(words)})


def averaged(files: Sequence[str | Path]) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """The mean of the weights in some files, and what a card says of them.

    Raises:
        InvalidArgument: for fewer than two files, or generators of another shape or conditioning than the first.
    """
    if len(files) < 2:
        raise InvalidArgument("weights", "at least two files", len(files))
    sums: dict[str, Tensor] = {}
    cards: list[dict[str, Any]] = []
    for file in files:
        tensors, card = read_weights(file)
        if cards and shape_of(card) != shape_of(cards[0]):
            raise InvalidArgument("weights", f"generators like the first, {shape_of(cards[0])}", shape_of(card))
        for name, value in tensors.items():
            sums[name] = sums.get(name, torch.zeros(())) + value.double() / len(files)
        cards.append(card)
    same: dict[str, Any] = {key: cards[-1][key] for key in ("stage", "parameters", "licence") if key in cards[-1]}
    parts = [{key: card[key] for key in _TOLD if key in card} for card in cards]
    return {name: value.float() for name, value in sums.items()}, {**shape_of(cards[-1]), **same, "mean_of": parts}
