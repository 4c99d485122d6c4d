"""What knowing less than everything costs."""

import json

import pytest
import torch
from helpers import TOOLS, tiny

from restoration_env.agents.agent import ToolchainAgent
from restoration_env.agents.network import ToolchainNetwork
from restoration_env.agents.oracles import greedy
from restoration_env.benchmarks.ceilings import KNOWN, ceilings_table, measure_ceilings, other_draws
from restoration_env.benchmarks.suites import build_suite, patch_keys
from restoration_env.cli import main
from restoration_env.distortions import recipe
from restoration_env.errors import InvalidArgument
from restoration_env.images import damaged_patches, load_images


@pytest.fixture(scope="module")
def measured():
    torch.manual_seed(0)
    agent = ToolchainAgent(ToolchainNetwork(TOOLS, 63), tiny(), 2)
    return measure_ceilings({"fresh": agent}, "bundled", "test", "bundled", count=8, draws=3)


def test_who_knows_everything_gains_most(measured):
    rows, suites = measured
    assert [row["knows"] for row in rows] == list(KNOWN) and rows[-1]["policy"] == "fresh"
    for name, suite in suites.items():
        found = greedy(tiny(), *suite.patches(), max_steps=2)
        assert rows[0][name]["gain"] == pytest.approx(found.gain.mean().item(), abs=1e-4)
        assert rows[0][name]["share"] == 1.0 and rows[0][name]["harmed"] == 0.0
        assert all(row[name]["gain"] <= rows[0][name]["gain"] + 1e-4 for row in rows)


def test_suites_are_those_of_the_leaderboard(measured):
    for name, suite in measured[1].items():
        assert suite.digest == build_suite(name, "bundled", "test", 8).digest


def test_other_draws_share_the_damage_and_not_the_noise():
    pool, keys = load_images("bundled", "test"), patch_keys(recipe("moderate"), 3)
    clean, damaged = other_draws(pool, keys, recipe("moderate"), 4)
    own_clean, own_damaged = damaged_patches(pool, keys, recipe("moderate"), 63)
    assert torch.equal(clean, own_clean.repeat_interleave(4, 0))
    assert not torch.equal(damaged[0], damaged[1]) and not torch.equal(damaged[0], own_damaged[0])
    elsewhere, _ = other_draws(pool, keys, recipe("moderate"), 4, elsewhere=True)
    assert not torch.equal(elsewhere[0], elsewhere[1]) and not torch.equal(elsewhere[0], own_clean[0])
    without = recipe("blur")  # no noise: then all draws are one
    _, blurred = other_draws(pool, keys, without, 2)
    assert torch.equal(blurred[::2], blurred[1::2])
    assert torch.equal(blurred[::2], damaged_patches(pool, keys, without, 63)[1])


def test_the_table_has_a_line_for_all_that_may_be_known(measured):
    lines = ceilings_table({"rows": measured[0]}).splitlines()
    assert len(lines) == 2 + len(KNOWN) and "what it sees (fresh)" in lines[-1] and ", 100%, 0.0%" in lines[2]


def test_the_command_writes_what_it_shows(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["ceilings", "--agent", "toolchain", "--count", "1", "--draws", "2", "--json", str(tmp_path / "c.json")])
    assert end.value.code == 0 and "everything" in capsys.readouterr().out
    result = json.loads((tmp_path / "c.json").read_text())
    assert [row["toolbox"] for row in result["rows"]] == ["cnn12"] * 4 and result["draws"] == 2
    assert set(result["digests"]) == {"mild", "moderate", "severe"}


def test_no_draws_are_refused():
    with pytest.raises(InvalidArgument, match="draws"):
        measure_ceilings({}, "bundled", "test", "bundled", draws=0)
