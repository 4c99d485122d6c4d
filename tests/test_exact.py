"""Exact-value learning: what is known of every action, and training that can be killed."""

import math

import pytest
import torch
from helpers import STOP, TOOLS, tiny

from restoration_env.agents.agent import ToolchainAgent, load_agent, save_agent
from restoration_env.agents.exact import ExactConfig, train_exact
from restoration_env.agents.exact_values import ExactValues, Step, near_choice
from restoration_env.agents.network import ToolchainNetwork, build_network
from restoration_env.agents.pretraining import pretrain, strengths
from restoration_env.agents.validation import mean_gains, validation_batches
from restoration_env.distortions import recipe
from restoration_env.episodes import Episodes
from restoration_env.errors import InvalidArgument, TrainingDiverged, UnknownName
from restoration_env.files import load_checkpoint
from restoration_env.images import load_images
from restoration_env.metrics import psnr
from restoration_env.toolbox import Tool, Toolbox

SIDE = 24


def pair(count=4, seed=0, change=0.04):
    """Clean images, and the same ones darker."""
    clean = torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.3
    return clean, clean - change


def learner(**settings):
    torch.manual_seed(0)
    return ExactValues(ToolchainNetwork(TOOLS, SIDE), **settings)


def test_the_last_step_knows_every_reward_exactly():
    values, (clean, damaged) = learner(max_steps=1), pair()
    values.visit(tiny(), clean, damaged)
    stored = values.replay.sample(32, torch.Generator().manual_seed(0))
    rewards = torch.stack([psnr(tool(damaged), clean) - psnr(damaged, clean) for tool in tiny()], 1).float()
    assert stored.values.shape == (32, 1, TOOLS + 1) and bool(stored.valid.all())
    for row in stored.values[:, 0]:
        assert row[STOP] == 0 and (rewards - row[:TOOLS]).abs().amax(1).min() < 1e-4


def test_earlier_steps_add_the_best_that_the_target_expects():
    values, (clean, damaged) = learner(max_steps=2, explore=0.0, returns="estimated"), pair(1)
    with torch.no_grad():
        values.target.q.weight.zero_()
        values.target.q.bias.copy_(torch.tensor([0.3, 0.1, -1.0, 0.2]))  # at best 0.3 units, 3 dB
    values.visit(tiny(), clean, damaged)
    stored = values.replay.sample(1, torch.Generator())
    reward = (psnr(tiny()["brighten"](damaged), clean) - psnr(damaged, clean)).item()
    assert stored.values[0, 0, 0].item() == pytest.approx(reward + 0.95 * 3.0, abs=1e-4)
    assert values.images == 1


def test_training_that_diverges_stops_and_keeps_what_was_good(photos, tmp_path):
    path, seen = tmp_path / "a.safetensors", list[int]()
    wild, report = config(episodes=400, learning_rate=1e25), lambda progress: seen.append(progress.images)
    with pytest.raises(TrainingDiverged, match="diverged: .*; the last good checkpoint is kept in"):
        train_exact(wild, tiny(), *photos, path, checkpoint_seconds=0.0, report=report)
    assert 0 < seen[-1] < 400 and not path.exists()
    assert all(value.isfinite().all() for value in load_checkpoint(path.with_suffix(".checkpoint"))["best"].values())


@pytest.mark.parametrize("steps", [2, 3])
@pytest.mark.parametrize("preferred", range(TOOLS + 1))
def test_what_follows_is_played_as_the_target_would(preferred, steps):
    values, (clean, damaged) = learner(max_steps=steps, explore=0.0), pair(3)
    with torch.no_grad():
        values.target.q.weight.zero_()
        values.target.q.bias.copy_(torch.eye(TOOLS + 1)[preferred] * 7.0)  # it promises far more than there is
    values.visit(tiny(), clean, damaged)
    stored, tools = values.replay.take(torch.arange(3)), list(tiny())
    for action in range(TOOLS):
        first = tools[action](damaged)
        last = first
        for _ in range(steps - 1):
            last = last if preferred == STOP else tools[preferred](last)
        followed = (psnr(last, clean) - psnr(first, clean)).clamp_min(0.0)
        wanted = psnr(first, clean) - psnr(damaged, clean) + 0.95 * followed
        torch.testing.assert_close(stored.values[:, 0, action], wanted.float(), atol=1e-3, rtol=0)
    assert bool((stored.values[..., STOP] == 0).all())


