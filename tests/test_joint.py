"""Joint training: gradients through whole chains into every tool used, and nowhere else."""

import copy
import json
import math

import pytest
import torch

from restoration_env.agents.agent import load_agent
from restoration_env.agents.joint import JointConfig, JointRun, train_joint
from restoration_env.agents.network import ToolchainNetwork
from restoration_env.agents.objectives import Decibels, Discriminator
from restoration_env.agents.validation import mean_gain, restored, validation_batches
from restoration_env.cli import main
from restoration_env.distortions import band
from restoration_env.errors import InvalidArgument, TrainingDiverged
from restoration_env.files import load_checkpoint, read_weights
from restoration_env.images import load_images
from restoration_env.perceptual import lpips
from restoration_env.registry import load_toolbox, register_toolbox
from restoration_env.toolbox import Tool, Toolbox
from restoration_env.tools.together import ToolsTogether

SIDE = 24


class Gain(torch.nn.Module):
    """The image times a number, plus another."""

    def __init__(self, factor):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))
        self.offset = torch.nn.Parameter(torch.tensor(0.0))

    def forward(self, images):
        return images * self.factor + self.offset


def gains(*, device="cpu", precision="float32"):
    return Toolbox("gains", [Tool(name, "", Gain(f)) for name, f in (("up", 1.02), ("down", 0.97), ("off", 0.5))])


register_toolbox("gains", "test_joint:gains")


def pair(count=6, seed=0):
    clean = torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) * 0.4 + 0.3
    return clean, clean * 0.9


def run_with(chain, **changes):
    """A run whose agent takes this action at every step."""
    torch.manual_seed(0)
    network = ToolchainNetwork(3, SIDE)
    with torch.no_grad():
        network.q.weight.zero_()
        network.q.bias.zero_()
        network.q.bias[chain] = 1.0
    settings = {"explore": 0.0, "branched": 0, "iterations": 50, "learning_rate": 1e-2, "earlier": 0.0, **changes}
    return JointRun(JointConfig(**settings), gains(), network)


def parameters(run, name):
    return [value.detach().clone() for value in run.tools.networks[name].parameters()]


def test_only_the_tools_of_the_chain_learn():
    run = run_with(chain=0)
    before = {name: parameters(run, name) for name in ("up", "down", "off")}
    run.step(*pair())
    assert any((a != b).any() for a, b in zip(before["up"], parameters(run, "up"), strict=True))
    for name in ("down", "off"):
        assert all(torch.equal(a, b) for a, b in zip(before[name], parameters(run, name), strict=True))
    assert run.tools.used.tolist() == [18, 0, 0]


def test_the_gradient_goes_through_the_whole_chain_divided_by_use():
    run, (clean, damaged) = run_with(chain=0), pair()
    factor, offset = (p.detach().clone().requires_grad_() for p in run.tools.networks["up"].parameters())
    images = damaged
    for _ in range(3):
        images = images * factor + offset
    (Decibels()(images, clean).sum() / 18).backward()  # six images, three uses each
    run.step(clean, damaged)
    expected = torch.stack([factor.grad, offset.grad])
    expected *= min(1.0, 20.0 / expected.norm().item())  # as gradients are clipped
    ours = torch.stack([parameter.grad for parameter in run.tools.networks["up"].parameters()])
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_images_of_a_tools_own_band_are_for_that_tool_alone():
    run, (clean, damaged) = run_with(chain=3, own=2, branched=1, agent_sample=2), pair()  # the agent stops at once
    uses = []
    for turn in range(4):
        assert run.turn() == turn % 3
        before = run.tools.used.clone()
        gain, _ = run.step(clean, damaged)
        uses.append((run.tools.used - before).tolist())
        assert gain == 0.0, "the gain is that of the agent's chains"
    assert uses == [[2, 0, 0], [0, 2, 0], [0, 0, 2], [2, 0, 0]]
    assert len(run.values.replay) == 4 * 4 + 2, "the agent remembers its own chains, and the branches of two images"


