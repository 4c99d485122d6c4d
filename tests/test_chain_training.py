"""Training in toolchains: which chains match which damage, what learns from what, and how a run goes on."""

import math
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from restoration_env.distortions import LOSSLESS, recipe
from restoration_env.episodes import Episodes
from restoration_env.errors import InvalidArgument, TrainingDiverged
from restoration_env.files import load_checkpoint, read_weights
from restoration_env.images import load_images
from restoration_env.registry import load_toolbox
from restoration_env.toolbox import Tool, Toolbox
from restoration_env.tools.catalogue import CATALOGUE, NAMES, WEIGHTS
from restoration_env.tools.chain_training import ChainConfig, ChainRun, chain_batch, matching_chains, train_in_chains
from restoration_env.tools.together import first_tools

STOP = len(NAMES)
PLAIN = ChainConfig(stronger=0.0, weaker=0.0, shuffled=0.0)


class Gain(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))

    def forward(self, images):
        return images * self.factor


def twelve():
    return Toolbox("gains", [Tool(name, "", Gain(1.0 + 0.01 * k)) for k, name in enumerate(NAMES)])


def factors(run):
    return {name: tool.factor.item() for name, tool in run.tools.networks.items()}


def pair(count=6):
    clean = torch.rand(count, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    return clean, clean * 0.9


def names(chain):
    return [NAMES[action] for action in chain.tolist() if action != STOP]


def chain_of(blur, noise, quality, config=PLAIN, u=None):
    strengths = tuple(torch.tensor([value], dtype=torch.float64) for value in (blur, noise, quality))
    return names(matching_chains(strengths, torch.full((1, 8), 0.5) if u is None else u, config)[0])


@pytest.mark.parametrize(
    ("damage", "chain"),
    [
        ((0.0, 0.0, LOSSLESS), []),
        ((0.0, 30.0, LOSSLESS), ["denoise-3"]),
        ((4.5, 0.0, LOSSLESS), ["deblur-4"]),
        ((0.0, 0.0, 15.0), ["dejpeg-4"]),
        ((1.0, 45.0, 70.0), ["denoise-4", "dejpeg-1", "deblur-1"]),
        ((3.0, 10.0, 40.0), ["denoise-1", "dejpeg-2", "deblur-3"]),
    ],
)
def test_the_chain_matches_the_damage(damage, chain):
    assert chain_of(*damage) == chain


@pytest.mark.parametrize("spec", CATALOGUE, ids=lambda spec: spec.name)
def test_each_band_is_given_to_its_own_tool(spec):
    middle = torch.full((1, 4), 0.5, dtype=torch.float64)
    strengths = spec.band.draw(middle)
    assert names(matching_chains(strengths, torch.full((1, 8), 0.5), PLAIN)[0]) == [spec.name]


@given(
    st.floats(0, 5),
    st.floats(0, 50),
    st.one_of(st.floats(1, 100), st.just(LOSSLESS)),
    st.lists(st.floats(0, 0.999), min_size=8, max_size=8),
)
def test_any_chain_has_one_tool_of_a_kind_a_band_away_at_most_and_stops_last(blur, noise, quality, u):
    config = ChainConfig(stronger=0.4, weaker=0.3, shuffled=0.5)
    strengths = tuple(torch.tensor([value], dtype=torch.float64) for value in (blur, noise, quality))
    chain = matching_chains(strengths, torch.tensor([u]), config)[0]
    tools = names(chain)
    assert names(chain[: len(tools)]) == tools  # no stop before a tool
    plain = dict(name.rsplit("-") for name in chain_of(blur, noise, quality))
    moved = dict(name.rsplit("-") for name in tools)
    assert len(moved) == len(tools) and set(moved) == set(plain)
    assert all(abs(int(moved[kind]) - int(plain[kind])) <= 1 for kind in plain)


def test_another_order_is_drawn_only_where_asked():
    u = torch.tensor([[0.5, 0.5, 0.5, 0.1, 0.3, 0.2, 0.1, 0.5]])
    assert chain_of(1.0, 45.0, 70.0, ChainConfig(stronger=0, weaker=0, shuffled=0.2), u) == [
        "deblur-1",
        "dejpeg-1",
        "denoise-4",
    ]
    assert chain_of(1.0, 45.0, 70.0, PLAIN, u) == ["denoise-4", "dejpeg-1", "deblur-1"]


def run_of(**changes):
    return ChainRun(ChainConfig(**{"iterations": 50, "learning_rate": 1e-3, "earlier": 0.0, **changes}), twelve())


def test_gradients_pass_through_the_chain_or_do_not():
    clean, damaged = pair()
    chains = torch.tensor([[3, 7, 11]]).repeat(6, 1)[:, None]
    gradients = {}
    for through in (True, False):
        run = run_of(through=through)
        run.step(clean, damaged, chains)
        gradients[through] = {name: run.tools.networks[name].factor.grad for name in NAMES}
        assert [name for name in NAMES if gradients[through][name] is not None] == [NAMES[k] for k in (3, 7, 11)]
    # Alone, the first tool is asked to brighten; for the chain, which brightens too much, to darken.
    assert gradients[False][NAMES[3]] < 0 < gradients[True][NAMES[3]]


def test_the_best_candidate_teaches():
    clean, damaged = pair()
    good, bad = [11, STOP, STOP], [0, STOP, STOP]
    run = run_of(candidates=2)
    before = factors(run)
    run.step(clean, damaged, torch.tensor([[bad, good]]).repeat(6, 1, 1))
    assert [name for name, value in factors(run).items() if value != before[name]] == [NAMES[11]]
    assert run.tools.used.tolist() == [0] * 11 + [6]


def test_images_that_need_no_tool_teach_nothing():
    run = run_of()
    before = factors(run)
    assert run.step(*pair(), torch.full((6, 1, 3), STOP)) == 0.0
    assert factors(run) == before


@pytest.fixture(scope="module")
def photos():
    return load_images("bundled", "train"), load_images("bundled", "validation")


def small(**changes):
    return ChainConfig(**{"iterations": 4, "batch": 3, "evaluate_every": 2, "validation_images": 2, **changes})


def test_a_killed_run_ends_as_one_that_was_not_killed(photos, tmp_path):
    def kill(progress):
        if progress.iteration == 2:
            raise KeyboardInterrupt

    train_in_chains(small(), twelve(), *photos, tmp_path / "whole", card={"data": "few"})
    with pytest.raises(KeyboardInterrupt):
        train_in_chains(small(), twelve(), *photos, tmp_path / "killed", checkpoint_seconds=0.0, report=kill)
    assert not list((tmp_path / "killed").glob("*.safetensors"))
    with pytest.raises(InvalidArgument, match="through was True, is False"):
        train_in_chains(small(through=False), twelve(), *photos, tmp_path / "killed")
    seen = []
    train_in_chains(small(), twelve(), *photos, tmp_path / "killed", report=lambda p: seen.append(p.iteration))
    assert seen == [3, 4]
    for name in NAMES:
        whole, card = read_weights(tmp_path / "whole" / f"{name}.safetensors")
        killed, other = read_weights(tmp_path / "killed" / f"{name}.safetensors")
        assert torch.equal(whole["factor"], killed["factor"]) and card["uses"] == other["uses"]
    assert card["data"] == "few" and [row["iteration"] for row in card["history"]] == [2, 4]
    assert not (tmp_path / "killed" / "chains.checkpoint").exists()


def test_a_run_that_diverges_keeps_its_last_checkpoint(photos, tmp_path):
    toolbox = twelve()

    def spoil(progress):
        for tool in toolbox:
            torch.nn.init.constant_(tool.function.factor, math.nan)

    with pytest.raises(TrainingDiverged, match="diverged at iteration 1"):
        train_in_chains(small(severity="severe"), toolbox, *photos, tmp_path, checkpoint_seconds=0.0, report=spoil)
    assert load_checkpoint(tmp_path / "chains.checkpoint")["iteration"] == 1


@pytest.mark.parametrize("setting", [{"iterations": 0}, {"candidates": 0}, {"batch": 0}, {"learning_rate": -1.0}])
def test_settings_that_mean_nothing_are_refused(setting):
    with pytest.raises(InvalidArgument, match=next(iter(setting))):
        ChainConfig(**setting)


def test_the_shipped_tools_trained_in_chains_are_better_in_chains():
    clean, damaged, chains = chain_batch(
        load_images("bundled", "test"), PLAIN, torch.arange(32), recipe("moderate"), "aligned", "cpu"
    )
    gains = {}
    for name in ("cnn12", "cnn12-joint"):
        episodes = Episodes(load_toolbox(name))
        episodes.begin(damaged, clean)
        for actions in chains[:, 0].unbind(1):
            episodes.step(actions)
        gains[name] = (episodes.psnr - episodes.psnr_initial).mean().item()
    assert gains["cnn12-joint"] > gains["cnn12"] + 0.1 > 1.0


def held(folder, *tools):
    for tool in tools:
        for suffix in ("safetensors", "json"):
            shutil.copy(WEIGHTS / "cnn12" / f"{tool}.{suffix}", folder)
    return str(folder)


def test_one_tool_of_each_network_is_enough_to_begin_with(tmp_path):
    tools, cards = first_tools("cnn12-joint", held(tmp_path, "denoise-2", "deblur-4", "denoise-4"))
    assert tools.names == NAMES
    shipped = load_toolbox("cnn12")
    for name, begins_as in {"deblur-1": "denoise-2", "deblur-3": "deblur-4", "denoise-4": "denoise-4"}.items():
        images = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            assert torch.equal(tools[name](images), shipped[begins_as](images))
        assert cards[name]["name"] == name and cards[name]["description"] == shipped[name].description
        assert cards[name]["sha256"] == read_weights(WEIGHTS / "cnn12" / f"{begins_as}.safetensors")[1]["sha256"]


def test_tied_tools_are_one_network_under_all_its_names(tmp_path):
    tools, _ = first_tools("cnn12-joint", held(tmp_path, "denoise-2", "deblur-4", "denoise-4"), tied=True)
    networks = {tool.name: tool.function for tool in tools}
    assert len({id(network) for network in networks.values()}) == 2
    assert networks["denoise-4"] is networks["deblur-4"] and networks["deblur-1"] is networks["dejpeg-2"]


def test_tied_tools_may_begin_as_the_mean_of_all_that_are_held(tmp_path):
    tools, cards = first_tools(
        "cnn12-joint", held(tmp_path, "denoise-2", "deblur-4", "denoise-4"), tied=True, mean=True
    )
    kept = [
        read_weights(WEIGHTS / "cnn12" / f"{name}.safetensors")[0] for name in ("deblur-4", "denoise-4", "denoise-2")
    ]
    large, small = tools["dejpeg-3"].function.state_dict(), tools["dejpeg-1"].function.state_dict()
    for key in large:
        torch.testing.assert_close(large[key], (kept[0][key] + kept[1][key]) / 2)
    assert all(torch.equal(small[key], kept[2][key]) for key in small)
    assert tools["deblur-3"].function is tools["denoise-4"].function and cards["denoise-4"]["name"] == "denoise-4"


def test_a_network_without_a_tool_is_missed(tmp_path):
    with pytest.raises(InvalidArgument, match="start must be a toolbox or a folder with a 3-layer tool"):
        first_tools("cnn12-joint", held(tmp_path, "denoise-4"))
