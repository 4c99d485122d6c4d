"""`RestoreVectorEnv`: N episodes stepped as one batch, behind Gymnasium's vector interface."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from restoration_env import devices
from restoration_env.devices import to_device
from restoration_env.episodes import Episodes, Start, joined, start
from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.key_queue import KeyQueue
from restoration_env.observations import observation_space, to_numpy
from restoration_env.randomness import draw_keys
from restoration_env.registry import load_toolbox
from restoration_env.source import EpisodeSource
from restoration_env.toolbox import check_actions
from restoration_env.workers import Kept, in_parallel, pieces_only

OUTPUTS = ("numpy", "torch")


class RestoreVectorEnv(VectorEnv):
    """N copies of `RestoreEnv`, one batch: every tool runs once on all images that chose it.

    Takes the arguments of `RestoreEnv` (without rendering), and

    Args:
        num_envs: N.
        autoreset_mode: SAME_STEP (default: the next episode begins in the step that ends one, and the last
            observation is in ``info["final_obs"]``), NEXT_STEP or DISABLED (``reset`` with
            ``options={"reset_mask": mask}``).
        output: "numpy", or "torch" for tensors that stay on the device. With tensors, ``final_obs`` is a
            dictionary of batches, valid where ``info["_final_obs"]``.

    Seeds: ``reset(seed=s)`` gives episode i the seed s + i, exactly as N single environments.
    """

    def __init__(
        self,
        num_envs: int = 1,
        images: str = "bundled",
        split: str = "train",
        severity: str = "moderate",
        toolbox: str = "cnn12",
        extra_tools: Sequence[str] = (),
        max_steps: int = 3,
        patch_size: int = 63,
        grid: str = "aligned",
        scale: float = 1.0,
        reward: str = "psnr",
        precision: str = "float32",
        backend: str = "torch",
        device: str = "cpu",
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        output: str = "numpy",
    ) -> None:
        if not isinstance(num_envs, int) or num_envs < 1:
            raise InvalidArgument("num_envs", "an integer of 1 or more", repr(num_envs))
        if output not in OUTPUTS:
            raise UnknownName("output", output, OUTPUTS)
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError:
            modes = [mode.value for mode in AutoresetMode]
            raise UnknownName("autoreset_mode", autoreset_mode, modes) from None
        self.metadata = {"autoreset_mode": self.autoreset_mode, "render_modes": []}
        self.output, self.num_envs = output, num_envs
        self.source = EpisodeSource(images, split, severity, patch_size, grid, scale, device)
        tools = load_toolbox(toolbox, extra_tools, device=self.source.device, precision=precision, backend=backend)
        self.episodes = Episodes(tools, max_steps=max_steps, reward=reward)
        self.single_observation_space = observation_space(patch_size, len(tools), max_steps)
        self.single_action_space = spaces.Discrete(len(tools) + 1)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators: list[np.random.Generator] = []
        self._keys = KeyQueue(self._draw, num_envs, self.source.device)
        # Then steps begin new episodes without the host knowing which: all rows draw one, and few take it.
        self._stays_there = devices.must_not_wait(self.source.device) and output == "torch"

    def _draw(self, row: int, count: int) -> np.ndarray:
        return draw_keys(self._generators[row], count)

    @pieces_only()
    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode in every row, or with ``options["reset_mask"]`` (bool (N,)) in some."""
        mask = None
        if isinstance(options, Mapping) and "reset_mask" in options:
            options = dict(options)
            mask = options.pop("reset_mask")
        rows = self._rows(mask)
        self._seed(seed, rows)
        self._begin(rows, options)
        if self._stays_there:
            self._keys.lay()
        return self._observation(), self._info(self.episodes.info())

    @pieces_only()
    @torch.no_grad()
    def step(self, actions: Any) -> tuple[dict[str, Any], Any, Any, Any, dict[str, Any]]:
        """One action in every row: integers (N,), an array or a tensor."""
        if not self._generators:
            raise ResetNeeded("Cannot call env.step() before calling env.reset()")
        actions = self._actions(actions)
        coming = self._coming(actions)
        ended_before = self.episodes.done.clone()
        rewards = self.episodes.step(actions, coming)
        terminated = self.episodes.done.clone()
        info: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._stays_there:
            info = self._final(terminated)
            clean, damaged = self.source.draw(self._keys.take(terminated))
            self.episodes.begin(damaged, clean, where=terminated)
        elif coming:
            begun, rows = joined([one.result for one in coming]), torch.nonzero(terminated)[:, 0]
            laying = in_parallel([partial(self.episodes.lay, begun, rows)], beside=True)
            info = self._final(terminated)
            deque(laying, maxlen=0)
            self.episodes.begin_at(begun, rows, laid=True)
        elif self.autoreset_mode is AutoresetMode.SAME_STEP and bool(terminated.any()):
            info = self._final(terminated)
            self._begin(torch.nonzero(terminated)[:, 0].cpu())
        elif self.autoreset_mode is AutoresetMode.NEXT_STEP and bool(ended_before.any()):
            self._begin(torch.nonzero(ended_before)[:, 0].cpu())
            terminated = terminated & ~ended_before
        observation = self._observation()
        info.update(self._info(self.episodes.info()))
        truncated = torch.zeros_like(terminated)
        if self.output == "torch":
            return observation, rewards, terminated, truncated, info
        return (
            observation,
            rewards.cpu().numpy(),
            terminated.cpu().numpy(),
            truncated.cpu().numpy(),
            info,
        )

    def action_masks(self) -> np.ndarray:
        """Valid actions, bool (N, len(toolbox) + 1)."""
        return self.episodes.action_mask().bool().cpu().numpy()

    def _actions(self, actions: Any) -> Tensor:
        try:
            actions = torch.as_tensor(actions)
        except (TypeError, ValueError, RuntimeError):
            expected = f"{self.num_envs} integers, an array of them or a tensor"
            raise InvalidArgument("actions", expected, repr(actions)) from None
        check_actions(actions, self.num_envs, len(self.episodes.toolbox))
        return actions.long()

    def _rows(self, mask: Any) -> Tensor:
        if mask is None:
            return torch.arange(self.num_envs)
        array = mask.cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
        if array.dtype != np.bool_ or array.shape != (self.num_envs,) or not array.any():
            expected = f"a bool array of shape ({self.num_envs},) with a true entry"
            raise InvalidArgument("options['reset_mask']", expected, repr(mask))
        return torch.from_numpy(np.flatnonzero(array))

    def _seed(self, seed: int | Sequence[int | None] | None, rows: Tensor) -> None:
        """Give the rows that have a seed a new generator; without seeds the old ones go on."""
        seeds: Any = seed
        if seed is None:
            seeds = [None] * self.num_envs
        elif isinstance(seed, int | np.integer):
            seeds = [int(seed) + i for i in range(self.num_envs)]
        fitting = isinstance(seeds, Sequence | np.ndarray) and len(seeds) == self.num_envs
        if not fitting or not all(one is None or isinstance(one, int | np.integer) for one in seeds):
            raise InvalidArgument("seed", f"None, an integer or {self.num_envs} of them", repr(seed))
        if not self._generators:
            self._generators = [seeding.np_random()[0] for _ in range(self.num_envs)]
        seeded = [row for row in rows.tolist() if seeds[row] is not None]
        self._keys.settle(seeded)
        for row in seeded:
            self._generators[row] = seeding.np_random(int(seeds[row]))[0]

    def _coming(self, actions: Tensor) -> list[Kept[Start]]:
        """On a processor: what draws the patches of the episodes that follow those ending now, beside the tools."""
        if self.autoreset_mode is not AutoresetMode.SAME_STEP or devices.must_not_wait(self.source.device):
            return []
        rows = torch.nonzero(self.episodes.ending(actions))[:, 0]
        return [Kept(one) for one in self.source.starts(self._next_keys(rows))] if len(rows) else []

    def _next_keys(self, rows: Tensor) -> Tensor:
        return torch.from_numpy(self._keys.pop(rows.tolist()))

    def _begin(self, rows: Tensor, options: Mapping[str, Any] | None = None) -> None:
        keys = to_device(self._next_keys(rows), self.source.device)
        clean, damaged = self.source.draw(keys, options)
        whole = len(rows) == self.num_envs
        self.episodes.begin_at(start(damaged, clean), None if whole else rows.to(damaged.device))

    def _observation(self, rows: Tensor | None = None) -> dict[str, Any]:
        observation = self.episodes.observation(rows, channels_last=True)
        return dict(observation) if self.output == "torch" else to_numpy(observation)

    def _info(self, info: Mapping[str, Tensor], rows: Tensor | None = None) -> dict[str, Any]:
        """Values with, as Gymnasium has it, a mask ``_name`` beside each: which rows hold one, None for all."""
        values: Mapping[str, Any] = info if self.output == "torch" else to_numpy(info)
        return {**values, **{f"_{name}": self._mask(rows) for name in values}}

    def _mask(self, rows: Tensor | None) -> Any:
        if rows is None and self.output == "numpy":
            return np.ones(self.num_envs, np.bool_)
        if rows is None:
            return torch.ones(self.num_envs, dtype=torch.bool, device=self.source.device)
        return rows.clone() if self.output == "torch" else rows.numpy(force=True).copy()

    def _final(self, ended: Tensor) -> dict[str, Any]:
        """The last observation and info of the episodes that ended, taken before the next ones begin."""
        info = self._info(self.episodes.info(), ended)
        final_obs: Any
        if self.output == "torch":
            final_obs = self._observation()
        else:
            rows = torch.nonzero(ended)[:, 0]
            last, final_obs = self._observation(rows), np.full(self.num_envs, None, dtype=object)
            for place, row in enumerate(rows.tolist()):
                final_obs[row] = {name: value[place] for name, value in last.items()}
        return {
            "final_obs": final_obs,
            "_final_obs": self._mask(ended),
            "final_info": info,
            "_final_info": self._mask(ended),
        }
