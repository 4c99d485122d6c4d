"""`restoration-env train sb3`, the way to the hub and back, and the example."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hub import hub  # noqa: F401
from test_sb3_train import SIZE, SMALL, TINY, begun, envs, trained  # noqa: F401

from restoration_env.agents import load_sb3_policy
from restoration_env.agents.policies import roll_out
from restoration_env.agents.sb3_hub import load_from_hub, push_to_hub
from restoration_env.cli import main
from restoration_env.errors import InvalidArgument
from restoration_env.registry import load_toolbox


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def command(*words: object) -> tuple[int, str, str]:
        small = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
        with pytest.raises(SystemExit) as ended:
            main(["train", "sb3", "--toolbox", "tiny", "--device", "cpu", *small, *map(str, words)])
        output = capsys.readouterr()
        assert "Traceback" not in output.out + output.err
        assert not list(tmp_path.rglob("*.part"))
        return ended.value.code, output.out, output.err

    return command


def test_the_command(run, tmp_path) -> None:
    status, out, err = run("--algo", "a2c", "--threads", 1)
    assert status == 0 and out.startswith("runs/a2c.zip: ") and "dB on validation patches" in out
    assert "a2c" in err and "validation" in err  # the progress bar
    names = {path.name for path in (tmp_path / "runs").iterdir()}
    assert names == {"a2c.zip", "a2c.safetensors", "a2c.json", "a2c.tensorboard"}
    card = json.loads((tmp_path / "runs" / "a2c.json").read_text())
    assert card["command"].startswith("restoration-env train sb3 --toolbox tiny --images bundled --")
    assert "--algo a2c" in card["command"] and "--patch-size 16" in card["command"] and card["data"] == "bundled"


def test_the_command_says_json(run, tmp_path) -> None:
    status, out, _ = run("--json", "--out", "here/mine.safetensors", "--seed", 5)
    said = json.loads(out)
    assert status == 0 and said["model"] == "here/mine.zip" and said["training"]["seed"] == 5
    assert (tmp_path / "here" / "mine.safetensors").is_file() and Path(said["tensorboard"]).is_dir()


def test_ctrl_c_saves_and_ends_with_130(run, monkeypatch, tmp_path) -> None:
    from restoration_env.agents.sb3_training import _Run

    def pressed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(_Run, "judge", pressed)
        status, _, err = run("--steps", 512)
    assert status == 130 and "interrupted" in err
    assert [p.suffix for p in (tmp_path / "runs").iterdir() if p.is_file()] == [".checkpoint"]
    status, _, err = run("--steps", 1024)
    assert status == 2 and "steps was 512, is 1024" in err
    status, out, _ = run("--steps", 512, "--json")
    assert status == 0 and json.loads(out)["history"][0]["steps"] == 128  # it went on after 64


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--algo", "reinforce"], "error: algo must be one of dqn, qrdqn, a2c, ppo, maskable-ppo, recurrent-ppo, got"),
        (["--toolbox", "nothing"], "toolbox must be one of"),
        (["--severity", "terrible"], "severity must be one of"),
        (["--images", "no/folder"], "images must be"),
        (["--device", "abacus"], "device must be"),
        (["--precision", "float8"], "precision must be one of"),
        (["--steps", "0"], "steps must be at least 1"),
    ],
)
def test_bad_input_ends_in_one_sentence(words, said: str, run, tmp_path) -> None:
    status, _, err = run(*words)
    assert status == 2 and said in err and not list(tmp_path.rglob("*.zip"))


def test_without_tensorboard_the_command_says_so(run, monkeypatch) -> None:
    monkeypatch.setattr("restoration_env.agents.commands_sb3.find_spec", lambda name: None)
    status, out, _ = run()
    assert status == 0 and "no logs: the package tensorboard is not installed" in out
    assert not Path("runs/ppo.tensorboard").exists()


def test_to_the_hub_and_back(hub, trained, tmp_path) -> None:  # noqa: F811
    address = push_to_hub(trained[0], "me/ppo-Restore-v0", endpoint=hub.address, token="secret")
    assert address.startswith(f"{hub.address}/me/ppo-Restore-v0/commit/")
    files = hub.repositories["me/ppo-Restore-v0"]
    assert set(files) == {"policy.safetensors", "policy.json", "README.md"}
    page = files["README.md"].decode()
    assert page.startswith("---\nlibrary_name: restoration-env\nlicense: mit\n") and "- ppo\n" in page
    assert set(hub.tokens) == {"Bearer secret"}
    push_to_hub(trained[0], "me/ppo-Restore-v0", endpoint=hub.address, token="secret")  # again

    policy = load_from_hub("me/ppo-Restore-v0", endpoint=hub.address, token="secret", cache=tmp_path)
    ours, theirs = begun(), begun()
    roll_out(policy, ours)
    roll_out(load_sb3_policy(trained[0].with_suffix(".safetensors")), theirs)
    assert torch.equal(ours.toolchain, theirs.toolchain) and policy.card["algorithm"] == "ppo"
    with pytest.raises(InvalidArgument, match="^toolbox must be the one the policy was trained with"):
        load_from_hub("me/ppo-Restore-v0", load_toolbox("learning"), endpoint=hub.address, cache=tmp_path)


def test_what_the_hub_does_not_have(hub, trained, tmp_path) -> None:  # noqa: F811
    for repo_id in ("me/nothing", "not a name"):
        with pytest.raises(InvalidArgument, match="^repo_id must be a repository on the hub") as error:
            load_from_hub(repo_id, endpoint=hub.address, cache=tmp_path)
        assert repo_id in str(error.value) and "\n" not in str(error.value)
    hub.repositories["me/other"] = {"README.md": b"something else"}
    with pytest.raises(InvalidArgument, match="^repo_id must be a repository on the hub"):
        load_from_hub("me/other", endpoint=hub.address, cache=tmp_path)
    with pytest.raises(InvalidArgument, match="^repo_id must be a repository on the hub"):
        push_to_hub(trained[0], "not a name", endpoint=hub.address, token="secret")


def test_the_example(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(__file__).parent.parent / "examples" / "train_ppo.py"
    assert len(path.read_text().splitlines()) < 30
    spec = importlib.util.spec_from_file_location("train_ppo", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    gain = module.main(steps=256, envs=2, toolbox="tiny", patch_size=36, severity="noise")
    assert np.isfinite(gain) and (tmp_path / "ppo.zip").is_file()
