"""`Restore-v0` as Gymnasium's users expect it: found by name, checked, repeatable, hard to misuse."""

import copy
import importlib
import importlib.util
import inspect
import itertools
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
from gymnasium.wrappers import FilterObservation, RecordEpisodeStatistics, RecordVideo, TimeLimit
from helpers import STOP, TOOLBOXES, TOOLS, leaves, make, needs_cnn12
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

import restoration_env
from restoration_env.distortions import recipe_names
from restoration_env.env import RestoreEnv
from restoration_env.errors import InvalidArgument
from restoration_env.metrics import psnr
from restoration_env.vector_env import RestoreVectorEnv

CHECKOUT = Path(restoration_env.__file__).resolve().parent.parent


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


# ---- where episodes come from ----


def test_option_severity_is_for_one_episode() -> None:
    env = make(severity="mild")
    gentle = env.reset(seed=0)[1]["psnr"]
    harsh = env.reset(seed=0, options={"severity": "severe"})[1]["psnr"]
    assert harsh < gentle
    assert env.reset(seed=0)[1]["psnr"] == gentle


def test_option_image() -> None:
    env, clean = make(), patch()
    seen = env.reset(seed=0, options={"image": clean})[0]["image"]
    assert not np.array_equal(seen, clean)
    np.testing.assert_array_equal(seen, env.reset(seed=0, options={"image": clean})[0]["image"])
    assert not np.array_equal(seen, env.reset(seed=1, options={"image": clean})[0]["image"])
    hardly = env.reset(seed=0, options={"image": clean, "severity": "jpeg"})[0]["image"]
    assert not np.array_equal(seen, hardly)


def test_option_image_and_damaged() -> None:
    env, clean = make(), patch()
    kept = clean.copy()
    observation, info = env.reset(options={"image": clean, "damaged": clean})
    np.testing.assert_array_equal(observation["image"], clean)
    assert info["psnr"] == pytest.approx(100)
    env.step(0)
    np.testing.assert_array_equal(clean, kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"severities": "mild"}, "^options must be a dictionary of 'severity' and 'image', or"),
        ({"damaged": patch()}, "^options must be .* got .'damaged'."),
        ({"image": patch(), "damaged": patch(), "severity": "mild"}, "^options must be"),
        (["severity"], "^options must be .* got list"),
        ({1: 2}, "^options must be"),
        ({"severity": "terrible"}, "^severity must be one of mild, moderate, severe"),
        ({"image": patch(size=64)}, r"^options\['image'\] must be a uint8 array of shape \(63, 63, 3\), got uint8 "),
        ({"image": patch().astype(float)}, r"^options\['image'\] must .* got float64"),
        ({"image": "photo.png"}, r"^options\['image'\] must .* got str"),
        ({"image": patch(), "damaged": patch(1, 62)}, r"^options\['damaged'\] must be"),
    ],
)
def test_bad_options(options, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        make().reset(options=options)


def test_photographs_can_be_shrunk_first() -> None:
    whole, half = (play(make(patch_size=24, scale=scale), [])[0][0]["image"] for scale in (1.0, 0.5))
    assert whole.shape == half.shape and not np.array_equal(whole, half)
    with pytest.raises(InvalidArgument, match="scale must be above 0"):
        make(scale=0.0)


@pytest.mark.parametrize("split", ["train", "validation", "test", "all"])
@pytest.mark.parametrize("grid", ["aligned", "random"])
def test_splits_and_grids(split: str, grid: str) -> None:
    assert play(make(split=split, grid=grid, patch_size=24), [])[0][0]["image"].shape == (24, 24, 3)


def test_a_folder_of_images(tmp_path) -> None:
    from PIL import Image

    for k in range(4):
        Image.fromarray(patch(k, 70)).save(tmp_path / f"{k}.png")
    for images in (str(tmp_path), tmp_path):
        observation, _ = make(images=images, split="all").reset(seed=0)
        assert observation["image"].shape == (63, 63, 3)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("images", "/no/such/folder"),
        ("images", 3),
        ("images", None),
        ("split", "training"),
        ("severity", "terrible"),
        ("severity", ["mild"]),
        ("severity", None),
        ("toolbox", "cnn13"),
        ("toolbox", ["cnn12"]),
        ("extra_tools", "invert"),
        ("max_steps", 0),
        ("max_steps", 2.5),
        ("patch_size", 15),
        ("patch_size", 63.0),
        ("patch_size", 100_000),
        ("grid", "hexagonal"),
        ("reward", "mse"),
        ("precision", "float16"),
        ("device", "toaster"),
        ("device", "cuda:99"),
        ("render_mode", "human"),
    ],
)
def test_bad_arguments(argument: str, value) -> None:
    arguments = {"toolbox": "tiny", argument: value}
    with pytest.raises(InvalidArgument, match=f"^{argument} must be ") as error:
        RestoreEnv(**arguments)
    assert error.value.argument == argument
    if argument != "render_mode":
        with pytest.raises(InvalidArgument, match=f"^{argument} must be "):
            RestoreVectorEnv(2, **arguments)


