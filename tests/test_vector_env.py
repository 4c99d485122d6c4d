"""`RestoreVectorEnv` says what Gymnasium's own vector of single environments says, in every autoreset mode."""

import json
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from helpers import STOP, TOOLBOXES, TOOLS, leaves, make, make_vec

from restoration_env.errors import InvalidArgument
from restoration_env.vector_env import RestoreVectorEnv

N = 4
MODES = list(AutoresetMode)
GOLD = np.random.default_rng(0).integers(0, TOOLS + 1, (8, N))  # stops early, late and not at all


def pair(mode: AutoresetMode, **arguments) -> tuple[RestoreVectorEnv, SyncVectorEnv]:
    batched = make_vec(N, autoreset_mode=mode.value, **arguments)
    single = SyncVectorEnv([lambda: make(**arguments)] * N, autoreset_mode=mode)
    return batched, single


def rows_close(a, b, rows, path: str = "") -> None:
    """Equal types and, in the given rows, equal values: images within one level, numbers to 1e-4."""
    assert (a.dtype, a.shape) == (b.dtype, b.shape), path
    if a.dtype == object:
        for row in np.flatnonzero(rows):
            assert set(a[row]) == set(b[row])
            for name in a[row]:
                assert type(a[row][name]) is type(b[row][name])
                whole = np.ones(1, bool)
                rows_close(a[row][name][None], b[row][name][None], whole, f"{path}[{row}]/{name}")
    else:
        tolerance = 1 if a.dtype == np.uint8 else 1e-4 if a.dtype.kind == "f" else 0
        apart = np.abs(a[rows].astype(np.float64) - b[rows].astype(np.float64))
        assert apart.size == 0 or apart.max() <= tolerance, path


def infos_close(a: dict, b: dict, rows, path: str = "info") -> None:
    """The infos of the given rows: the same names, the same masks, the same values where a mask is true."""
    assert set(a) == set(b), path
    for name in (name for name in a if not name.startswith("_")):
        mask = b[f"_{name}"] & rows
        assert a[f"_{name}"].dtype == np.bool_
        np.testing.assert_array_equal(a[f"_{name}"] & rows, mask, err_msg=f"{path}/{name}")
        if isinstance(a[name], dict):
            infos_close(a[name], b[name], mask, f"{path}/{name}")
        else:
            rows_close(a[name], b[name], mask, f"{path}/{name}")


def said_the_same(a: tuple, b: tuple, rows=None) -> None:
    rows = np.ones(N, bool) if rows is None else rows
    assert len(a) == len(b)
    for name in b[0]:
        rows_close(a[0][name], b[0][name], np.ones(N, bool), name)
    for one, other in zip(a[1:-1], b[1:-1], strict=True):
        rows_close(one, other, np.ones(N, bool), "reward or end")
    infos_close(a[-1], b[-1], rows)


@pytest.mark.parametrize("mode", MODES)
def test_equals_single_environments(mode: AutoresetMode) -> None:
    batched, single = pair(mode, patch_size=40)
    assert batched.metadata["autoreset_mode"] is single.metadata["autoreset_mode"] is mode
    said_the_same(batched.reset(seed=5), single.reset(seed=5))
    ends = 0
    for actions in GOLD:
        one, other = batched.step(actions), single.step(actions)
        said_the_same(one, other)
        ended = other[2]
        ends += ended.sum()
        if mode is AutoresetMode.DISABLED and ended.any():
            one, other = (env.reset(options={"reset_mask": ended.copy()}) for env in (batched, single))
            said_the_same(one, other, rows=ended)
    assert ends > N  # the test has seen more than one episode in a row


@pytest.mark.parametrize("toolbox", TOOLBOXES)
def test_equals_single_environments_with_other_arguments(toolbox: str) -> None:
    arguments = dict(toolbox=toolbox, severity="any", split="all", grid="random", reward="ssim", max_steps=2)
    batched, single = pair(AutoresetMode.SAME_STEP, **arguments)
    said_the_same(batched.reset(seed=1), single.reset(seed=1))
    for actions in GOLD[:3]:
        said_the_same(batched.step(actions), single.step(actions))