def test_returns_that_there_are_not():
    with pytest.raises(UnknownName, match="returns must be one of played, estimated, got 'guessed'"):
        learner(returns="guessed")


def test_a_stopped_episode_is_not_learned_from():
    values, (clean, damaged) = learner(max_steps=3, explore=0.0), pair(2)
    with torch.no_grad():
        values.network.q.weight.zero_()
        values.network.q.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    values.visit(tiny(), clean, damaged)
    stored = values.replay.sample(8, torch.Generator().manual_seed(0))
    assert stored.valid.tolist() == [[True, False, False]] * 8


def test_of_a_played_chain_only_the_actions_taken_are_known():
    values, (clean, damaged) = learner(max_steps=2), pair(3)
    with torch.no_grad():
        values.target.q.weight.zero_()
        values.target.q.bias.fill_(0.5)
    episodes, steps = Episodes(tiny(), max_steps=2), []
    episodes.begin(damaged, clean)
    for actions in (torch.tensor([0, 1, STOP]), torch.tensor([1, STOP, 0])):
        seen, going = episodes.observation(), ~episodes.done
        steps.append(Step(seen["image"], seen["last_action"], actions, episodes.step(actions), going))
    values.remember(steps)
    held = values.replay.sample(64, torch.Generator().manual_seed(0))
    first = held.values[:, 0]
    assert bool((first[:, STOP] == 0).all())
    assert bool((torch.isfinite(first[:, :TOOLS]).sum(1) <= 1).all())
    known = first[torch.isfinite(first[:, 0]), 0]
    assert len(known) and torch.allclose(known, (steps[0].reward[0] + 0.95 * 5.0).float().expand(len(known)), atol=1e-4)
    assert math.isfinite(values.learn(16))


def test_near_the_choice():
    q, generator = torch.tensor([[0.0, 1.0, 0.9, -5.0]]).repeat(4000, 1), torch.Generator().manual_seed(0)
    assert bool((near_choice(q, 0.0, 0.1, generator) == 1).all())
    counts = torch.bincount(near_choice(q, 1.0, 0.1, generator), minlength=4) / 4000
    assert counts[1] > counts[2] > counts[0] and 0 < counts[3] < 0.05
    q[:, 3] = -math.inf
    assert int((near_choice(q, 1.0, 10.0, generator) == 3).sum()) == 0


def config(**changes):
    settings = {"episodes": 16, "batch": 4, "updates": 1, "sample": 4, "memory": 16, "max_steps": 1}
    return ExactConfig(**{**settings, "pretraining": 2, "evaluate_every": 4, "validation_images": 2, **changes})


@pytest.fixture(scope="module")
def photos():
    return load_images("bundled", "train"), load_images("bundled", "validation")


def test_an_agent_is_trained_and_can_be_loaded(photos, tmp_path):
    card = train_exact(config(), tiny(), *photos, tmp_path / "a.safetensors", card={"command": "by hand"})
    assert card["history"][-1]["images"] == 16 and card["command"] == "by hand"
    assert set(card["history"][-1]) == {"images", "mild", "moderate", "severe"}
    agent = load_agent(tmp_path / "a.safetensors")
    assert agent.toolbox.name == "tiny" and not list(tmp_path.glob("*.checkpoint"))


@pytest.mark.parametrize(("caution", "acts"), [(0.3, True), (1.2, False)])
def test_while_it_learns_an_agent_is_judged_as_cautious_as_it_will_be(photos, tmp_path, caution, acts):
    network = build_network("statistics", TOOLS).eval()
    with torch.no_grad():
        network.q.weight.zero_()
        network.q.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))  # the first tool promises 1 dB
    save_agent(tmp_path / "a.safetensors", ToolchainAgent(network, tiny(), 1, {}), {})
    settings = {"start": str(tmp_path / "a.safetensors"), "pretraining": 0, "warmup": 1_000}
    card = train_exact(config(**settings), tiny(), *photos, tmp_path / "b.safetensors", caution=caution)
    agent = load_agent(tmp_path / "b.safetensors", toolbox=tiny())
    held_out = validation_batches(photos[1], config().validation_images, network.patch_size, "cpu")
    gains = mean_gains(agent, held_out)
    assert agent.caution == caution and all((gain != 0.0) == acts for gain in gains.values())
    assert {name: card["history"][0][name] for name in gains} == pytest.approx(gains, abs=1e-3)


