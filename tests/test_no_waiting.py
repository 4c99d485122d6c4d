"""On a GPU a step never waits for the device: its code runs here on the processor, and what would wait is refused."""

import gymnasium
import numpy as np
import pytest
import torch
from helpers import needs_cnn12
from torch.utils._python_dispatch import TorchDispatchMode

import restoration_env
from restoration_env import devices, stacked
from restoration_env.distortions import recipe
from restoration_env.episodes import Episodes
from restoration_env.images import damaged_patches, load_images
from restoration_env.key_queue import KeyQueue
from restoration_env.registry import load_toolbox
from restoration_env.toolbox import Tool, Toolbox

ATEN = torch.ops.aten
# Each of these makes the host wait: for a value, for a number of rows, or for a copy of its own numbers.
WAITING = {
    ATEN._local_scalar_dense,
    ATEN.item,
    ATEN.nonzero,
    ATEN.nonzero_numpy,
    ATEN._unique2,
    ATEN.unique_consecutive,
    ATEN.unique_dim,
    ATEN.bincount,
    ATEN.masked_select,
    ATEN.lift_fresh,
    ATEN.equal,
}


class NoWaiting(TorchDispatchMode):
    """Refuses operations that wait, indexing with masks among them; counts all others."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indices = args[1] if func.overloadpacket in (ATEN.index, ATEN.index_put, ATEN.index_put_) else ()
        by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        repeats = func is ATEN.repeat_interleave.Tensor and not (kwargs or {}).get("output_size")
        if func.overloadpacket in WAITING or by_mask or repeats:
            raise AssertionError(f"{func} makes the host wait")
        self.operations += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(devices, "must_not_wait", lambda device: True)


def small() -> Toolbox:
    """Networks of two architectures, and gradients wanted by none."""
    torch.manual_seed(3)
    wide = [torch.nn.Conv2d(3, 3, 3, padding=1).requires_grad_(False) for _ in range(3)]
    deep = [
        torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 1)).requires_grad_(False)
        for _ in range(2)
    ]
    order = [wide[0], deep[0], wide[1], deep[1], wide[2]]
    return Toolbox("small", [Tool(f"tool-{number}", "", network) for number, network in enumerate(order)])


@pytest.mark.parametrize("count", [1, 2, 7, 64, 333])
@pytest.mark.parametrize("chosen", ["random", "one", "stop"])
def test_stacked_tools_do_what_single_ones_do(count: int, chosen: str, monkeypatch) -> None:
    box, generator = small(), torch.Generator().manual_seed(count)
    images = torch.rand(count, 3, 8, 9, generator=generator)
    actions = {
        "random": torch.randint(6, (count,), generator=generator),
        "one": torch.full((count,), 3),
        "stop": torch.full((count,), 5),
    }[chosen]
    with torch.no_grad():
        expected = box.apply(images, actions)
        monkeypatch.setattr(devices, "must_not_wait", lambda device: True)
        box.apply(images[:1], actions[:1], check=False)  # stacks
        with NoWaiting():
            result = box.apply(images, actions, check=False)
    torch.testing.assert_close(result, expected)


def test_batches_of_a_size_that_comes_often_are_recorded_once(as_on_a_gpu, monkeypatch) -> None:
    made, played = [], []

    class Recorded:
        def __init__(self, tools, images, actions):
            made.append(len(images))
            self.tools = tools

        def apply(self, images, actions):
            played.append(len(images))
            return self.tools.apply(images, actions)

    monkeypatch.setattr(stacked, "RecordedTools", Recorded)
    box = small()
    with torch.no_grad():
        for _ in range(20):  # nothing is recorded where images do not pick their weights
            box.apply(torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 5]), check=False)
        assert not made
        box._stacked().can_record = True
        for count in (3, 5, 300):
            for _ in range(18):
                images, actions = torch.rand(count, 3, 8, 8), torch.arange(count) % 6
                result = box.apply(images, actions, check=False)
                torch.testing.assert_close(result, box._stacked().apply(images, actions))
        assert made == [3, 5] and played == [3] * 3 + [5] * 3  # from the sixteenth time on; of 300, none
        for count in range(10, 20):
            for _ in range(16):
                box.apply(torch.rand(count, 3, 8, 8), torch.zeros(count, dtype=torch.long), check=False)
        assert len(made) == 8


def test_changed_weights_are_seen(as_on_a_gpu) -> None:
    box, images = small(), torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        before = box.apply(images, torch.zeros(4, dtype=torch.long), check=False)
        box.tools[0].function.weight.mul_(2.0)
        after = box.apply(images, torch.zeros(4, dtype=torch.long), check=False)
        torch.testing.assert_close(after, box.tools[0](images))
    assert not torch.allclose(before, after)


def test_gradients_flow_all_the_same(as_on_a_gpu) -> None:
    box = small()
    box.tools[0].function.requires_grad_(True)
    episodes = Episodes(box)
    images = torch.rand(3, 3, 8, 8)
    episodes.begin(images, images)
    episodes.step(torch.tensor([0, 0, 1])).sum().backward()
    assert box.tools[0].function.weight.grad.abs().sum() > 0


@needs_cnn12
def test_a_step_and_the_episodes_that_follow_do_not_wait(monkeypatch) -> None:
    arguments = {"toolbox": "cnn12", "patch_size": 24, "output": "torch"}
    actions = torch.from_numpy(np.random.default_rng(1).integers(0, 13, (6, 9)))
    plain = gymnasium.make_vec("Restore-v0", 9, **arguments)
    first, _ = plain.reset(seed=4)
    expected = [plain.step(row) for row in actions]

    monkeypatch.setattr(devices, "must_not_wait", lambda device: True)
    envs = gymnasium.make_vec("Restore-v0", 9, **arguments)
    begun, _ = envs.reset(seed=4)
    torch.testing.assert_close(begun["image"], first["image"], atol=1, rtol=0)
    envs.step(torch.full((9,), 12))  # makes what is made once: constants, stacked networks, the first keys
    begun, _ = envs.reset(seed=4)
    counter = NoWaiting()
    for row, (seen, rewards, ended, _, info) in zip(actions, expected, strict=True):
        with counter:
            got = envs.step(row)
        torch.testing.assert_close(got[1], rewards, atol=2e-3, rtol=0)
        assert torch.equal(got[2], ended)
        assert (got[0]["image"].int() - seen["image"].int()).abs().max() <= 1
        torch.testing.assert_close(got[4]["psnr"], info["psnr"], atol=2e-3, rtol=0)
        if ended.any():
            last, other = got[4]["final_info"]["psnr"][ended], info["final_info"]["psnr"][ended]
            torch.testing.assert_close(last, other, atol=2e-3, rtol=0)
    assert counter.operations > 1000


def test_patches_are_the_same_whoever_cuts_them(monkeypatch) -> None:
    pool, keys = load_images("bundled", "test"), torch.arange(20)
    for grid in ("aligned", "random"):
        expected = damaged_patches(pool, keys, recipe("every"), 45, grid=grid)
        with monkeypatch.context() as patched:
            patched.setattr(devices, "must_not_wait", lambda device: True)
            damaged_patches(pool, keys, recipe("every"), 45, grid=grid)
            with NoWaiting():
                other = damaged_patches(pool, keys, recipe("every"), 45, grid=grid)
        assert all(torch.equal(a, b) for a, b in zip(expected, other, strict=True))


def test_the_test_would_see_a_wait() -> None:
    for waits in (
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: torch.nonzero(x),
        lambda x: torch.unique(x),
        lambda x: bool((x > 0).any()),
        lambda x: torch.tensor([1.0]),
    ):
        with pytest.raises(AssertionError, match="makes the host wait"), NoWaiting():
            waits(torch.ones(3))


@pytest.mark.parametrize("ahead", [1, 3, 64])
def test_keys_come_in_each_generators_own_order(ahead: int) -> None:
    generators = [np.random.default_rng(row) for row in range(5)]
    queue = KeyQueue(lambda row, count: generators[row].integers(1 << 40, size=count), 5, torch.device("cpu"), ahead)
    expected = [np.random.default_rng(row) for row in range(5)]
    used, chance = [[] for _ in range(5)], np.random.default_rng(9)
    for turn in range(40):
        rows = torch.from_numpy(chance.random(5) < 0.5)
        keys = queue.take(rows)
        for row in range(5):
            if rows[row]:
                used[row].append(int(keys[row]))
        if turn in (7, 20):
            queue.settle([])
            used[2].append(int(queue.pop([2])[0]))
        if turn == 30:
            queue.settle([4])
            generators[4] = np.random.default_rng(4)
            used[4].clear()
    for row in range(5):
        assert used[row] == [int(key) for key in expected[row].integers(1 << 40, size=len(used[row]))]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_step_does_not_synchronise_a_gpu() -> None:
    envs = restoration_env.RestoreVectorEnv(64, output="torch", device="cuda", precision="bfloat16")
    envs.reset(seed=0)
    actions = torch.randint(13, (20, 64), device="cuda")
    for row in actions:  # so often that the tools are recorded
        envs.step(row)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for row in actions:
            envs.step(row)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_recorded_tools_make_the_same() -> None:
    box = load_toolbox("cnn12", device="cuda", precision="bfloat16")
    with torch.no_grad():
        for _ in range(20):
            images, actions = torch.rand(64, 3, 63, 63, device="cuda"), torch.randint(13, (64,), device="cuda")
            made = box.apply(images, actions, check=False)
            torch.testing.assert_close(made, box._stacked().apply(images, actions))
    assert box._stacked()._recorded
