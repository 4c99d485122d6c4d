"""Studies of how agents learn: the same budget for each, several seeds, judged on the same suites.

A study is a table of contestants. Each run writes its weights and card into a folder, and a run whose card is there
is not made again; one that was stopped goes on from its checkpoint.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from restoration_env.agents.agent import load_agent
from restoration_env.agents.drqn import DRQNConfig, train_drqn
from restoration_env.agents.exact import ExactConfig, train_exact
from restoration_env.agents.policies import Policy
from restoration_env.agents.sb3 import ALGORITHMS, find_algorithm
from restoration_env.agents.sb3_policy import load_sb3_policy
from restoration_env.agents.sb3_training import SB3Config, train_sb3
from restoration_env.benchmarks.comparison import Row, evaluate
from restoration_env.benchmarks.suites import Suite
from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.files import check_same_configuration, read_weights
from restoration_env.images import load_images
from restoration_env.registry import load_toolbox

Curve = list[tuple[float, float]]
_CONFIGS: dict[str, type] = {
    "drqn": DRQNConfig,
    "exact": ExactConfig,
    "sb3": SB3Config,
}


@dataclass(frozen=True)
class Contestant:
    """One line of a study.

    Attributes:
        label: what it is called there.
        algorithm: "drqn", "exact" or "sb3".
        settings: of its configuration; the rest are the defaults.
    """

    label: str
    algorithm: str
    settings: Mapping[str, Any]

    def config(self, seed: int, changes: Mapping[str, Any]) -> Any:
        """Its configuration, with those of the changes that it knows."""
        kind = _CONFIGS[self.algorithm]
        names = {field.name for field in fields(kind)}
        known = {name: value for name, value in changes.items() if name in names}
        return kind(**{**self.settings, **known, "seed": seed})


# What DRQN sees: as many images, updates and examples of each for every variant.
_DRQN = {
    "episodes": 6_400,
    "batch": 32,
    "updates": 4,
    "sample": 32,
    "warmup": 320,
    "severity": "moderate",
    "network": "statistics",
    "learning_rate": 1e-3,
    "evaluate_every": 20,
    "validation_images": 128,
}
_EXACT = {
    "episodes": 640,
    "batch": 8,
    "updates": 10,
    "sample": 32,
    "severity": "moderate",
    "pretraining": 0,
    "evaluate_every": 5,
    "validation_images": 128,
}
_SB3 = {"severity": "any", "evaluate_every": 2_000, "validation_images": 192}
_ACTIONS = {"a2c": 40_000, "maskable-ppo": 40_000, "recurrent-ppo": 40_000}  # they begin to see later
_RAINBOW = {"double": True, "dueling": True, "n_step": 3, "prioritised": 0.6}

STUDIES: dict[str, tuple[Contestant, ...]] = {
    "variants": (
        Contestant("drqn", "drqn", {**_DRQN, "double": False}),
        Contestant("double", "drqn", _DRQN),
        Contestant("dueling", "drqn", {**_DRQN, "double": False, "dueling": True}),
        Contestant("3-step", "drqn", {**_DRQN, "double": False, "n_step": 3}),
        Contestant("prioritised", "drqn", {**_DRQN, "double": False, "prioritised": 0.6}),
        Contestant("all four", "drqn", {**_DRQN, **_RAINBOW}),
        Contestant("exact values", "exact", _EXACT),
        Contestant("estimated values", "exact", {**_EXACT, "returns": "estimated"}),
    ),
    "horizons": tuple(
        Contestant(f"{steps} step{'s' * (steps > 1)}", "drqn", {**_DRQN, "max_steps": steps}) for steps in range(1, 7)
    ),
    "baselines": tuple(
        Contestant(
            row.name,
            "sb3",
            {"algo": row.name, "steps": _ACTIONS.get(row.name, 20_000), **_SB3},
        )
        for row in ALGORITHMS
    ),
}


def contestants(study: str, only: Sequence[str] = ()) -> tuple[Contestant, ...]:
    """Those of a study, or some of them.

    Raises:
        UnknownName: for a study or a contestant that there is not.
    """
    if study not in STUDIES:
        raise UnknownName("study", study, STUDIES)
    labels = [contestant.label for contestant in STUDIES[study]]
    for label in only:
        if label not in labels:
            raise UnknownName("only", label, labels)
    return tuple(c for c in STUDIES[study] if not only or c.label in only)


@dataclass(frozen=True)
class Workshop:
    """What all runs of a study have in common.

    Attributes:
        folder: receives weights, cards and checkpoints.
        images: clean images by name or folder.
        toolbox: by name.
        precision: of the tools.
        device: where everything runs.
        changes: settings in place of the contestants' own.
    """

    folder: Path
    images: str
    toolbox: str = "cnn12"
    precision: str = "float32"
    device: str = "cpu"
    changes: Mapping[str, Any] | None = None

    def train(
        self, contestant: Contestant, seed: int, report: Callable[[int, int], None] = lambda done, total: None
    ) -> dict[str, Any]:
        """Train one contestant with one seed, or read the card of the run if it was made already.

        Args:
            contestant: whom.
            seed: of everything random.
            report: called with the images (or steps) seen and their number.

        Raises:
            InvalidArgument: if the folder holds a run of another configuration, toolbox or images; the message says
                what changed.
        """
        config, path = contestant.config(seed, self.changes or {}), self.path(contestant, seed)
        identity = {
            "settings": ", ".join(f"{name}={getattr(config, name)}" for name in sorted(asdict(config))),
            "toolbox": self.toolbox,
            "images": Path(self.images).name,
            "precision": self.precision,
        }
        if contestant.algorithm == "sb3":
            row = find_algorithm(config.algo)
            identity["algorithm"] = f"{row.learning_rate}, {row.steps}, {row.settings}, {row.network}"
        if path.with_suffix(".json").exists():
            card = read_weights(path)[1]
            check_same_configuration(card.get("study", {}), identity)
            return card
        said: dict[str, Any] = {"device": self.device, "card": {"study": identity}}
        if contestant.algorithm == "sb3":
            train_sb3(
                config,
                path,
                images=self.images,
                toolbox=self.toolbox,
                precision=self.precision,
                report=lambda progress: report(progress.steps, progress.total),
                **said,
            )
            return read_weights(path)[1]
        tools = load_toolbox(self.toolbox, device=self.device, precision=self.precision)
        pools = load_images(self.images, "train"), load_images(self.images, "validation")
        if contestant.algorithm == "drqn":
            train_drqn(config, tools, *pools, path, report=lambda p: report(p.episodes, p.total), **said)
        else:
            train_exact(config, tools, *pools, path, report=lambda p: report(p.images, p.total), **said)
        return read_weights(path)[1]

    def load(self, contestant: Contestant, seed: int) -> Policy:
        """The trained policy of a run."""
        path = self.path(contestant, seed)
        tools = load_toolbox(self.toolbox, device=self.device, precision=self.precision)
        if contestant.algorithm == "sb3":
            return load_sb3_policy(path, tools, device=self.device)
        return load_agent(path, toolbox=tools, device=self.device)

    def path(self, contestant: Contestant, seed: int) -> Path:
        """Where the weights of a run lie."""
        return self.folder / f"{contestant.label.replace(' ', '-')}-{seed}.safetensors"

    def judge(self, contestant: Contestant, seed: int, suites: Mapping[str, Suite]) -> dict[str, Row]:
        """A trained run on each suite."""
        policy = self.load(contestant, seed)
        tools = load_toolbox(self.toolbox, device=self.device, precision=self.precision)
        steps = int(read_weights(self.path(contestant, seed))[1]["max_steps"])
        return {name: evaluate(policy, tools, suite, max_steps=steps) for name, suite in suites.items()}


def curve(card: Mapping[str, Any]) -> Curve:
    """The validation gains of a run on the way: images (or steps) seen with tools, and the gain in dB.

    The gain is that on moderate damage where several were measured; the patches are the same for all algorithms.
    """
    return [
        (float(row.get("images", row.get("steps"))), float(row["moderate"] if "moderate" in row else row["gain"]))
        for row in card["history"]
    ]


def mean_curve(curves: Sequence[Curve]) -> list[tuple[float, float, float]]:
    """Points, their mean and their standard deviation over the curves of several seeds."""
    if any([x for x, _ in one] != [x for x, _ in curves[0]] for one in curves):
        raise InvalidArgument("curves", "of runs that were judged after the same numbers of images")
    return [
        (points[0][0], statistics.fmean(y for _, y in points), spread([y for _, y in points]))
        for points in zip(*curves, strict=True)
    ]


def images_needed(points: Sequence[tuple[float, float, float]], gain: float) -> float | None:
    """Images until the mean curve first reaches a gain, between two validations along a line; None if never."""
    before = (0.0, -math.inf)
    for x, y, _ in points:
        if y >= gain:
            if before[1] == -math.inf:
                return x
            return before[0] + (x - before[0]) * (gain - before[1]) / (y - before[1])
        before = (x, y)
    return None


def spread(values: Sequence[float]) -> float:
    """The standard deviation over seeds; 0 of a single one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def over_seeds(runs: Sequence[Mapping[str, Row]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of what was measured on each suite, over runs of several seeds."""
    table: dict[str, dict[str, float]] = {}
    for suite in runs[0]:
        for number in ("gain", "harmed", "mean_tools"):
            values = [float(run[suite][number]) for run in runs]
            table.setdefault(suite, {})[number] = round(statistics.fmean(values), 4)
            table[suite][f"{number}_std"] = round(spread(values), 4)
    return table
