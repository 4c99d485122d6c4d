"""Submissions are not trusted: their actions are replayed, their images measured, and every number must come out.

As CompilerGym does it (Cummins et al., CGO 2022), for images: the suites are built again and must have the same bytes,
the tools must have the same weights, each action must bring the reward that was written down, weights that are there
must choose those actions, and all numbers must follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from restoration_env.agents.policies import Policy
from restoration_env.benchmarks.comparison import ChainPlayer, Measurement, Row, fingerprint, measure, summarise
from restoration_env.benchmarks.entries import Sources, load_tools, load_trained
from restoration_env.benchmarks.networks import SingleTool
from restoration_env.benchmarks.submission import Submission, read_restored, read_submission
from restoration_env.benchmarks.suites import Suite, build_suite
from restoration_env.errors import InvalidArgument
from restoration_env.files import read_weights
from restoration_env.metrics import psnr, ssim
from restoration_env.perceptual import lpips
from restoration_env.toolbox import Tool, Toolbox

REWARD = 0.005  # dB that a reward may differ: convolutions round differently from machine to machine
SAME_CHOICES = 0.98  # of the images; a difference in the last bit may turn a choice between equals
# How far a mean may be from what is recomputed. Costs are not measured against images: they may not be understated.
TOLERANCES = {
    "psnr_in": 1e-3,
    "psnr_out": 5e-3,
    "gain": 5e-3,
    "gain_low": 5e-3,
    "gain_high": 5e-3,
    "ssim": 1e-3,
    "lpips": 2e-3,
    "harmed": 5e-3,
    "mean_tools": 1e-3,
    "images": 0,
}


class InvalidSubmission(InvalidArgument):
    """A submission whose numbers do not come out; the message lists what is wrong.

    Attributes:
        problems: one sentence each.
    """

    def __init__(self, folder: Path, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(f"submission {folder.name}", "what its images and actions show", "; ".join(problems))


def validate(
    folder: str | Path,
    *,
    images: str = "",
    real: str = "",
    sources: Sources = Sources(),  # noqa: B008 (frozen)
) -> dict[str, Row]:
    """Recompute a submission.

    Args:
        folder: of the submission.
        images: the clean images, where they are not bundled ones.
        real: the photographs of the suite "real", where they are not the bundled ones.
        sources: where the published weights are, for submissions that use them.

    Returns:
        The recomputed numbers by suite, with the costs that the card states.

    Raises:
        InvalidSubmission: if anything differs; the message says all that does.
        InvalidArgument: if a file cannot be read, or a suite cannot be built.
    """
    submission = read_submission(folder)
    problems: list[str] = []
    toolbox, policy = _tools(submission, sources, problems) if submission.card["kind"] == "policy" else (None, None)
    rows = {}
    for name, facts in submission.card["suites"].items():
        suite = _suite(name, facts, images, real)
        if suite.digest != facts.get("sha256"):
            problems.append(f"{name}: the suite has other bytes than the card's sha256 says")
            continue
        if toolbox is not None:
            found = _replayed(submission, name, suite, toolbox, policy, problems)
        else:
            found = _measured(submission, name, suite)
        if found is not None:
            box = toolbox or Toolbox("images", [Tool("images", "what was submitted", lambda images: images)])
            rows[name] = summarise(found, box)
            _compare(name, submission.results[name], rows[name], problems)
    if problems:
        raise InvalidSubmission(submission.folder, problems)
    stated = ("parameters", "training_patches", "training_seconds", "training_data")
    about = {key: submission.card.get(key) for key in stated}
    about |= {"policy": submission.card["name"], "family": submission.card.get("family", "submitted")}
    about["toolbox"] = submission.card.get("toolbox", "images")
    spent = {name: submission.results[name].get("multiply_adds") for name in rows}
    return {name: {**about, **row, "multiply_adds": spent[name]} for name, row in rows.items()}


def _suite(name: str, facts: Mapping[str, Any], images: str, real: str) -> Suite:
    own = {"bundled", "div2k", "bundled-real"}
    here = str(facts.get("images"))
    given = real if name == "real" else images
    if here not in own and not given:
        raise InvalidArgument("--images", f"the folder {here!r} that the submission was measured on", "nothing")
    source = here if here in own else given
    count, seed = int(facts.get("count", 0)), int(facts.get("seed", 0))
    return build_suite(name, source, str(facts.get("split")), count, seed=seed, real=source)


def _tools(submission: Submission, sources: Sources, problems: list[str]) -> tuple[Toolbox, Policy | None]:
    """The tools of a policy's submission, and the policy itself if its weights are there."""
    card = submission.card
    sources = replace(sources, precision=card.get("precision", "float32"), max_steps=int(card.get("max_steps", 3)))
    policy: Policy | None = None
    toolbox: Toolbox | None = None
    if "weights" in card:
        path = submission.folder / "weights" / Path(str(card["weights"])).name
        if read_weights(path)[1]["sha256"] != card.get("weights_sha256"):
            problems.append(f"{path.name}: not the weights that the card's sha256 says")
        acts = "max_steps" in read_weights(path)[1]  # an agent's, which need a toolbox, not a single network's
        loaded = load_trained(str(path), str(card.get("toolbox")) if acts else None, sources)
        policy, toolbox = loaded.policy, loaded.toolbox
    toolbox = toolbox or load_tools(str(card.get("toolbox")), sources)
    if fingerprint(toolbox) != card.get("toolbox_sha256"):
        problems.append(f"toolbox {toolbox.name}: other weights than the card's sha256 says")
    return toolbox, policy


