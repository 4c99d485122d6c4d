"""The toolchain agent: network, memory, training, restoring."""

import itertools

import pytest
import torch

from restoration_env.agents.agent import WEIGHTS, ToolchainAgent, agent_names, load_agent, save_agent
from restoration_env.agents.drqn import DRQNConfig, _Run, train_drqn, unroll
from restoration_env.agents.network import NETWORKS, ToolchainNetwork, _pad_same, build_network
from restoration_env.agents.policies import FixedChain, RandomPolicy, StopAtOnce, restore_batch
from restoration_env.agents.replay import EpisodeBatch, EpisodeReplay
from restoration_env.episodes import Episodes
from restoration_env.errors import InvalidArgument, TrainingDiverged, UnknownName
from restoration_env.files import load_checkpoint
from restoration_env.images import load_images
from restoration_env.toolbox import Tool, Toolbox
from restoration_env.tools.catalogue import NAMES


def _toy_toolbox():
    """Tools that undo nothing that the distortions do: quick, and easy to tell apart."""
    brighten = Tool("brighten", "adds 0.1", lambda x: x + 0.1)
    darken = Tool("darken", "subtracts 0.1", lambda x: x - 0.1)
    return Toolbox("toy", [brighten, darken])


def _agent(toolbox=None, seed=0):
    torch.manual_seed(seed)
    toolbox = toolbox or _toy_toolbox()
    return ToolchainAgent(ToolchainNetwork(len(toolbox)), toolbox)


def test_the_network_has_the_published_size():
    assert sum(p.numel() for p in ToolchainNetwork().parameters()) == 87_863


def test_padding_is_that_of_tensorflow():
    x = torch.ones(1, 1, 32, 32)
    padded = _pad_same(x, 5)[0, 0]
    assert padded.shape == (35, 35)
    assert padded[0].sum() == 0 and padded[1].sum() == 32 and padded[-2:].sum() == 0
    assert _pad_same(torch.ones(1, 1, 63, 63), 9).shape[-2:] == (71, 71)


def test_pixels_of_eight_bits_and_of_floats_mean_the_same():
    network = ToolchainNetwork()
    pixels = torch.randint(0, 256, (2, 3, 63, 63), dtype=torch.uint8)
    torch.testing.assert_close(network.features(pixels), network.features(pixels.float() / 255))


def test_replay_keeps_the_newest_episodes():
    replay = EpisodeReplay(4)
    for first in (0, 3):
        ids = torch.arange(first, first + 3)[:, None]
        images = ids[..., None, None, None].to(torch.uint8)
        replay.add(EpisodeBatch(images, ids, ids, ids.float(), ids >= 0))
    drawn = replay.sample(200, torch.Generator().manual_seed(0))
    assert len(replay) == 4
    assert set(drawn.actions[:, 0].tolist()) == {2, 3, 4, 5}
    assert torch.equal(drawn.images[:, 0, 0, 0, 0].long(), drawn.actions[:, 0])


def test_replay_unrolls_the_memory_exactly_as_acting_did():
    """On random steps too: the released code did not advance the memory there."""
    toolbox = _toy_toolbox()
    run = _Run(DRQNConfig(batch=8, replay=8, too_good=200.0, end_on_harm=False), toolbox, "cpu")
    seen = []
    act = run.agent.act

    def recorded(observation):
        actions = act(observation)
        seen.append(run.agent.q_values)
        return actions

    run.agent.act = recorded
    images = torch.rand(8, 3, 63, 63)
    run.play(images, images.clamp(0.2, 0.8))
    batch = run.replay.sample(8, torch.Generator().manual_seed(0))._replace()
    stored = run.replay._store
    with torch.no_grad():
        unrolled = unroll(run.learner, stored)
    acted = torch.stack(seen, 1)
    assert batch.valid[:, 0].all()
    torch.testing.assert_close(unrolled[stored.valid], acted[stored.valid], atol=1e-5, rtol=1e-4)


def test_training_solves_a_toolbox_with_one_right_tool_per_image():
    toolbox = _toy_toolbox()
    run = _Run(DRQNConfig(episodes=512, batch=32, max_steps=2, updates=8, sample=32), toolbox, "cpu")
    generator = torch.Generator().manual_seed(0)

    def batch(count):
        """Images too bright or too dark by more than a tool undoes; stripes show which."""
        plain = torch.rand(count, 3, 1, 1, generator=generator) * 0.4 + 0.3
        plain = plain + 0.05 * torch.rand(count, 3, 63, 63, generator=generator)
        shift = torch.where(torch.arange(count) % 2 == 0, 0.12, -0.12)[:, None, None, None]
        plain[:, :, :24] += 0.15 * shift.sign() * (torch.arange(24) % 2)[:, None]
        return plain, plain + shift

    while run.episodes < run.config.episodes:
        run.play(*batch(32))
        run.episodes += 32
        for _ in range(8):
            run.learn()
    clean, damaged = batch(64)
    episodes = Episodes(toolbox, max_steps=2)
    episodes.begin(damaged, clean)
    run.agent.reset(64)
    actions = run.agent.act(episodes.observation())
    right = torch.where(torch.arange(64) % 2 == 0, 1, 0)
    assert (actions == right).float().mean() > 0.95


def _small(**changes):
    settings = {"episodes": 24, "batch": 8, "warmup": 8, "updates": 1, "sample": 4, "replay": 16}
    return DRQNConfig(**{**settings, "evaluate_every": 2, "validation_images": 8, **changes})


def test_training_that_diverges_stops_and_keeps_what_was_good(tmp_path):
    photos = load_images("bundled", "train"), load_images("bundled", "validation")
    path, seen = tmp_path / "a.safetensors", list[int]()
    config, report = _small(episodes=400, learning_rate=1e25), lambda progress: seen.append(progress.episodes)
    with pytest.raises(TrainingDiverged, match="a diverged: the loss is .*; the last good checkpoint is kept in"):
        train_drqn(config, _toy_toolbox(), *photos, path, checkpoint_seconds=0.0, report=report)
    kept = load_checkpoint(path.with_suffix(".checkpoint"))
    assert 0 < seen[-1] < 400 and not path.exists() and kept["episodes"] == seen[-1]


def test_training_writes_an_agent_and_resumes_after_a_kill(tmp_path):
    photos = load_images("bundled", "train"), load_images("bundled", "validation")
    path, toolbox = tmp_path / "a.safetensors", _toy_toolbox()

    def kill(progress):
        if progress.episodes == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_drqn(_small(), toolbox, *photos, path, report=kill)
    assert not path.exists()
    with pytest.raises(InvalidArgument, match="discount was 0.99, is 0.5"):
        train_drqn(_small(discount=0.5), toolbox, *photos, path)
    episodes = []
    facts = train_drqn(_small(), toolbox, *photos, path, report=lambda p: episodes.append(p.episodes))
    assert episodes == [24] and facts["training"]["episodes_done"] == 24
    agent = load_agent(path, toolbox=toolbox)
    assert agent.card["tool_names"] == ["brighten", "darken"]
    assert not path.with_suffix(".checkpoint").exists()


def test_restoring_returns_images_and_actions():
    agent, images = _agent(), torch.rand(5, 3, 63, 63)
    result = agent.restore(images, keep_frames=True)
    assert result.images.shape == images.shape and result.actions.shape == (5, 3)
    assert result.images.min() >= 0 and result.images.max() <= 1
    assert torch.equal(result.frames[0], images) and len(result.frames) >= 2
    assert all(len(chain) >= 1 for chain in result.toolchains())


@pytest.mark.parametrize("size", [(16, 16), (63, 200), (120, 40), (300, 310)])
def test_images_of_any_size_are_judged_by_their_patches(size):
    agent, image = _agent(), torch.rand(2, 3, *size)
    assert agent.restore(image).images.shape == image.shape


def test_a_batch_is_restored_as_its_images_would_be_alone():
    agent, images = _agent(seed=3), torch.rand(4, 3, 63, 63)
    together = agent.restore(images)
    alone = [agent.restore(image[None]) for image in images]
    for row, single in enumerate(alone):
        assert together.toolchains()[row] == single.toolchains()[0]


@pytest.mark.parametrize(
    "bad", [torch.rand(3, 63, 63), torch.rand(1, 1, 63, 63), torch.full((1, 3, 63, 63), torch.nan)]
)
def test_images_that_are_none_are_refused(bad):
    with pytest.raises(InvalidArgument, match="images"):
        _agent().restore(bad)


def test_an_agent_for_another_number_of_tools_is_refused(tmp_path):
    save_agent(tmp_path / "toy.safetensors", _agent(), {})
    three = Toolbox("three", [*_toy_toolbox(), Tool("same", "nothing", lambda x: x)])
    with pytest.raises(InvalidArgument, match="3 tools of three.*2 tools"):
        load_agent(tmp_path / "toy.safetensors", toolbox=three)
    with pytest.raises(InvalidArgument, match="agent must be one of"):
        load_agent("nobody")


