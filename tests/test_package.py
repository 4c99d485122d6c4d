"""What is installed: one import name, weights included, nothing at the top level that belongs to others."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from restoration_env.registry import find_target

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_has_one_import_name_and_carries_the_weights(wheel):
    names = wheel.namelist()
    top = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert top == {"restoration_env"}
    assert sum(name.startswith("restoration_env/tools/weights/cnn12/") for name in names) == 24
    assert "restoration_env/agents/weights/toolchain.safetensors" in names
    assert "restoration_env/sft/weights/segmenter.safetensors" in names
    assert {f"restoration_env/benchmarks/{name}.html" for name in ("study_page", "report")} <= set(names)
    assert "restoration_env/py.typed" in names
    assert not any("test" in name or "results" in name for name in names)


def test_every_folder_of_the_package_is_declared():
    import tomllib

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"].values()
    assert sorted(declared) == sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))


def test_no_file_of_code_is_over_400_lines():
    for path in ROOT.glob("*/*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


@pytest.mark.parametrize(
    "command",
    [
        "",
        "train",
        "train tools",
        "train agent",
        "train joint",
        "train system",
        "train classifier",
        "tools",
        "gains",
        "leaderboard",
        "leaderboard run",
        "leaderboard paper",
        "leaderboard report",
        "look",
        "demo",
        "restore",
        "perceptual-weights",
        "train sft",
        "train segmenter",
        "segments",
        "upscale",
        "sft-average",
        "sft-compare",
        "sft-pictures",
        "lost-resolution",
        "train sr",
        "sr",
        "study pictures",
        "study make",
        "study serve",
        "study export",
        "study analyse",
    ],
)
def test_every_command_explains_itself(command, capsys):
    from restoration_env.cli import main

    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    assert end.value.code == 0
    assert "Usage" in capsys.readouterr().out


def test_help_imports_no_torch():
    code = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules))"
    code += "; from restoration_env.cli import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.endswith("False\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "tools", "denoise-9"], "denoise-4"),
        (["train", "tools", "denoise-1", "--images", "no/such/folder"], "existing folder"),
        (["train", "tools", "denoise-1", "--precision", "bf16"], "bfloat16"),
        (["train", "tools", "denoise-1", "--iterations", "0"], "iterations must be at least 1"),
        (["train", "tools", "denoise-1", "--learning-rate", "nan"], "learning_rate must be at least 0"),
        (["train", "agent", "--episodes", "-5"], "episodes must be at least 1"),
        (["train", "agent", "--toolbox", "nothing"], "cnn12"),
        (["train", "agent", "--severity", "terrible"], "moderate"),
        (["leaderboard", "run", "nobody"], "entry must be one of input"),
        (["leaderboard", "run", "input", "--images", "no/such/folder"], "existing folder"),
        (["leaderboard", "run", "input", "--count", "0"], "count must be at least 1"),
        (["leaderboard", "run", "published"], "published must be the path of the weights"),
        (["leaderboard", "validate", "no/such/folder"], "submission must be a folder with a card.json"),
        (["leaderboard", "report", "nothing.json"], "board must be a file"),
        (["gains", "--published", "nothing.npz"], "published"),
        (["nonsense"], "No such command"),
    ],
)
def test_bad_input_ends_in_one_sentence_and_status_2(arguments, words, capsys, tmp_path, monkeypatch):
    from restoration_env.cli import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(arguments)
    captured = capsys.readouterr()
    assert end.value.code == 2
    assert words in captured.err and "Traceback" not in captured.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("target", "missing"),
    [
        ("restoration_env.agents.agent:RestorationAgent", "decide"),
        ("restoration_env.tools.networks:ToolNetwork", "residual"),
        ("restoration_env.benchmarks.super_resolvers:LumaResolver", "enlarge"),
        ("restoration_env.benchmarks.super_resolution_losses:AdversarialLoss", "perceptual"),
    ],
)
def test_a_subclass_that_leaves_out_what_it_must_say_is_never_made(target, missing):
    base = find_target(target)
    with pytest.raises(TypeError, match=missing):
        type("Incomplete", (base,), {})()
