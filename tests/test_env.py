"""`Restore-v0` as Gymnasium's users expect it: found by name, checked, repeatable, hard to misuse."""

import copy
import importlib
import importlib.util
import json
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from helpers import STOP, TOOLBOXES, TOOLS, assert_same, leaves, make, needs_cnn12, patch, play
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

import restoration_env
from restoration_env.distortions import recipe_names
from restoration_env.env import RestoreEnv
from restoration_env.errors import InvalidArgument
from restoration_env.metrics import psnr
from restoration_env.vector_env import RestoreVectorEnv

CHECKOUT = Path(restoration_env.__file__).resolve().parent.parent


# ---- found by name ----


def test_made_by_name() -> None:
    for name in ("Restore-v0", "restoration_env:Restore-v0"):
        env = gymnasium.make(name, toolbox="tiny")
        assert isinstance(env.unwrapped, RestoreEnv)
    env = gymnasium.make_vec("Restore-v0", 2, vectorization_mode="vector_entry_point", toolbox="tiny")
    assert isinstance(env.unwrapped, RestoreVectorEnv) and env.num_envs == 2
    assert env.spec.id == "Restore-v0"


def test_the_step_budget_is_the_environments_own() -> None:
    assert gymnasium.spec("Restore-v0").max_episode_steps is None


def test_registration_is_idempotent() -> None:
    before, path = gymnasium.spec("Restore-v0"), list(restoration_env.__path__)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(restoration_env)
    assert gymnasium.spec("Restore-v0") is before
    assert list(restoration_env.__path__) == path


def test_the_import_is_cheap_and_without_torch() -> None:
    program = (
        "import time; start = time.perf_counter(); import restoration_env, sys;"
        "print(time.perf_counter() - start, 'torch' in sys.modules)"
    )
    seconds = []
    for _ in range(3):
        out = subprocess.run(
            [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=True
        ).stdout.split()
        assert out[1] == "False"
        seconds.append(float(out[0]))
    assert min(seconds) < 0.5


def test_the_module_lists_what_it_finds_on_first_use() -> None:
    assert restoration_env.RestoreEnv is RestoreEnv
    assert {"RestoreEnv", "load_toolbox", "register_tool", "__version__"} <= set(dir(restoration_env))
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = restoration_env.no_such_thing


def test_the_spec_travels_as_json() -> None:
    arguments = dict(severity="mild", split="test", extra_tools=["invert"], max_steps=2, reward="ssim")
    env = make(**arguments, patch_size=32, grid="random", precision="float32", device="cpu")
    text = env.spec.to_json()
    assert json.loads(text)["kwargs"]["extra_tools"] == ["invert"]
    again = gymnasium.make(EnvSpec.from_json(text))
    assert again.spec.kwargs == env.spec.kwargs
    assert_same(play(env, [0, STOP]), play(again, [0, STOP]))


# ---- the checkers ----


@pytest.mark.parametrize("severity", recipe_names())
def test_checkers(severity: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(severity=severity).unwrapped, skip_render_check=True)
        check_env_for_sb3(make(severity=severity))


@pytest.mark.parametrize("render_mode", ["rgb_array", "ansi"])
def test_checkers_with_rendering(render_mode: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(render_mode=render_mode).unwrapped)
        check_env_for_sb3(make(render_mode=render_mode), skip_render_check=False)


@needs_cnn12
def test_checkers_with_the_published_tools() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make("Restore-v0").unwrapped, skip_render_check=True)
        check_env_for_sb3(gymnasium.make("Restore-v0"))


def test_spaces() -> None:
    env = make(max_steps=5, patch_size=40)
    assert env.action_space == gymnasium.spaces.Discrete(TOOLS + 1)
    assert env.observation_space["image"] == gymnasium.spaces.Box(0, 255, (40, 40, 3), np.uint8)
    assert env.observation_space["last_action"].n == TOOLS + 1
    assert env.observation_space["steps_left"].n == 6
    assert set(env.observation_space) == {"image", "last_action", "steps_left"}