def test_bad_extra_tool_names_the_tool() -> None:
    with pytest.raises(InvalidArgument, match=r"^tool must be one of .*invert.*, got 'sharpen'"):
        RestoreEnv(toolbox="tiny", extra_tools=["sharpen"])


# ---- rendering and wrappers ----


def test_ansi() -> None:
    env = make(render_mode="ansi")
    play(env, [2, STOP])
    damaged, first, second = env.render().splitlines()
    assert damaged.startswith("damaged") and damaged.endswith("dB")
    assert "blur" in first and "stop" in second and "(+0.00)" in second


def test_film_frames_are_of_one_size() -> None:
    env, frames = make(render_mode="rgb_array"), []
    for actions in ([2, STOP], [0, 1, 2]):
        env.reset(seed=0)
        frames.append(env.render())
        for action in actions:
            env.step(action)
            frames.append(env.render())
    assert {(frame.shape, frame.dtype) for frame in frames} == {(frames[0].shape, np.dtype(np.uint8))}
    assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(frames))


def test_render_without_a_mode_warns() -> None:
    env = make().unwrapped
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None


@pytest.mark.skipif(importlib.util.find_spec("moviepy") is None, reason="RecordVideo needs moviepy")
def test_record_video(tmp_path) -> None:
    env = RecordVideo(make(render_mode="rgb_array"), str(tmp_path / "films"), episode_trigger=lambda _: True)
    play(env, [2, STOP])
    play(env, [0, 1, 2])
    env.close()
    assert len(list(tmp_path.rglob("*.mp4"))) == 2


def test_record_episode_statistics() -> None:
    *_, last = play(RecordEpisodeStatistics(make()), [2, 0, STOP])
    assert last[4]["episode"]["l"] == 3
    assert last[4]["episode"]["r"] == pytest.approx(last[4]["psnr_gain"], abs=1e-4)


def test_time_limit() -> None:
    *_, last = play(TimeLimit(make(), 2), [0, 0])
    assert last[2] is False and last[3] is True


def test_filter_observation() -> None:
    env = FilterObservation(make(), ["image"])
    observation, _ = env.reset(seed=0)
    assert list(observation) == ["image"] and env.observation_space.contains(observation)


@needs_cnn12
def test_a_published_tool_helps() -> None:
    env = gymnasium.make("Restore-v0", severity="noise", split="test")
    best = []
    for seed in range(6):
        gains = []
        for action in (4, 5, 6, 7):
            gains.append(play(env, [action], seed=seed)[-1][1])
        best.append(max(gains))
    assert np.mean(best) > 0.5


def test_the_docstring_is_the_manual_page() -> None:
    headings = [line.strip()[3:] for line in RestoreEnv.__doc__.splitlines() if line.strip().startswith("## ")]
    assert headings == [
        "Description",
        "Action Space",
        "Observation Space",
        "Starting State",
        "Rewards",
        "Episode End",
        "Information",
        "Arguments",
        "Version History",
    ]
    for name in inspect.signature(RestoreEnv).parameters:
        assert f"`{name}`" in RestoreEnv.__doc__
