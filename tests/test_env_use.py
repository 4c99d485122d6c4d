"""`Restore-v0` in use: where its episodes come from, rendering, wrappers, and what it refuses."""

import importlib
import importlib.util
import inspect
import itertools
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import FilterObservation, RecordEpisodeStatistics, RecordVideo, TimeLimit
from helpers import STOP, make, needs_cnn12, patch, play

import restoration_env
from restoration_env.env import RestoreEnv
from restoration_env.errors import InvalidArgument
from restoration_env.vector_env import RestoreVectorEnv

CHECKOUT = Path(restoration_env.__file__).resolve().parent.parent


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