# ---- an episode ----


@pytest.mark.parametrize("toolbox", TOOLBOXES)
def test_seeds_repeat_bit_for_bit(toolbox: str) -> None:
    env, other = make(toolbox=toolbox), make(toolbox=toolbox)
    first = play(env, [0, 2, 1], seed=3)
    assert_same(first, play(other, [0, 2, 1], seed=3))
    assert_same(first, play(env, [0, 2, 1], seed=3))
    assert not np.array_equal(first[0][0]["image"], play(env, [], seed=4)[0][0]["image"])


def test_an_unseeded_reset_goes_on_with_the_generator() -> None:
    env, other = make(), make()
    series = [[e.reset(seed=1)[0], e.reset()[0], e.reset()[0]] for e in (env, other)]
    assert_same([series[0]], [series[1]])
    images = {observation["image"].tobytes() for observation in series[0]}
    assert len(images) == 3
    assert make().reset()[0]["image"].tobytes() != make().reset()[0]["image"].tobytes()


def test_actions_do_not_change_the_next_episodes() -> None:
    a, b = make(), make()
    play(a, [0, 1, 2], seed=5)
    play(b, [STOP], seed=5)
    assert_same([a.reset()], [b.reset()])


@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
def test_no_two_calls_share_memory(render_mode: str | None) -> None:
    said = play(make(render_mode=render_mode), [0, STOP, 2], seed=0)  # stop and beyond change nothing
    arrays = [[value for _, value in leaves(dict(enumerate(one))) if isinstance(value, np.ndarray)] for one in said]
    assert all(arrays)
    for i, one in enumerate(arrays):
        for other in arrays[i + 1 :]:
            assert not any(np.shares_memory(x, y) for x in one for y in other)


def test_writing_into_an_observation_changes_nothing() -> None:
    env, untouched = make(), make()
    observation, info = env.reset(seed=0)
    untouched.reset(seed=0)
    observation["image"][:] = 0
    info["toolchain"][:] = 7
    assert_same([env.step(0)], [untouched.step(0)])


def test_types() -> None:
    env = make()
    for step in play(env, [0, STOP]):
        observation, info = step[0], step[-1]
        assert env.observation_space.contains(observation)
        assert type(observation["last_action"]) is type(observation["steps_left"]) is np.int64
        assert set(info) == {"psnr", "psnr_initial", "psnr_gain", "toolchain", "action_mask"}
        assert all(type(info[name]) is float for name in ("psnr", "psnr_initial", "psnr_gain"))
        assert info["toolchain"].dtype == np.int64 and info["toolchain"].shape == (3,)
        assert info["action_mask"].dtype == np.int8 and info["action_mask"].shape == (TOOLS + 1,)
        if len(step) == 5:
            assert type(step[1]) is float and type(step[2]) is bool and type(step[3]) is bool


@pytest.mark.parametrize("toolbox", TOOLBOXES)
@pytest.mark.parametrize("reward", ["psnr", "ssim"])
def test_rewards_sum_to_the_gain(toolbox: str, reward: str) -> None:
    env = make(toolbox=toolbox, reward=reward)
    for seed in range(3):
        (_, start), *steps = play(env, [2, 0, 1], seed=seed)
        assert start["psnr_gain"] == 0 and start["psnr"] == start["psnr_initial"]
        gain = steps[-1][4]["psnr_gain"]
        assert gain == steps[-1][4]["psnr"] - start["psnr"]
        if reward == "psnr":
            assert sum(step[1] for step in steps) == pytest.approx(gain, abs=1e-9)
        else:
            assert all(-1 < step[1] < 1 for step in steps)


