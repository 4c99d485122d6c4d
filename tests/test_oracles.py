"""Oracles: what they find is real, ordered, and the best there is."""

import itertools

import pytest
import torch
from helpers import needs_cnn12, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from restoration_env.agents import chains
from restoration_env.agents.oracles import OracleResult, beam, exhaustive, greedy, regret
from restoration_env.distortions import recipe
from restoration_env.episodes import NO_ACTION, Episodes
from restoration_env.errors import InvalidArgument
from restoration_env.images import damaged_patches, load_images
from restoration_env.registry import load_toolbox
from restoration_env.toolbox import Tool, Toolbox

quick = settings(max_examples=15, deadline=None)
seeds, steps = st.integers(0, 2**31), st.integers(1, 3)


def photographs(seed, count=3, side=12):
    """Clean images, and the same with noise and another brightness, so that every tiny tool helps some."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.rand(count, 3, 1, 1, generator=generator).expand(-1, -1, side, side) * 0.6 + 0.2
    clean = clean + 0.1 * torch.rand(count, 3, side, side, generator=generator)
    shift = (torch.rand(count, 1, 1, 1, generator=generator) - 0.5) * 0.2
    strength = torch.rand(count, 1, 1, 1, generator=generator) * 0.1
    noise = torch.randn(clean.shape, generator=generator)
    return clean, (clean + shift + strength * noise).clamp(0, 1)


def played(toolbox, clean, damaged, toolchains):
    """The PSNR that `Episodes` gives for toolchains padded with NO_ACTION."""
    episodes = Episodes(toolbox, max_steps=toolchains.shape[1])
    episodes.begin(damaged, clean)
    for actions in toolchains.T:
        episodes.step(torch.where(actions == NO_ACTION, toolbox.stop, actions))
    return episodes.psnr


def by_brute_force(toolbox, clean, damaged, max_steps):
    """The best PSNR of every chain, each played from its start."""
    actions = range(len(toolbox) + 1)  # stop, too: so shorter chains are among these
    every = [
        played(toolbox, clean, damaged, torch.tensor(chain).expand(len(clean), -1))
        for chain in itertools.product(actions, repeat=max_steps)
    ]
    return torch.stack(every).max(0).values


@quick
@given(seeds, steps)
def test_wider_searches_find_no_less(seed, max_steps):
    toolbox, (clean, damaged) = tiny(), photographs(seed)
    results = [greedy(toolbox, clean, damaged, max_steps=max_steps)]
    for width in range(1, 8):
        results.append(beam(toolbox, clean, damaged, width=width, max_steps=max_steps))
    results.append(exhaustive(toolbox, clean, damaged, max_steps=max_steps))
    assert (results[0].gain >= 0).all()
    for narrow, wide in itertools.pairwise(results):
        assert (wide.gain >= narrow.gain).all()


@quick
@given(seeds, steps)
def test_exhaustive_is_brute_force(seed, max_steps):
    toolbox, (clean, damaged) = tiny(), photographs(seed, count=2)
    best = by_brute_force(toolbox, clean, damaged, max_steps)
    torch.testing.assert_close(exhaustive(toolbox, clean, damaged, max_steps=max_steps).psnr, best, atol=1e-9, rtol=0)


@quick
@given(seeds, steps)
def test_a_beam_of_all_prefixes_is_exhaustive(seed, max_steps):
    toolbox, (clean, damaged) = tiny(), photographs(seed)
    wide = beam(toolbox, clean, damaged, width=3 ** (max_steps - 1), max_steps=max_steps)
    torch.testing.assert_close(
        wide.psnr, exhaustive(toolbox, clean, damaged, max_steps=max_steps).psnr, atol=1e-9, rtol=0
    )


@quick
@given(seeds, steps, st.integers(1, 9))
def test_toolchains_replay_to_the_psnr(seed, max_steps, width):
    toolbox, (clean, damaged) = tiny(), photographs(seed)
    for result in (
        greedy(toolbox, clean, damaged, max_steps=max_steps),
        beam(toolbox, clean, damaged, max_steps=max_steps, width=width),
        exhaustive(toolbox, clean, damaged, max_steps=max_steps),
    ):
        assert result.toolchains.shape == (3, max_steps) and result.psnr.dtype == torch.float64
        assert torch.equal(played(toolbox, clean, damaged, result.toolchains), result.psnr)
        before = played(toolbox, clean, damaged, torch.full_like(result.toolchains, NO_ACTION))
        assert torch.equal(result.gain, result.psnr - before)
        ended = (result.toolchains == NO_ACTION).int()
        assert (ended.diff(dim=1) >= 0).all() and result.toolchains.max() < toolbox.stop


@quick
@given(seeds, st.integers(1, 9))
def test_with_one_step_all_agree(seed, width):
    toolbox, (clean, damaged) = tiny(), photographs(seed)
    expected = greedy(toolbox, clean, damaged, max_steps=1)
    for result in (
        beam(toolbox, clean, damaged, max_steps=1, width=width),
        exhaustive(toolbox, clean, damaged, max_steps=1),
    ):
        assert torch.equal(result.toolchains, expected.toolchains) and torch.equal(result.psnr, expected.psnr)


@quick
@given(seeds, steps, st.sampled_from([greedy, exhaustive]))
def test_images_together_get_the_chain_that_is_best_in_the_mean(seed, max_steps, search):
    toolbox, (clean, damaged) = tiny(), photographs(seed, count=6)
    found = search(toolbox, clean, damaged, max_steps=max_steps, together=3)
    groups = found.toolchains.view(2, 3, max_steps)
    assert torch.equal(groups, groups[:, :1].expand(-1, 3, -1))
    assert torch.equal(played(toolbox, clean, damaged, found.toolchains), found.psnr)
    gains = found.gain.view(2, 3).mean(1)
    assert (gains >= 0).all()  # in the mean; one of them may lose
    if search is exhaustive or max_steps == 1:
        actions = range(toolbox.stop + 1)
        every = [
            played(toolbox, clean, damaged, torch.tensor(chain).expand(6, -1)).view(2, 3).mean(1)
            for chain in itertools.product(actions, repeat=max_steps)
        ]
        torch.testing.assert_close(found.psnr.view(2, 3).mean(1), torch.stack(every).max(0).values, atol=1e-9, rtol=0)


@quick
@given(seeds, st.integers(1, 4), st.sampled_from([greedy, exhaustive]))
def test_equal_images_together_are_as_one(seed, copies, search):
    toolbox, (clean, damaged) = tiny(), photographs(seed)
    alone = search(toolbox, clean, damaged, max_steps=2)
    both = search(
        toolbox, clean.repeat_interleave(copies, 0), damaged.repeat_interleave(copies, 0), max_steps=2, together=copies
    )
    assert torch.equal(both.toolchains[::copies], alone.toolchains)


@pytest.mark.parametrize("search", [greedy, exhaustive])
def test_groups_that_do_not_come_out_even_are_refused(search):
    clean, damaged = photographs(0, count=5)
    with pytest.raises(InvalidArgument, match="together.*divides.*5, got 2"):
        search(tiny(), clean, damaged, together=2)
    with pytest.raises(InvalidArgument, match="together"):
        search(tiny(), clean, damaged, together=0)


def test_an_image_without_damage_is_left_alone():
    clean, _ = photographs(0)
    for search in (greedy, beam, exhaustive):
        result = search(tiny(), clean, clean)
        assert (result.toolchains == NO_ACTION).all() and (result.gain == 0).all()


def test_of_equally_good_chains_the_shortest_is_chosen():
    toolbox = Toolbox("idle", [Tool("same", "nothing", lambda x: x), Tool("right", "adds 0.1", lambda x: x + 0.1)])
    clean = torch.full((1, 3, 8, 8), 0.5)
    for search in (greedy, beam, exhaustive):
        assert search(toolbox, clean, clean - 0.1).toolchains.tolist() == [[1, NO_ACTION, NO_ACTION]]


def test_exhaustive_sees_through_a_step_that_harms():
    """Greedy stops before a tool that gains only after another."""
    far = Tool("far", "adds 0.5", lambda x: x + 0.5)
    back = Tool("back", "takes 0.35", lambda x: x - 0.35)
    toolbox, clean = Toolbox("detour", [far, back]), torch.full((2, 3, 8, 8), 0.5)
    near = clean - 0.15
    assert (greedy(toolbox, clean, near).gain == 0).all()
    assert (exhaustive(toolbox, clean, near).psnr > 60).all()
    assert (beam(toolbox, clean, near, width=2).psnr > 60).all()


def test_a_wider_beam_keeps_the_prefix_that_leads_on():
    """Plain beam search of width 2 would fill both slots with what follows the second best tool, and end worse."""

    def tool(name, becomes):
        table = torch.arange(41)
        table[list(becomes)] = torch.tensor(list(becomes.values()))
        return Tool(name, "by a table", lambda x: 0.5 + table[((x - 0.5) * 100).round().long()] / 100)

    toolbox = Toolbox("table", [tool("a", {40: 20, 20: 15, 21: 10, 15: 0}), tool("b", {40: 21, 20: 16, 21: 11})])
    clean = torch.full((1, 3, 8, 8), 0.5)
    for result in (greedy(toolbox, clean, clean + 0.4), beam(toolbox, clean, clean + 0.4, width=2)):
        assert result.toolchains.tolist() == [[0, 0, 0]] and result.psnr > 60


def test_a_tool_that_returns_no_numbers_is_never_chosen():
    broken = Tool("broken", "NaN", lambda x: x * torch.nan)
    toolbox, (clean, damaged) = tiny().extended([broken]), photographs(3)
    for search in (greedy, beam, exhaustive):
        assert torch.equal(search(toolbox, clean, damaged).psnr, search(tiny(), clean, damaged).psnr)


def test_large_batches_are_searched_in_parts(monkeypatch):
    toolbox, (clean, damaged) = tiny(), photographs(1, count=7)
    whole = [search(toolbox, clean, damaged) for search in (greedy, beam, exhaustive)]
    monkeypatch.setattr(chains, "_PIXELS", 12 * 12 * 20)
    assert len(chains.parts(damaged, held=10)) == 4
    for search, expected in zip((greedy, beam, exhaustive), whole, strict=True):
        assert torch.equal(search(toolbox, clean, damaged).toolchains, expected.toolchains)


@pytest.mark.parametrize(
    ("search", "total"), [(greedy, 3 * 9), (exhaustive, 3 * (3 + 9 + 27)), (beam, 3 * 3 * (1 + 3 + 4))]
)
def test_progress_counts_every_run_of_a_tool(search, total):
    said, runs = [], []
    clean, damaged = photographs(2)
    toolbox = tiny()
    counted = [
        Tool(tool.name, tool.description, lambda x, tool=tool: runs.append(len(x)) or tool(x)) for tool in toolbox
    ]
    search(Toolbox("counted", counted), clean, damaged, report=lambda done, total: said.append((done, total)))
    assert said[-1] == (total, total) and all(a <= b for (a, _), (b, _) in itertools.pairwise(said))
    if search is not greedy:  # which need not run all; playing the chosen chains costs at most 3 for each image
        assert total <= sum(runs) <= total + 3 * 3


def test_regret_is_what_a_policy_leaves():
    clean, damaged = photographs(4)
    best = exhaustive(tiny(), clean, damaged)
    behind = regret(best, greedy(tiny(), clean, damaged).gain)
    assert (behind >= 0).all() and (regret(best, best.gain) == 0).all()
    assert torch.equal(regret(best, torch.zeros(3)), best.gain)
    with pytest.raises(InvalidArgument, match=r"gain must be of the oracle's shape \(3,\)"):
        regret(best, torch.zeros(2))


def test_results_cannot_be_changed():
    result = OracleResult(torch.zeros(1), torch.zeros(1, 3), torch.zeros(1))
    with pytest.raises(AttributeError):
        result.gain = torch.ones(1)


@pytest.mark.parametrize("search", [greedy, beam, exhaustive])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clean": torch.rand(2, 3, 8, 9)}, "clean must be of the damaged images' shape"),
        ({"damaged": torch.full((2, 3, 8, 8), torch.nan)}, "damaged must be finite"),
        ({"clean": torch.ones(2, 3, 8, 8, dtype=torch.uint8)}, "clean must be a float tensor"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(search, changes, words):
    images = torch.rand(2, 3, 8, 8)
    with pytest.raises(InvalidArgument, match=words):
        search(tiny(), **{"clean": images, "damaged": images, **changes})


def test_a_beam_without_slots_is_refused():
    images = torch.rand(2, 3, 8, 8)
    with pytest.raises(InvalidArgument, match="width must be at least 1"):
        beam(tiny(), images, images, width=0)


@needs_cnn12
def test_with_the_shipped_tools_oracles_gain_and_keep_their_order():
    clean, damaged = damaged_patches(load_images("bundled", "test"), torch.arange(3), recipe("severe"), 63)
    toolbox = load_toolbox("cnn12")
    first, second = (search(toolbox, clean, damaged, max_steps=2) for search in (greedy, beam))
    assert (first.gain > 1.0).all() and (second.gain > first.gain - 1e-5).all()
    assert torch.equal(played(toolbox, clean, damaged, second.toolchains), second.psnr)
