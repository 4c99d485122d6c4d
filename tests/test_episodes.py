"""The decision process: rewards add up, an episode that is done stays as it is, rows do not touch each other."""

import pytest
import torch
from helpers import STOP, TOOLS, learning, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from restoration_env.episodes import NO_ACTION, Episodes
from restoration_env.errors import InvalidArgument
from restoration_env.metrics import psnr, ssim
from restoration_env.pixels import eight_bit

FIELDS = [
    "images",
    "damaged",
    "clean",
    "psnr",
    "psnr_initial",
    "score",
    "last_action",
    "steps_left",
    "done",
    "toolchain",
]  # the whole state of a batch


def pictures(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean and damaged, (N, 3, 9, 8)."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.rand(count, 3, 9, 8, generator=generator)
    return clean, (clean + 0.1 * torch.randn(clean.shape, generator=generator)).clamp(0, 1)


def begun(count: int = 2, seed: int = 0, reference: bool = True, **arguments) -> Episodes:
    clean, damaged = pictures(count, seed)
    episodes = Episodes(tiny(), **arguments)
    episodes.begin(damaged, clean if reference else None)
    return episodes


def state(episodes: Episodes) -> dict[str, torch.Tensor]:
    return {name: getattr(episodes, name).clone() for name in FIELDS}


def assert_rows_equal(a: dict, b: dict, rows) -> None:
    for name in FIELDS:
        assert torch.equal(a[name][rows], b[name][rows]), name


def plays(rows: int = 3, longest: int = 7):
    """Actions (steps, rows), beyond the end of the episodes too."""
    row = st.lists(st.integers(0, STOP), min_size=rows, max_size=rows)
    return st.lists(row, min_size=1, max_size=longest)


every_play = settings(max_examples=25, deadline=None)


@every_play
@given(plays(), st.integers(1, 5), st.sampled_from(["psnr", "ssim"]))
def test_the_rules(play: list[list[int]], max_steps: int, reward: str) -> None:
    episodes = begun(3, max_steps=max_steps, reward=reward)
    score_initial, total = episodes.score.clone(), torch.zeros(3, dtype=torch.float64)
    taken: list[list[int]] = [[] for _ in range(3)]
    for actions in play:
        before = state(episodes)
        rewards = episodes.step(torch.tensor(actions))
        after = state(episodes)
        total += rewards
        assert rewards.dtype == torch.float64
        assert not (before["done"] & ~after["done"]).any()  # done is for good
        for row, action in enumerate(actions):
            if before["done"][row]:
                assert rewards[row] == 0
                assert_rows_equal(before, after, [row])
                continue
            taken[row].append(action)
            assert after["last_action"][row] == action
            assert after["steps_left"][row] == before["steps_left"][row] - 1
            assert after["done"][row] == (action == STOP or len(taken[row]) == max_steps)
            if action == STOP:
                assert rewards[row] == 0
                assert torch.equal(before["images"][row], after["images"][row])
        padded = [row + [NO_ACTION] * (max_steps - len(row)) for row in taken]
        assert after["toolchain"].tolist() == padded
    torch.testing.assert_close(total, episodes.score - score_initial, rtol=0, atol=1e-9)
    measure = {"psnr": psnr, "ssim": ssim}[reward]
    torch.testing.assert_close(episodes.score, measure(episodes.images, episodes.clean))
    torch.testing.assert_close(episodes.psnr, psnr(episodes.images, episodes.clean))
    info = episodes.info()
    assert torch.equal(info["psnr_gain"], episodes.psnr - episodes.psnr_initial)


@every_play
@given(plays(longest=4), st.data())
def test_each_episode_goes_as_if_alone(play: list[list[int]], data: st.DataObject) -> None:
    together, row = begun(3), data.draw(st.integers(0, 2))
    clean, damaged = pictures(3)
    alone = Episodes(tiny())
    alone.begin(damaged[[row]], clean[[row]])
    for actions in play:
        rewards = together.step(torch.tensor(actions))
        assert alone.step(torch.tensor([actions[row]]))[0] == rewards[row]
        for name in FIELDS:
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[row]), name


@every_play
@given(plays(4, 4), st.sets(st.integers(0, 3), min_size=1))
def test_begin_with_rows_touches_only_these(play: list[list[int]], chosen: set[int]) -> None:
    episodes, rows = begun(4), sorted(chosen)
    for actions in play:
        episodes.step(torch.tensor(actions))
    before = state(episodes)
    clean, damaged = pictures(len(rows), seed=1)
    episodes.begin(damaged, clean, rows=torch.tensor(rows))
    others = [row for row in range(4) if row not in chosen]
    assert_rows_equal(before, state(episodes), others)
    fresh = Episodes(tiny())
    fresh.begin(damaged, clean)
    for name in FIELDS:
        assert torch.equal(getattr(episodes, name)[rows], getattr(fresh, name)), name


@every_play
@given(plays(2, 4))
def test_without_reference_rewards_are_nan_and_images_the_same(play: list[list[int]]) -> None:
    blind, seeing = begun(reference=False), begun()
    for actions in play:
        tools = ~seeing.done & (torch.tensor(actions) != STOP)
        seeing.step(torch.tensor(actions))
        rewards = blind.step(torch.tensor(actions))
        assert torch.equal(torch.isnan(rewards), tools)
        assert (rewards[~tools] == 0).all()
        for name in ("images", "damaged", "last_action", "steps_left", "done", "toolchain"):
            assert torch.equal(getattr(blind, name), getattr(seeing, name)), name
    assert torch.isnan(blind.info()["psnr"]).all() and torch.isnan(blind.info()["psnr_gain"]).all()