def test_the_reward_is_the_gain_in_psnr() -> None:
    clean, damaged = patch(0), patch(1)
    observation, info = (env := make()).reset(options={"image": clean, "damaged": damaged})
    np.testing.assert_array_equal(observation["image"], damaged)

    def measured(image: np.ndarray) -> float:
        as_batch = [torch.from_numpy(x / 255).permute(2, 0, 1)[None] for x in (image, clean)]
        return psnr(*as_batch).item()

    assert info["psnr"] == pytest.approx(measured(damaged), abs=1e-4)
    observation, reward, *_, info = env.step(2)
    assert info["psnr"] == pytest.approx(measured(observation["image"]), abs=0.05)  # rounded to 8 bits
    assert reward == pytest.approx(info["psnr"] - info["psnr_initial"])


def test_stop_earns_nothing_and_ends() -> None:
    (before, _), (after, reward, terminated, truncated, info) = play(make(), [STOP])
    assert reward == 0.0 and terminated is True and truncated is False
    np.testing.assert_array_equal(before["image"], after["image"])
    assert info["toolchain"].tolist() == [STOP, -1, -1] and info["psnr_gain"] == 0


@pytest.mark.parametrize("max_steps", [1, 3, 4])
def test_the_last_step_terminates(max_steps: int) -> None:
    env = make(max_steps=max_steps)
    (observation, info), *steps = play(env, [k % TOOLS for k in range(max_steps)])
    assert observation["last_action"] == STOP and observation["steps_left"] == max_steps
    assert info["toolchain"].tolist() == [-1] * max_steps
    for k, (observation, _, terminated, truncated, info) in enumerate(steps):
        assert observation["last_action"] == k % TOOLS
        assert observation["steps_left"] == max_steps - k - 1
        assert terminated is (k == max_steps - 1) and truncated is False
        assert info["toolchain"][k] == k % TOOLS


def test_a_masked_action_after_the_end_changes_nothing() -> None:
    env = make(render_mode="ansi")
    *_, last = play(env, [0, STOP])
    shown = env.render()
    assert last[4]["action_mask"].tolist() == [0] * TOOLS + [1]
    assert env.unwrapped.action_masks().tolist() == [False] * TOOLS + [True]
    for action in (0, 2, STOP):
        observation, reward, terminated, truncated, info = env.step(action)
        assert reward == 0 and terminated is True and truncated is False
        assert_same([(last[0], last[4])], [(observation, info)])
    assert env.render() == shown


def test_the_mask_goes_into_the_action_space() -> None:
    env = make()
    _, info = env.reset(seed=0)
    assert env.action_space.contains(env.action_space.sample(info["action_mask"]))
    assert env.unwrapped.action_masks().dtype == np.bool_ and env.unwrapped.action_masks().all()


@pytest.mark.parametrize("kind", [int, np.int32, np.int64, np.array, torch.tensor])
def test_every_kind_of_integer_is_an_action(kind) -> None:
    env = make()
    env.reset(seed=0)
    assert env.step(kind(1))[0]["last_action"] == 1


@pytest.mark.parametrize("action", [TOOLS + 1, 13, -1, 1.5, 1.0, "a", None, [0], np.array([0]), np.float32(1)])
def test_bad_actions(action) -> None:
    env = make()
    env.reset(seed=0)
    with pytest.raises(InvalidArgument, match=f"^action must be an integer between 0 and {TOOLS}, got "):
        env.unwrapped.step(action)
    assert env.step(0)[-1]["toolchain"].tolist() == [0, -1, -1]


def test_a_tool_whose_parameters_want_gradients() -> None:
    env = make(toolbox="learning")
    assert play(env, [0, 0])[-1][1] != 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precisions(precision: str) -> None:
    assert np.isfinite(play(make(precision=precision), [2])[-1][1])


def test_two_environments_do_not_disturb_each_other() -> None:
    a, b, alone = make(), make(), make()
    a.reset(seed=0)
    b.reset(seed=1)
    said = []
    for action in (0, 2):
        said.append(a.step(action))
        b.step(1)
    assert_same(play(alone, [0, 2], seed=0)[1:], said)


def test_it_can_be_copied() -> None:
    env = make()
    env.reset(seed=0)
    twin = copy.deepcopy(env)
    assert_same([env.step(0)], [twin.step(0)])
    assert_same([env.reset()], [twin.reset()])
