"""The twelve tools: sizes, table, shipped weights, training that can be killed."""

import hashlib
import json

import pytest
import torch

from restoration_env.distortions import recipe
from restoration_env.errors import InvalidArgument, TrainingDiverged
from restoration_env.files import load_checkpoint, save_weights
from restoration_env.images import damaged_patches, load_images
from restoration_env.metrics import psnr
from restoration_env.tools import load_toolbox
from restoration_env.tools.catalogue import (
    CATALOGUE,
    NAMES,
    WEIGHTS,
    load_network,
    specification,
    toolbox_specification,
)
from restoration_env.tools.lessons import lessons
from restoration_env.tools.networks import NETWORKS, build_network
from restoration_env.tools.training import (
    TrainingConfig,
    _Run,
    train_tool,
    training_batch,
    training_damage,
)


@pytest.fixture(scope="module")
def photos():
    return load_images("bundled", "train"), load_images("bundled", "validation")


@pytest.fixture(scope="module")
def toolbox():
    return load_toolbox("cnn12")


@pytest.mark.parametrize(("name", "parameters"), [("3-layer", 21_827), ("8-layer", 50_851)])
def test_networks_have_the_published_sizes(name, parameters):
    network = build_network(name)
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert sum(m.weight.numel() for m in convolutions) == network.cost
    assert sum(m.kernel_size[0] // 2 for m in convolutions) == network.halo


@pytest.mark.parametrize("name", NETWORKS)
def test_the_halo_is_how_far_a_pixel_reaches(name):
    torch.manual_seed(0)
    network = build_network(name).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    side, reach = 2 * network.halo + 16 - network.halo % 8 * 2, 0
    image = torch.rand(1, 3, side, side, dtype=torch.float64)
    for place in range(side // 2, side // 2 + network.grid):
        changed = image.clone()
        changed[..., place, place] += 1.0
        with torch.no_grad():
            moved = (network(changed) - network(image)).abs().sum((0, 1)) > 0
        rows = torch.nonzero(moved.any(1))[:, 0]
        reach = max(reach, place - int(rows.min()), int(rows.max()) - place)
    assert reach == network.halo


@pytest.mark.parametrize("name", NETWORKS)
def test_the_cost_counts_every_multiplication(name):
    network, counted = build_network(name), 0

    def count(module, inputs, output):
        nonlocal counted
        counted += output.shape[-2] * output.shape[-1] * module.weight.numel()

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    network(torch.zeros(1, 3, 32, 32))
    assert counted == 32 * 32 * network.cost


@pytest.mark.parametrize(("modern", "published"), [("modern-small", "3-layer"), ("modern-large", "8-layer")])
def test_a_modern_network_costs_no_more_and_reaches_further(modern, published):
    ours, theirs = build_network(modern), build_network(published)
    assert ours.cost <= theirs.cost and ours.halo > 2 * theirs.halo


@pytest.mark.parametrize("side", [(63, 63), (64, 64), (33, 50)])
def test_a_modern_network_takes_sides_of_any_length(side):
    network, image = build_network("modern-small"), torch.rand(1, 3, *side)
    extended = torch.nn.functional.pad(image, (0, -side[1] % 4, 0, -side[0] % 4), mode="replicate")
    with torch.no_grad():
        assert torch.equal(network(image), network(extended)[..., : side[0], : side[1]])


def test_the_whole_toolbox_has_the_published_size(toolbox):
    total = sum(sum(p.numel() for p in tool.function.parameters()) for tool in toolbox)
    assert total == 436_068
    assert toolbox.names == NAMES and len(toolbox) == 12 and toolbox.stop == 12


def test_bands_meet_and_cover_the_published_ranges():
    for first in (0, 4, 8):
        bands = [(spec.low, spec.high) for spec in CATALOGUE[first : first + 4]]
        if first == 8:
            bands = [(100 - high, 100 - low) for low, high in bands]
        assert [low for low, _ in bands[1:]] == [high for _, high in bands[:-1]]
        assert [spec.network for spec in CATALOGUE[first : first + 4]] == ["3-layer"] * 2 + ["8-layer"] * 2


@pytest.mark.parametrize("spec", CATALOGUE, ids=lambda spec: spec.name)
def test_every_shipped_tool_has_a_card_that_fits_and_helps_on_its_band(spec):
    weights = WEIGHTS / "cnn12" / f"{spec.name}.safetensors"
    card = json.loads(weights.with_suffix(".json").read_text())
    assert card["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert card["name"] == spec.name and card["licence"] == "MIT" and card["seconds"] > 0
    assert card["command"].startswith(f"restoration-env train tools {spec.name}") and card["data"]
    pool = load_images("bundled", "test")
    clean, damaged = damaged_patches(pool, torch.arange(60), spec.band, 63)
    with torch.no_grad():
        restored = load_network(spec.name)(damaged)
    judged = psnr(damaged, clean) < 50
    gain = (psnr(restored, clean) - psnr(damaged, clean))[judged].mean().item()
    assert gain > 0, f"{spec.name} loses {-gain:.2f} dB on photographs it never saw"


def test_right_tool_beats_wrong_tool_on_its_own_damage(toolbox):
    clean, damaged = damaged_patches(
        load_images("bundled", "test"), torch.arange(20), specification("denoise-4").band, 63
    )
    scores = {}
    for name in ("denoise-4", "deblur-4"):
        actions = torch.full((20,), toolbox.names.index(name))
        scores[name] = psnr(toolbox.apply(damaged, actions), clean).mean()
    assert scores["denoise-4"] > psnr(damaged, clean).mean() + 5
    assert scores["denoise-4"] > scores["deblur-4"] + 4


def test_bfloat16_agrees_with_float32(toolbox):
    fast = load_toolbox("cnn12", precision="bfloat16")
    clean, damaged = damaged_patches(load_images("bundled", "test"), torch.arange(24), recipe("moderate"), 63)
    actions = torch.arange(24) % 12
    slow_psnr = psnr(toolbox.apply(damaged, actions), clean)
    fast_psnr = psnr(fast.apply(damaged, actions), clean)
    assert abs((slow_psnr - fast_psnr).mean().item()) < 0.02


def test_an_unknown_tool_lists_the_twelve(toolbox):
    for call in (specification, toolbox.__getitem__):
        with pytest.raises(InvalidArgument, match="denoise-4"):
            call("denoise-5")


def test_weights_of_another_architecture_are_refused_with_both_names(tmp_path):
    network = build_network("8-layer")
    save_weights(tmp_path / "deblur-1.safetensors", network.state_dict(), {"network": "8-layer"})
    with pytest.raises(InvalidArgument, match="3-layer.*8-layer"):
        load_network("deblur-1", folder=tmp_path)


def _small(**changes):
    settings = {"iterations": 8, "batch": 2, "crop": 24, "evaluate_every": 4, "start": "", **changes}
    return TrainingConfig("denoise-1", **settings)


def test_a_killed_run_resumes_and_ends_bit_for_bit_as_an_uninterrupted_one(photos, tmp_path):
    class Killed(Exception):
        pass

    def kill(progress):
        if progress.iteration == 5:
            raise Killed

    train_tool(_small(), *photos, tmp_path / "whole")
    with pytest.raises(Killed):
        train_tool(_small(), *photos, tmp_path / "parts", checkpoint_seconds=0.0, report=kill)
    assert not list((tmp_path / "parts").glob("*.safetensors"))
    assert load_checkpoint(tmp_path / "parts" / "denoise-1.checkpoint")["iteration"] == 5
    iterations = []
    train_tool(_small(), *photos, tmp_path / "parts", report=lambda p: iterations.append(p.iteration))
    assert iterations == [6, 7, 8]
    whole, parts = (load_network("denoise-1", folder=tmp_path / folder).state_dict() for folder in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not list((tmp_path / "parts").glob("*.checkpoint"))


def test_resuming_with_another_configuration_says_what_changed(photos, tmp_path):
    def kill(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_tool(_small(), *photos, tmp_path, checkpoint_seconds=0.0, report=kill)
    with pytest.raises(InvalidArgument, match="seed was 0, is 1"):
        train_tool(_small(seed=1), *photos, tmp_path)


def test_early_stop_ends_a_run_that_no_longer_improves(photos, tmp_path):
    card = train_tool(_small(iterations=200, learning_rate=0.0, patience=2), *photos, tmp_path)
    assert card["training"]["iterations_done"] == 12  # best at 4, no gain at 8 and 12


def test_diverging_training_stops_with_a_clear_message_and_keeps_the_checkpoint(photos, tmp_path):
    reports = []
    with pytest.raises(TrainingDiverged, match="denoise-1 diverged: the loss is .*kept in .*denoise-1.checkpoint"):
        train_tool(
            _small(iterations=400, learning_rate=1e18), *photos, tmp_path, checkpoint_seconds=0.0, report=reports.append
        )
    kept = load_checkpoint(tmp_path / "denoise-1.checkpoint")
    assert kept["iteration"] == reports[-1].iteration


def test_training_data_is_a_function_of_seed_and_iteration(photos):
    config, spec = _small(batch=4), specification("deblur-2")
    first = training_batch(photos[0], spec, config, 3, "cpu")
    again = training_batch(photos[0], spec, config, 3, "cpu")
    other = training_batch(photos[0], spec, config, 4, "cpu")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1])
    assert first[0].shape == first[1].shape == (4, 3, 24, 24)


def test_a_fresh_tool_begins_as_the_identity(tmp_path):
    for spec in (specification("deblur-1"), specification("denoise-4")):
        image = torch.rand(1, 3, 20, 20)
        assert torch.equal(_Run(TrainingConfig(spec.name), spec, tmp_path, "cpu").network(image), image)


def test_the_recipe_trains_all_twelve_and_starts_only_from_what_is_trained_before():
    done = {""}
    for config in lessons(NAMES):
        assert config.start in done
        done.add(config.tool)
    assert done == {"", *NAMES}


def test_of_the_modern_networks_one_of_each_is_trained_alone():
    box = toolbox_specification("cnn12-modern")
    assert {box.network(config.tool) for config in lessons(NAMES, "cnn12-modern")} == {"modern-small", "modern-large"}
    with pytest.raises(InvalidArgument, match="trained alone, denoise-4, denoise-2.*deblur-1"):
        lessons(["deblur-1"], "cnn12-modern")


def test_training_damage_is_the_own_band_with_slight_damage_of_the_other_kinds():
    spec, u = specification("dejpeg-3"), torch.rand(2000, 4, generator=torch.Generator().manual_seed(0))
    blur, noise, quality = training_damage(spec, _small(slight_blur=2.0, slight_noise=20.0)).draw(u.double())
    assert quality.min() >= 20 and quality.max() <= 35
    assert 0 < blur.max() <= 2 and 0 < noise.max() <= 20
    assert (noise > 0).double().mean() == pytest.approx(0.7, abs=0.04)
    assert torch.equal(blur > 0, noise > 0) and abs(torch.corrcoef(torch.stack((blur, noise)))[0, 1]) < 0.65


def test_a_start_with_another_network_is_refused(photos, tmp_path):
    with pytest.raises(InvalidArgument, match="3-layer"):
        train_tool(_small(start="denoise-4"), *photos, tmp_path)


def test_classical_tools_keep_shape_and_do_something():
    toolbox = load_toolbox("classical")
    image = torch.rand(2, 3, 40, 33, generator=torch.Generator().manual_seed(0))
    assert len(toolbox) == 7
    for tool in toolbox:
        restored = tool(image)
        assert restored.shape == image.shape and restored.dtype == image.dtype, tool.name
        assert torch.isfinite(restored).all() and not torch.equal(restored, image), tool.name


def test_the_command_trains_a_tool_and_does_not_train_it_twice(tmp_path, monkeypatch, capsys):
    from restoration_env.cli import main

    monkeypatch.chdir(tmp_path)
    command = ["train", "tools", "deblur-1", "--iterations", "2", "--batch", "2", "--crop", "24", "--out", "out"]
    written = []
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            main([*command, "--device", "cpu"])
        assert end.value.code == 0
        written.append((tmp_path / "out" / "deblur-1.safetensors").stat().st_mtime_ns)
    assert written[0] == written[1]
    card = json.loads((tmp_path / "out" / "deblur-1.json").read_text())
    assert card["command"].startswith("restoration-env train tools deblur-1 --images bundled --iterations 2")
    assert card["training"]["iterations_done"] == 2
