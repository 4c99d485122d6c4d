"""An action applies its tool, the last one stops, and a bad argument is named."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from restoration_env import workers
from restoration_env.errors import InvalidArgument, UnknownName
from restoration_env.toolbox import Tool, Toolbox

BRIGHTEN = Tool("brighten", "adds a tenth", lambda x: x + 0.1, cost=1.0)
MIRROR = Tool("mirror", "swaps left and right", lambda x: x.flip(-1))
SQUARE = Tool("square", "squares", lambda x: x * x)
BOX = Toolbox("three", (BRIGHTEN, MIRROR, SQUARE))


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 6, 7, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=80))
def test_a_batch_equals_one_at_a_time(chosen: list[int]) -> None:
    batch, actions = images(len(chosen)), torch.tensor(chosen)
    alone = torch.cat([BOX.apply(batch[i : i + 1], actions[i : i + 1]) for i in range(len(chosen))])
    assert torch.equal(BOX.apply(batch, actions), alone)
    expected = torch.stack(
        [x if a == BOX.stop else BOX.tools[a](x[None])[0] for a, x in zip(chosen, batch, strict=True)]
    )
    assert torch.equal(alone, expected)


def test_a_single_image_wakes_no_other_thread(monkeypatch) -> None:
    def woken(threads: int) -> None:
        raise AssertionError("waking another thread takes longer than a tool on one image")

    monkeypatch.setattr(workers, "_pool", woken)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            for action in range(BOX.stop + 1):
                BOX.apply(images(1), torch.tensor([action]))
            with pytest.raises(AssertionError, match="waking"):  # of several one would see it
                BOX.apply(images(4), torch.tensor([0, 1, 2, 3]))
    finally:
        torch.set_num_threads(threads)


def test_in_training_tools_of_one_network_get_their_images_together() -> None:
    seen = []

    def counted(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return x + 0.1

    box = Toolbox("twins", (Tool("one", "", counted), SQUARE, Tool("two", "", counted)))
    batch, actions = images(6), torch.tensor([0, 2, 3, 1, 2, 0], dtype=torch.uint8)
    expected = torch.stack([batch[i] + 0.1 if i in (0, 1, 4, 5) else batch[i] for i in range(6)])
    expected[3] = batch[3] * batch[3]
    assert torch.equal(box.apply(batch, actions), expected) and seen == [4]
    with torch.no_grad():
        assert torch.equal(box.apply(batch, actions), expected)


def test_many_images_of_one_tool_are_all_changed() -> None:
    batch = images(100)
    assert torch.equal(BOX.apply(batch, torch.zeros(100, dtype=torch.long)), batch + 0.1)


def test_stop_returns_an_equal_copy() -> None:
    batch = images(2)
    result = BOX.apply(batch, torch.tensor([3, 3]))
    assert torch.equal(result, batch)
    result.zero_()
    assert batch.sum() > 0


def test_the_argument_is_left_as_it_was() -> None:
    in_place = Toolbox("in place", (Tool("zero", "clears", lambda x: x.zero_()),))
    batch = images(2)
    before = batch.clone()
    assert in_place.apply(batch, torch.tensor([0, 1]))[0].sum() == 0
    assert torch.equal(batch, before)


def test_results_are_not_clipped_and_may_be_given_back() -> None:
    batch = torch.full((1, 3, 4, 4), 0.95)
    twice = BOX.apply(BOX.apply(batch, torch.tensor([0])), torch.tensor([0]))
    torch.testing.assert_close(twice, batch + 0.2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_any_integers_are_actions(dtype: torch.dtype) -> None:
    assert torch.equal(BOX.apply(images(2), torch.tensor([1, 3], dtype=dtype))[0], images(2)[0].flip(-1))


def test_names_and_numbers() -> None:
    assert (len(BOX), BOX.stop, BOX.names) == (3, 3, ("brighten", "mirror", "square"))
    assert BOX.action_names() == ("brighten", "mirror", "square", "stop")
    assert BOX["mirror"] is MIRROR and list(BOX) == [BRIGHTEN, MIRROR, SQUARE]


def test_an_unknown_tool_lists_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="tool must be one of brighten, mirror, square, got 'sharpen'"):
        BOX["sharpen"]


def test_extended_puts_new_tools_before_stop() -> None:
    darken = Tool("darken", "takes a tenth away", lambda x: x - 0.1)
    box = BOX.extended((darken,))
    assert box.action_names() == ("brighten", "mirror", "square", "darken", "stop")
    assert box.name == "three+darken" and BOX.stop == 3
    batch = images(1)
    assert torch.equal(box.apply(batch, torch.tensor([3])), batch - 0.1)
    with pytest.raises(InvalidArgument, match="no two of the same name"):
        BOX.extended((MIRROR,))


@pytest.mark.parametrize("tools", [(), (MIRROR, BRIGHTEN, MIRROR), (Tool("stop", "", lambda x: x),)])
def test_ambiguous_and_empty_toolboxes_are_refused(tools) -> None:
    with pytest.raises(InvalidArgument, match=r"^tools must be"):
        Toolbox("bad", tools)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UnknownName, match="float32, bfloat16"):
        Tool("t", "", lambda x: x, precision="float16")


def test_a_bfloat16_tool_gives_the_images_type() -> None:
    weight = torch.ones(3, 3, 1, 1) / 3
    tool = Tool("mean", "", lambda x: torch.nn.functional.conv2d(x, weight), precision="bfloat16")
    assert tool(images(1)).dtype == torch.bfloat16
    result = Toolbox("b", (tool,)).apply(images(1), torch.tensor([0]))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result[:, 0], images(1).mean(1), atol=0.01, rtol=0.01)


@pytest.mark.parametrize("function", [lambda x: x[:, :1], lambda x: x[..., :-1], lambda x: x[0], lambda x: x.mean()])
def test_a_tool_that_changes_the_shape_is_named(function) -> None:
    box = Toolbox("bad", (Tool("crop", "", function),))
    with pytest.raises(InvalidArgument, match="tool 'crop' must be a function that keeps the shape"):
        box.apply(images(2), torch.tensor([0, 0]))


GOOD = images(2)
NAN = GOOD.clone()
NAN[1, 0, 0, 0] = float("nan")


@pytest.mark.parametrize(
    "bad",
    [
        GOOD.numpy(),
        GOOD.int(),
        GOOD[0],
        GOOD[:, :1],
        GOOD[:0],
        GOOD[..., :0],
        NAN,
        GOOD * 255,
        GOOD - 9,
        GOOD / 0,
    ],
)
def test_bad_images_are_refused(bad) -> None:
    with pytest.raises(InvalidArgument, match=r"^images must be") as caught:
        BOX.apply(bad, torch.tensor([0, 1]))
    assert caught.value.argument == "images"


@pytest.mark.parametrize(
    "bad",
    [
        [0, 1],
        torch.tensor([0]),
        torch.tensor([[0, 1]]),
        torch.tensor(0),
        torch.tensor([0.0, 1.0]),
        torch.tensor([True, False]),
        torch.tensor([0, 4]),
        torch.tensor([-1, 0]),
    ],
)
def test_bad_actions_are_refused(bad) -> None:
    with pytest.raises(InvalidArgument, match=r"^actions must be") as caught:
        BOX.apply(GOOD, bad)
    assert caught.value.argument == "actions"