def test_tools_with_one_network_learn_as_one():
    one, other = Gain(1.02), Gain(1.02)
    together = ToolsTogether(
        Toolbox("three", [Tool(n, "", f) for n, f in (("a", one), ("b", one), ("c", other))]), 0, 0.1
    )
    images = torch.full((4, 3, 8, 8), 0.5)
    loss = (one(one(images)) - images).square().mean() + (other(images) - images).square().mean()
    together.descend(loss, torch.tensor([[0, 1, -1]] * 3 + [[2, -1, -1]]), 1.0)
    assert together.used.tolist() == [3, 3, 1] and set(together.shared) == {"a", "c"}
    assert together.networks["a"] is together.networks["b"] and one.factor != 1.02 and other.factor != 1.02
    again = ToolsTogether(Toolbox("three", [Tool(n, "", f) for n, f in (("a", Gain(1.0)), ("b", Gain(1.0)))]), 0, 0.1)
    assert set(again.shared) == {"a", "b"}  # equal is not the same


def test_what_is_common_moves_all_networks_of_one_kind_alike():
    def moved(common: float) -> dict[str, float]:
        box = Toolbox("two", [Tool(name, "", Gain(1.02)) for name in ("a", "b")])
        together = ToolsTogether(box, 0, 0.1, common=common)
        images = torch.full((4, 3, 8, 8), 0.5)
        loss = (together.networks["a"](images) - images).square().mean()
        together.descend(loss, torch.tensor([[0, -1, -1]] * 4), 1.0)
        assert together.used.tolist() == [4, 0]
        again = ToolsTogether(box, 0, 0.1, common=common)
        again.restore(copy.deepcopy(together.state()))
        averages = again.average.values(), together.average.values()
        assert all(torch.equal(a, b) for a, b in zip(*averages, strict=True))
        return {name: round(network.factor.item() - 1.02, 6) for name, network in together.networks.items()}

    assert moved(0.0)["a"] < 0.0 == moved(0.0)["b"]
    assert moved(1.0)["a"] == pytest.approx(moved(1.0)["b"]) and moved(1.0)["a"] < 0.0
    half = moved(0.5)
    assert half["b"] == pytest.approx(half["a"] / 2, rel=0.01) and half["a"] < 0.0


def test_shares_that_are_none_and_means_of_tools_that_are_not_tied_are_refused(capsys):
    for share in (-0.1, 1.1):
        with pytest.raises(InvalidArgument, match="common must be a share, 0 to 1"):
            JointConfig(common=share)
    with pytest.raises(SystemExit):
        main(["train", "joint", "--mean"])
    assert "--mean must be given with --tied" in capsys.readouterr().err


def test_images_that_may_not_stop_take_all_steps():
    run = run_with(chain=3, unstopped=2, explore=0.0)  # an agent that always stops
    run.step(*pair(count=6))
    assert int(run.tools.used.sum()) == 2 * 3


def test_an_agent_that_stops_trains_nothing():
    run = run_with(chain=3)
    before = parameters(run, "up")
    gain, _ = run.step(*pair())
    assert gain == 0.0 and all(torch.equal(a, b) for a, b in zip(before, parameters(run, "up"), strict=True))


def test_training_the_chain_raises_its_gain():
    run = run_with(chain=0)
    gained = [run.step(*pair())[0] for _ in range(50)]
    assert gained[-1] > gained[0] + 10
    assert all(v.isfinite().all() for v in run.tools.average.values())


def test_the_agent_learns_from_the_same_batches():
    run = run_with(chain=1, branched=2, agent_every=1, agent_sample=8, memory=64, explore=0.5)
    before = [p.detach().clone() for p in run.network.parameters()]
    for _ in range(3):
        run.step(*pair())
    assert len(run.values.replay) == 3 * (6 + 2)
    assert any((a != b).any() for a, b in zip(before, run.network.parameters(), strict=True))


def test_what_is_kept_is_the_best_in_what_the_tools_are_trained_for():
    class Darkness(Decibels):
        def worth(self, images, clean):
            return -images.mean(dim=(1, 2, 3)).double()

    run = run_with(chain=0)
    run.objective = Darkness()
    held_out = {name: pair() for name in ("mild", "moderate", "severe")}
    for offset in (0.0, -0.5, 0.1):  # the second is far darker, and far from the clean image
        run.tools.average["up.offset"].fill_(offset)
        gains_in_db = run.judge(held_out)
        assert run.history[-1]["mild"] == pytest.approx(gains_in_db["mild"], abs=1e-4)
    assert run.best["tools"]["up.offset"] == -0.5
    assert [row["worth"] for row in run.history].index(max(row["worth"] for row in run.history)) == 1


def small(**changes):
    settings = {"iterations": 4, "batch": 2, "agent_sample": 2, "memory": 32, "evaluate_every": 2}
    return JointConfig(**{**settings, "validation_images": 2, "max_steps": 2, **changes})