def test_options_are_for_all_rows() -> None:
    batched, single = pair(AutoresetMode.SAME_STEP, patch_size=20)
    image = np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8)
    for options in ({"severity": "severe"}, {"image": image}, {"image": image, "damaged": image[::-1].copy()}):
        said_the_same(batched.reset(seed=1, options=dict(options)), single.reset(seed=1, options=dict(options)))


def test_spaces() -> None:
    batched, single = pair(AutoresetMode.SAME_STEP)
    for name in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
        assert getattr(batched, name) == getattr(single, name), name
    assert batched.num_envs == N and batched.render_mode is None
    observation, _ = batched.reset(seed=0)
    assert batched.observation_space.contains(observation)
    batched.action_space.seed(0)
    for _ in range(5):
        observation, rewards, terminated, truncated, info = batched.step(batched.action_space.sample())
        assert batched.observation_space.contains(observation)
        assert (rewards.dtype, terminated.dtype, truncated.dtype) == (np.float64, np.bool_, np.bool_)
        assert rewards.shape == terminated.shape == truncated.shape == (N,) and not truncated.any()
        for name in observation:
            for row in range(N):
                part = {key: value[row] for key, value in observation.items()}
                assert batched.single_observation_space.contains(part), name
        assert all(f"_{name}" in info for name in info if not name.startswith("_"))


def test_made_without_a_warning_and_described_by_json() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mode in MODES:
            env = make_vec(3, autoreset_mode=mode.value)
            kwargs = json.loads(env.spec.to_json())["kwargs"]
            assert kwargs["num_envs"] == 3 and kwargs["autoreset_mode"] == mode.value
    assert RestoreVectorEnv(2, toolbox="tiny", autoreset_mode=AutoresetMode.DISABLED).reset()


def test_the_default_is_same_step_and_numpy() -> None:
    env = make_vec(2)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert isinstance(env.reset(seed=0)[0]["image"], np.ndarray)


def test_the_last_observation_is_kept_from_before_the_reset() -> None:
    env = make_vec(2)
    env.reset(seed=0)
    env.step([0, 0])
    before, *_ = env.step([1, 0])
    observation, _, terminated, _, info = env.step([STOP, 2])
    assert terminated.all() and info["_final_obs"].all() and info["_final_info"].all()
    np.testing.assert_array_equal(info["final_obs"][0]["image"], before["image"][0])  # stop changes nothing
    assert info["final_obs"][0]["steps_left"] == 0 and (observation["steps_left"] == 3).all()
    assert info["final_info"]["toolchain"].tolist() == [[0, 1, STOP], [0, 0, 2]]
    assert (info["toolchain"] == -1).all()
    kept = {path: np.copy(value) for path, value in leaves(info["final_obs"][1])}
    gains = info["final_info"]["psnr_gain"].copy()
    observation["image"][:] = 0
    for _ in range(3):
        env.step([2, 2])
    for path, value in leaves(info["final_obs"][1]):
        np.testing.assert_array_equal(value, kept[path])
    np.testing.assert_array_equal(info["final_info"]["psnr_gain"], gains)


def test_no_two_calls_share_memory() -> None:
    for mode in MODES:
        env = make_vec(2, autoreset_mode=mode.value)
        said = [env.reset(seed=0), *(env.step(actions) for actions in ([0, STOP], [1, 1], [STOP, STOP]))]
        arrays = [[v for _, v in leaves(dict(enumerate(one))) if isinstance(v, np.ndarray)] for one in said]
        for i, one in enumerate(arrays):
            for other in arrays[i + 1 :]:
                assert not any(np.shares_memory(x, y) for x in one for y in other)


def test_disabled_rows_wait_for_their_reset() -> None:
    env = make_vec(3, autoreset_mode="Disabled")
    env.reset(seed=0)
    first = env.step([STOP, 0, 0])
    second = env.step([0, 1, 1])
    assert second[2].tolist() == [True, False, False] and second[1][0] == 0
    np.testing.assert_array_equal(first[0]["image"][0], second[0]["image"][0])
    assert second[4]["action_mask"].tolist() == [[0] * TOOLS + [1], [1] * 4, [1] * 4]
    np.testing.assert_array_equal(env.unwrapped.action_masks(), second[4]["action_mask"].astype(bool))
    observation, info = env.reset(seed=[9, 10, 11], options={"reset_mask": np.array([True, False, True])})
    assert observation["steps_left"].tolist() == [3, 1, 3]
    np.testing.assert_array_equal(observation["image"][1], second[0]["image"][1])
    single = [make().reset(seed=seed)[0]["image"] for seed in (9, 11)]
    np.testing.assert_array_equal(observation["image"][[0, 2]], single)
    assert info["psnr_gain"][[0, 2]].tolist() == [0, 0]
    assert env.step([0, 0, 0])[2].tolist() == [False, True, False]


