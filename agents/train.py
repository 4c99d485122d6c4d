"""The commands ``restoration-env train agent`` and ``restoration-env train joint``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import torch

from restoration_env.agents.agent import load_agent
from restoration_env.agents.drqn import DRQNConfig, DRQNProgress, train_drqn
from restoration_env.agents.exact import ExactConfig, ExactProgress, train_exact
from restoration_env.agents.fitting import FitConfig, FitProgress, train_fit
from restoration_env.agents.joint import JointConfig, JointProgress, train_joint
from restoration_env.agents.labelling import read_labels
from restoration_env.agents.lookahead_training import LookaheadConfig, LookaheadProgress, train_lookahead
from restoration_env.agents.network import UNIT, build_network
from restoration_env.agents.objectives import OBJECTIVES, build_objective
from restoration_env.cli import progress_bar
from restoration_env.devices import find_device, keep_freed_memory
from restoration_env.errors import InvalidArgument
from restoration_env.images import load_images, with_more
from restoration_env.provenance import provenance
from restoration_env.registry import load_toolbox
from restoration_env.tools.catalogue import CATALOGUE, TOOLBOXES
from restoration_env.tools.optimizers import OPTIMIZERS
from restoration_env.tools.together import first_tools

_Command = Callable[..., None]
_CONFIGS: dict[str, type] = {
    "drqn": DRQNConfig,
    "exact": ExactConfig,
    "fit": FitConfig,
    "lookahead": LookaheadConfig,
}


def _shared(command: _Command) -> _Command:
    """The options of both commands."""
    for option in (
        click.option("--threads", default=0, help="CPU threads; 0 leaves torch's choice."),
        click.option("--device", default="auto", show_default=True),
        click.option("--seed", default=0, show_default=True),
        click.option("--also", type=click.Path(), help="A folder of which all images are trained on as well."),
        click.option("--images", default="bundled", show_default=True, help="Clean images: a folder or a name."),
    ):
        command = option(command)
    return command


def _prepare(
    command: str,
    images: str,
    also: str | None,
    device: str,
    threads: int,
    precision: str,
    given: Mapping[str, Any],
) -> tuple[Any, ...]:
    """Where to compute, the images, and what the cards will say of all this."""
    where = find_device(device)
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    pool, validation = load_images(images, "train"), load_images(images, "validation")
    words = f"{command} --images {Path(images).name}"
    words += f" --also {Path(also).name}" if also else ""
    data = f"{Path(images).name}: {len(pool)} images train, {len(validation)} validate"
    pool, further = with_more(pool, also)
    for name, value in {**given, **({"precision": precision} if precision != "float32" else {})}.items():
        shown = f" {Path(value).name if name.startswith('start') else value}" if value is not True else ""
        words += f" --{'single' if name == 'double' and not value else name.replace('_', '-')}{shown}"
    return where, pool, validation, {"data": data + further, **provenance(words, where)}


def _shown(gains: Mapping[str, float]) -> str:
    return "validation " + " ".join(f"{name} {gain:+.2f}" for name, gain in gains.items()) + " dB"


@click.command()
@_shared
@click.option("--algo", type=click.Choice(sorted(_CONFIGS)), default="exact", show_default=True, help="How to learn.")
@click.option("--out", default="runs/toolchain.safetensors", show_default=True, help="The weights to write.")
@click.option("--toolbox", default="cnn12", show_default=True)
@click.option("--episodes", type=int, help="Images to see.  [default: 60000 drqn, 8000 exact, 200000 lookahead]")
@click.option("--severity", help="The damage to train on.  [default: mixed drqn, else every]")
@click.option("--max-steps", type=int, help="Actions of an episode.  [default: 3]")
@click.option("--learning-rate", type=float, help="At the start.  [default: 0.0005 drqn, 0.001 exact and lookahead]")
@click.option("--updates", type=int, help="Updates a batch.  [default: 3 drqn, 6 exact]")
@click.option("--network", help="published (default of drqn), statistics (of exact) or spectral (of fit).")
@click.option("--labelled", multiple=True, help="Labelled episodes to learn from, may be repeated (fit).")
@click.option("--iterations", type=int, help="Updates in all (fit).  [default: 12000]")
@click.option("--sample", type=int, help="Remembered episodes in an update.  [default: 64, 32 exact]")
@click.option("--known-damage", type=int, help="Patches whose damage is told beside them (fit).  [default: 40960]")
@click.option("--beside", type=float, help="Weight of telling damage beside the values (fit).  [default: 0.3]")
@click.option("--double/--single", default=None, help="Double Q-learning or not (drqn).  [default: double]")
@click.option("--dueling", is_flag=True, default=None, help="Values and advantages apart (drqn).")
@click.option("--n-step", type=int, help="Rewards summed before a value is estimated (drqn).  [default: 1]")
@click.option("--prioritised", type=float, help="Remember large errors more often, 0.6 as published (drqn).")
@click.option("--evaluate-every", type=int, help="Batches between two validations.")
@click.option("--validation-images", type=int, help="Images in a validation.")
@click.option("--batch", type=int, help="Images side by side.")
@click.option("--pretraining", type=int, help="Iterations of telling damage apart first (exact).  [default: 1500]")
@click.option("--returns", help="What follows a tool: played to the end, or estimated (exact).  [default: played]")
@click.option("--promising", type=int, help="Branches played at each state, the best ones; 0: all (exact).")
@click.option("--start", help="An agent, by name or path, whose weights to start from; or a network's (lookahead).")
@click.option("--warmup", type=int, help="Images before the first update.  [default: 1024 drqn, 0 exact]")
@click.option("--width", type=int, help="Chains of the finished agent's beam (lookahead).  [default: 2]")
@click.option("--critic-width", type=int, help="Channels of the critic's network (lookahead).  [default: 48]")
@click.option("--doubts", type=int, help="Images to learn on when it makes one worse (lookahead).  [default: 65536]")
@click.option("--risk", type=float, help="The chance of that which the agent takes (lookahead).  [default: 0.1]")
@click.option("--convolutions", help="direct or, on a processor in float32, winograd (lookahead).  [default: direct]")
@click.option("--epsilon-start", type=float, help="Share of random actions at the start (drqn).  [default: 1]")
@click.option("--views", type=int, help="1, or 8 to judge each image turned and mirrored (exact).  [default: 1]")
@click.option("--caution", type=float, help="dB that a tool must promise more than stop (exact).  [default: 0]")
@click.option("--precision", default="float32", show_default=True, help="Of the tools: float32 or bfloat16.")
def train(
    algo: str,
    images: str,
    also: str | None,
    out: str,
    toolbox: str,
    precision: str,
    device: str,
    threads: int,
    labelled: tuple[str, ...],
    **settings: Any,
) -> None:
    """Train an agent: by deep recurrent Q-learning as published, on exact values, or a critic to look ahead with.

    On exact values either while it plays (exact) or from the episodes that `label` kept (fit). A killed run goes on
    where it stopped.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    manners = {"views", "caution"} if algo in ("exact", "fit") else set()
    known = {field.name for field in fields(_CONFIGS[algo])} | manners
    if bool(labelled) != (algo == "fit"):
        raise InvalidArgument("--labelled", "given with --algo fit, and only there", ", ".join(labelled) or "none")
    for name in given:
        if name not in known:
            raise InvalidArgument(f"--{name.replace('_', '-')}", "an option of another algorithm", f"--algo {algo}")
    manner = {name: given.pop(name) for name in ("views", "caution") if name in given}
    config = _CONFIGS[algo](**given)
    words = {"algo": algo, "toolbox": toolbox, **{n: v for n, v in settings.items() if v is not None}}
    words |= {"labelled": " --labelled ".join(Path(folder).name for folder in labelled)} if labelled else {}
    where, pool, validation, card = _prepare(
        "restoration-env train agent", images, also, device, threads, precision, words
    )
    tools = load_toolbox(toolbox, device=where, precision=precision)
    with progress_bar() as bar:
        total = config.iterations if isinstance(config, FitConfig) else config.episodes
        total += config.doubts if isinstance(config, LookaheadConfig) else 0
        task = bar.add_task("toolchain agent", total=total, note="")

        def report_drqn(progress: DRQNProgress) -> None:
            bar.update(task, completed=progress.episodes)
            if progress.validation_gain is not None:
                note = f"epsilon {progress.epsilon:.2f}, validation {progress.validation_gain:+.2f} dB"
                bar.update(task, note=note)

        def report_exact(progress: ExactProgress | LookaheadProgress) -> None:
            bar.update(task, completed=progress.images)
            if progress.validation is not None:
                bar.update(task, note=_shown(progress.validation))

        def report_fit(progress: FitProgress) -> None:
            bar.update(task, completed=progress.iteration)
            if progress.validation is not None:
                bar.update(task, note=_shown(progress.validation))

        if isinstance(config, FitConfig):
            labels = read_labels(labelled, tools.names)
            train_fit(
                config, tools, labels, pool, validation, out, device=where, report=report_fit, card=card, **manner
            )
        elif isinstance(config, ExactConfig):
            train_exact(config, tools, pool, validation, out, device=where, report=report_exact, card=card, **manner)
        elif isinstance(config, LookaheadConfig):
            train_lookahead(
                config,
                tools,
                pool,
                validation,
                out,
                device=where,
                precision=precision,
                report=report_exact,
                card=card,
            )
        else:
            train_drqn(config, tools, pool, validation, out, device=where, report=report_drqn, card=card)


