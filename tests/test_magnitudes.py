"""The sweep of the further damage in the tools' training data."""

import pytest

from restoration_env.benchmarks.magnitudes import NONE, SWEEP, Magnitudes, configurations, magnitudes_table, sweep
from restoration_env.images import load_images
from restoration_env.tools.catalogue import NAMES, specification
from restoration_env.tools.training import TrainingConfig, training_batch


def test_each_setting_trains_all_tools_on_with_its_damage():
    for how in SWEEP:
        configs = configurations(how, 5, "float32")
        assert [config.tool for config in configs] == list(NAMES) == [config.start for config in configs]
    pool = load_images("bundled", "train")
    spec = specification("dejpeg-1")

    def harm(how: Magnitudes) -> float:
        config: TrainingConfig = configurations(how, 5, "float32")[NAMES.index(spec.name)]
        clean, damaged = training_batch(pool, spec, config, 0, "cpu")
        return (damaged - clean).square().mean().item()

    assert harm(NONE) < harm(Magnitudes(0, 8, 50)) < harm(Magnitudes(4, 40, 10))


def test_the_sweep_measures_what_it_trained_and_goes_on_after_a_kill(tmp_path):
    photos, told = (load_images("bundled", "train"), load_images("bundled", "validation")), []
    settings, how = [Magnitudes(0, 20, 20)], "blur 0, noise 20, JPEG 20"

    def kill(text: str) -> None:
        told.append(text)
        if (tmp_path / how / f"{NAMES[2]}.safetensors").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(settings, 1, *photos, tmp_path, count=2, tell=kill)
    trained = {path.name: path.stat().st_mtime_ns for path in (tmp_path / how).glob("*.safetensors")}
    assert trained
    shipped, row = sweep(settings, 1, *photos, tmp_path, count=2, tell=told.append)
    assert {name: (tmp_path / how / name).stat().st_mtime_ns for name in trained} == trained
    assert (shipped["magnitudes"], row["magnitudes"]) == ("as shipped", how)
    assert all(row["weights"][tool] != shipped["weights"][tool] for tool in NAMES)
    assert shipped["oracle_mean"] > 1.0 and row["oracle_mean"] > 1.0 and row["noise"] == 20
    assert f"| {how} | " in magnitudes_table({"rows": [shipped, row]})
