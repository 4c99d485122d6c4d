"""The lookahead agent: what its critic sees, how it plans, and training that can be stopped."""

import numpy as np
import pytest
import torch
from helpers import STOP, TOOLS, tiny

from restoration_env.agents.agent import load_agent
from restoration_env.agents.critic import RestoringCritic
from restoration_env.agents.doubt import experience, teach_doubt
from restoration_env.agents.drqn import DRQNConfig, train_drqn
from restoration_env.agents.exact import ExactConfig, train_exact
from restoration_env.agents.lookahead import LookaheadAgent
from restoration_env.agents.lookahead_training import LookaheadConfig, train_lookahead
from restoration_env.agents.oracles import exhaustive, greedy
from restoration_env.agents.photo import restore
from restoration_env.agents.statistics import GRID_STATISTICS, STATISTICS, grid_statistics, statistics
from restoration_env.benchmarks.entries import load_entry
from restoration_env.distortions import distort
from restoration_env.episodes import Episodes
from restoration_env.errors import InvalidArgument
from restoration_env.images import load_images
from restoration_env.metrics import psnr

SIDE = 24


class Knowing(torch.nn.Module):
    """A critic that knows every clean image: they are all the same grey."""

    kind, patch_size = "critic", SIDE

    def __init__(self):
        super().__init__()
        self.anything = torch.nn.Parameter(torch.zeros(1))

    def see_before(self, images):
        return psnr(images / 255.0, torch.full(images.shape, 0.5))

    def see_after(self, before, after):
        flat = after.flatten(0, 1) / 255.0
        return psnr(flat, torch.full_like(flat, 0.5)).view(after.shape[:2])

    def forward(self, before, after):
        return after - before[:, None]

    def risk(self, images):
        return torch.zeros(len(images))