def test_a_reset_seeds_only_the_rows_it_resets() -> None:
    a, b = (make_vec(2, autoreset_mode="Disabled") for _ in range(2))
    for env in (a, b):
        env.reset(seed=0)
    mask = np.array([True, False])
    a.reset(seed=[5, 6], options={"reset_mask": mask})
    b.reset(seed=[5, 7], options={"reset_mask": torch.tensor([True, False])})
    np.testing.assert_array_equal(a.reset()[0]["image"], b.reset()[0]["image"])


@pytest.mark.parametrize("seed", [[3, 1, 3], (3, 1, 3), np.array([3, 1, 3])])
def test_a_list_of_seeds(seed) -> None:
    image = make_vec(3).reset(seed=seed)[0]["image"]
    for row, one in enumerate((3, 1, 3)):
        np.testing.assert_array_equal(image[row], make().reset(seed=one)[0]["image"])


def test_rows_without_a_seed_go_on() -> None:
    env, other = make_vec(2), make_vec(2)
    env.reset(seed=0)
    other.reset(seed=0)
    partly, unseeded = env.reset(seed=[None, 8])[0]["image"], other.reset()[0]["image"]
    np.testing.assert_array_equal(partly[0], unseeded[0])
    assert not np.array_equal(partly[1], unseeded[1])
    assert not np.array_equal(make_vec(2).reset()[0]["image"], make_vec(2).reset()[0]["image"])


@pytest.mark.parametrize("seed", [[1], [1, 2, 3], 1.5, "12"])
def test_bad_seeds(seed) -> None:
    with pytest.raises(InvalidArgument, match=r"^seed must be None, an integer or 2 of them"):
        make_vec(2).reset(seed=seed)


def test_a_batch_of_one_and_every_size_say_the_same() -> None:
    large = make_vec(9)
    images = large.reset(seed=0)[0]["image"]
    rewards = large.step([2] * 9)[1]
    for row in (0, 8):
        one = make_vec(1)
        np.testing.assert_array_equal(one.reset(seed=row)[0]["image"][0], images[row])
        assert one.step([2])[1][0] == pytest.approx(rewards[row], abs=1e-4)


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, lambda a: np.array(a, np.int32)])
def test_every_kind_of_integers_is_actions(kind) -> None:
    env = make_vec(2)
    env.reset(seed=0)
    assert env.step(kind([1, 2]))[0]["last_action"].tolist() == [1, 2]


@pytest.mark.parametrize(
    "actions",
    [0, [0], [0, 0, 0], [[0, 0]], [0, -1], [0, STOP + 1], [0.0, 1.0], [True, False], ["a", "b"], "ab", None],
)
def test_bad_actions(actions) -> None:
    env = make_vec(2)
    env.reset(seed=0)
    with pytest.raises(InvalidArgument, match=r"^actions must be "):
        env.step(actions)
    assert env.step([0, 0])[0]["steps_left"].tolist() == [2, 2]


@pytest.mark.parametrize("mask", [[True], [1, 0], [False, False], np.ones((2, 1), bool), "ab", np.array([0.0, 1.0])])
def test_bad_reset_masks(mask) -> None:
    with pytest.raises(InvalidArgument, match=r"^options\['reset_mask'\] must be a bool array of shape \(2,\)"):
        make_vec(2).reset(options={"reset_mask": mask})


