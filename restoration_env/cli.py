"""The program ``restoration-env``. It knows commands by name only and imports one when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast

import click

from restoration_env.errors import InvalidArgument
from restoration_env.registry import find_target

if TYPE_CHECKING:
    from rich.progress import Progress

# Command, "module:callable" of the folder that contributes it, and its line in --help.
_COMMANDS = {
    "demo": (
        "restoration_env.agents.commands:demo",
        "Damage bundled photographs, restore them, draw a contact sheet.",
    ),
    "restore": ("restoration_env.agents.commands:restore", "Restore damaged photographs of any size."),
    "look": (
        "restoration_env.agents.insight_commands:look",
        "Draw what an agent does with which damage, and its toolchains.",
    ),
    "train tools": ("restoration_env.tools.commands:train", "Train one or all of the twelve tools."),
    "train chains": ("restoration_env.tools.commands_chains:chains", "Train all tools in toolchains."),
    "train agent": (
        "restoration_env.agents.train:train",
        "Train the toolchain agent on exact values or by Q-learning.",
    ),
    "train system": ("restoration_env.agents.system:system", "Train tools, agent and both together: everything."),
    "train joint": ("restoration_env.agents.train:joint", "Train tools and agent together."),
    "train single": (
        "restoration_env.benchmarks.commands_single:train",
        "Train a single network to hold toolchains against.",
    ),
    "train classifier": (
        "restoration_env.agents.commands_classifier:train",
        "Train the classifier of damage, the policy without RL.",
    ),
    "train sb3": (
        "restoration_env.agents.commands_sb3:train",
        "Train a policy with an algorithm of Stable-Baselines3.",
    ),
    "train sft": ("restoration_env.sft.commands:train", "Train the super-resolver, one stage of three."),
    "train segmenter": (
        "restoration_env.sft.commands_segmenter:train",
        "Train a segmenter of scenes, the paper's categories or your own.",
    ),
    "train sr": (
        "restoration_env.benchmarks.commands_super_resolution:train",
        "Train a super-resolver of the leaderboard.",
    ),
    "label": (
        "restoration_env.agents.commands_labelling:command",
        "Play episodes and keep the value of every action, to learn from.",
    ),
    "tools": ("restoration_env.tools.commands:table", "Show the table of tools, with what their cards say."),
    "gains": (
        "restoration_env.benchmarks.commands:gains",
        "Measure every tool on every band: the gain matrix.",
    ),
    "speed": (
        "restoration_env.benchmarks.commands_speed:speed",
        "Measure how fast the environments are on this machine.",
    ),
    "upscale": ("restoration_env.sft.commands_upscale:upscale", "Enlarge a photograph four times."),
    "sft-pictures": (
        "restoration_env.sft.commands_upscale:pictures",
        "Draw the figures of the super-resolver: priors, modulation, comparison.",
    ),
    "sft-average": (
        "restoration_env.sft.commands_average:average",
        "Write the mean of super-resolvers' weights.",
    ),
    "sft-compare": (
        "restoration_env.sft.commands_comparison:measure",
        "Compare super-resolvers on labelled scenes, by category.",
    ),
    "lost-resolution": (
        "restoration_env.benchmarks.commands_lost_resolution:lost_resolution",
        "Measure what the super-resolver adds to a toolbox.",
    ),
    "ceilings": (
        "restoration_env.benchmarks.commands_ceilings:ceilings",
        "Measure what agents could gain that knew more.",
    ),
    "magnitudes": (
        "restoration_env.benchmarks.commands_sweeps:magnitudes",
        "Sweep the further damage that tools are trained with.",
    ),
    "joint-study": (
        "restoration_env.benchmarks.commands_sweeps:study",
        "Ablation of joint training: each idea left out once.",
    ),
    "segments": (
        "restoration_env.sft.commands_segmenter:measure",
        "Measure a segmenter on labelled scenes.",
    ),
    "sr": (
        "restoration_env.benchmarks.commands_super_resolution:sr",
        "Measure super-resolvers by four: the leaderboard.",
    ),
    "study pictures": (
        "restoration_env.benchmarks.commands_study:pictures",
        "Enlarge labelled scenes by several super-resolvers, for a study.",
    ),
    "study make": ("restoration_env.benchmarks.commands_study:make", "Make a study's file out of pictures."),
    "study serve": ("restoration_env.benchmarks.commands_study:serve", "Show a study's page to raters."),
    "study export": ("restoration_env.benchmarks.commands_study:export", "Write a study's answers as CSV."),
    "study analyse": ("restoration_env.benchmarks.commands_study:analyse", "Shares, ranks, strengths and a chart."),
    "agent-study": (
        "restoration_env.benchmarks.commands_agent_study:study",
        "Train agents on equal budgets with several seeds, and compare them.",
    ),
    "leaderboard run": (
        "restoration_env.benchmarks.commands_leaderboard:run",
        "Measure entries on the test suites: the table.",
    ),
    "leaderboard show": ("restoration_env.benchmarks.commands_leaderboard:show", "Show a table."),
    "leaderboard submit": (
        "restoration_env.benchmarks.commands_leaderboard:submit",
        "Measure a policy and write its submission.",
    ),
    "leaderboard template": (
        "restoration_env.benchmarks.commands_leaderboard:template",
        "Write a submission to fill in, with the damaged images.",
    ),
    "leaderboard validate": (
        "restoration_env.benchmarks.commands_leaderboard:validate",
        "Recompute every number of a submission.",
    ),
    "leaderboard add": ("restoration_env.benchmarks.commands_leaderboard:add", "Add a submission to a table."),
    "leaderboard suites": (
        "restoration_env.benchmarks.commands_leaderboard:suites",
        "Build test suites and print the sha256 of their bytes.",
    ),
    "leaderboard report": (
        "restoration_env.benchmarks.commands_report:report",
        "Write the table as a web page, with images and plots.",
    ),
    "leaderboard paper": (
        "restoration_env.benchmarks.commands_report:paper",
        "Make the tables and figures of the paper again, with the ablations.",
    ),
    "perceptual-weights": (
        "restoration_env.perceptual_weights:perceptual_weights",
        "Make the weights of VGG16 for LPIPS and perceptual losses, once.",
    ),
}
_GROUPS = {
    "train": "Train tools and agents.",
    "study": "Ask people which pictures look more natural.",
    "leaderboard": "Measure, submit, validate and show entries.",
}


class _Group(click.Group):
    """Finds its commands in the table, by their first words."""

    def __init__(self, prefix: str = "", **settings: object) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]
        self.prefix = prefix

    def _table(self) -> dict[str, tuple[str, str]]:
        """Commands and groups right below this one: name to target ("" for a group) and help."""
        added = {
            e.name: (e.value, "From an installed package.") for e in entry_points(group="restoration_env.commands")
        }
        found: dict[str, tuple[str, str]] = {}
        for words, row in {**added, **_COMMANDS}.items():
            if words.startswith(self.prefix):
                first, _, rest = words.removeprefix(self.prefix).partition(" ")
                found[first] = ("", _GROUPS.get(first, "More commands.")) if rest else row
        return found

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._table())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        row = self._table().get(cmd_name)
        if row is None:
            return None
        target, text = row
        if not target:
            return _Group(f"{self.prefix}{cmd_name} ", name=cmd_name, help=text)
        return cast("click.Command", find_target(target))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._table().items()])


@click.group("restoration-env", cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="restoration-env")
def app() -> None:
    """Image restoration as a reinforcement learning problem."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program. Bad input ends in one clear sentence and exit status 2, Ctrl-C in 130."""
    try:
        status = app.main(args=None if arguments is None else list(arguments), standalone_mode=False)
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except InvalidArgument as error:
        click.echo(f"error: {error}", err=True)
        status = 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        status = 130
    except BrokenPipeError:
        status = 1
    sys.exit(status if isinstance(status, int) else 0)


def progress_bar() -> Progress:
    """A progress bar for long work, on standard error, so that output can be piped."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )
