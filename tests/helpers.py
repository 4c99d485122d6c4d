"""What tests share: a toolbox that costs nothing, registered under "tiny" on import, and short ways to play."""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import restoration_env
from restoration_env.registry import register_tool, register_toolbox
from restoration_env.toolbox import Tool, Toolbox


def _blurred(images):
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def tiny(*, device="cpu", precision="float32"):
    return Toolbox(
        "tiny",
        [
            Tool("brighten", "adds a little", lambda x: x + 0.02, precision=precision),
            Tool("darken", "takes a little", lambda x: x - 0.02, precision=precision),
            Tool("blur", "averages 3x3 pixels", _blurred, halo=1, precision=precision),
        ],
    )


def invert(*, device="cpu", precision="float32"):
    return Tool("invert", "the negative", lambda x: 1 - x, precision=precision)


class _Learning(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(0.9))

    def forward(self, images):
        return images * self.factor


def learning(*, device="cpu", precision="float32"):
    """A toolbox as users make them: a module whose parameters want gradients."""
    return Toolbox("learning", [Tool("scale", "a factor", _Learning())])


register_toolbox("tiny", "helpers:tiny")
register_toolbox("learning", "helpers:learning")
register_tool("invert", "helpers:invert")

_weights = Path(restoration_env.__file__).parent.parent / "tools" / "weights" / "cnn12"
needs_cnn12 = pytest.mark.skipif(
    len(list(_weights.glob("*.safetensors"))) < 12, reason="tools/weights holds fewer than twelve tools"
)
TOOLBOXES = ["tiny", pytest.param("cnn12", marks=needs_cnn12)]
TOOLS = 3
STOP = 3


def make(**arguments):
    """`gym.make`, with the tiny toolbox unless told otherwise."""
    return gymnasium.make("Restore-v0", **{"toolbox": "tiny", **arguments})


def make_vec(num_envs, **arguments):
    """`gym.make_vec`, with the tiny toolbox unless told otherwise."""
    return gymnasium.make_vec("Restore-v0", num_envs, **{"toolbox": "tiny", **arguments})


def leaves(value, path=""):
    """All values of nested dictionaries, with their paths."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from leaves(part, f"{path}/{name}")
    else:
        yield path, value


def is_finite(number):
    return isinstance(number, float) and math.isfinite(number)


def play(env, actions, seed=0, **options):
    """Everything an episode gives out: a list of observations, infos, rewards and ends."""
    observation, info = env.reset(seed=seed, options=options or None)
    said = [(observation, info)]
    for action in actions:
        said.append(env.step(action))
    return said


def assert_same(a, b) -> None:
    for one, other in zip(a, b, strict=True):
        for (path, x), (_, y) in zip(leaves(dict(enumerate(one))), leaves(dict(enumerate(other))), strict=True):
            np.testing.assert_array_equal(x, y, err_msg=path, strict=isinstance(x, np.ndarray))


def patch(seed: int = 0, size: int = 63) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 200, (size, size, 3), dtype=np.uint8)


needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def interpreted(program: str) -> str:
    """What a Python program prints whose GPU kernels Triton interprets on the processor."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
