"""`restoration-env restore` and `restoration-env demo`, from the command line to the exit status."""

import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image
from scripted import scripted_agent

from restoration_env import registry
from restoration_env.agents.agent import WEIGHTS, save_agent
from restoration_env.cli import main
from restoration_env.photos import read_photo

shipped = pytest.mark.skipif(
    not (WEIGHTS / "toolchain.safetensors").is_file(), reason="the agent's weights are not in the checkout"
)


def brighter(rgb: np.ndarray) -> np.ndarray:
    return np.clip(rgb.astype(int) + 8, 0, 255)


def photograph(path: Path, shift: int = 0) -> np.ndarray:
    rgb = np.ascontiguousarray(skimage.data.astronaut()[shift : shift + 70, 100:190])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path)
    return rgb


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command with an agent that makes every image brighter; returns status, output and errors."""
    monkeypatch.setitem(registry._TOOLBOXES, "quick", "scripted:quick")
    monkeypatch.setenv("COLUMNS", "200")
    weights = tmp_path / "agent" / "brighter.safetensors"
    save_agent(weights, scripted_agent(("brighter",)), {})
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def command(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([*map(str, words), "--agent", str(weights), "--device", "cpu"])
        output = capsys.readouterr()
        assert "Traceback" not in output.out + output.err
        assert not list(work.rglob("*.part"))
        return ended.value.code, output.out, output.err

    return command


def test_one_photograph_to_a_file(run) -> None:
    rgb = photograph(Path("a.png"))
    status, out, _ = run("restore", "a.png", "-o", "new/b.png")
    assert status == 0 and "brighter" in out and "90x70" in out
    np.testing.assert_array_equal(read_photo("new/b.png").rgb, brighter(rgb))
    assert files(Path()) == ["a.png", "new/b.png"]


def test_one_photograph_to_a_folder(run) -> None:
    photograph(Path("a.b.jpg"))
    assert run("restore", "a.b.jpg", "-o", "new")[0] == 0
    assert files(Path("new")) == ["a.b.png"]


def test_json_and_steps(run) -> None:
    rgb = photograph(Path("a.png"))
    photograph(Path("c.jpg"))
    status, out, _ = run("restore", "a.png", "c.jpg", "-o", "new", "--steps", "steps", "--json")
    result = json.loads(out)
    assert status == 0 and result["skipped"] == []
    first, second = result["photos"]
    assert first["photo"] == "a.png" and first["restored"] == str(Path("new/a.png"))
    assert (first["width"], first["height"], first["toolchain"]) == (90, 70, ["brighter"])
    assert first["steps"] == [str(Path("steps/a") / f"step-{s}.png") for s in ("0-input", "1-brighter")]
    np.testing.assert_array_equal(read_photo(first["steps"][0]).rgb, rgb)
    np.testing.assert_array_equal(read_photo(first["steps"][1]).rgb, brighter(rgb))
    assert second["photo"] == "c.jpg" and len(second["steps"]) == 2
    assert files(Path("new")) == ["a.png", "c.png"]


def test_a_folder_with_bad_files(run) -> None:
    photograph(Path("in/a.png"))
    photograph(Path("in/deep/a.jpg"))
    Path("in/bad.png").write_bytes(b"not an image")
    Path("in/notes.txt").write_text("not asked for")
    Image.new("RGB", (9, 9)).save("in/tiny.png")
    status, out, err = run("restore", "in", "-o", "in/new", "--json")
    assert status == 0
    assert files(Path("in/new")) == ["a.png", "deep/a.png"]
    skipped = json.loads(out)["skipped"]
    assert len(skipped) == 2 and "bad.png" in skipped[0] and "tiny.png" in skipped[1]
    assert "bad.png" in err and "notes" not in err
    # Again: the results of the first run are not restored once more.
    status, out, _ = run("restore", "in", "-o", "in/new", "--json", "--overwrite")
    assert status == 0 and len(json.loads(out)["photos"]) == 2


def test_a_folder_of_bad_files_only(run) -> None:
    Path("in").mkdir()
    Path("in/bad.png").write_bytes(b"")
    status, _, err = run("restore", "in", "-o", "new")
    assert status == 2 and "bad.png" in err and not Path("new").exists()
    Path("empty").mkdir()
    assert run("restore", "empty", "-o", "new")[0] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.png", "bad.png", "-o", "new"], "bad.png must be a readable image"),
        (["a.png", "none.png", "-o", "new"], "none.png must be a readable image"),
        (["a.png", "tiny.png", "-o", "new"], "tiny.png must be at least 16 pixels"),
        (["a.png", "-o", "a.png"], "target must be a new file"),
        (["a.png", "-o", "."], "target must be a new file"),
        (["a.png", "-o", "new.gif"], "target must be a path that ends in"),
        (["a.png", "-o", "bad.png/new.png"], "target must be in a folder"),
        (["a.png", "c.png", "-o", "new.png"], "--output must be a folder"),
        (["a.png", "c.png", "-o", "bad.png"], "--output must be a folder"),
        (["a.png", "other/a.jpg", "-o", "new"], "photos must be files of different names"),
        (["a.png", "a.png", "-o", "new"], "photos must be files of different names"),
        (["a.png", "-o", "new", "--steps", "old"], "target must be a new file"),
        (["a.png", "-o", "new", "--steps", "bad.png"], "target must be in a folder"),
        (["a.png", "-o", "new", "--precision", "float8"], "float8"),
        (["a.png"], "Missing option"),
        (["-o", "new"], "Missing argument"),
    ],
)
def test_refused_before_anything_is_written(run, words, message) -> None:
    for name in ("a.png", "c.png", "other/a.jpg", "old/a/step-0-input.png"):
        photograph(Path(name))
    Path("bad.png").write_bytes(b"not an image")
    Image.new("RGB", (9, 9)).save("tiny.png")
    before = {name: Path(name).read_bytes() for name in files(Path())}
    status, _, err = run("restore", *words)
    assert status == 2 and message in err
    assert {name: Path(name).read_bytes() for name in files(Path())} == before


def test_an_unknown_agent_or_device(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    photograph(Path("a.png"))
    for words in (["--agent", "nobody"], ["--device", "abacus"]):
        with pytest.raises(SystemExit) as ended:
            main(["restore", "a.png", "-o", "new.png", *words])
        assert ended.value.code == 2
        assert f"{words[0][2:]} must be" in capsys.readouterr().err
    assert files(Path()) == ["a.png"]


def test_overwriting_when_asked(run) -> None:
    rgb = photograph(Path("a.png"))
    photograph(Path("steps/a/step-3-older.png"))
    Path("steps/a/notes.txt").write_text("kept")
    photograph(Path("steps/a/step-0-input.png"))
    assert run("restore", "a.png", "-o", "a.png", "--overwrite", "--steps", "steps")[0] == 0
    np.testing.assert_array_equal(read_photo("a.png").rgb, brighter(rgb))
    assert files(Path("steps/a")) == ["notes.txt", "step-0-input.png", "step-1-brighter.png"]


def test_names_that_look_like_markup(run) -> None:
    photograph(Path("[bold]a[/].png"))
    status, out, _ = run("restore", "[bold]a[/].png", "-o", "new")
    assert status == 0 and "[bold]a[/].png" in out


def test_a_full_disk_is_one_sentence(run, monkeypatch) -> None:
    photograph(Path("a.png"))

    def fail(photo, path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("restoration_env.agents.photo.write_photo", fail)
    status, _, err = run("restore", "a.png", "-o", "new.png")
    assert status == 1 and "could not be written" in err and "No space left" in err


def test_demo(run) -> None:
    status, out, _ = run("demo", "-o", "new/sheet.png", "--seed", 3, "--json")
    result = json.loads(out)
    assert status == 0 and result["severity"] == "moderate" and result["seed"] == 3
    assert [row["photograph"] for row in result["photographs"]] == ["chelsea", "coffee", "rocket"]
    for row in result["photographs"]:
        assert [step["name"] for step in row["steps"]] == ["damaged", "brighter"]
        assert row["gain"] == pytest.approx(row["steps"][1]["psnr"] - row["steps"][0]["psnr"])
        assert 15 < row["steps"][0]["psnr"] < 35
        assert 0 <= row["blur_sigma"] <= 5 and 0 <= row["noise_sigma"] <= 50 and 10 <= row["jpeg_quality"] <= 100
    sheet = read_photo("new/sheet.png").rgb
    assert sheet.shape[0] > 3 * 288 and sheet.shape[1] > 3 * 288

    status, out, _ = run("demo", "-o", "new/sheet.png", "--seed", 3)  # the same again, replaced
    assert status == 0 and "chelsea" in out and "new/sheet.png" in out
    np.testing.assert_array_equal(read_photo("new/sheet.png").rgb, sheet)


def test_demo_of_damage_without_compression(run) -> None:
    _, out, _ = run("demo", "--severity", "noise", "--json")
    assert {row["jpeg_quality"] for row in json.loads(out)["photographs"]} == {None}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--severity", "dreadful"], "severity must be one of mild"),
        (["--seed", "-1"], "seed must be 0 or more"),
        (["--seed", "one"], "not a valid integer"),
        (["-o", "demo.jpg"], "--output must be a path that ends in .png"),
        (["-o", "folder.png"], "target must be the path of a file"),
    ],
)
def test_demo_refuses(run, words, message) -> None:
    Path("folder.png").mkdir()
    status, _, err = run("demo", *words)
    assert status == 2 and message in err
    assert files(Path()) == []


@pytest.mark.parametrize("command", ["restore", "demo"])
def test_help(command, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0 and "--output" in capsys.readouterr().out


@shipped
def test_the_demo_with_the_shipped_agent_gains(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["demo", "-o", str(tmp_path / "demo.png"), "--json", "--device", "cpu"])
    assert ended.value.code == 0
    gains = [row["gain"] for row in json.loads(capsys.readouterr().out)["photographs"]]
    assert np.mean(gains) > 0.5 and min(gains) > 0.0
