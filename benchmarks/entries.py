"""The entries of the leaderboard by name: how each is loaded, and what it cost to train."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from restoration_env.agents.agent import ToolchainAgent, agent_names, load_agent, played_with
from restoration_env.agents.lookahead import LookaheadAgent
from restoration_env.agents.policies import FixedChain, RandomPolicy, StopAtOnce
from restoration_env.agents.reference import best_fixed_chain, load_classifier
from restoration_env.agents.sb3_policy import load_sb3_policy
from restoration_env.benchmarks.classical_entries import CHAINS, unsupervised_wiener
from restoration_env.benchmarks.comparison import ORACLES, Entry, Oracle
from restoration_env.benchmarks.networks import NETWORKS, SingleTool, load_single
from restoration_env.benchmarks.owan import load_owan
from restoration_env.benchmarks.published import load_published
from restoration_env.benchmarks.suites import patch_suite
from restoration_env.benchmarks.training_cost import agent_cost, toolbox_cost
from restoration_env.distortions import recipe
from restoration_env.errors import InvalidArgument, UnknownName, check_at_least
from restoration_env.registry import load_toolbox
from restoration_env.toolbox import Toolbox
from restoration_env.tools.catalogue import TOOLBOXES

WEIGHTS = Path(__file__).parent / "weights" / "single"
_CHOSEN_ON = 200  # patches on which fixed chains are chosen
_BEAM = 6  # prefixes followed in the search for chains of two tools and more


@dataclass(frozen=True)
class Sources:
    """Where entries come from, and how they play.

    Attributes:
        published: the authors' weights.npz, or "" for none.
        owan: OWAN's model_best.pth, or "".
        weights: a folder of single networks; "" for those that ship in the package.
        choose_on: images on which fixed chains are chosen, never those they are judged on.
        precision: of the tools, "float32" or "bfloat16".
        max_steps: actions of an episode.
        oracle: "greedy", "beam", "exhaustive" or "none".
    """

    published: str = ""
    owan: str = ""
    weights: str = ""
    choose_on: str = "bundled"
    precision: str = "float32"
    max_steps: int = 3
    oracle: str = "greedy"

    def __post_init__(self) -> None:
        check_at_least(1, max_steps=self.max_steps)
        if self.oracle not in (*ORACLES, "none"):
            raise UnknownName("oracle", self.oracle, (*ORACLES, "none"))

    @property
    def singles(self) -> Path:
        """The folder of single networks."""
        return Path(self.weights) if self.weights else WEIGHTS


def entry_names(sources: Sources) -> tuple[str, ...]:
    """All entries that can be loaded here, in the order of the table; oracles not among them."""
    trained = [name for name in NETWORKS if (sources.singles / f"{name}.safetensors").is_file()]
    published = [name for name in ("published", "owan") if getattr(sources, name)]
    classical = [">".join(chain) for chain in CHAINS]
    baselines = ["input", "random", "best-chain-1", "classifier"]
    return (*baselines, *agent_names(), *published, *trained, *classical, "unsupervised-wiener")


def load_entry(name: str, sources: Sources = Sources()) -> Entry:
    """An entry by name.

    Args:
        name: ``input``, ``random``, ``best-chain-N``, ``classifier``; an agent by name or path, ``AGENT@TOOLBOX`` to
            play it with other tools; ``published``, ``owan``; a single network by name or path; a policy of
            Stable-Baselines3 by the path of its safetensors; a chain of classical tools, ``a>b``;
            ``unsupervised-wiener``; ``oracle:TOOLBOX``. For ablations: ``AGENT%no-stop`` never stops early,
            ``AGENT%six`` and ``oracle:TOOLBOX%six`` have every other tool only, and ``TOOLBOX+TOOL`` more;
            ``lookahead%no-doubt`` takes every risk.
        sources: where what is not in the package comes from.

    Raises:
        InvalidArgument: for an unknown name, and for weights that are missing or damaged.
    """
    if name == "random":  # it remembers how far its random numbers have come
        return _random(sources)
    return _load(name, sources)


@lru_cache(maxsize=64)
def _load(name: str, sources: Sources) -> Entry:
    if name in _NAMED:
        return replace(_NAMED[name](sources), max_steps=sources.max_steps)
    for starts, load in _PREFIXED.items():
        if name.startswith(starts):
            return replace(load(name.removeprefix(starts), sources), max_steps=sources.max_steps)
    whole, _, change = name.partition("%")
    if change:
        return _changed(load_entry(whole, sources), change)
    agent, toolbox = played_with(whole)
    if agent in agent_names() or Path(agent).suffix == ".safetensors":
        return load_trained(agent, toolbox, sources)
    if name in NETWORKS:
        return _single(sources.singles / f"{name}.safetensors", sources)
    if set(name.split(">")) <= set(load_toolbox("classical").names):
        return _classical(name.split(">"), sources)
    known = (*_NAMED, *(f"{start}..." for start in _PREFIXED), *agent_names(), "AGENT@TOOLBOX", *NETWORKS)
    raise UnknownName("entry", name, (*known, "a chain of classical tools", "a path that ends in .safetensors"))


class RestrictedAgent(ToolchainAgent):
    """An agent that leaves some of its actions alone, for ablations.

    Args:
        agent: what it would do.
        without: numbers of the actions it does not take.
    """

    def __init__(self, agent: ToolchainAgent, without: Sequence[int], name: str) -> None:
        super().__init__(agent.network, agent.toolbox, agent.max_steps, agent.card)
        self.without, self.name = list(without), name

    def _choice(self, q: Tensor) -> Tensor:
        q = q.clone()
        q[..., self.without] = -torch.inf
        return super()._choice(q)


def _changed(entry: Entry, change: str) -> Entry:
    agent = entry.policy
    if isinstance(agent, LookaheadAgent) and change == "no-doubt":
        bold = copy.copy(agent)
        bold.risk = 1.0
        return replace(entry, label=f"{entry.label}, without doubts", policy=bold)
    if not isinstance(agent, ToolchainAgent) or change not in ("no-stop", "six"):
        wanted = "an agent before %no-stop or %six, or one that looks ahead before %no-doubt"
        raise InvalidArgument("entry", wanted, f"{entry.label}%{change}")
    without = [agent.toolbox.stop] if change == "no-stop" else range(0, len(agent.toolbox), 2)
    label = f"{entry.label}, {'without stop' if change == 'no-stop' else 'six tools'}"
    return replace(entry, label=label, policy=RestrictedAgent(agent, without, label))


def load_tools(name: str, sources: Sources) -> Toolbox:
    """A toolbox by name, with further tools after a `+`, or every other one before `%six`.

    "published" and "owan" come from the sources.
    """
    if name.endswith("%six"):
        whole = load_tools(name.removesuffix("%six"), sources)
        return Toolbox(name, whole.tools[1::2])
    if name == "published":
        return load_published(_given("published", sources.published)).toolbox
    if name == "owan":
        return load_owan(_given("owan", sources.owan), precision=sources.precision).toolbox
    if name == "unsupervised-wiener":
        return SingleTool(unsupervised_wiener()).toolbox
    return load_toolbox(name, precision=sources.precision)


def _given(name: str, path: str) -> str:
    if not path:
        raise InvalidArgument(name, f"the path of the weights, for the entry {name!r}", "nothing")
    return path


def _input(sources: Sources) -> Entry:
    toolbox = load_tools("cnn12", sources)
    return Entry("input", StopAtOnce(toolbox), toolbox, family="baseline")


def _random(sources: Sources) -> Entry:
    toolbox = load_tools("cnn12", sources)
    return Entry("random", RandomPolicy(toolbox), toolbox, family="baseline", max_steps=sources.max_steps)


def _best_chain(length: str, sources: Sources) -> Entry:
    if length not in ("1", "2", "3", "4"):
        raise InvalidArgument("entry", "best-chain-1 to best-chain-4", f"best-chain-{length}")
    toolbox = load_tools("cnn12", sources)
    suite = patch_suite(sources.choose_on, "train", recipe("any"), _CHOSEN_ON)
    width = None if length == "1" else _BEAM
    chain = best_fixed_chain(toolbox, *suite.patches(), length=int(length), width=width)
    patches, seconds = toolbox_cost("cnn12")
    return Entry(chain.name, chain, toolbox, patches, seconds, suite.source, "baseline")


def _classifier(sources: Sources) -> Entry:
    policy = load_classifier(load_tools("cnn12", sources))
    return _system("classifier", policy, policy.toolbox, policy.card, "baseline", sources)


def load_trained(path: str, toolbox: str | None, sources: Sources) -> Entry:
    """An agent by name or by the path of its weights, a single network or a policy of Stable-Baselines3 by the path.

    Args:
        path: the card beside the weights says which of them it is.
        toolbox: the tools to play with; None for those it was trained with.
        sources: where published tools come from.

    Raises:
        InvalidArgument: for weights that are missing, damaged, or fit no such tools.
    """
    tools = load_tools(toolbox, sources) if toolbox is not None else None
    if Path(path).suffix == ".safetensors":
        card = _card(Path(path))
        if card.get("network") in NETWORKS:
            return _single(Path(path), sources)
        if "algorithm" in card and "max_steps" in card:
            model = load_sb3_policy(path, tools)
            return _system(Path(path).stem, model, model.toolbox, card, "toolchain", sources)
    agent = load_agent(path, precision=sources.precision, toolbox=tools)
    return _system(Path(path).stem, agent, agent.toolbox, agent.card, "toolchain", sources)


def _system(name: str, policy: object, toolbox: Toolbox, card: dict, family: str, sources: Sources) -> Entry:
    costs = [agent_cost(card), toolbox_cost(toolbox.name)]
    patches, seconds = (None if None in values else sum(values) for values in zip(*costs, strict=True))
    label = f"{name} ({toolbox.name})"
    return Entry(label, policy, toolbox, patches, seconds, card.get("data"), family, sources.max_steps)  # type: ignore[arg-type]


def _card(path: Path) -> dict:
    beside = path.with_suffix(".json")
    try:
        return json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InvalidArgument("entry", "weights with a JSON card beside them", f"no {beside}") from None


def _single(path: Path, sources: Sources) -> Entry:
    single = load_single(path, precision=sources.precision)
    card = single.card
    label = f"{single.name} (single network)"
    cost = card.get("patches_seen"), card.get("seconds"), card.get("data")
    return Entry(label, single, single.toolbox, *cost, "single network", sources.max_steps)


def _published(sources: Sources) -> Entry:
    agent = load_published(_given("published", sources.published))
    return Entry("published RL-Restore", agent, agent.toolbox, training_data="DIV2K", family="published")


def _owan(sources: Sources) -> Entry:
    single = load_owan(_given("owan", sources.owan), precision=sources.precision)
    return Entry(single.name, single, single.toolbox, training_data="DIV2K", family="published")


def _classical(chain: list[str], sources: Sources) -> Entry:
    toolbox = load_tools("classical", sources)
    policy = FixedChain(toolbox, chain)
    return Entry(f"{policy.name} (classical)", policy, toolbox, family="classical", max_steps=sources.max_steps)


def _wiener(sources: Sources) -> Entry:
    alone = SingleTool(unsupervised_wiener())
    return Entry(f"{alone.name} (classical)", alone, alone.toolbox, family="classical")


def _best_classical(sources: Sources) -> Entry:
    toolbox = load_tools("classical", sources)
    suite = patch_suite(sources.choose_on, "train", recipe("any"), _CHOSEN_ON)
    best = best_fixed_chain(toolbox, *suite.patches(), length=2, width=2)
    return Entry(f"{best.name} (classical)", best, toolbox, training_data=suite.source, family="classical")


def _oracle(toolbox: str, sources: Sources) -> Entry:
    if sources.oracle == "none":
        raise InvalidArgument("oracle", f"one of {', '.join(ORACLES)}, as an entry is an oracle", "'none'")
    tools = load_tools(toolbox, sources)
    policy = Oracle(sources.oracle, tools, sources.max_steps)
    patches, seconds = toolbox_cost(toolbox)
    label = f"{sources.oracle} oracle of {toolbox}"
    return Entry(label, policy, tools, patches, seconds, family="oracle")


_NAMED: dict[str, Callable[[Sources], Entry]] = {
    "input": _input,
    "random": _random,
    "classifier": _classifier,
    "published": _published,
    "owan": _owan,
    "unsupervised-wiener": _wiener,
    "best-classical-chain": _best_classical,
}
_PREFIXED: dict[str, Callable[[str, Sources], Entry]] = {"best-chain-": _best_chain, "oracle:": _oracle}


def oracle_names(entries: list[Entry], sources: Sources) -> list[str]:
    """The oracles of the toolboxes that entries choose from."""
    if sources.oracle == "none":
        return []
    chosen = dict.fromkeys(e.toolbox.name for e in entries if len(e.toolbox) > 1 and e.family != "classical")
    return [f"oracle:{name}" for name in chosen if name in (*TOOLBOXES, "published")]
