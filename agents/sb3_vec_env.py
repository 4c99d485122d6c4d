"""What Stable-Baselines3 sees of the batched environment: a `VecEnv` that takes one step for all episodes at once.

Stable-Baselines3 cannot read Gymnasium's vector environments, and `DummyVecEnv` runs every tool on one image after
the other. `SB3VecEnv` says, step for step, what `DummyVecEnv` would say of N single environments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.rendering import filmstrip
from restoration_env.vector_env import RestoreVectorEnv


class SB3VecEnv(VecEnv):
    """A `RestoreVectorEnv`, wrapped or not, for any algorithm of Stable-Baselines3 or in its style.

    >>> envs = SB3VecEnv(gym.make_vec("Restore-v0", 16, severity="moderate"))
    >>> PPO("MultiInputPolicy", VecMonitor(envs)).learn(100_000)

    Args:
        envs: the environments, with autoreset SAME_STEP and NumPy output (both are what `make_vec` gives).
        render_mode: "rgb_array" to keep the steps of every episode for `render`, one filmstrip each; or None.

    Raises:
        InvalidArgument: for environments of another kind.
    """

    actions: np.ndarray

    def __init__(self, envs: VectorEnv, render_mode: str | None = None) -> None:
        batched = getattr(envs, "unwrapped", None)
        if not isinstance(batched, RestoreVectorEnv):
            raise InvalidArgument("envs", "a RestoreVectorEnv, as gym.make_vec('Restore-v0', N) gives it", repr(envs))
        if batched.output != "numpy" or batched.autoreset_mode is not AutoresetMode.SAME_STEP:
            got = f"output={batched.output!r}, autoreset_mode={batched.autoreset_mode.value!r}"
            raise InvalidArgument("envs", "made with output='numpy' and autoreset_mode='SameStep'", got)
        if render_mode not in (None, "rgb_array"):
            raise UnknownName("render_mode", render_mode, ["rgb_array"])
        self.envs, self.batched, self.render_mode = envs, batched, render_mode
        self._films: list[list[tuple[np.ndarray, str, float, float]]] = [[] for _ in range(batched.num_envs)]
        self._begun = False
        super().__init__(batched.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> VecEnvObs:
        """Begin an episode in every row, with the seeds and options that were set since the last call."""
        observation: Any = {}
        info: Any = {}
        seeds: Any = self._seeds  # the batched environment takes a list, as Gymnasium's own do
        if not any(self._options) or not self._begun:
            observation, info = self.envs.reset(seed=seeds)
        for row in range(self.num_envs) if any(self._options) else ():
            options = {**self._options[row], "reset_mask": np.arange(self.num_envs) == row}
            observation, info = self.envs.reset(seed=seeds, options=options)
        self._begun = True
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [_row(info, row) for row in range(self.num_envs)]
        for row in range(self.num_envs):
            self._film_begins(row, observation)
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        """Remember the actions, integers (N,)."""
        self.actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Take the step; where an episode ended, the observation is the next one's first."""
        observation, rewards, terminated, truncated, info = self.envs.step(self.actions)
        dones, infos = terminated | truncated, []
        for row in range(self.num_envs):
            said = _row(info, row)
            if dones[row]:
                self.reset_infos[row] = dict(said)
                said.update(_row(info["final_info"], row), terminal_observation=info["final_obs"][row])
                self._film_begins(row, observation)
            elif self.render_mode:
                name = self.batched.episodes.toolbox.action_names()[int(self.actions[row])]
                self._films[row].append((observation["image"][row].copy(), name, said["psnr"], float(rewards[row])))
            infos.append({**said, "TimeLimit.truncated": bool(truncated[row] and not terminated[row])})
        return observation, rewards.astype(np.float32), dones, infos

    def get_images(self) -> Sequence[np.ndarray | None]:
        """The filmstrip of each episode so far, uint8 (height, width, 3)."""
        slots = self.batched.episodes.max_steps + 1
        return [_draw(film, slots) if film else None for film in self._films]

    def close(self) -> None:
        """Close the environments."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of each single environment."""
        rows = self._get_indices(indices)
        if attr_name in ("action_space", "observation_space"):
            attr_name = f"single_{attr_name}"
        value = self.render_mode if attr_name == "render_mode" else getattr(self.batched, attr_name)
        return [value for _ in rows]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the batched environment, of all rows together."""
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise InvalidArgument("indices", "None: the environments of a batch share their attributes", indices)
        setattr(self.batched, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method that gives a value for each row, such as ``action_masks``, or ``render``."""
        if method_name == "render":
            values: Sequence[Any] = self.get_images() if self.render_mode else [None] * self.num_envs
        elif method_name == "action_masks":
            values = list(self.batched.action_masks())
        else:
            raise UnknownName("method_name", method_name, ["action_masks", "render"])
        return [values[row] for row in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """No: the wrappers of single environments do not fit a batch."""
        return [False for _ in self._get_indices(indices)]

    def _film_begins(self, row: int, observation: Mapping[str, np.ndarray]) -> None:
        if self.render_mode:
            psnr = self.reset_infos[row]["psnr"]
            self._films[row] = [(observation["image"][row].copy(), "damaged", psnr, 0.0)]


class ScaledRewards(VecEnvWrapper):
    """Divides rewards by ``unit``, so that what an algorithm learns to predict is near one."""

    def __init__(self, venv: VecEnv, unit: float = 10.0) -> None:
        super().__init__(venv)
        self.unit = unit

    def reset(self) -> VecEnvObs:
        """As without this wrapper."""
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """As without this wrapper, but for the rewards."""
        observation, rewards, dones, infos = self.venv.step_wait()
        return observation, rewards / self.unit, dones, infos


def _row(info: Mapping[str, Any], row: int) -> dict[str, Any]:
    """The info of one row, as its single environment would give it, out of that of a batch."""
    said: dict[str, Any] = {}
    for name, values in info.items():
        mask = info.get(f"_{name}")
        if name.startswith(("_", "final_")) or not (mask is None or mask[row]):
            continue
        if isinstance(values, Mapping):
            said[name] = _row(values, row)
        else:
            said[name] = values[row].copy() if values.ndim > 1 else values[row].item()
    return said


def _draw(film: Sequence[tuple[np.ndarray, str, float, float]], slots: int) -> np.ndarray:
    """The picture that `RestoreEnv.render` would draw of the same steps."""
    texts = [
        (name, f"{psnr:.2f} dB ({gain:+.2f})" if step else f"{psnr:.2f} dB")
        for step, (_, name, psnr, gain) in enumerate(film)
    ]
    return filmstrip([frame for frame, *_ in film], texts, slots=slots)
