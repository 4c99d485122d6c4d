"""`RestoreEnv`, the Gymnasium environment: one episode of `restoration_env.episodes` at a time."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from restoration_env.episodes import Episodes
from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.observations import observation_space, to_numpy
from restoration_env.randomness import draw_keys
from restoration_env.registry import load_toolbox
from restoration_env.rendering import describe_step, filmstrip
from restoration_env.source import EpisodeSource


class RestoreEnv(gymnasium.Env):
    """Restore a damaged photograph by choosing, step by step, which tool to apply next.

    ## Description
    A clean patch of a photograph is blurred, made noisy and JPEG-compressed. The agent sees the damaged patch
    and applies one of twelve small CNN tools, sees the result, applies another, and stops when no tool would
    help. The process is that of *Crafting a Toolchain for Image Restoration by Deep Reinforcement Learning*
    (Yu, Dong, Lin and Loy, CVPR 2018).

    ## Action Space
    `Discrete(13)`: apply one tool, or stop.

    | action | tool | removes | band |
    |---|---|---|---|
    | 0, 1 | deblur-1, deblur-2 | Gaussian blur, sigma in pixels | 0-1.25, 1.25-2.5 |
    | 2, 3 | deblur-3, deblur-4 | Gaussian blur | 2.5-3.75, 3.75-5 |
    | 4, 5 | denoise-1, denoise-2 | Gaussian noise, sigma on the 0-255 scale | 0-12.5, 12.5-25 |
    | 6, 7 | denoise-3, denoise-4 | Gaussian noise | 25-37.5, 37.5-50 |
    | 8, 9 | dejpeg-1, dejpeg-2 | JPEG artifacts, quality | 60-100, 35-60 |
    | 10, 11 | dejpeg-3, dejpeg-4 | JPEG artifacts | 20-35, 10-20 |
    | 12 | stop | nothing | |

    ## Observation Space
    A `Dict` of `image`, `Box(0, 255, (63, 63, 3), uint8)`: the patch as restored so far; `last_action`,
    `Discrete(13)`: the action taken last, 12 before the first; and `steps_left`, `Discrete(4)`.

    ## Starting State
    A patch of a random photograph at a random place, with damage drawn by the recipe `severity`. All of it
    follows from the seed.

    ## Rewards
    The gain in PSNR of the step, in dB; exactly 0 for stop. The rewards of an episode sum to its total gain.

    ## Episode End
    `terminated` after stop or after `max_steps` actions. An episode is never truncated. Actions after the end
    change nothing and earn nothing.

    ## Information
    `psnr`, `psnr_initial` and `psnr_gain` in dB; `toolchain`, the actions taken, padded with -1;
    `action_mask`, int8, for `action_space.sample(mask)`.

    ## Arguments
    All are JSON-serialisable.

    - `images`: "bundled", "div2k" or a folder; `split`: "train", "validation", "test" or "all".
    - `severity`: "mild", "moderate" or "severe" (as published), "blur", "noise", "jpeg", "single", "mixed", "any",
      "every", "x4" (resolution lost by four) or "with-x4" (half of that, half "mixed").
    - `toolbox`: "cnn12" or any registered name; `extra_tools`: names of further tools.
    - `max_steps`: actions of an episode, 3 as published.
    - `patch_size`: side in pixels, 63 as published; `grid`: "aligned" (patches start at multiples of 8) or "random".
    - `scale`: images are shrunk by this factor first, above 0 and at most 1.
    - `reward`: "psnr" or "ssim".
    - `precision`: "float32" or "bfloat16"; `device`: "cpu", "cuda", "cuda:N" or "auto".
    - `backend`: what computes the tools, "torch" or (with the extra of that name, on a processor) "openvino", which
      also knows the precision "int8".
    - `render_mode`: "rgb_array" (a filmstrip of the steps) or "ansi".

    `reset` takes `options={"severity": name}` for one episode, `{"image": clean}` for a clean uint8 patch
    (H, W, 3) of your own, and `{"image": clean, "damaged": damaged}` for a pair.

    `RestoreSR-v0` is the same with fourteen actions, action 12 the super-resolver "sft-x4" and 13 stop, on damage of
    which half lost its resolution (`extra_tools=["sft-x4"]`, `severity="with-x4"`).

    ## Version History
    - v0: initial version.
    """

    metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 2}  # noqa: RUF012

    def __init__(
        self,
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
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise UnknownName("render_mode", render_mode, self.metadata["render_modes"])
        self.source = EpisodeSource(images, split, severity, patch_size, grid, scale, device)
        tools = load_toolbox(toolbox, extra_tools, device=self.source.device, precision=precision, backend=backend)
        self.episodes = Episodes(tools, max_steps=max_steps, reward=reward)
        self.observation_space = observation_space(patch_size, len(tools), max_steps)
        self.action_space = spaces.Discrete(len(tools) + 1)
        self.render_mode = render_mode
        self._film: list[np.ndarray] = []
        self._captions: list[tuple[str, float, float]] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode; see the class for ``options``."""
        super().reset(seed=seed)
        keys = torch.from_numpy(draw_keys(self.np_random, 1))
        clean, damaged = self.source.draw(keys, options)
        self.episodes.begin(damaged, clean)
        self._film, self._captions = [], []
        observation, info = self._outcome()
        self._record("damaged", 0.0, observation, info)
        return observation, info

    @torch.no_grad()
    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Apply one tool, or stop. After the end of an episode nothing changes any more."""
        number, over = self._number(action), bool(self.episodes.done)
        reward = self.episodes.step(torch.tensor([number])).item()
        observation, info = self._outcome()
        if not over:
            self._record(self.episodes.toolbox.action_names()[number], reward, observation, info)
        return observation, reward, bool(self.episodes.done), False, info

    def action_masks(self) -> np.ndarray:
        """Valid actions, bool (len(toolbox) + 1,), for sb3-contrib's MaskablePPO."""
        return self.episodes.action_mask()[0].bool().cpu().numpy()

    def render(self) -> Any:
        """The episode so far: a filmstrip (H, W, 3), or a line of text for each step."""
        if self.render_mode is None:
            gymnasium.logger.warn("render() needs a render_mode, for example gym.make(..., render_mode='ansi')")
            return None
        if self.render_mode == "ansi":
            first = f"damaged  {self._captions[0][1]:.2f} dB"
            steps = [describe_step(i, *caption) for i, caption in enumerate(self._captions) if i > 0]
            return "\n".join((first, *steps)) + "\n"
        texts = [
            (name, f"{psnr:.2f} dB ({gain:+.2f})" if step else f"{psnr:.2f} dB")
            for step, (name, psnr, gain) in enumerate(self._captions)
        ]
        return filmstrip(self._film, texts, slots=self.episodes.max_steps + 1)

    def _number(self, action: Any) -> int:
        """The action as an int; whatever is not a whole number in the action space is refused."""
        try:
            number = operator.index(action)
        except TypeError:
            number = -1
        stop = self.episodes.toolbox.stop
        if not 0 <= number <= stop:
            raise InvalidArgument("action", f"an integer between 0 and {stop}", repr(action))
        return number

    def _outcome(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Observation and info of the one episode, as fresh NumPy values."""
        seen, info = to_numpy(self.episodes.observation(channels_last=True)), to_numpy(self.episodes.info())
        observation = {name: value[0] for name, value in seen.items()}
        return observation, {k: v[0] if v.ndim > 1 else float(v[0]) for k, v in info.items()}

    def _record(self, name: str, gain: float, observation: dict[str, Any], info: dict[str, Any]) -> None:
        if self.render_mode is not None:
            self._film.append(observation["image"].copy())
            self._captions.append((name, info["psnr"], gain))
