"""Stable-Baselines3 and its contributions learn on `Restore-v0` as it is."""

import warnings

import numpy as np
import pytest
from helpers import STOP, make, needs_cnn12
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

SMALL = dict(n_steps=32, batch_size=32, n_epochs=1)


def learned(algorithm, policy: str, steps: int, toolbox: str = "tiny", **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = DummyVecEnv([lambda: make(toolbox=toolbox, patch_size=36)] * 2)
        model = algorithm(policy, envs, seed=0, device="cpu", **arguments)
        model.learn(steps)
    assert model.num_timesteps >= steps
    return model


def test_the_image_is_an_image() -> None:
    assert is_image_space(make().observation_space["image"], check_channels=True)


def test_ppo() -> None:
    model = learned(PPO, "MultiInputPolicy", 256, n_steps=64, batch_size=64, n_epochs=1)
    episodes = model.ep_info_buffer
    assert len(episodes) == 0 or all(0 < episode["l"] <= 3 for episode in episodes)
    action, _ = model.predict(make(patch_size=36).reset(seed=0)[0], deterministic=True)
    assert 0 <= action <= STOP


def test_dqn() -> None:
    learned(DQN, "MultiInputPolicy", 40, learning_starts=16, batch_size=8, buffer_size=100, train_freq=8)


def test_maskable_ppo() -> None:
    model = learned(MaskablePPO, "MultiInputPolicy", 64, **SMALL)
    env = make(patch_size=36)
    observation, _ = env.reset(seed=0)
    only_blur = np.array([False, False, True, False])
    assert model.predict(observation, action_masks=only_blur)[0] == 2
    assert 0 <= model.predict(observation, action_masks=env.unwrapped.action_masks())[0] <= STOP


def test_recurrent_ppo() -> None:
    learned(RecurrentPPO, "MultiInputLstmPolicy", 64, **SMALL)


def test_the_last_observation_reaches_sb3() -> None:
    envs = VecMonitor(DummyVecEnv([make]))
    envs.seed(0)
    envs.reset()
    for action in (0, STOP):
        observation, rewards, dones, infos = envs.step(np.array([action]))
    assert dones[0] and infos[0]["terminal_observation"]["steps_left"] == 1
    assert observation["steps_left"][0] == 3 and not infos[0]["TimeLimit.truncated"]
    assert infos[0]["episode"]["l"] == 2 and rewards[0] == 0


@pytest.mark.long
@needs_cnn12
def test_ppo_on_the_published_tools() -> None:
    model = learned(PPO, "MultiInputPolicy", 2048, toolbox="cnn12", n_steps=256, batch_size=64, n_epochs=2)
    assert model.num_timesteps >= 2048
