"""Compiled loops change nothing but the time: what they draw, compress and measure is what tensors do."""

import numpy as np
import pytest
import torch

from restoration_env import devices, episodes, jpeg, randomness
from restoration_env.episodes import Episodes
from restoration_env.metrics import psnr
from restoration_env.pixels import eight_bit
from restoration_env.randomness import normal
from restoration_env.registry import load_toolbox
from restoration_env.vector_env import RestoreVectorEnv

pytest.importorskip("numba", reason="numba is not installed")


@pytest.fixture
def without_loops(monkeypatch: pytest.MonkeyPatch):
    def switch() -> None:
        for module in (jpeg, randomness, episodes):
            monkeypatch.setattr(module, "has_loops", lambda device: False)

    return switch


def played(severity: str) -> tuple[list, list]:
    envs = RestoreVectorEnv(6, severity=severity)
    random, images, rewards = np.random.default_rng(0), [], []
    images.append(envs.reset(seed=3)[0]["image"])
    for _ in range(5):
        observation, reward, *_ = envs.step(random.integers(0, 13, 6))
        images.append(observation["image"])
        rewards.append(reward)
    return images, rewards


@pytest.mark.parametrize("severity", ["moderate", "mixed", "with-x4"])
def test_episodes_are_the_same_with_and_without(without_loops, severity: str) -> None:
    images, rewards = played(severity)
    without_loops()
    expected_images, expected_rewards = played(severity)
    np.testing.assert_array_equal(images, expected_images)
    np.testing.assert_allclose(rewards, expected_rewards, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_numbers_are_drawn(without_loops, dtype: torch.dtype) -> None:
    keys = torch.tensor([0, 1, 2**63 - 1, -5])
    drawn = normal(keys, (3, 7, 5), 3, dtype=dtype)
    without_loops()
    assert torch.equal(normal(keys, (3, 7, 5), 3, dtype=dtype), drawn)


@torch.no_grad()
def test_what_is_seen_is_what_the_metric_and_eight_bits_say() -> None:
    random = torch.Generator().manual_seed(0)
    clean = torch.rand(40, 3, 9, 8, generator=random)
    halves = torch.randint(-40, 600, clean.shape, generator=random) / 510  # outside of [0, 1], and between two levels
    seen = Episodes(load_toolbox("cnn12"))
    seen.begin(halves, clean)
    torch.testing.assert_close(seen.psnr, psnr(halves, clean), rtol=0, atol=1e-9)
    assert torch.equal(seen.pixels, eight_bit(halves).permute(0, 2, 3, 1))
    seen.begin(clean, clean)
    assert seen.psnr.tolist() == [100.0] * 40
    seen.begin(clean)
    assert seen.psnr.isnan().all()


def test_images_in_any_order_in_memory_are_compressed(without_loops) -> None:
    levels = torch.randint(0, 256, (4, 21, 34, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    quality = torch.tensor([3, 30, 60, 99])
    last, first = (jpeg.jpeg(x, quality) for x in (levels.permute(0, 3, 1, 2), levels.permute(0, 3, 1, 2).contiguous()))
    without_loops()
    assert torch.equal(last, first) and torch.equal(first, jpeg.jpeg(levels.permute(0, 3, 1, 2), quality))


def test_loops_that_cannot_be_kept_on_disk_are_compiled_still() -> None:
    scope: dict = {}
    exec("def twice(x):\n    return 2 * x", scope)  # a function of no file
    assert devices.loops()._compiled(scope["twice"])(21) == 42
