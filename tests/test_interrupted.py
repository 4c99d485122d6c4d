"""Ctrl-C during a training command saves what was learned and exits with 130; another configuration is refused then."""

from pathlib import Path

import pytest
from checks import write_checks
from helpers import tiny  # registers the toolbox

from restoration_env.cli import main

assert tiny

AGENT = ["train", "agent", "--toolbox", "tiny", "--device", "cpu", "--severity", "noise", "--evaluate-every", "50"]
AGENT += ["--validation-images", "2", "--batch", "8", "--episodes", "64", "--max-steps", "2"]
LOOKAHEAD = AGENT.copy()
AGENT += ["--updates", "1"]
COMMANDS = {
    "drqn": ([*AGENT, "--algo", "drqn"], "drqn", "damaged_patches"),
    "lookahead": ([*LOOKAHEAD, "--algo", "lookahead", "--critic-width", "4"], "lookahead_training", "damaged_patches"),
    "exact": ([*AGENT, "--algo", "exact", "--pretraining", "0"], "exact", "damaged_patches"),
    "classifier": (["train", "classifier", "--device", "cpu", "--batch", "4"], "classifier", "labelled_patches"),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_checks(tmp_path_factory.mktemp("checks"), count=12, side=80)


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_saves_and_exits_130(name, images, tmp_path, monkeypatch, capsys) -> None:
    words, module, function = COMMANDS[name]
    where = __import__(f"restoration_env.agents.{module}", fromlist=[function])
    real, calls = getattr(where, function), []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(where, function, interrupted)
    said = [*words, "--images", str(images), "--out", str(tmp_path / "a.safetensors")]
    with pytest.raises(SystemExit) as ended:
        main(said)
    assert ended.value.code == 130 and len(calls) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["a.checkpoint"]
    monkeypatch.setattr(where, function, real)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*said, "--seed", "7"])
    assert ended.value.code == 2 and "seed was 0, is 7" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.checkpoint"]


@pytest.mark.parametrize("algo", ["drqn", "lookahead"])
def test_a_checkpoint_of_another_toolbox_is_refused_with_both(algo, images, tmp_path, monkeypatch, capsys) -> None:
    words, module, function = COMMANDS[algo]
    where = __import__(f"restoration_env.agents.{module}", fromlist=[function])
    real, calls = getattr(where, function), []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(where, function, interrupted)
    said = [*words, "--images", str(images), "--out", str(tmp_path / "a.safetensors")]
    with pytest.raises(SystemExit):
        main(said)
    monkeypatch.setattr(where, function, real)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([word if word != "tiny" else "checks" for word in said])
    message = capsys.readouterr().err
    assert ended.value.code == 2 and "brighten, darken, blur" in message and "every-2, every-3" in message


def test_an_algorithm_that_does_not_exist_lists_those_that_do(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*AGENT, "--algo", "rainbow", "--out", str(tmp_path / "a.safetensors")])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and all(name in said for name in ("drqn", "exact", "lookahead"))
    with pytest.raises(SystemExit) as ended:
        main([*AGENT, "--algo", "exact", "--dueling", "--out", str(tmp_path / "a.safetensors")])
    assert ended.value.code == 2 and "--dueling" in capsys.readouterr().err