def test_a_known_episode() -> None:
    clean = torch.full((1, 3, 8, 8), 0.5)
    episodes = Episodes(tiny())
    episodes.begin(clean - 0.04, clean)
    assert len(episodes) == 1
    assert episodes.step(torch.tensor([0])).item() == pytest.approx(6.0206, abs=1e-3)  # error halved
    assert episodes.step(torch.tensor([0])).item() > 60  # brought to nothing: 100 dB
    assert episodes.psnr.item() == pytest.approx(100, abs=0.1)
    assert episodes.step(torch.tensor([STOP])).item() == 0
    assert episodes.toolchain.tolist() == [[0, 0, STOP]] and episodes.done.all()


def test_observation_is_rounded_and_clipped_and_images_are_not() -> None:
    episodes = begun()
    for _ in range(3):
        episodes.step(torch.tensor([0, 1]))
    assert episodes.images[0].max() > 1 and episodes.images[1].min() < 0
    seen = episodes.observation()
    assert seen["image"].dtype == torch.uint8 and seen["image"].shape == (2, 3, 9, 8)
    assert torch.equal(seen["image"], (episodes.images.clamp(0, 1) * 255).round().to(torch.uint8))
    assert seen["last_action"].dtype == seen["steps_left"].dtype == torch.int64


def test_mask_leaves_only_stop_when_done() -> None:
    episodes = begun()
    assert episodes.action_mask().tolist() == [[1] * (TOOLS + 1)] * 2
    episodes.step(torch.tensor([STOP, 0]))
    assert episodes.action_mask().tolist() == [[0] * TOOLS + [1], [1] * (TOOLS + 1)]
    assert episodes.action_mask().dtype == torch.int8


def test_what_is_given_out_is_no_window_on_the_inside() -> None:
    episodes = begun()
    before = state(episodes)
    for value in (*episodes.observation().values(), *episodes.info().values()):
        value.zero_()
    assert_rows_equal(before, state(episodes), slice(None))


def test_what_is_given_in_is_left_alone() -> None:
    clean, damaged = pictures(2)
    episodes, kept = Episodes(tiny()), (clean.clone(), damaged.clone())
    episodes.begin(damaged, clean)
    episodes.step(torch.tensor([0, 1]))
    episodes.begin(*pictures(1, seed=5), rows=torch.tensor([1]))
    assert torch.equal(clean, kept[0]) and torch.equal(damaged, kept[1])


def test_any_integer_type_is_an_action() -> None:
    for dtype in (torch.uint8, torch.int32, torch.int64):
        episodes = begun()
        episodes.step(torch.tensor([2, STOP], dtype=dtype))
        assert episodes.toolchain[:, 0].tolist() == [2, STOP]


def test_any_image_size() -> None:
    episodes = Episodes(tiny(), max_steps=1)
    episodes.begin(torch.rand(1, 3, 40, 17))
    episodes.step(torch.tensor([2]))
    assert episodes.observation()["image"].shape == (1, 3, 40, 17)


def test_gradients_pass_unless_switched_off() -> None:
    episodes = Episodes(learning())  # joint training sends the reward back through the tools
    clean, damaged = pictures(1)
    episodes.begin(damaged, clean)
    assert episodes.step(torch.tensor([0])).requires_grad


@pytest.mark.parametrize("max_steps", [0, -1, 2.0, "3", None])
def test_bad_max_steps(max_steps) -> None:
    with pytest.raises(InvalidArgument, match=r"^max_steps must be an integer of 1 or more"):
        Episodes(tiny(), max_steps=max_steps)


def test_bad_reward() -> None:
    with pytest.raises(InvalidArgument, match=r"^reward must be one of psnr, ssim"):
        Episodes(tiny(), reward="mse")


@every_play
@given(plays(), st.integers(1, 4))
def test_what_ends_is_known_before_any_tool_is_applied(play, max_steps) -> None:
    episodes = begun(3, max_steps=max_steps)
    for row in play:
        actions, before = torch.tensor(row), episodes.done.clone()
        expected = episodes.ending(actions)
        episodes.step(actions)
        assert torch.equal(episodes.done, before | expected)
        assert not (expected & before).any()


def test_the_callers_images_stay_as_they_are_however_they_lie_in_memory() -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        clean, damaged = (part.contiguous(memory_format=layout) for part in pictures(3))
        seen = clean.clone(), damaged.clone()
        episodes = Episodes(tiny())
        episodes.begin(damaged, clean)
        episodes.step(torch.tensor([0, 1, 2]))
        other_clean, other = pictures(1, seed=1)
        episodes.begin(other, other_clean, torch.tensor([1]))
        assert torch.equal(clean, seen[0]) and torch.equal(damaged, seen[1])
        torch.testing.assert_close(episodes.clean[1:2], other_clean)


def test_pixels_are_rounded_to_even_and_clipped() -> None:
    levels = torch.tensor([-3.0, -0.5, 0.5, 1.5, 2.4, 254.5, 255.5, 300.0]) / 255
    expected = (levels * 255).round().clamp(0, 255)
    assert eight_bit(levels).tolist() == expected.tolist()
    images = torch.rand(2, 3, 5, 7) * 1.4 - 0.2
    assert torch.equal(eight_bit(images), (images * 255).round().clamp(0, 255).to(torch.uint8))