_JOINT: dict[str, Any] = {field.name: field.default for field in fields(JointConfig)}


@click.command()
@_shared
@click.option("--out", default="runs/joint", show_default=True, help="Folder of weights, cards and the checkpoint.")
@click.option("--toolbox", type=click.Choice(list(TOOLBOXES)), default="cnn12-joint", show_default=True)
@click.option("--start-tools", default="cnn12", show_default=True, help="A toolbox of the same networks, or a folder.")
@click.option("--start-agent", default="", help="An agent, by name or path; a new one if not given.")
@click.option("--objective", type=click.Choice(OBJECTIVES), default="psnr", show_default=True)
@click.option("--iterations", default=_JOINT["iterations"], show_default=True, help="Batches of images.")
@click.option("--batch", default=_JOINT["batch"], show_default=True, help="Images in each.")
@click.option("--severity", default=_JOINT["severity"], show_default=True, help="The damage to train on.")
@click.option("--learning-rate", default=_JOINT["learning_rate"], show_default=True, help="Of the tools, at its peak.")
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), default=_JOINT["optimizer"], show_default=True)
@click.option("--muon-rate", default=_JOINT["muon_rate"], show_default=True, help="Learning rate of Muon.")
@click.option("--common", default=_JOINT["common"], show_default=True, help="Share of a step taken by all alike.")
@click.option("--tied/--apart", default=False, show_default=True, help="Are tools of the same network one?")
@click.option("--mean", is_flag=True, help="Tied tools begin as the mean of all alike, not as the first.")
@click.option("--explore", default=_JOINT["explore"], show_default=True, help="Share of actions near the choice.")
@click.option("--temperature", default=_JOINT["temperature"], show_default=True, help="In dB, how near.")
@click.option("--averaging", default=_JOINT["averaging"], show_default=True, help="Decay of the tools' average.")
@click.option("--earlier", default=_JOINT["earlier"], show_default=True, help="Weight of the earlier steps.")
@click.option("--unstopped", default=_JOINT["unstopped"], show_default=True, help="Images that may not stop.")
@click.option("--own", default=_JOINT["own"], show_default=True, help="Images of a tool's own band more in a batch.")
@click.option("--branched", default=_JOINT["branched"], show_default=True, help="Images a batch for the agent.")
@click.option("--precision", default="float32", show_default=True, help="Of the tools: float32 or bfloat16.")
def joint(
    images: str,
    also: str | None,
    out: str,
    toolbox: str,
    start_tools: str,
    start_agent: str,
    objective: str,
    tied: bool,
    mean: bool,
    precision: str,
    device: str,
    threads: int,
    **settings: Any,
) -> None:
    """Train tools and agent together: gradients through whole toolchains.

    A killed run goes on where it stopped.
    """
    words: dict[str, Any] = {"toolbox": toolbox, "start_tools": start_tools, "start_agent": start_agent}
    words["objective"] = objective
    if mean and not tied:
        raise InvalidArgument("--mean", "given with --tied", "--apart")
    words |= {name: True for name, said in (("tied", tied), ("mean", mean)) if said}
    changed = {name: value for name, value in settings.items() if value != _JOINT[name]}
    words = {name: value for name, value in {**words, **changed}.items() if value != ""}
    where, pool, validation, card = _prepare(
        "restoration-env train joint", images, also, device, threads, precision, words
    )
    tools, cards = first_tools(toolbox, start_tools, tied=tied, mean=mean, device=where, precision=precision)
    if start_agent:
        network = load_agent(start_agent, toolbox=tools, device=str(where)).network
        network.scale_values(1.0 / UNIT)
    else:
        torch.manual_seed(settings["seed"])
        network = build_network("statistics", len(tools)).to(where)
    config = JointConfig(**settings)
    with progress_bar() as bar:
        task = bar.add_task(toolbox, total=config.iterations, note="")

        def report(progress: JointProgress) -> None:
            bar.update(task, completed=progress.iteration)
            if progress.validation is not None:
                bar.update(task, note=_shown(progress.validation))

        aim = build_objective(objective, precision).to(where)
        train_joint(
            config,
            tools,
            network,
            pool,
            validation,
            out,
            objective=aim,
            device=where,
            report=report,
            bands=[spec.band for spec in CATALOGUE],
            cards=cards,
            card=card,
        )