def test_an_agent_that_gets_no_better_stays_what_it_was(photos, tmp_path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    train_exact(config(), tiny(), *photos, first)
    settings = {"start": str(first), "pretraining": 0, "warmup": 1_000}  # no update comes in so few episodes
    card = train_exact(config(**settings), tiny(), *photos, second)
    assert [row["images"] for row in card["history"]] == [0, 16]
    before, after = load_agent(first, toolbox=tiny()), load_agent(second, toolbox=tiny())
    for name, value in before.network.state_dict().items():
        torch.testing.assert_close(after.network.state_dict()[name], value, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("changed", [{"views": 1}, {"caution": 0.2}])
def test_a_run_is_not_resumed_with_other_decisions(photos, tmp_path, changed):
    def kill(progress):
        if progress.images == 8:
            raise KeyboardInterrupt

    path, manner = tmp_path / "a.safetensors", {"views": 8, "caution": 0.1}
    with pytest.raises(KeyboardInterrupt):
        train_exact(config(), tiny(), *photos, path, report=kill, checkpoint_seconds=0.0, **manner)
    with pytest.raises(InvalidArgument, match=next(iter(changed))):
        train_exact(config(), tiny(), *photos, path, **{**manner, **changed})


@pytest.mark.parametrize("kind", ["published", "statistics"])
def test_further_tools_change_nothing_until_they_are_learned(kind):
    torch.manual_seed(0)
    known = build_network(kind, 2, 32).eval()
    grown = known.with_more_tools(4).eval()
    images = torch.rand(5, 3, 32, 32)
    for last, also in ((2, 4), (1, 1)):  # nothing done yet, and the second tool
        before, _ = known(images, torch.full((5,), last), known.initial_state(5))
        after, _ = grown(images, torch.full((5,), also), grown.initial_state(5))
        torch.testing.assert_close(after[:, [0, 1, 4]], before)
        torch.testing.assert_close(after[:, [2, 3]], before[:, 2:].expand(-1, 2))


def test_an_agent_goes_on_with_a_tool_more(photos, tmp_path):
    train_exact(config(), tiny(), *photos, tmp_path / "a.safetensors")
    more = tiny().extended([Tool("shade", "one more", lambda images: images * 0.9)])
    settings = {"start": str(tmp_path / "a.safetensors"), "severity": "with-x4", "pretraining": 0}
    card = train_exact(config(**settings), more, *photos, tmp_path / "b.safetensors")
    assert set(card["history"][-1]) == {"images", "x4", "mixed"}
    assert load_agent(tmp_path / "b.safetensors", toolbox=more).network.tools == TOOLS + 1
    other = Toolbox("other", [Tool(name, "another", lambda images: images) for name in "abcde"])
    with pytest.raises(InvalidArgument, match="start must be an agent of the first tools of other, got one of tiny"):
        train_exact(config(**settings), other, *photos, tmp_path / "c.safetensors")


def test_a_killed_run_goes_on_and_another_configuration_is_refused(photos, tmp_path):
    def kill(progress):
        if progress.images == 8:
            raise KeyboardInterrupt

    path = tmp_path / "a.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train_exact(config(), tiny(), *photos, path, checkpoint_seconds=0.0, report=kill)
    assert not path.exists()
    with pytest.raises(InvalidArgument, match="seed was 0, is 1"):
        train_exact(config(seed=1), tiny(), *photos, path)
    seen = []
    train_exact(config(), tiny(), *photos, path, report=lambda p: seen.append(p.images))
    assert seen == [12, 16]  # and no pretraining again


def test_pretraining_learns_what_damage_an_image_has(photos):
    torch.manual_seed(0)
    network, errors = build_network("statistics", TOOLS, 32), []
    q = network.q.weight.clone()
    pretrain(network, photos[0], recipe("noise"), iterations=40, batch=16, report=lambda i, e: errors.append(e))
    assert sum(errors[-10:]) < 0.7 * sum(errors[:10]) and torch.equal(network.q.weight, q)


def test_strengths_are_what_the_recipe_draws():
    keys = torch.arange(50)
    none, some = strengths(recipe("blur"), keys), strengths(recipe("severe"), keys)
    assert bool((none[:, 1:] == 0).all()) and bool((none[:, 0] <= 1).all())
    assert bool((some >= 0).all()) and some.max() <= 1.001 and some.mean() > 0.4