def test_simple_policies_do_what_they_say():
    toolbox, images = _toy_toolbox(), torch.rand(6, 3, 20, 20)
    assert torch.equal(restore_batch(StopAtOnce(toolbox), toolbox, images).images, images)
    chain = restore_batch(FixedChain(toolbox, ["brighten", "darken"]), toolbox, images)
    assert chain.toolchains() == [("brighten", "darken", "stop")] * 6
    drawn = [restore_batch(RandomPolicy(toolbox, seed), toolbox, images).actions for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    with pytest.raises(InvalidArgument, match="brighten, darken, stop"):
        FixedChain(toolbox, ["blur"])


def test_learning_rates_of_a_schedule_fall():
    run = _Run(_small(episodes=80, warmup=8), _toy_toolbox(), "cpu")
    images = torch.rand(8, 3, 63, 63)
    run.play(images, images * 0.9)
    rates = []
    for _ in range(9):
        run.learn()
        rates.append(run.optimizer.param_groups[0]["lr"])
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))


def test_a_cautious_agent_stops_unless_a_tool_promises_enough(tmp_path):
    network = ToolchainNetwork()
    with torch.no_grad():
        network.q.weight.zero_()
        network.q.bias.copy_(torch.tensor([0.3] + [0.1] * 11 + [0.0]))
    agent = ToolchainAgent(network, _twelve())
    images = torch.rand(2, 3, 63, 63)
    assert agent.restore(images).actions[:, 0].tolist() == [0, 0]
    agent.caution = 0.5
    assert agent.restore(images).actions[:, 0].tolist() == [12, 12]
    assert agent.decide((images[0] * 255).to(torch.uint8))[0] == (12,)
    save_agent(tmp_path / "a.safetensors", agent, {})
    assert load_agent(tmp_path / "a.safetensors", toolbox=_twelve()).caution == 0.5


@pytest.mark.parametrize("kind", NETWORKS)
def test_agents_of_both_networks_are_saved_and_loaded(kind, tmp_path):
    torch.manual_seed(0)
    agent = ToolchainAgent(build_network(kind), _twelve())
    save_agent(tmp_path / "a.safetensors", agent, {})
    again = load_agent(tmp_path / "a.safetensors", toolbox=_twelve())
    images = torch.rand(3, 3, 63, 63)
    assert again.network.kind == kind and torch.equal(again.restore(images).actions, agent.restore(images).actions)


def test_weights_that_are_no_agent_are_refused():
    assert "classifier" not in agent_names()
    with pytest.raises(InvalidArgument, match="those of an agent"):
        load_agent(WEIGHTS / "classifier.safetensors")


def _twelve():
    return Toolbox("twelve", [Tool(name, "", lambda images: images * 0.99) for name in NAMES])


def test_eight_views_judge_an_image_and_its_mirror_image_alike():
    torch.manual_seed(0)
    agent = ToolchainAgent(build_network("published"), _twelve())
    image = torch.rand(1, 3, 63, 63)
    values = []
    for views in (1, 8):
        agent.views = views
        for seen in (image, image.flip(-1), image.transpose(-1, -2)):
            agent.restore(seen)
            values.append(agent.q_values[0])
    assert not torch.allclose(values[0], values[1], atol=1e-5)
    torch.testing.assert_close(values[3], values[4], atol=1e-5, rtol=0)
    torch.testing.assert_close(values[3], values[5], atol=1e-5, rtol=0)
    assert torch.equal(agent.decide((image[0] * 255).to(torch.uint8))[1][0].argmax(), values[3].argmax())


def test_an_agent_can_be_named_with_other_tools(tmp_path):
    own, other = load_agent("toolchain-joint"), load_agent("toolchain-joint@cnn12")
    assert (own.toolbox.name, other.toolbox.name) == ("cnn12-joint", "cnn12")
    assert torch.equal(own.network.q.weight, other.network.q.weight)
    path = tmp_path / "at@home" / "mine.safetensors"  # such a path names no tools
    path.parent.mkdir()
    save_agent(path, own, {})
    assert load_agent(path).toolbox.name == "cnn12-joint"
    assert load_agent(f"{path}@cnn12").toolbox.name == "cnn12"
    with pytest.raises(UnknownName, match="toolbox must be one of cnn12"):
        load_agent("toolchain-joint@none")
