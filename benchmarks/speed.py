"""How fast the environments are on the machine this runs on, and how near to the limit of its convolutions.

Everything is compared within one run, in turns, because the speed of a machine drifts: the environments against a
`DummyVecEnv` of single ones, as a user of Stable-Baselines3 would write it, and against the time that the tools alone
need for the same images at their best (the limit).
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from restoration_env.agents.agent import load_agent
from restoration_env.backends import openvino_installed
from restoration_env.benchmarks.suites import patch_suite
from restoration_env.distortions import SEVERITY_RANGES, recipe
from restoration_env.env import RestoreEnv
from restoration_env.episodes import Episodes
from restoration_env.registry import load_toolbox
from restoration_env.stacked import RecordedTools, StackedTools
from restoration_env.toolbox import Tool, Toolbox
from restoration_env.vector_env import RestoreVectorEnv
from restoration_env.workers import pieces_only

AGREES_DB = 0.02  # how far the mean PSNR of the results may be from that of float32
SIDE = 63
Note = Callable[[str], None]


@dataclass(frozen=True)
class Contender:
    """A way to compute the tools."""

    backend: str
    precision: str

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.backend} {self.precision}"

    def toolbox(self, device: str, name: str = "cnn12") -> Toolbox:
        """The tools, computed in this way; loaded once, and used once for each number of images."""
        return _loaded(self, device, name)

    def envs(self, count: int, device: str, toolbox: str = "cnn12", **arguments: Any) -> RestoreVectorEnv:
        """The batched environment, its tools computed in this way."""
        envs = RestoreVectorEnv(count, toolbox=toolbox, device=device, **arguments)
        envs.episodes.toolbox = self.toolbox(device, toolbox)
        return envs


@lru_cache(maxsize=16)
def _loaded(way: Contender, device: str, name: str) -> Toolbox:
    box = load_toolbox(name, device=device, precision=way.precision, backend=way.backend)
    with torch.no_grad():
        for count in (*range(1, 9), 32):  # the last: so many that several threads compute the same tool
            every = torch.arange(len(box)).repeat_interleave(count)
            images = torch.rand(len(every), 3, SIDE, SIDE, device=device)
            box.apply(images, every.to(device), check=False)
    return box


def contenders(device: str) -> list[Contender]:
    """The ways to compute tools that are installed here."""
    ways = [Contender("torch", "float32"), Contender("torch", "bfloat16")]
    if device == "cpu" and openvino_installed():
        ways += [Contender("openvino", "bfloat16"), Contender("openvino", "int8")]
    return ways


class Steps:
    """Takes steps with random actions, the same ones for every environment, and counts what they cost.

    Attributes:
        counts: how often each tool was applied, in steps timed so far.
    """

    def __init__(self, envs: RestoreVectorEnv | DummyVecEnv, count: int, device: str = "cpu") -> None:
        self.envs, self.count, self.device = envs, count, device
        self.on_device = isinstance(envs, RestoreVectorEnv) and envs.output == "torch"
        space: Any = envs.action_space if isinstance(envs, DummyVecEnv) else envs.single_action_space
        self.actions = int(space.n)
        self.random = np.random.default_rng(0)
        self.counts = np.zeros(self.actions, np.int64)
        if isinstance(envs, DummyVecEnv):
            envs.seed(0)
            envs.reset()
        else:
            envs.reset(seed=0)

    def take(self, steps: int) -> float:
        """Seconds for so many steps of all environments."""
        chosen = self.random.integers(0, self.actions, (steps, self.count))
        self.counts += np.bincount(chosen.ravel(), minlength=self.actions)
        batches = [torch.from_numpy(row).to(self.device) if self.on_device else row for row in chosen]
        with timed(self.device) as seconds:
            for actions in batches:
                self.envs.step(actions)  # type: ignore[arg-type]
        return seconds[0]

    def rate(self, seconds: float, least: int = 2) -> float:
        """Environment steps a second, over at least so many seconds and batches.

        Of steps that stay on the device a few are asked for before any is waited for, as a learner would.
        """
        taken, spent, together = 0, 0.0, 16 if self.on_device else 1
        while spent < seconds or taken < least:
            spent += self.take(together)
            taken += together
        return taken * self.count / spent


@contextmanager
def timed(device: str) -> Iterator[list[float]]:
    """Measures what is done inside, in seconds, until the device has done it."""
    seconds: list[float] = []
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    yield seconds
    if on_gpu:
        torch.cuda.synchronize()
    seconds.append(time.perf_counter() - began)


def naive(count: int, device: str, toolbox: str = "cnn12") -> DummyVecEnv:
    """Single environments in float32, one after the other: what a user of Stable-Baselines3 would write."""
    return DummyVecEnv([lambda: RestoreEnv(device=device, toolbox=toolbox) for _ in range(count)])


def against_naive(
    ways: Sequence[Contender], count: int, device: str, *, rounds: int, seconds: float, note: Note
) -> dict[str, Any]:
    """Steps a second of the naive environments and of each contender, in turns, and the limit of its tools.

    Returns:
        ``naive``: its rate. For each contender the ``steps_per_second``; ``ratio_to_naive``, the median of the
        ratios within each turn; ``share_of_limit``: of the time of a step, what the tools alone need for the same
        images at their best rate of this run; ``multiply_adds_per_second`` of the tools, in the step and at best.
    """
    note("environments begin")
    output = "torch" if device.startswith("cuda") else "numpy"
    plain = Steps(naive(count, device), count)
    runs = {way.name: Steps(way.envs(count, device, output=output), count, device) for way in ways}
    boxes = {way.name: way.toolbox(device) for way in ways}
    for run in (plain, *runs.values()):
        run.take(2)
        run.counts[:] = 0
    rates: dict[str, list[float]] = {name: [] for name in ("naive", *runs)}
    limits: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        note(f"N = {count}: turn {turn + 1} of {rounds}")
        rates["naive"].append(plain.rate(seconds, least=1))
        for name, run in runs.items():
            rates[name].append(run.rate(seconds))
            limits[name].append(limit(boxes[name], device))
    result: dict[str, Any] = {"naive": {"steps_per_second": round(statistics.median(rates["naive"]), 1)}}
    for name, run in runs.items():
        # A tool's time is its multiply-adds over the best rate at which they were computed in this run.
        best_rate = max(limits[name])
        applied = sum(int(n) * tool.cost for n, tool in zip(run.counts, boxes[name], strict=False)) * SIDE * SIDE
        per_step = applied / run.counts.sum()
        rate = statistics.median(rates[name])
        result[name] = {
            "steps_per_second": round(rate, 1),
            "best_steps_per_second": round(max(rates[name]), 1),
            "ratio_to_naive": round(
                statistics.median(a / b for a, b in zip(rates[name], rates["naive"], strict=True)), 2
            ),
            "share_of_limit": round(
                statistics.median(r * per_step / at for r, at in zip(rates[name], limits[name], strict=True)), 3
            ),
            "multiply_adds_per_second": round(rate * per_step),
            "limit_multiply_adds_per_second": round(best_rate),
        }
    return result


def limit(toolbox: Toolbox, device: str, tries: int = 3) -> float:
    """The best rate of the tools alone, in multiply-adds a second.

    Batches of which every tool gets the same share, as the host knows, hot, on all threads, the best of some tries;
    on a GPU with the algorithms that its library finds fastest for them.
    """
    on_gpu = device.startswith("cuda")
    count = 352 * len(toolbox) if on_gpu else 64
    images = torch.rand(count, 3, SIDE, SIDE, device=device)
    actions = torch.arange(count) % len(toolbox)
    work = sum(toolbox.tools[int(action)].cost for action in actions) * SIDE * SIDE
    best = 0.0
    with torch.no_grad(), pieces_only(), torch.backends.cudnn.flags(enabled=True, benchmark=on_gpu):
        for _ in range(tries):
            with timed(device) as seconds:
                toolbox.apply(images, actions, check=False)
            best = max(best, work / seconds[0])
    return best


def sweep(way: Contender, sizes: Sequence[int], device: str, *, seconds: float, note: Note) -> dict[str, Any]:
    """Steps and resets a second for each number of environments; on a GPU also the share of the limit."""
    on_gpu = device.startswith("cuda")
    box, output = way.toolbox(device), "torch" if on_gpu else "numpy"
    best = max(limit(box, device) for _ in range(3)) if on_gpu else 0.0
    result: dict[str, Any] = {}
    for count in sizes:
        note(f"{way.name}: N = {count}")
        envs = way.envs(count, device, output=output)
        run = Steps(envs, count, device)
        run.take(2)
        run.counts[:] = 0
        rate = run.rate(seconds)
        resets = 4 if on_gpu else 1
        with timed(device) as spent:
            for _ in range(resets):
                envs.reset()
        row = {"steps_per_second": round(rate, 1), "resets_per_second": round(resets * count / spent[0], 1)}
        if on_gpu:
            applied = sum(int(n) * tool.cost for n, tool in zip(run.counts, box, strict=False)) * SIDE * SIDE
            row["share_of_limit"] = round(rate * applied / int(run.counts.sum()) / best, 3)
            row["microseconds_per_image"] = round(1e6 / rate, 3)
        result[str(count)] = row
    return result


def synchronisations(way: Contender, count: int = 64, steps: int = 8) -> int:
    """On a GPU: how often the host waited for it in so many steps of environments whose output stays there."""
    run = Steps(way.envs(count, "cuda", output="torch"), count, "cuda")
    run.take(2)
    before = torch.cuda.get_sync_debug_mode()
    batches = [torch.from_numpy(row).cuda() for row in run.random.integers(0, run.actions, (steps, count))]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for actions in batches:
                run.envs.step(actions)  # type: ignore[arg-type]
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("called a synchronizing" in str(one.message) for one in seen)


def recorded(way: Contender, sizes: Sequence[int]) -> dict[str, Any]:
    """On a GPU: images a second through the tools, with a CUDA graph and without, for each batch size."""
    box = way.toolbox("cuda")
    result: dict[str, Any] = {}
    for count in sizes:
        images = torch.rand(count, 3, SIDE, SIDE, device="cuda")
        actions = torch.randint(len(box) + 1, (count,), device="cuda")
        stacked = StackedTools(box.tools)
        rates = {}
        with torch.no_grad():
            for name, tools in (("plain", stacked), ("graph", RecordedTools(stacked, images, actions))):
                tools.apply(images, actions)
                with timed("cuda") as seconds:
                    for _ in range(10):
                        tools.apply(images, actions)
                rates[name] = round(10 * count / seconds[0], 1)
        result[str(count)] = rates
    return result


def agreement(
    ways: Sequence[Contender], images: str, split: str, count: int, device: str, note: Note
) -> dict[str, dict[str, float]]:
    """For each contender, how far the mean PSNR of its results is from that of float32, in dB.

    For every severity, with toolchains taken at random and with those of the trained agent (as it decided on what the
    tools make in float32); besides the largest difference, whichever its sign.
    """
    reference = Contender("torch", "float32").toolbox(device)
    boxes = {way.name: way.toolbox(device) for way in ways if way.name != "torch float32"}
    agent = load_agent("toolchain", device=device, toolbox=reference)
    found: dict[str, dict[str, float]] = {name: {} for name in boxes}
    for severity in SEVERITY_RANGES:
        suite = patch_suite(images, split, recipe(severity), count)
        clean, damaged = (part.to(device) for part in suite.patches())
        random = torch.randint(len(reference) + 1, (3, count), generator=torch.Generator().manual_seed(0))
        for policy in ("random", "agent"):
            note(f"agreement on {severity} damage, {policy} toolchains")
            episodes, taken = _begun(reference, damaged, clean), []
            agent.reset(count)
            for step in range(3):
                chosen = random[step] if policy == "random" else agent.act(episodes.observation())
                taken.append(chosen)
                _step(episodes, chosen)
            for name, box in boxes.items():
                other = _begun(box, damaged, clean)
                for chosen in taken:
                    _step(other, chosen)
                found[name][f"{severity}, {policy}"] = round((other.psnr - episodes.psnr).mean().item(), 4)
    for name, differences in found.items():
        found[name] = {**differences, "largest": max(map(abs, differences.values()))}
    return found


def _begun(toolbox: Toolbox, damaged: torch.Tensor, clean: torch.Tensor) -> Episodes:
    episodes = Episodes(toolbox)
    episodes.begin(damaged, clean)
    return episodes


@torch.no_grad()
def _step(episodes: Episodes, actions: torch.Tensor) -> None:
    episodes.step(actions)


def fastest_that_agrees(ways: dict[str, Any], agree: dict[str, dict[str, float]]) -> str:
    """The contender with the highest rate whose results stay within 0.02 dB of float32."""
    fit = [name for name in ways if name != "naive" and agree.get(name, {"largest": 0.0})["largest"] <= AGREES_DB]
    return max(fit, key=lambda name: ways[name]["ratio_to_naive"])


def growth(way: Contender, device: str, *, quick: bool, note: Note) -> dict[str, Any]:
    """Time of a step against the number of images, of tools, and of pixels, with the exponent that fits best.

    Each varies alone, with one network for all tools, so that the work is in proportion.
    """
    box = way.toolbox(device)
    small, on_gpu = box["denoise-1"], device.startswith("cuda")
    ranges: dict[str, Sequence[int]] = {
        "images": (8, 32, 128) if quick else (8, 16, 32, 64, 128, 256, 512, 1024),
        "tools": (1, 4, 12) if quick else (1, 2, 4, 8, 12, 24),
        "side": (32, 63, 127) if quick else (24, 32, 48, 63, 96, 127, 191, 255),
    }
    others = 2048 if on_gpu else 48  # images where their number does not vary: a GPU does not notice a few
    if on_gpu:
        ranges["images"] = (256, 512, 1024, 2048, 4096, 8192, 16_384)
    result: dict[str, Any] = {}
    for what, values in ranges.items():
        note(f"growth with {what}")
        rows = []
        for value in values:
            count = value if what == "images" else others
            side = value if what == "side" else SIDE
            tools = _copies(small, value if what == "tools" else 12)
            rows.append([value, round(1e3 * _step_seconds(tools, count, side, device, 3 if quick else 5), 4)])
        values_seen, times = np.log(np.array(rows, dtype=np.float64)).T
        slope = np.polyfit(values_seen, times, 1)[0]
        expected = {"images": 1.0, "tools": 0.0, "side": 2.0}[what]
        result[what] = {"milliseconds": rows, "exponent": round(float(slope), 3), "exponent_of_the_work": expected}
    return result


def _copies(tool: Tool, count: int) -> Toolbox:
    names = [f"{tool.name} ({number})" for number in range(count)]
    return Toolbox("copies", [Tool(**{**vars(tool), "name": name}) for name in names])


def _step_seconds(toolbox: Toolbox, count: int, side: int, device: str, tries: int) -> float:
    images = torch.rand(count, 3, side, side, device=device)
    actions = (torch.arange(count) % len(toolbox)).to(device)
    best = float("inf")
    for turn in range(tries + 1):
        episodes = Episodes(toolbox)
        episodes.begin(images, images)
        with timed(device) as seconds:
            _step(episodes, actions)
        if turn:
            best = min(best, seconds[0])
    return best
