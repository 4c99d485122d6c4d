"""Submissions to the leaderboard: a folder with a card, results, and the actions or the images they come from.

======================  ==============================================================================================
``card.json``           who, what, with which tools, trained on what; the suites by the sha256 of their bytes
``results.json``        the numbers of each suite
``actions.json``        of a policy: the actions and the reward of each, image by image
``weights/``            of a policy, if it wants to be run again: safetensors with their cards
``images/SUITE/``       of everything that is not a policy: the restored images, 0000.png and so on
======================  ==============================================================================================
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from restoration_env.agents.agent import WEIGHTS as AGENTS
from restoration_env.agents.agent import agent_names, played_with
from restoration_env.benchmarks.comparison import fingerprint, summarise
from restoration_env.benchmarks.entries import Sources, load_entry
from restoration_env.benchmarks.leaderboard import Job, Protocol, Store, entry_facts, plain
from restoration_env.benchmarks.networks import NETWORKS
from restoration_env.benchmarks.suites import SEED, Suite, suite_specification
from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.files import replacing, write_json
from restoration_env.rendering import save_png

FORMAT = 1
KINDS = ("policy", "images")
# What the author says, and what it is for; a template has these empty.
AUTHORED = {
    "name": "what the row is called",
    "authors": "who made it",
    "description": "one line: what it is",
    "link": "paper or code",
    "licence": "of the weights or images",
    "training_data": "in words",
    "training_patches": "how many patches it saw, or null",
    "training_seconds": "or null",
    "parameters": "how many weights it has, or null",
}


@dataclass(frozen=True)
class Submission:
    """A submission as it was read.

    Attributes:
        folder: where it is.
        card: who, what, with which tools.
        results: numbers by suite.
        actions: of a policy: ``actions`` and ``rewards`` by suite.
    """

    folder: Path
    card: Mapping[str, Any]
    results: Mapping[str, Any]
    actions: Mapping[str, Any]


def read_submission(folder: str | Path) -> Submission:
    """Read a submission, without judging its numbers.

    Raises:
        InvalidArgument: if a file is missing, is no JSON object, or lacks what it must say.
    """
    folder = Path(folder)
    card = _object(folder / "card.json")
    if card.get("format") != FORMAT:
        raise InvalidArgument("card.json", f"of format {FORMAT}", card.get("format"))
    if card.get("kind") not in KINDS:
        raise UnknownName("kind in card.json", card.get("kind"), KINDS)
    if not isinstance(card.get("name"), str) or not card["name"]:
        raise InvalidArgument("name in card.json", "what the row is called", repr(card.get("name")))
    suites = card.get("suites")
    if not isinstance(suites, dict) or not suites:
        raise InvalidArgument("suites in card.json", "an object of at least one suite", repr(suites))
    for suite in suites:
        suite_specification(suite)
    results = _object(folder / "results.json")
    missing = [suite for suite in suites if not isinstance(results.get(suite), dict)]
    if missing:
        raise InvalidArgument("results.json", "with the numbers of every suite of the card", f"none of {missing}")
    actions = _object(folder / "actions.json") if card["kind"] == "policy" else {}
    return Submission(folder, card, results, actions)


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidArgument("submission", f"a folder with a {path.name} in JSON", error) from None
    if not isinstance(value, dict):
        raise InvalidArgument(path.name, "a JSON object", type(value).__name__)
    return value


def suite_facts(protocol: Protocol, name: str, suite: Suite) -> dict[str, Any]:
    """What a card says of a suite: how it is made again, and what its bytes must be."""
    images = protocol.real if suite_specification(name).kind == "real" else protocol.images
    return {
        "images": Path(images).name,
        "split": protocol.split,
        "count": len(suite),
        "seed": SEED,
        "sha256": suite.digest,
    }


def write_submission(
    name: str, protocol: Protocol, sources: Sources, store: Store, folder: str | Path, about: Mapping[str, Any]
) -> Path:
    """Write the submission of an entry that was measured: of its first seed, with its weights where they may be copied.

    Args:
        name: of the entry.
        protocol: on what it was measured.
        sources: where it comes from.
        store: what was measured.
        folder: to write into; made if need be.
        about: further entries of the card, such as its authors.

    Raises:
        InvalidArgument: if the entry was not measured on a suite of the protocol.
    """
    folder, entry = Path(folder), load_entry(name, sources)
    suites, results, actions = {}, {}, {}
    for suite_name in protocol.suites:
        suite, key = protocol.build(suite_name), Job(name, suite_name, SEED, protocol, sources).key()
        if key not in store:
            raise InvalidArgument("entry", f"one that was measured on {suite_name}", repr(name))
        measured = store.read(key)
        suites[suite_name] = suite_facts(protocol, suite_name, suite)
        results[suite_name] = summarise(measured, entry.toolbox)
        actions[suite_name] = {key: plain(measured)[key] for key in ("actions", "rewards")}
    facts = entry_facts(name, entry)
    card = {
        "format": FORMAT,
        "kind": "policy",
        **{key: facts.get(key) for key in AUTHORED},
        "name": entry.label,
        "family": entry.family,
        "max_steps": entry.max_steps,
        "looks": protocol.looks,
        "precision": sources.precision,
        "toolbox": entry.toolbox.name,
        "toolbox_sha256": fingerprint(entry.toolbox),
        "suites": suites,
        **_copied(name, sources, folder / "weights"),
        **about,
    }
    write_json(folder / "actions.json", actions)
    write_json(folder / "results.json", results)
    write_json(folder / "card.json", card)
    return folder


def _copied(name: str, sources: Sources, target: Path) -> dict[str, Any]:
    """Copy the weights of an agent or a single network beside the card; what the card says of them."""
    agent, _ = played_with(name)
    path = AGENTS / f"{agent}.safetensors" if agent in agent_names() else Path(agent)
    if name in NETWORKS:
        path = sources.singles / f"{name}.safetensors"
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    for file in (path, path.with_suffix(".json")):
        with replacing(target / file.name) as temporary:
            shutil.copyfile(file, temporary)
    card = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return {"weights": path.name, "weights_sha256": card["sha256"]}


def write_template(folder: str | Path, protocol: Protocol, kind: str = "images") -> Path:
    """Write a submission to fill in: a card with blanks, and the damaged images as ``input/SUITE/0000.png``.

    Args:
        folder: to write into; must not hold a card yet.
        protocol: the suites.
        kind: "images" for anything that restores images; a policy's submission is written by `write_submission`.

    Raises:
        InvalidArgument: if there is a card already.
    """
    folder = Path(folder)
    if kind != "images":
        raise InvalidArgument("kind", "'images'; a policy's submission is written by `leaderboard submit`", repr(kind))
    if (folder / "card.json").exists():
        raise InvalidArgument("folder", "one without a card.json", repr(str(folder)))
    suites = {}
    for name in protocol.suites:
        suite = protocol.build(name)
        suites[name] = suite_facts(protocol, name, suite)
        for number, image in enumerate(_singly(suite)):
            save_png(folder / "input" / name / f"{number:04d}.png", image)
    blanks: dict[str, Any] = dict.fromkeys(AUTHORED, "")
    blanks |= dict.fromkeys(("training_patches", "training_seconds", "parameters", "multiply_adds"))
    write_json(folder / "results.json", {name: {"psnr_out": None, "gain": None, "ssim": None} for name in suites})
    write_json(folder / "card.json", {"format": FORMAT, "kind": kind, **blanks, "looks": False, "suites": suites})
    return folder


def _singly(suite: Suite) -> list[np.ndarray]:
    images = [image for _, damaged in suite.batches(64) for image in damaged]
    return [(image * 255.0).round().to(torch.uint8).permute(1, 2, 0).numpy() for image in images]


def read_restored(folder: Path, suite: Suite, name: str) -> list[Tensor]:
    """The restored images of a submission, float (3, H, W) in [0, 1], in the order of the suite.

    Raises:
        InvalidArgument: if one is missing, unreadable or of another size.
    """
    restored = []
    for number, damaged in enumerate(image for _, batch in suite.batches(64) for image in batch):
        path = folder / "images" / name / f"{number:04d}.png"
        try:
            with Image.open(path) as file:
                pixels = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)
        except Exception as error:  # Pillow raises many kinds for damaged bytes
            raise InvalidArgument("images", f"with a readable {path.name} of {name}", error) from None
        if pixels.shape != damaged.shape:
            got = f"{tuple(pixels.shape)} in {path}"
            raise InvalidArgument("images", f"of the damaged images' sizes, {tuple(damaged.shape)}", got)
        restored.append(pixels.float() / 255.0)
    return restored
