"""The gain matrix, the published system, and the pages drawn from results."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny

from restoration_env.benchmarks.comparison import evaluate
from restoration_env.benchmarks.gain_matrix import diagonal, draw_matrices, gain_matrix
from restoration_env.benchmarks.published import load_published
from restoration_env.benchmarks.readme import PAGES, RESULTS, ROOT, losses_table, with_tables
from restoration_env.benchmarks.suites import patch_suite
from restoration_env.distortions import band, recipe
from restoration_env.errors import InvalidArgument
from restoration_env.metrics import psnr

PUBLISHED = ROOT.parent / "shared" / "peers" / "rl_restore" / "weights.npz"


@pytest.fixture(scope="module")
def suite():
    return patch_suite("bundled", "test", recipe("moderate"), 12)


def test_a_suite_can_leave_out_what_needs_no_restoring():
    whole = patch_suite("bundled", "test", band("blur", 0.0, 1.25), 40)
    part = patch_suite("bundled", "test", band("blur", 0.0, 1.25), 40, limit=50.0)
    assert 0 < len(part) < len(whole)
    assert psnr(*part.patches()).max() <= 50.0001


def test_the_gain_matrix_holds_the_mean_gain_of_each_tool_on_each_band(suite):
    toolbox = tiny()
    matrix = gain_matrix(toolbox, [suite, suite])
    assert len(matrix) == len(toolbox) and all(len(row) == 2 for row in matrix)
    for row, tool in zip(matrix, toolbox, strict=True):
        clean, damaged = suite.patches()
        gain = (psnr(tool(damaged), clean) - psnr(damaged, clean)).mean().item()
        assert row == pytest.approx([gain, gain], abs=1e-3)
    square = [[1.0, 2.0], [3.0, 4.0]]
    assert diagonal(square) == [1.0, 4.0]


def test_the_picture_shows_help_in_green_and_harm_in_red():
    picture = draw_matrices({"ours": [[5.0, -5.0], [0.0, 1.0]]}, ["a", "b"], ["blur 0-1", "noise 2-3"]).astype(int)
    assert picture.ndim == 3
    help_, harm = picture[110, 160], picture[110, 218]
    assert help_[1] > help_[0] + 20 and harm[0] > harm[1] + 20


def test_the_published_weights_are_refused_when_they_are_none(tmp_path):
    with pytest.raises(InvalidArgument, match="published"):
        load_published(tmp_path / "missing.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(InvalidArgument, match="a file without 'tool01"):
        load_published(tmp_path / "other.npz")


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the authors' weights are not on this machine")
def test_the_published_system_restores_and_wants_height_and_width_swapped():
    agent = load_published(PUBLISHED)
    suite = patch_suite("bundled", "test", recipe("moderate"), 64)
    right = evaluate(agent, agent.toolbox, suite)["gain"]
    agent.network.__class__ = agent.network.__class__.__mro__[1]  # the agent without its swap
    for tool in agent.toolbox:
        tool.function.forward = tool.function.network.forward
    assert right > 1.0
    assert right > evaluate(agent, agent.toolbox, suite)["gain"] + 0.1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_table_of_a_page_is_drawn_from_its_result_file(page):
    text = page.read_text(encoding="utf-8")
    assert text == with_tables(text), f"run python -m restoration_env.benchmarks.readme: {page} is not up to date"
    assert "<!-- end -->" in text


def test_losses_are_told_apart_by_choices_and_by_tools():
    def row(policy, toolbox, family, gain):
        return {"policy": policy, "toolbox": toolbox, "family": family, "gain": gain}

    rows = [
        row("input", "", "reference", 0.0),
        row("greedy oracle of a", "a", "oracle", 4.0),
        row("ours (a)", "a", "toolchain", 3.5),
        row("theirs", "b", "published", 3.0),
        row("published OWAN", "", "published", 4.2),
    ]
    table = losses_table({"suites": {"mild": {"rows": rows}, "severe": {"rows": rows}}}).splitlines()
    assert table[2:] == ["| ours (a) | +3.50 / +3.50 | -0.50 / -0.50 | +4.00 / +4.00 | -0.20 / -0.20 |"]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_result_names_the_command_that_made_it(path):
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["command"].startswith("restoration-env ") and result["commit"]
    assert not Path(result["command"].split()[-1]).is_absolute()


def test_our_tools_lead_the_published_ones_on_their_own_bands():
    boxes = json.loads((RESULTS / "gain_matrix.json").read_text(encoding="utf-8"))["toolboxes"]
    assert all(gain > 0 for gain in boxes["cnn12"]["own_band"])
    assert boxes["cnn12"]["mean_own_band"] >= boxes["published"]["mean_own_band"]


@pytest.mark.parametrize("severity", ["mild", "moderate", "severe"])
def test_the_agent_beats_the_best_single_tool_and_chance(severity):
    suites = json.loads((RESULTS / "leaderboard.json").read_text(encoding="utf-8"))["suites"]
    gains = {row["policy"].split(" (")[0]: row["gain"] for row in suites[severity]["rows"]}
    assert gains["toolchain"] > gains["drqn"] > gains["best chain of 1"] > gains["random"]
    assert gains["toolchain-modern"] > max(gains["toolchain-joint"], gains["published RL-Restore"])