@pytest.mark.parametrize("options", [["severity"], {"severities": 1}, {"damaged": None, "x": 1}])
def test_bad_options(options) -> None:
    with pytest.raises(InvalidArgument, match=r"^options must be "):
        make_vec(2).reset(options=options)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("num_envs", 0),
        ("num_envs", 2.0),
        ("num_envs", "2"),
        ("num_envs", None),
        ("output", "jax"),
        ("autoreset_mode", "SOMETIMES"),
        ("autoreset_mode", None),
    ],
)
def test_bad_arguments(argument: str, value) -> None:
    with pytest.raises(InvalidArgument, match=f"^{argument} must be ") as error:
        RestoreVectorEnv(**{"num_envs": 2, "toolbox": "tiny", argument: value})
    assert error.value.argument == argument


def test_step_before_reset() -> None:
    with pytest.raises(ResetNeeded):
        make_vec(2).step([0, 0])


@pytest.mark.parametrize("mode", MODES)
def test_output_torch_says_the_same(mode: AutoresetMode) -> None:
    arguments = dict(autoreset_mode=mode.value, patch_size=24)
    tensors, arrays = make_vec(N, output="torch", **arguments), make_vec(N, **arguments)
    assert "torch" not in tensors.metadata

    def compare(a: tuple, b: tuple) -> None:
        ours, theirs = dict(leaves(dict(enumerate(a)))), dict(leaves(dict(enumerate(b))))
        assert all(isinstance(value, torch.Tensor) for value in ours.values())
        for path, value in theirs.items():
            if value.dtype == object:  # final_obs: batches here, one dictionary for each row there
                for row in np.flatnonzero(value != None):  # noqa: E711
                    for name, part in value[row].items():
                        np.testing.assert_array_equal(ours[f"{path}/{name}"][row].numpy(), part)
            else:
                np.testing.assert_array_equal(ours[path].numpy(), value, err_msg=path, strict=True)

    compare(tensors.reset(seed=0), arrays.reset(seed=0))
    for actions in GOLD[:5]:
        compare(tensors.step(torch.from_numpy(actions)), arrays.step(actions))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_says_the_same() -> None:
    gpu, cpu = make_vec(N, output="torch", device="cuda"), make_vec(N, output="torch")
    seen = [env.reset(seed=0)[0]["image"] for env in (gpu, cpu)]
    assert seen[0].is_cuda and (seen[0].cpu().int() - seen[1].int()).abs().max() <= 1
    for actions in GOLD[:4]:
        one, other = gpu.step(torch.from_numpy(actions).cuda()), cpu.step(torch.from_numpy(actions))
        assert all(value.is_cuda for _, value in leaves(dict(enumerate(one))))
        torch.testing.assert_close(one[1].cpu(), other[1], rtol=0, atol=1e-3)
        assert torch.equal(one[2].cpu(), other[2])


def test_a_tool_whose_parameters_want_gradients() -> None:
    env = make_vec(2, toolbox="learning")
    env.reset(seed=0)
    assert (env.step([0, 0])[1] != 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_record_episode_statistics(mode: AutoresetMode) -> None:
    env = RecordEpisodeStatistics(make_vec(2, autoreset_mode=mode.value))
    env.reset(seed=0)
    env.step([2, 0])
    *_, info = env.step([STOP, 0])
    assert info["_episode"].tolist() == [True, False] and info["episode"]["l"].tolist() == [2, 0]
    last = info["final_info"] if mode is AutoresetMode.SAME_STEP else info
    assert info["episode"]["r"][0] == pytest.approx(last["psnr_gain"][0], abs=1e-4)
    if mode is AutoresetMode.DISABLED:
        env.reset(options={"reset_mask": np.array([True, False])})
    *_, info = env.step([STOP, 0])
    assert info["episode"]["l"][1] == 3
    assert info["_episode"].tolist() == [mode is not AutoresetMode.NEXT_STEP, True]


def single_environment() -> gymnasium.Env:
    return make(patch_size=24)


def test_async_vector_env_in_spawned_processes() -> None:
    apart = AsyncVectorEnv([single_environment] * 2, context="spawn")
    together = SyncVectorEnv([single_environment] * 2)
    try:
        for one, other in (
            (apart.reset(seed=0), together.reset(seed=0)),
            (apart.step([0, STOP]), together.step([0, STOP])),
        ):
            for name in other[0]:
                np.testing.assert_array_equal(one[0][name], other[0][name])
            np.testing.assert_array_equal(one[-1]["psnr"], other[-1]["psnr"])
    finally:
        apart.close()
