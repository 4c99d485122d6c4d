"""`SB3VecEnv` says, step for step, what `DummyVecEnv` says of N single environments."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from helpers import STOP, TOOLBOXES, TOOLS, leaves, make, make_vec, patch
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib import TRPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecTransposeImage

from restoration_env.agents import SB3VecEnv
from restoration_env.agents.sb3_vec_env import ScaledRewards
from restoration_env.errors import InvalidArgument

N = 4
GOLD = np.random.default_rng(0).integers(0, TOOLS + 1, (8, N))  # stops early, late and not at all


def pair(render_mode=None, **arguments) -> tuple[SB3VecEnv, DummyVecEnv]:
    batched = SB3VecEnv(make_vec(N, **arguments), render_mode=render_mode)
    return batched, DummyVecEnv([lambda: make(render_mode=render_mode, **arguments)] * N)


def assert_close(a, b, path: str = "") -> None:
    """Equal types and values: images within one level, other numbers to 1e-4."""
    ours, theirs = dict(leaves({"": a})), dict(leaves({"": b}))
    assert ours.keys() == theirs.keys(), path
    for name, x in ours.items():
        y = theirs[name]
        assert type(x) is type(y) or (isinstance(x, np.ndarray) and x.ndim == 0), (path, name, type(x), type(y))
        x, y = np.asarray(x), np.asarray(y)
        assert (x.dtype, x.shape) == (y.dtype, y.shape), (path, name)
        tolerance = 1 if x.dtype == np.uint8 else 1e-4 if x.dtype.kind == "f" else 0
        assert np.abs(x.astype(float) - y.astype(float)).max() <= tolerance, (path, name)


def steps_close(batched, single, actions) -> np.ndarray:
    ours, theirs = batched.step(actions), single.step(actions)
    for name, one, other in zip(("observation", "rewards", "dones"), ours[:3], theirs[:3], strict=True):
        assert_close(one, other, name)
    for row in range(len(actions)):
        assert_close(ours[3][row], theirs[3][row], f"infos[{row}]")
        assert_close(batched.reset_infos[row], single.reset_infos[row], f"reset_infos[{row}]")
    return theirs[2]


@pytest.mark.parametrize("toolbox", TOOLBOXES)
def test_equals_single_environments(toolbox: str) -> None:
    batched, single = pair(toolbox=toolbox, patch_size=40)
    assert batched.seed(5) == single.seed(5)
    assert_close(batched.reset(), single.reset())
    ends = sum(steps_close(batched, single, actions).sum() for actions in GOLD)
    assert ends > N  # the test has seen more than one episode in a row


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.integers(0, STOP), min_size=N, max_size=N), max_size=6), st.integers(0, 2**31 - N))
def test_equals_single_environments_whatever_is_done(rounds, seed: int) -> None:
    batched, single = pair(patch_size=16, max_steps=2)
    for envs in (batched, single):
        envs.seed(seed)
    assert_close(batched.reset(), single.reset())
    for actions in rounds:
        steps_close(batched, single, np.array(actions))


def test_the_last_observation_is_kept() -> None:
    envs = VecMonitor(SB3VecEnv(make_vec(2)))
    envs.seed(0)
    envs.reset()
    before, *_ = envs.step(np.array([0, 0]))
    observation, rewards, dones, infos = envs.step(np.array([STOP, 1]))
    assert dones.tolist() == [True, False] and rewards.dtype == np.float32 and rewards[0] == 0
    last = infos[0]["terminal_observation"]
    np.testing.assert_array_equal(last["image"], before["image"][0])
    assert last["steps_left"] == 1 and observation["steps_left"].tolist() == [3, 1]
    assert infos[0]["TimeLimit.truncated"] is False and "terminal_observation" not in infos[1]
    assert infos[0]["episode"]["l"] == 2 and infos[0]["toolchain"].tolist() == [0, STOP, -1]
    assert infos[0]["episode"]["r"] == pytest.approx(infos[0]["psnr_gain"], abs=1e-4)


def test_seeds_are_used_once() -> None:
    batched, single = pair(patch_size=20)
    for envs in (batched, single):
        envs.seed(7)
    assert_close(batched.reset(), single.reset())
    again = batched.reset()
    assert_close(again, single.reset())
    batched.seed(7)
    assert not np.array_equal(batched.reset()["image"], again["image"])
    np.random.seed(0)
    assert len(set(batched.seed())) == N


@pytest.mark.parametrize("begun", [False, True])
def test_options_for_each_row(begun: bool) -> None:
    batched, single = pair(patch_size=20)
    options = [{"severity": "severe"}, {}, {"image": patch(1, 20)}, {"image": patch(1, 20), "damaged": patch(2, 20)}]
    for envs in (batched, single):
        if begun:
            envs.seed(1)
            envs.reset()
        else:
            envs.seed(2)
        envs.set_options(options)
    assert_close(batched.reset(), single.reset())
    steps_close(batched, single, GOLD[0])
    for envs in (batched, single):
        envs.seed(3)
    assert_close(batched.reset(), single.reset())  # options are used once


def test_masks() -> None:
    batched, single = pair(patch_size=16)
    assert is_masking_supported(batched) and is_masking_supported(VecMonitor(batched))
    for envs in (batched, single):
        envs.reset()
    np.testing.assert_array_equal(get_action_masks(VecMonitor(batched)), get_action_masks(single))
    assert get_action_masks(batched).dtype == bool
    assert len(batched.env_method("action_masks", indices=[0, 2])) == 2
    np.testing.assert_array_equal(batched.env_method("action_masks", indices=1)[0], [True] * (TOOLS + 1))


def test_render_draws_what_single_environments_draw() -> None:
    batched, single = pair(render_mode="rgb_array", patch_size=32)
    for envs in (batched, single):
        envs.seed(0)
        envs.reset()
    for actions in GOLD[:4]:
        for one, other in zip(batched.get_images(), single.get_images(), strict=True):
            np.testing.assert_array_equal(one, other)
        for envs in (batched, single):
            envs.step(actions)
    np.testing.assert_array_equal(batched.render(), single.render())
    assert len(batched.env_method("render", indices=0)) == 1


def test_without_render_mode_nothing_is_drawn() -> None:
    envs = SB3VecEnv(make_vec(2, patch_size=16))
    envs.reset()
    with pytest.warns(UserWarning, match="render_mode"):
        assert envs.render() is None
    assert envs.env_method("render") == [None, None]


def test_attributes() -> None:
    batched, single = pair(patch_size=16)
    for name in ("observation_space", "action_space", "num_envs", "render_mode"):
        assert getattr(batched, name) == getattr(single, name), name
    for name in ("observation_space", "action_space", "render_mode"):
        assert batched.get_attr(name) == single.get_attr(name), name
    assert batched.get_attr("episodes", indices=[0])[0] is batched.batched.episodes
    assert batched.has_attr("action_masks") and not batched.has_attr("no_such_thing")
    assert batched.env_is_wrapped(Monitor) == [False] * N
    batched.set_attr("name", "mine")
    assert batched.get_attr("name", indices=0) == ["mine"]
    with pytest.raises(InvalidArgument, match="^indices must be None"):
        batched.set_attr("name", "mine", indices=[0])
    with pytest.raises(InvalidArgument, match="^method_name must be one of action_masks, render, got 'fly'"):
        batched.env_method("fly")
    batched.close()


@pytest.mark.parametrize(
    "envs",
    [
        lambda: make(),
        lambda: SyncVectorEnv([make]),
        lambda: make_vec(1, output="torch"),
        lambda: make_vec(1, autoreset_mode="NextStep"),
        lambda: make_vec(1, autoreset_mode="Disabled"),
        lambda: None,
    ],
)
def test_other_environments_are_refused(envs) -> None:
    with pytest.raises(InvalidArgument, match="^envs must be "):
        SB3VecEnv(envs())


def test_other_render_modes_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="^render_mode must be one of rgb_array, got 'ansi'"):
        SB3VecEnv(make_vec(1), render_mode="ansi")


def test_a_wrapped_vector_environment() -> None:
    envs = SB3VecEnv(RecordEpisodeStatistics(make_vec(2, patch_size=16)))
    envs.reset()
    infos = envs.step(np.array([STOP, 0]))[3]
    assert infos[0]["toolchain"].tolist() == [STOP, -1, -1] and infos[1]["toolchain"].tolist() == [0, -1, -1]


def test_scaled_rewards() -> None:
    plain, scaled = SB3VecEnv(make_vec(2, patch_size=16)), ScaledRewards(SB3VecEnv(make_vec(2, patch_size=16)), 10.0)
    for envs in (plain, scaled):
        envs.seed(0)
        envs.reset()
    one, other = plain.step(np.array([0, 2])), scaled.step(np.array([0, 2]))
    np.testing.assert_allclose(one[1], other[1] * 10, rtol=1e-6)
    assert other[1].dtype == np.float32 and one[3][0]["psnr"] == other[3][0]["psnr"]


def test_an_algorithm_that_this_project_does_not_name_learns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = VecMonitor(SB3VecEnv(gymnasium.make_vec("Restore-v0", 2, toolbox="tiny", patch_size=36)))
        model = TRPO("MultiInputPolicy", envs, n_steps=16, batch_size=16, seed=0, device="cpu").learn(64)
        mean, _ = evaluate_policy(model, envs, n_eval_episodes=4)
    assert model.num_timesteps == 64 and np.isfinite(mean)
    assert isinstance(model.get_env(), VecTransposeImage)
    assert all(0 < episode["l"] <= 3 for episode in model.ep_info_buffer)