def _replayed(
    submission: Submission,
    name: str,
    suite: Suite,
    toolbox: Toolbox,
    policy: Policy | None,
    problems: list[str],
) -> Measurement | None:
    """What the submitted actions do; what is wrong with them goes to the problems."""
    written = submission.actions.get(name) or {}
    actions: list[list[int]] = written.get("actions") or []
    rewards: list[list[float | None]] = written.get("rewards") or []
    steps = int(submission.card.get("max_steps", 3))
    if not _well_formed(actions, len(suite), steps, toolbox.stop):
        problems.append(f"{name}: actions.json needs 1 to {steps} actions of 0..{toolbox.stop} for {len(suite)} images")
        return None
    looks = bool(submission.card.get("looks", False))
    found = measure(ChainPlayer(actions, toolbox.stop), toolbox, suite, max_steps=steps, looks=looks)
    for number, (ours, theirs) in enumerate(zip(found.rewards, rewards, strict=False)):
        known = [a for a in ours if a == a]
        same = isinstance(theirs, list) and len(theirs) == len(ours)
        if not same or any(abs(a - (b or 0.0)) > REWARD for a, b in zip(known, theirs, strict=False)):
            problems.append(f"{name}: image {number} brings the rewards {_short(ours)}, not {_short(theirs)}")
            break
    if not isinstance(rewards, list) or len(rewards) != len(suite):
        problems.append(f"{name}: actions.json needs the rewards of {len(suite)} images")
    if policy is not None and not isinstance(policy, SingleTool):
        again = measure(policy, toolbox, suite, max_steps=steps, looks=False)
        same_choices = sum(a == b for a, b in zip(again.actions, actions, strict=True)) / len(suite)
        if same_choices < SAME_CHOICES:
            problems.append(f"{name}: the weights choose these actions for {same_choices:.0%} of the images only")
    return found


def _well_formed(actions: Any, images: int, steps: int, stop: int) -> bool:
    if not isinstance(actions, list) or len(actions) != images:
        return False
    whole = [row for row in actions if isinstance(row, list) and 1 <= len(row) <= steps]
    return len(whole) == images and all(type(a) is int and 0 <= a <= stop for row in whole for a in row)


def _short(values: Any) -> str:
    return ", ".join(f"{v:+.3f}" for v in values) if isinstance(values, list) else repr(values)


@torch.no_grad()
def _measured(submission: Submission, name: str, suite: Suite) -> Measurement:
    """What submitted images show."""
    restored = read_restored(submission.folder, suite, name)
    found, first = Measurement(), 0
    for clean, damaged in suite.batches(64):
        images = torch.stack(restored[first : first + len(clean)])
        first += len(clean)
        count = len(clean)
        seen = suite.referenced and min(clean.shape[-2:]) >= 31
        found.extend(
            Measurement(
                psnr(damaged, clean).tolist(),
                psnr(images, clean).tolist(),
                ssim(images, clean).tolist() if suite.referenced else [torch.nan] * count,
                lpips(images, clean).tolist() if seen else [torch.nan] * count,
                [0.0] * count,
                [[0]] * count,
                [[0.0]] * count,
            )
        )
    return found


def _compare(name: str, stated: Mapping[str, Any], found: Row, problems: list[str]) -> None:
    for key, value in stated.items():
        if key == "multiply_adds":
            if value is not None and value < (found.get(key) or 0):
                problems.append(f"{name}: the tools alone take {found[key]:,} multiply-adds, not {value:,}")
        elif value is not None and key in TOLERANCES:
            known = found.get(key)
            if known is None or not abs(float(value) - known) <= TOLERANCES[key]:
                problems.append(f"{name}: {key} is {known}, not {value}")
        elif value is not None:
            problems.append(f"{name}: {key} in results.json is no number of the leaderboard")
    if stated.get("gain") is None and "gain" in found:
        problems.append(f"{name}: results.json does not say the gain")


def add_to_board(board: dict[str, Any], rows: Mapping[str, Row], *, replace_row: bool = False) -> dict[str, Any]:
    """A table with the rows of a validated submission in it.

    Args:
        board: as `restoration-env leaderboard run` writes it.
        rows: as `validate` returns them.
        replace_row: take the place of a row of the same name.

    Raises:
        InvalidArgument: if the table has no such suite, or a row of that name that is to stay.
    """
    label = next(iter(rows.values()))["policy"]
    suites = {}
    for name, suite in board["suites"].items():
        known = [row for row in suite["rows"] if row["policy"] == label]
        if known and not replace_row:
            raise InvalidArgument("name in card.json", "that of no row yet, or --replace given", repr(label))
        kept = [row for row in suite["rows"] if row["policy"] != label]
        added = [{"entry": label, **rows[name], "submitted": True}] if name in rows else []
        suites[name] = {**suite, "rows": kept + added}
    return {**board, "suites": suites}


def check_suites(folder: str | Path, board: Mapping[str, Any]) -> None:
    """Refuse a submission whose suites are not those of a table, before anything is recomputed."""
    for name, facts in read_submission(folder).card["suites"].items():
        held = board["suites"].get(name)
        if held is None:
            raise InvalidArgument("suites of the submission", "among " + ", ".join(board["suites"]), repr(name))
        if held["sha256"] != [facts.get("sha256")]:
            raise InvalidArgument("suites of the submission", f"the table's, whose {name} has other bytes")
