"""Algorithms learn to see which tool is right, where there is one and the image says which (`checks`).

Deep recurrent Q-learning has its own such test (test_agents).
"""

from pathlib import Path

import pytest
import torch
from checks import checks, write_checks

from restoration_env.agents import SB3Config, load_sb3_policy, train_sb3
from restoration_env.agents.agent import ToolchainAgent
from restoration_env.agents.exact_values import ExactValues
from restoration_env.agents.lookahead_training import LookaheadConfig, _Run
from restoration_env.agents.network import StatisticsNetwork
from restoration_env.agents.policies import Policy, roll_out
from restoration_env.distortions import recipe
from restoration_env.episodes import Episodes
from restoration_env.images import damaged_patches, load_images
from restoration_env.metrics import psnr
from restoration_env.schedules import cosine
from restoration_env.tools.restoring import mean_gain

SIZE, MAX_STEPS, SEVERITY = 20, 2, "noise"
STEPS = {"dqn": 2_000, "qrdqn": 2_000, "a2c": 14_000, "ppo": 6_000, "maskable-ppo": 6_000, "recurrent-ppo": 6_000}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_checks(tmp_path_factory.mktemp("checks"))


@torch.no_grad()
def share(policy: Policy, folder: Path, size: int = SIZE) -> float:
    """The policy's mean gain on images it has not seen, as a share of the best that any chain of tools reaches."""
    toolbox, pool = checks(), load_images(folder, "validation").fitting(size)
    clean, damaged = damaged_patches(pool, torch.arange(96), recipe(SEVERITY), size)
    episodes = Episodes(toolbox, max_steps=MAX_STEPS)
    episodes.begin(damaged, clean)
    roll_out(policy, episodes)
    chains = [damaged] + [tool(damaged) for tool in toolbox]
    chains += [tool(once) for once in chains[1:] for tool in toolbox]
    best = torch.stack([psnr(images, clean) for images in chains]).max(0).values
    assert (best - episodes.psnr_initial).min() > 3  # every image can be helped
    return ((episodes.psnr - episodes.psnr_initial).mean() / (best - episodes.psnr_initial).mean()).item()


@torch.no_grad()
def test_there_is_one_right_tool_for_every_image(folder: Path) -> None:
    toolbox, pool = checks(), load_images(folder, "validation")
    clean, damaged = damaged_patches(pool, torch.arange(96), recipe(SEVERITY), SIZE)
    gains = torch.stack([psnr(tool(damaged), clean) - psnr(damaged, clean) for tool in toolbox])
    ranked = gains.sort(0, descending=True).values
    assert ranked[0].min() > 3 and ranked[1].abs().max() < 1e-6
    assert torch.bincount(gains.argmax(0), minlength=len(toolbox)).min() > 0
    turned = damaged.transpose(2, 3).flip(2)
    for tool in toolbox:
        torch.testing.assert_close(tool(turned), tool(damaged).transpose(2, 3).flip(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(tool(tool(damaged)), tool(damaged), atol=1e-5, rtol=0)


@pytest.mark.parametrize("algo", STEPS)
def test_stable_baselines3(algo: str, folder: Path, tmp_path) -> None:
    config = SB3Config(
        algo=algo,
        steps=STEPS[algo],
        severity=SEVERITY,
        max_steps=MAX_STEPS,
        patch_size=SIZE,
        evaluate_every=STEPS[algo] // 4,
        validation_images=64,
    )
    train_sb3(config, tmp_path / algo, images=str(folder), toolbox="checks")
    assert share(load_sb3_policy(tmp_path / f"{algo}.safetensors"), folder) >= 0.9


def test_exact_values(folder: Path) -> None:
    torch.manual_seed(0)
    toolbox, pool = checks(), load_images(folder, "train")
    values = ExactValues(StatisticsNetwork(len(toolbox), SIZE), max_steps=MAX_STEPS, learning_rate=3e-3, following=0.9)
    for batch in range(60):
        keys = torch.arange(8) + 8 * batch
        values.visit(toolbox, *damaged_patches(pool, keys, recipe(SEVERITY), SIZE))
        for _ in range(3):
            values.learn()
    assert values.images == 480
    assert share(ToolchainAgent(values.target, toolbox, MAX_STEPS), folder) >= 0.9


def test_lookahead(folder: Path) -> None:
    rates = {"learning_rate": 3e-3, "muon_rate": 0.01, "averaging": 0.9}
    config = LookaheadConfig(episodes=11_200, batch=16, critic_width=16, max_steps=MAX_STEPS, **rates)
    toolbox, pool, run = checks(), load_images(folder, "train"), _Run(config, checks(), "cpu", "float32")
    while run.images < config.episodes:
        keys = torch.arange(config.batch) + run.images
        rate = cosine(run.images, config.episodes, warmup=1_600)
        run.descend(*damaged_patches(pool, keys, recipe(SEVERITY), SIZE), rate)
    some = damaged_patches(pool, torch.arange(8), recipe(SEVERITY), SIZE)
    run.judge(mean_gain(run.average.module, *some))
    agent = run.agent(run.critic_of_best({SEVERITY: some}))
    agent.network.patch_size = SIZE
    assert agent.toolbox.names == toolbox.names and share(agent, folder) >= 0.9
