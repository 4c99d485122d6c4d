"""Suites, measuring, the table: the same to the byte, the same however it was interrupted or spread."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import tiny

from restoration_env.agents.policies import FixedChain, RandomPolicy, StopAtOnce
from restoration_env.benchmarks import entries as entries_module
from restoration_env.benchmarks.ablations import difference_table
from restoration_env.benchmarks.board import markdown, read_board, sorted_rows, suite_table
from restoration_env.benchmarks.comparison import (
    ChainPlayer,
    Entry,
    Oracle,
    bootstrap_interval,
    evaluate,
    measure,
    parameters,
    summarise,
)
from restoration_env.benchmarks.entries import Sources, entry_names, load_entry, load_tools
from restoration_env.benchmarks.leaderboard import Job, Protocol, Store, paired_differences, run
from restoration_env.benchmarks.readme import RESULTS
from restoration_env.benchmarks.suites import SUITES, build_suite, patch_suite
from restoration_env.benchmarks.training_cost import Stage, toolbox_cost, toolbox_stages
from restoration_env.cli import main
from restoration_env.distortions import recipe
from restoration_env.errors import InvalidArgument
from restoration_env.files import write_json
from restoration_env.images import damaged_patches, load_images
from restoration_env.metrics import psnr, ssim
from restoration_env.perceptual import lpips
from restoration_env.randomness import hashed
from restoration_env.tools.catalogue import NAMES, WEIGHTS

STORED = json.loads((RESULTS / "suites.json").read_text(encoding="utf-8"))["suites"]
SMALL = Protocol(suites=("mild", "severe"), count=3)
NO_ORACLE = Sources(oracle="none")


@pytest.fixture(scope="module")
def suite():
    return build_suite("moderate", count=6)


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_has_the_bytes_that_are_written_down(name):
    built = build_suite(name, count=STORED[name]["count"])
    assert built.digest == STORED[name]["sha256"] and built.source == STORED[name]["images"]


def test_a_suite_has_the_same_bytes_with_another_processors_instructions():
    """What another machine does differently: no vector instructions in torch and its libraries, two threads."""
    code = "from restoration_env.benchmarks.suites import build_suite as b; print(b('moderate', count=24).digest)"
    other = {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    environment = {**os.environ, **other, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == STORED["moderate"]["sha256"]


def blurred_tap_by_tap(images, sigma, crop=0):
    """`gaussian_blur` once more, in NumPy: other exponentials, and sums in another order."""
    result = images.numpy().copy()
    for number, width in enumerate(sigma.tolist()):
        kernel = [math.exp(-0.5 * (offset / max(width, 1e-3)) ** 2) for offset in range(-10, 11)]
        kernel = [weight / math.fsum(kernel) for weight in kernel]
        for axis in (2, 1):
            padding = [(10, 10) if side == axis else (0, 0) for side in range(3)]
            wide, length = np.pad(result[number], padding, mode="edge"), result.shape[axis + 1]
            taps = [kernel[k] * wide.take(range(k, k + length), axis) for k in reversed(range(21))]
            result[number] = sum(taps)
    height, width = images.shape[2:]
    return torch.from_numpy(result[:, :, crop : height - crop, crop : width - crop])


def normal_by_numpy(keys, shape, stream, dtype):
    """`normal` once more: another library's logarithm, sine and cosine."""
    words = hashed(keys, -(-math.prod(shape) // 2), stream).numpy().view(np.uint64)
    radius = np.sqrt(-2.0 * np.log(((words >> np.uint64(32)).astype(np.float64) + 1.0) / 2.0**32))
    angle = (words & np.uint64(0xFFFFFFFF)).astype(np.float64) * (2.0 * math.pi / 2.0**32)
    pairs = np.concatenate((radius * np.cos(angle), radius * np.sin(angle)), 1)
    return torch.from_numpy(pairs[:, : math.prod(shape)].reshape(len(keys), *shape))


@pytest.mark.parametrize("name", ["severe", "blur", "noise"])
def test_a_suite_has_the_same_bytes_if_something_else_computes_the_damage(name, monkeypatch):
    """What a machine can do differently is less than what another implementation does."""
    monkeypatch.setattr("restoration_env.images.gaussian_blur", blurred_tap_by_tap)
    monkeypatch.setattr("restoration_env.distortions.normal", normal_by_numpy)
    assert patch_suite("bundled", "test", recipe(name), 24).digest == STORED[name]["sha256"]


def test_the_first_patches_of_a_suite_are_those_of_a_smaller_one(suite):
    smaller = build_suite("moderate", count=2)
    assert torch.equal(smaller.patches()[1], suite.patches()[1][:2])
    other = build_suite("moderate", count=2, seed=2019)
    assert other.digest != smaller.digest


def test_the_damage_of_a_suite_is_that_of_the_environment(suite):
    """In float64 and rounded once: some pixel may be a level away before compression, hardly more than that after."""
    pool, values = load_images("bundled", "test"), []
    keys = torch.arange(8)
    exact = damaged_patches(pool, keys, recipe("moderate"), 63, inspect=values.append)
    fast = damaged_patches(pool, keys, recipe("moderate"), 63)
    assert torch.equal(exact[0].float(), fast[0]) and values[0].dtype == torch.float64
    assert ((exact[1].float() - fast[1]).abs() < 0.5 / 255).float().mean() > 0.99


def test_a_suite_is_refused_if_a_value_lies_between_two_levels(monkeypatch):
    monkeypatch.setattr("restoration_env.benchmarks.suites._MARGIN", 1e-3)
    with pytest.raises(InvalidArgument, match="seed must be another one for 'noise'"):
        patch_suite("bundled", "test", recipe("noise"), 2, seed=3)


def test_unknown_suites_and_counts_are_refused():
    for wrong in ({"name": "extreme"}, {"name": "mild", "count": 0}, {"name": "mild", "seed": -1}):
        with pytest.raises(InvalidArgument):
            build_suite(**wrong)
    with pytest.raises(InvalidArgument, match="RESTORATION_ENV_DIV2K"):
        build_suite("mild", "div2k")


def test_a_measurement_is_what_the_policy_did_image_by_image(suite):
    toolbox, (clean, damaged) = tiny(), suite.patches()
    measured = measure(FixedChain(toolbox, ["blur", "darken"]), toolbox, suite)
    blurred = toolbox["blur"](damaged)
    restored = blurred - 0.02
    assert measured.psnr_out == pytest.approx(psnr(restored, clean).tolist(), abs=1e-4)
    assert measured.ssim == pytest.approx(ssim(restored, clean).tolist(), abs=1e-4)
    assert measured.lpips == pytest.approx(lpips(restored.clamp(0, 1), clean).tolist(), abs=1e-4)
    assert measured.actions == [[2, 1, 3]] * 6
    first = (psnr(blurred, clean) - psnr(damaged, clean)).tolist()
    assert [rewards[0] for rewards in measured.rewards] == pytest.approx(first, abs=1e-4)
    assert all(rewards[2] == 0.0 for rewards in measured.rewards)


def test_multiply_adds_are_those_of_the_tools_used_and_of_the_decisions(suite):
    agent = load_entry("drqn")
    measured = measure(agent.policy, agent.toolbox, suite, looks=False)
    decision = 14_079_000  # the published network's, in its documentation 14.1 M
    costs = [tool.cost * 63 * 63 for tool in agent.toolbox] + [0.0]
    for actions, spent in zip(measured.actions, measured.multiply_adds, strict=True):
        tools = sum(costs[action] for action in actions)
        assert spent - tools == pytest.approx(len(actions) * decision, rel=0.01)
    box = tiny()  # tools that say no cost: nothing can be said of the sum
    assert evaluate(FixedChain(box, ["blur"]), box, suite)["multiply_adds"] is None
    assert evaluate(StopAtOnce(box), box, suite)["multiply_adds"] == 0


def test_parameters_are_those_an_entry_needs():
    assert parameters(load_entry("drqn")) == 436_068 + 87_863
    chain = load_entry("drqn").toolbox
    assert parameters(Entry("one", FixedChain(chain, ["denoise-1"]), chain)) == 21_827
    assert parameters(Entry("input", StopAtOnce(chain), chain)) is None


def test_the_bootstrap_interval_holds_the_mean_and_narrows_with_more_images():
    values = np.random.default_rng(0).normal(3.0, 1.0, 400)
    low, high = bootstrap_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(400), rel=0.15)
    assert bootstrap_interval(values) == (low, high)
    few = bootstrap_interval(values[:40])
    assert few[1] - few[0] > 2 * (high - low)


def test_the_oracle_bounds_every_policy_and_its_chains_can_be_replayed(suite):
    toolbox = tiny()
    oracle = measure(Oracle("exhaustive", toolbox), toolbox, suite)
    greedy = measure(Oracle("greedy", toolbox), toolbox, suite)
    chance = measure(RandomPolicy(toolbox), toolbox, suite)
    assert (oracle.gain >= greedy.gain - 1e-6).all() and (oracle.gain >= chance.gain - 1e-6).all()
    again = measure(ChainPlayer(oracle.actions, toolbox.stop), toolbox, suite)
    assert again.psnr_out == oracle.psnr_out


def test_whole_images_and_photographs_without_ground_truth_are_measured_one_by_one():
    entry = load_entry("tv-light>wiener-1.5")
    whole = evaluate(entry.policy, entry.toolbox, build_suite("whole", count=1), looks=True)
    assert whole["images"] == 1 and whole["ssim"] > 0 and whole["mean_tools"] == 2
    real = build_suite("real", count=2)
    assert not real.referenced and len({image.shape for image in real.damaged}) == 2
    row = summarise(measure(entry.policy, entry.toolbox, real), entry.toolbox)
    assert row == {"images": 2, "mean_tools": 2.0, "multiply_adds": None}


def test_entries_have_names_and_unknown_ones_are_refused():
    names = entry_names(Sources())
    assert {"input", "random", "best-chain-1", "classifier", "toolchain", "drqn", "unsupervised-wiener"} <= set(names)
    assert "published" not in names
    for wrong in ("nothing", "toolchain@nothing", "tv-light>nothing", "toolchain%seven", "missing.safetensors"):
        with pytest.raises(InvalidArgument):
            load_entry(wrong)
    with pytest.raises(InvalidArgument, match="published must be the path of the weights"):
        load_entry("published")
    with pytest.raises(InvalidArgument, match="oracle"):
        Sources(oracle="best")


def test_entries_of_ablations(suite):
    six, never = load_entry("drqn%six"), load_entry("drqn%no-stop")
    measured = measure(six.policy, six.toolbox, suite, looks=False)
    assert all(action % 2 or action == 12 for actions in measured.actions for action in actions)
    measured = measure(never.policy, never.toolbox, suite, looks=False)
    assert all(len(actions) == 3 and 12 not in actions for actions in measured.actions)
    assert load_tools("cnn12%six", Sources()).names == load_tools("cnn12", Sources()).names[1::2]
    assert len(load_tools("cnn12+classical/tv-light", Sources())) == 13


def test_a_system_cost_what_its_tools_and_its_agent_cost():
    entry, (patches, seconds) = load_entry("toolchain"), toolbox_cost("cnn12")
    assert patches == 16 * (54_500 + 12_900)  # the iterations of the recipe's two lessons
    assert entry.training_patches == patches + 7_500
    assert entry.training_seconds > seconds > 0
    assert toolbox_cost("tiny") == (None, None)


def test_what_was_trained_together_counts_once_and_what_it_started_from_too(tmp_path):
    alone = {name: json.loads((WEIGHTS / "cnn12" / f"{name}.json").read_text()) for name in NAMES}
    for name, card in alone.items():
        started = {key: card[key] for key in ("sha256", "training", "seconds")}  # no word of its own beginnings
        together = {"iterations_done": 100, "batch": 8, "own": 2, "severity": "every"}
        write_json(tmp_path / f"{name}.json", {"training": together, "seconds": 50.0, "started_from": started})
    patches, seconds = toolbox_cost("cnn12")
    assert toolbox_cost("cnn12-joint", tmp_path) == (patches + 1000, pytest.approx(seconds + 50.0))
    alone, together = toolbox_stages("cnn12-joint", tmp_path)
    assert alone == Stage("each tool alone", patches, pytest.approx(seconds))
    assert together == Stage("with the agent, every damage", 1000, 50.0)
    assert toolbox_stages("cnn12-joint", tmp_path / "elsewhere") == []


def test_what_tools_began_with_counts_once(tmp_path):
    first = {"training": {"tool": "denoise-4", "iterations_done": 40, "batch": 4}, "seconds": 9.0}
    for name in NAMES:
        write_json(tmp_path / f"{name}.json", {"training": {"batch": 2, "iterations_done": 5}, "started_from": first})
    assert toolbox_stages("cnn12-modern", tmp_path)[0] == Stage("each tool alone", 160, 9.0)


def board_of(folder, names=("input", "random", "drqn"), sources=NO_ORACLE, **changes):
    return run(names, SMALL, sources, folder, **changes)


def test_an_interrupted_run_goes_on_and_ends_with_the_same_table(tmp_path):
    whole = board_of(tmp_path / "whole")

    def interrupt(done, total, note):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        board_of(tmp_path / "parts", tell=interrupt)
    assert len(list((tmp_path / "parts").iterdir())) == 2
    seen = []
    parts = board_of(tmp_path / "parts", tell=lambda done, total, note: seen.append((done, total, note)))
    assert parts == whole
    assert seen[0] == (2, 6, "drqn on mild") and seen[-1] == (6, 6, "")
    files = [sorted(path.read_bytes() for path in (tmp_path / name).iterdir()) for name in ("whole", "parts")]
    assert files[0] == files[1]


def test_what_has_been_measured_is_not_measured_again_unless_weights_or_suites_change(tmp_path, monkeypatch):
    board_of(tmp_path)
    jobs = [Job("drqn", "mild", seed, SMALL, NO_ORACLE).key() for seed in (2018, 2019)]
    steps = Job("drqn", "mild", 2018, SMALL, Sources(oracle="none", max_steps=2)).key()
    changed = Job("drqn%no-stop", "mild", 2018, SMALL, NO_ORACLE).key()
    assert jobs[0] in Store(tmp_path) and len({*jobs, steps, changed}) == 4

    def forbidden(*args, **kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr("restoration_env.benchmarks.leaderboard.measure", forbidden)
    board_of(tmp_path)
    with pytest.raises(AssertionError, match="measured again"):
        board_of(tmp_path, names=("classifier",))


def test_rows_know_the_regret_to_the_oracle_of_their_tools(tmp_path, monkeypatch):
    box = tiny()
    made = {
        "one": Entry("one", FixedChain(box, ["blur"]), box),
        "oracle:tiny": Entry("oracle", Oracle("exhaustive", box), box, family="oracle"),
    }
    monkeypatch.setattr("restoration_env.benchmarks.leaderboard.load_entry", lambda name, sources: made[name])
    monkeypatch.setattr("restoration_env.benchmarks.leaderboard.oracle_names", lambda found, sources: ["oracle:tiny"])
    for table in run(["one"], SMALL, Sources(), tmp_path).values():
        one, best = table["rows"]
        assert best["regret"] == 0 and one["regret"] == pytest.approx(best["gain"] - one["gain"], abs=1e-3) != 0


def test_seeds_are_put_together(tmp_path):
    protocol = Protocol(suites=("severe",), count=3, seeds=2)
    both = run(["input"], protocol, NO_ORACLE, tmp_path)["severe"]
    suites = [build_suite("severe", count=3, seed=seed) for seed in (2018, 2019)]
    assert both["patches"] == 6 and both["sha256"] == [suite.digest for suite in suites]
    quality = torch.cat([psnr(*reversed(suite.patches())) for suite in suites]).mean().item()
    assert both["rows"][0]["psnr_in"] == pytest.approx(quality, abs=1e-3)


def test_differences_are_taken_image_by_image(tmp_path):
    board_of(tmp_path, names=("input", "drqn"))
    found = paired_differences("drqn", ["input", "random"], SMALL, NO_ORACLE, tmp_path)
    assert set(found) == {"input"} and set(found["input"]) == {"mild", "severe"}  # random was not measured
    gains = Store(tmp_path).read(Job("drqn", "severe", 2018, SMALL, NO_ORACLE).key()).gain
    row = found["input"]["severe"]
    assert row["difference"] == pytest.approx(gains.mean(), abs=1e-3) and row["low"] <= row["difference"] <= row["high"]
    assert "| input |" in difference_table("drqn", found)


def test_two_entries_of_one_label_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("restoration_env.benchmarks.leaderboard.load_entry", lambda name, s: load_entry("input"))
    with pytest.raises(InvalidArgument, match="of different labels, got input"):
        run(["a", "b"], SMALL, NO_ORACLE, tmp_path)


def command(*words):
    with pytest.raises(SystemExit) as end:
        main([*map(str, words)])
    return end.value.code


def test_the_commands_run_and_show(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("restoration_env.benchmarks.latency._ALONE", 1)
    monkeypatch.setattr("restoration_env.benchmarks.latency.MANY", 4)
    words = ["run", "input", "drqn", "--suite", "mild", "--suite", "severe", "--count", "3", "--oracle", "none"]
    assert command("leaderboard", *words, "--json", "board.json") == 0
    assert "drqn (cnn12)" in capsys.readouterr().out
    board = read_board("board.json")
    assert board["command"] == (
        "restoration-env leaderboard run input drqn --suite mild --suite severe --count 3 --oracle none"
    )
    row = board["suites"]["mild"]["rows"][1]
    assert row["batch_1"] > 0 and row["batch_256"] > 0 and row["parameters"] == 523_931
    first = (tmp_path / "board.json").read_bytes()
    assert command("leaderboard", *words, "--json", "board.json", "--no-latency") == 0
    assert (tmp_path / "board.json").read_bytes() == first  # nothing measured again, nothing changed
    capsys.readouterr()
    assert command("leaderboard", "show", "board.json", "--markdown") == 0
    assert "| drqn (cnn12) |" in capsys.readouterr().out
    assert command("leaderboard", "show", "board.json", "--json", "--suite", "mild") == 0
    assert list(json.loads(capsys.readouterr().out)["suites"]) == ["mild"]
    assert command("leaderboard", "show", "board.json", "--sort", "beauty") == 2
    assert "sort must be one of psnr_in" in capsys.readouterr().err
    assert command("leaderboard", "run", "nothing", "--json", "other.json") == 2
    assert not (tmp_path / "other.json").exists()
    assert command("leaderboard", "show", "missing.json") == 2


def test_tables_are_sorted_with_the_best_first_and_rows_without_a_number_last(tmp_path):
    rows = [{"policy": "a", "lpips": 0.3}, {"policy": "b", "lpips": None}, {"policy": "c", "lpips": 0.1, "gain": 1.0}]
    assert [row["policy"] for row in sorted_rows(rows, "lpips")] == ["c", "a", "b"]
    assert [row["policy"] for row in sorted_rows(rows, "gain")] == ["c", "a", "b"]
    table = suite_table("mild", {"rows": rows, "patches": 3, "images": "some"}, "lpips", width=60)
    assert [column.header for column in table.columns] == ["entry", "gain dB", "LPIPS"]


def test_the_markdown_says_what_the_table_says(tmp_path):
    suites = board_of(tmp_path, names=("input", "drqn"))
    text = markdown({"suites": suites})
    rows = [suites[name]["rows"][1] for name in ("mild", "severe")]
    line = next(line for line in text.splitlines() if line.startswith("| drqn"))
    assert all(f"{row['gain']:+.2f} ±" in line for row in rows) and "523,931" in line
    assert "| input |" not in text and "| *the input* | *PSNR " in text
    assert "regret" not in text
    for suite, regret in zip(suites.values(), (0.25, 1.5), strict=True):
        suite["rows"][1]["regret"] = regret
    known = [line for line in markdown({"suites": suites}).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in known}) == 1
    column = known[0].split(" | ").index("regret")
    assert next(line for line in known if line.startswith("| drqn")).split(" | ")[column] == "0.25 / 1.50"


def test_single_networks_are_found_in_a_folder_or_by_their_path(tmp_path):
    from restoration_env.benchmarks.networks import build_network
    from restoration_env.files import save_weights

    card = {"network": "vdsr-s", "patches_seen": 5, "seconds": 1.5, "data": "some"}
    save_weights(tmp_path / "vdsr-s.safetensors", build_network("vdsr-s").state_dict(), card)
    sources = Sources(weights=str(tmp_path))
    assert "vdsr-s" in entry_names(sources)
    for name in ("vdsr-s", str(tmp_path / "vdsr-s.safetensors")):
        entry = load_entry(name, sources)
        assert entry.label == "vdsr-s (single network)" and entry.training_patches == 5
        assert entry.family == "single network" and parameters(entry) == 212_583
    with pytest.raises(InvalidArgument):
        load_entry("dncnn", sources)
    assert entries_module.WEIGHTS.name == "single"