@pytest.fixture(scope="module")
def photos():
    return load_images("bundled", "train"), load_images("bundled", "validation")


def test_tools_and_agent_are_written_with_their_story(photos, tmp_path):
    cards = {"up": {"name": "up", "network": "gain", "licence": "MIT", "sha256": "abc", "command": "by hand"}}
    train_joint(small(), gains(), ToolchainNetwork(3, SIDE), *photos, tmp_path, cards=cards, card={"data": "few"})
    tensors, card = read_weights(tmp_path / "up.safetensors")
    assert set(tensors) == {"factor", "offset"} and card["network"] == "gain" and card["data"] == "few"
    assert card["started_from"]["sha256"] == "abc" and card["training"]["iterations_done"] == 4
    agent = load_agent(tmp_path / "agent.safetensors")
    assert agent.toolbox.name == "gains" and [row["iteration"] for row in agent.card["history"]] == [2, 4]
    assert not (tmp_path / "joint.checkpoint").exists()


def test_a_killed_run_goes_on_and_another_configuration_is_refused(photos, tmp_path):
    def kill(progress):
        if progress.iteration == 2:
            raise KeyboardInterrupt

    def start():
        torch.manual_seed(0)
        return gains(), ToolchainNetwork(3, SIDE)

    with pytest.raises(KeyboardInterrupt):
        train_joint(small(), *start(), *photos, tmp_path, checkpoint_seconds=0.0, report=kill)
    assert load_checkpoint(tmp_path / "joint.checkpoint")["iteration"] == 2
    assert not list(tmp_path.glob("*.safetensors"))
    with pytest.raises(InvalidArgument, match="batch was 2, is 3"):
        train_joint(small(batch=3), *start(), *photos, tmp_path)
    seen = []
    train_joint(small(), *start(), *photos, tmp_path, report=lambda p: seen.append(p.iteration))
    assert seen == [3, 4] and json.loads((tmp_path / "up.json").read_text())["uses"] >= 0


def test_images_of_own_bands_need_a_band_for_every_tool(photos, tmp_path):
    with pytest.raises(InvalidArgument, match="bands must be one for each of the 3 tools, got 1"):
        train_joint(small(own=1), gains(), always_up(), *photos, tmp_path, bands=[band("noise", 0.0, 20.0)])
    bands = [band("noise", low, low + 10.0) for low in (0.0, 10.0, 20.0)]
    facts = train_joint(small(own=2, severity="moderate"), gains(), always_up(), *photos, tmp_path, bands=bands)
    assert facts["training"]["own"] == 2 and facts["training"]["iterations_done"] == 4
    assert json.loads((tmp_path / "down.json").read_text())["uses"] == 2


def test_a_run_that_diverges_keeps_its_last_checkpoint(photos, tmp_path):
    toolbox = gains()

    def spoil(progress):
        for tool in toolbox:
            torch.nn.init.constant_(tool.function.offset, math.nan)

    with pytest.raises(TrainingDiverged, match="diverged at iteration 1"):
        train_joint(
            small(severity="moderate", explore=0.0, branched=0),
            toolbox,
            always_up(),
            *photos,
            tmp_path,
            checkpoint_seconds=0.0,
            report=spoil,
        )
    assert load_checkpoint(tmp_path / "joint.checkpoint")["iteration"] == 1


def always_up():
    network = ToolchainNetwork(3, SIDE)
    with torch.no_grad():
        network.q.weight.zero_()
        network.q.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    return network


def test_the_discriminator_judges_regions():
    assert Discriminator(8)(torch.rand(2, 3, 64, 48)).shape == (2, 1, 8, 6)


def test_the_tools_trained_for_looks_look_better_and_lose_less_than_a_decibel(photos):
    held_out = validation_batches(photos[1], 16, 63, "cpu", "any")
    lpips_of, db_of = {}, {}
    for name in ("cnn12-joint", "cnn12-gan"):
        agent = load_agent("toolchain-joint", toolbox=load_toolbox(name))
        ends = [episodes for _, episodes in restored(agent, held_out)]
        lpips_of[name] = sum(lpips(e.images.clamp(0.0, 1.0), e.clean).mean().item() for e in ends)
        db_of[name] = sum(mean_gain(e) for e in ends) / len(ends)
    assert lpips_of["cnn12-gan"] < 0.9 * lpips_of["cnn12-joint"]
    assert db_of["cnn12-gan"] > db_of["cnn12-joint"] - 1.0