def greys(count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    level = 0.5 + 0.1 * (torch.rand(count, 1, 1, 1, generator=generator) - 0.5)
    noise = 0.1 * (torch.rand(count, 3, SIDE, SIDE, generator=generator) - 0.5)
    return ((level + noise) * 255).round() / 255


def played(agent, damaged):
    episodes = Episodes(agent.toolbox, max_steps=agent.max_steps)
    episodes.begin(damaged, torch.full_like(damaged, 0.5))
    agent.reset(len(damaged))
    while not bool(episodes.done.all()):
        episodes.step(agent.act(episodes.observation()))
    return episodes


@pytest.mark.parametrize(("width", "oracle"), [(1, greedy), (TOOLS**2, exhaustive)])
def test_with_a_critic_that_knows_it_plans_what_an_oracle_finds(width, oracle):
    damaged = greys()
    agent = LookaheadAgent(Knowing(), tiny(), 3, {"width": width})
    best = oracle(tiny(), torch.full_like(damaged, 0.5), damaged, max_steps=3)
    gain = played(agent, damaged)
    # A greedy oracle stops where no tool helps at once; the plan may still see a chain that helps later.
    assert bool((gain.psnr - gain.psnr_initial >= best.gain - 0.02).all())
    if oracle is exhaustive:
        torch.testing.assert_close(gain.psnr - gain.psnr_initial, best.gain, atol=0.02, rtol=0)


def test_values_lead_along_the_plan():
    damaged = (greys() * 255).to(torch.uint8)
    plan = LookaheadAgent(Knowing(), tiny(), 3, {"width": 3}).plan(damaged[:, None], 3)
    for actions, values in zip(plan.actions.tolist(), plan.values, strict=True):
        for action, row in zip(actions, values, strict=True):
            assert row[STOP] == 0 and row[action] == row[row.isfinite()].max()
            if action == STOP:
                break


def test_caution_uses_fewer_tools():
    damaged = greys(32)
    used = []
    for caution in (0.0, 2.0, 100.0):
        agent = LookaheadAgent(Knowing(), tiny(), 3, {"caution": caution})
        chains = played(agent, damaged).toolchain
        used.append(((chains >= 0) & (chains != STOP)).sum().item())
    assert used[0] > used[1] > used[2] == 0


def test_patches_of_a_photograph_decide_together():
    agent = LookaheadAgent(Knowing(), tiny())
    bright = np.full((90, 120, 3), 142, np.uint8)  # what lacks to the middle grey are three tools of 5
    result = restore(bright, agent)
    assert result.toolchain == ("darken",) * 3
    assert abs(float(result.image.mean()) - 127.5) < 1.0
    assert result.q_values.shape == (3, TOOLS + 1) and bool((result.q_values[:, 1] > 0).all())


def test_statistics_are_those_of_the_transposed_image_and_see_damage():
    clean = load_images("bundled", "validation").crops(torch.rand(8, 3), 64)[0].float() / 255
    seen = statistics(clean)
    assert seen.shape == (8, STATISTICS) and grid_statistics(clean).shape == (8, GRID_STATISTICS)
    torch.testing.assert_close(statistics(clean.transpose(2, 3)), seen, atol=1e-4, rtol=0)
    none, lossless = torch.zeros(8), torch.full((8,), torch.inf)
    noisy = distort(clean, none, none + 20, lossless)
    blurred = distort(clean, none + 2, none, lossless)
    highest = 35  # of the power of luma, the last frequency
    assert bool((statistics(noisy)[:, highest] > seen[:, highest] + 0.3).all())
    assert bool((statistics(blurred)[:, highest] <= seen[:, highest]).all())
    coded = distort(clean, none, none, none + 10)
    zeros = slice(0, 36)  # shares of coefficients that are almost zero
    assert bool((grid_statistics(coded)[:, zeros].mean(1) > grid_statistics(clean)[:, zeros].mean(1)).all())


def test_a_critic_judges_by_the_distance_to_what_it_takes_for_clean():
    critic = RestoringCritic(8).eval()
    critic.unknown.zero_()
    before = torch.randint(0, 256, (2, 3, 63, 63), dtype=torch.uint8)
    taken = critic.see_before(before)
    torch.testing.assert_close(taken, before / 255.0)  # it begins as the identity
    clean = torch.randint(0, 256, (2, 3, 63, 63), dtype=torch.uint8)
    after = torch.stack((clean, before, (clean.int() + before.int()).div(2, rounding_mode="floor").to(torch.uint8)), 1)
    judged = critic(clean / 255.0, critic.see_after(before, after))
    expected = [
        psnr(outcome / 255.0, clean / 255.0) - psnr(before / 255.0, clean / 255.0) for outcome in after.unbind(1)
    ]
    torch.testing.assert_close(judged.double(), torch.stack(expected, 1).double(), atol=1e-3, rtol=0)
    critic.unknown.fill_(1.0)  # next to which no difference counts
    assert bool((critic(clean / 255.0, critic.see_after(before, after)).abs() < 1.0).all())
    assert sum(p.numel() for p in RestoringCritic().parameters()) == 1_375_213


def config(**changes):
    settings = {"episodes": 24, "batch": 4, "critic_width": 4, "max_steps": 2, "doubts": 0}
    return LookaheadConfig(**{**settings, "evaluate_every": 2, "validation_images": 2, **changes})


@pytest.fixture(scope="module")
def photos():
    return load_images("bundled", "train"), load_images("bundled", "validation")


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(photos, tmp_path):
    def kill(progress):
        if progress.images == 8:
            raise KeyboardInterrupt

    path, whole = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train_lookahead(config(), tiny(), *photos, path, report=kill)
    assert not path.exists() and path.with_suffix(".checkpoint").exists()
    with pytest.raises(InvalidArgument, match="seed was 0, is 1"):
        train_lookahead(config(seed=1), tiny(), *photos, path)
    seen = []
    card = train_lookahead(config(), tiny(), *photos, path, report=lambda p: seen.append(p.images))
    assert seen == [12, 16, 20, 24] and card["images_seen"] == 24
    assert [iteration for iteration, _ in card["history"]] == [2, 4, 6]
    train_lookahead(config(), tiny(), *photos, whole)
    assert path.read_bytes() == whole.read_bytes()
    agent = load_agent(path)
    assert isinstance(agent, LookaheadAgent) and agent.toolbox.name == "tiny" and agent.width == 2
    assert not list(tmp_path.glob("*.checkpoint"))
    assert agent.restore(torch.rand(2, 3, 63, 63)).actions.shape == (2, 2)


def test_agents_of_one_kind_are_no_start_for_the_other(photos, tmp_path):
    path, other = str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")
    train_lookahead(config(episodes=8), tiny(), *photos, path)
    exact = {"pretraining": 0, "validation_images": 2, "evaluate_every": 1, "sample": 2, "max_steps": 1}
    with pytest.raises(InvalidArgument, match="lookahead agent"):
        train_exact(ExactConfig(episodes=8, start=path, **exact), tiny(), *photos, other)
    with pytest.raises(InvalidArgument, match="lookahead agent"):
        train_drqn(DRQNConfig(episodes=8, start=path), tiny(), *photos, other)
    train_exact(ExactConfig(episodes=8, **exact), tiny(), *photos, other)
    with pytest.raises(InvalidArgument, match="a lookahead agent"):
        train_lookahead(config(start=other), tiny(), *photos, path)
    card = train_lookahead(config(episodes=8, start=path, seed=1), tiny(), *photos, path)
    assert card["images_seen"] == 16
    with pytest.raises(InvalidArgument, match="start must be a critic of width 8, got one of width 4"):
        train_lookahead(config(start=path, critic_width=8), tiny(), *photos, other)


def plain_and_noisy(count):
    generator = torch.Generator().manual_seed(0)
    plain = torch.rand(count, 3, 1, 1, generator=generator).expand(-1, -1, 63, 63)
    return plain, (plain + 0.2 * torch.randn(count, 3, 63, 63, generator=generator)).clamp(0, 1)


def test_a_critic_has_no_doubts_until_it_was_taught_some():
    torch.manual_seed(0)
    critic, (plain, noisy) = RestoringCritic(4).eval(), plain_and_noisy(96)
    pixels = [(images * 255).round().to(torch.uint8) for images in (plain, noisy)]
    assert all(critic.risk(images).max() < 1e-6 for images in pixels)
    with torch.no_grad():
        critic.restorer.tail.bias.fill_(0.3)  # what it restores is too bright by far
    seen, worse = experience(critic, plain, plain, "float32")
    assert seen.shape == (96, 24) and bool(worse.all())
    more, better = experience(critic, plain, (plain - 0.3).clamp(0, 1), "float32")
    assert not better[plain.amin((1, 2, 3)) > 0.3].any() and more.shape == seen.shape
    summaries = torch.cat([critic.summary(images).half() for images in (plain, noisy)]).detach()
    worse = torch.arange(192) >= 96
    state = torch.get_rng_state()
    teach_doubt(critic, summaries, worse, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert critic.risk(pixels[0]).max() < 0.2 and critic.risk(pixels[1]).min() > 0.8
    assert not any(parameter.requires_grad for parameter in critic.doubt.parameters())


def test_what_is_too_risky_is_left_alone():
    class Wary(Knowing):
        def risk(self, images):
            return (torch.arange(len(images)) % 4) / 10

    damaged = greys()
    bold, wary = (LookaheadAgent(Wary(), tiny(), 3, {"risk": risk}) for risk in (1.0, 0.15))
    chains, fewer = played(bold, damaged).toolchain, played(wary, damaged).toolchain
    left = torch.arange(len(damaged)) % 4 > 1
    assert bool((fewer[left, 0] == STOP).all()) and bool((chains[:, 0] != STOP).all())
    assert torch.equal(fewer[~left], chains[~left])


def test_patches_of_a_photograph_doubt_together():
    class Wary(Knowing):
        def risk(self, images):
            return torch.full((len(images),), 0.3) * (torch.arange(len(images)) % 2)

    bright = np.full((90, 120, 3), 142, np.uint8)
    for risk, chain in ((0.1, ()), (0.2, ("darken",) * 3)):
        assert restore(bright, LookaheadAgent(Wary(), tiny(), 3, {"risk": risk})).toolchain == chain


@pytest.mark.parametrize("images", [12, 32])  # while the critic learns, and while it learns to doubt
def test_a_run_with_doubts_that_was_interrupted_ends_with_the_same_file(images, photos, tmp_path):
    def kill(progress):
        if progress.images == images:
            raise KeyboardInterrupt

    path, whole = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train_lookahead(config(doubts=16, risk=0.4), tiny(), *photos, path, report=kill)
    seen = []
    train_lookahead(config(doubts=16, risk=0.4), tiny(), *photos, path, report=lambda p: seen.append(p.images))
    assert seen[0] == images + 4 and seen[-1] == 40
    train_lookahead(config(doubts=16, risk=0.4), tiny(), *photos, whole)
    assert path.read_bytes() == whole.read_bytes()
    agent = load_agent(path)
    assert agent.risk == 0.4 and agent.network.spread.min() < 1.0
    bolder = tmp_path / "c.safetensors"
    train_lookahead(config(episodes=0, start=str(path), risk=0.9), tiny(), *photos, bolder)
    assert load_agent(bolder).risk == 0.9
    for name, value in load_agent(bolder).network.state_dict().items():
        assert torch.equal(value, agent.network.state_dict()[name]), name


def test_an_entry_without_doubts_takes_every_risk():
    bold, wary = load_entry("lookahead%no-doubt"), load_entry("lookahead")
    assert bold.policy.risk == 1.0 and wary.policy.risk < 0.5 and bold.label == f"{wary.label}, without doubts"
    for wrong in ("lookahead%no-stop", "toolchain%no-doubt"):
        with pytest.raises(InvalidArgument, match="looks ahead before %no-doubt"):
            load_entry(wrong)
