"""Submissions: what is written validates, and whatever was tampered with is refused."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from restoration_env.agents.agent import WEIGHTS, load_agent, save_agent
from restoration_env.benchmarks.entries import Sources
from restoration_env.benchmarks.leaderboard import Protocol, Store, run
from restoration_env.benchmarks.submission import AUTHORED, read_submission, write_submission, write_template
from restoration_env.benchmarks.suites import build_suite
from restoration_env.benchmarks.validate import InvalidSubmission, add_to_board, validate
from restoration_env.cli import main
from restoration_env.errors import InvalidArgument
from restoration_env.files import write_json
from restoration_env.metrics import psnr

PROTOCOL = Protocol(suites=("severe",), count=3)
SOURCES = Sources(oracle="none")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The submission of an agent, with its weights; copied by the tests that tamper with it."""
    folder = tmp_path_factory.mktemp("submission")
    run(["drqn"], PROTOCOL, SOURCES, folder / "store")
    about = {"authors": "the developers"}
    return write_submission("drqn", PROTOCOL, SOURCES, Store(folder / "store"), folder / "drqn", about)


@pytest.fixture
def policy(written, tmp_path):
    return shutil.copytree(written, tmp_path / "drqn")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A submission of images: the template filled in with the input, brightened by two levels."""
    folder = write_template(tmp_path_factory.mktemp("images") / "brighter", PROTOCOL)
    for path in sorted((folder / "input" / "severe").iterdir()):
        pixels = np.asarray(Image.open(path)).astype(int) + 2
        (folder / "images" / "severe").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / "severe" / path.name)
    change(folder / "card.json", lambda card: card.update(name="brighter", authors="someone"))
    clean, damaged = build_suite("severe", count=3).patches()
    brighter = ((damaged * 255).round() + 2).clamp(0, 255) / 255
    gain = (psnr(brighter, clean) - psnr(damaged, clean)).mean().item()
    write_json(folder / "results.json", {"severe": {"gain": gain, "psnr_out": psnr(brighter, clean).mean().item()}})
    return folder


@pytest.fixture
def images(pictures, tmp_path):
    return shutil.copytree(pictures, tmp_path / "brighter")


def change(path, how):
    value = json.loads(path.read_text())
    how(value)
    write_json(path, value)


def refused(folder, *words):
    with pytest.raises(InvalidSubmission) as error:
        validate(folder)
    for word in words:
        assert word in str(error.value)


def test_what_was_written_validates_and_says_what_was_measured(policy):
    rows = validate(policy)
    stated = read_submission(policy)
    assert rows["severe"]["gain"] == pytest.approx(stated.results["severe"]["gain"], abs=1e-3)
    assert rows["severe"]["policy"] == "drqn (cnn12)" and rows["severe"]["parameters"] == 523_931
    assert set(AUTHORED) <= set(stated.card) and stated.card["authors"] == "the developers"


def test_one_changed_reward_is_refused(policy):
    def tamper(actions):
        actions["severe"]["rewards"][1][0] += 0.1

    change(policy / "actions.json", tamper)
    refused(policy, "severe: image 1 brings the rewards")


def test_one_changed_action_is_refused(policy):
    def tamper(actions):
        actions["severe"]["actions"][2][0] = 0

    change(policy / "actions.json", tamper)
    refused(policy, "image 2 brings the rewards", "the weights choose these actions for 67% of the images only")


@pytest.mark.parametrize("key", ["gain", "psnr_out", "ssim", "lpips", "harmed", "mean_tools", "gain_high"])
def test_one_changed_number_is_refused(policy, key):
    change(policy / "results.json", lambda results: results["severe"].update({key: results["severe"][key] + 0.05}))
    refused(policy, f"severe: {key} is")


def test_understated_cost_and_invented_numbers_are_refused(policy):
    change(policy / "results.json", lambda results: results["severe"].update(multiply_adds=1_000, beauty=3.0))
    refused(policy, "the tools alone take", "beauty in results.json is no number of the leaderboard")


def test_swapped_weights_are_refused_also_if_the_card_is_made_to_fit(policy):
    name, toolchain = "drqn.safetensors", WEIGHTS / "toolchain.safetensors"
    for suffix in (".safetensors", ".json"):
        shutil.copyfile(toolchain.with_suffix(suffix), (policy / "weights" / name).with_suffix(suffix))
    refused(policy, "drqn.safetensors: not the weights that the card's sha256 says")
    theirs = json.loads((policy / "weights" / "drqn.json").read_text())["sha256"]
    change(policy / "card.json", lambda card: card.update(weights_sha256=theirs))
    refused(policy, "the weights choose these actions for")


def test_weights_whose_bytes_were_changed_are_refused(policy):
    path = policy / "weights" / "drqn.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(InvalidArgument, match="another sha256"):
        validate(policy)


def test_tools_with_other_weights_are_refused(policy):
    change(policy / "card.json", lambda card: card.update(toolbox_sha256="0" * 64))
    refused(policy, "toolbox cnn12: other weights than the card's sha256 says")


def test_another_suite_than_the_card_says_is_refused(policy):
    change(policy / "card.json", lambda card: card["suites"]["severe"].update(seed=1))
    refused(policy, "severe: the suite has other bytes")


@pytest.mark.parametrize(
    "actions", [[[0]] * 2, [[0], [1], [13]], [[0], [1], []], [[0], [1], [0, 0, 0, 0]], [[0], [1], ["stop"]], None]
)
def test_actions_that_are_none_are_refused(policy, actions):
    change(policy / "actions.json", lambda value: value["severe"].update(actions=actions))
    refused(policy, "actions.json needs 1 to 3 actions of 0..12 for 3 images")


def test_submitted_images_are_measured(images):
    rows = validate(images)
    assert rows["severe"]["gain"] != 0 and rows["severe"]["policy"] == "brighter"
    assert rows["severe"]["multiply_adds"] is None


def test_one_changed_image_is_refused(images):
    path = images / "images" / "severe" / "0001.png"
    pixels = np.array(Image.open(path))
    pixels[20:40, 20:40] = 255 - pixels[20:40, 20:40]
    Image.fromarray(pixels).save(path)
    refused(images, "severe: gain is", "severe: psnr_out is")


def test_missing_and_unfitting_images_are_refused(images):
    path = images / "images" / "severe" / "0002.png"
    Image.fromarray(np.zeros((10, 10, 3), np.uint8)).save(path)
    with pytest.raises(InvalidArgument, match="of the damaged images' sizes"):
        validate(images)
    path.unlink()
    with pytest.raises(InvalidArgument, match=r"a readable 0002.png of severe"):
        validate(images)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("card.json", "{", "a folder with a card.json in JSON"),
        ("card.json", "[]", "card.json must be a JSON object"),
        ("card.json", '{"format": 9}', "of format 1"),
        ("card.json", '{"format": 1, "kind": "film"}', "policy, images"),
        ("card.json", '{"format": 1, "kind": "images", "name": ""}', "what the row is called"),
        ("card.json", '{"format": 1, "kind": "images", "name": "a", "suites": {}}', "at least one suite"),
        ("card.json", '{"format": 1, "kind": "images", "name": "a", "suites": {"x": {}}}', "suite must be one of"),
        ("results.json", "{}", "the numbers of every suite"),
        ("actions.json", "", "a folder with a actions.json"),
    ],
)
def test_unfinished_submissions_are_refused_with_a_clear_message(policy, file, content, message):
    (policy / file).write_text(content)
    with pytest.raises(InvalidArgument, match=message):
        validate(policy)


def test_a_folder_of_images_must_be_given_for_suites_that_are_not_bundled(policy):
    change(policy / "card.json", lambda card: card["suites"]["severe"].update(images="eval"))
    with pytest.raises(InvalidArgument, match="--images must be the folder 'eval'"):
        validate(policy)


def test_a_valid_submission_is_added_once_and_replaced_on_demand(tmp_path, images, capsys):
    board = {"suites": run(["input"], PROTOCOL, SOURCES, tmp_path / "store")}
    write_json(tmp_path / "board.json", board)

    def command(*words):
        with pytest.raises(SystemExit) as end:
            main(["leaderboard", *map(str, words)])
        return end.value.code

    assert command("add", images, tmp_path / "board.json") == 0
    rows = json.loads((tmp_path / "board.json").read_text())["suites"]["severe"]["rows"]
    assert [row["policy"] for row in rows] == ["input", "brighter"] and rows[1]["submitted"]
    assert command("add", images, tmp_path / "board.json") == 2
    assert "name in card.json must be that of no row yet" in capsys.readouterr().err
    assert command("add", images, tmp_path / "board.json", "--replace") == 0
    assert json.loads((tmp_path / "board.json").read_text())["suites"]["severe"]["rows"] == rows
    assert command("validate", images) == 0
    before = (tmp_path / "board.json").read_bytes()
    change(images / "results.json", lambda results: results["severe"].update(gain=9.0))
    assert command("add", images, tmp_path / "board.json", "--replace") == 2
    assert "refused: severe: gain is" in capsys.readouterr().err
    assert (tmp_path / "board.json").read_bytes() == before
    change(images / "card.json", lambda card: card["suites"]["severe"].update(sha256="0"))
    assert command("add", images, tmp_path / "board.json", "--replace") == 2
    assert "whose severe has other bytes" in capsys.readouterr().err
    with pytest.raises(InvalidArgument, match="no row yet"):
        add_to_board(board | {"suites": {"severe": {"rows": rows}}}, {"severe": rows[1]})


def test_a_policy_of_ones_own_is_submitted_by_its_path(tmp_path, capsys):
    agent = load_agent("drqn")
    save_agent(tmp_path / "mine.safetensors", agent, {"images_seen": 1, "seconds": 1.0})
    words = ["submit", tmp_path / "mine.safetensors", "-o", tmp_path / "out", "--suite", "severe", "--count", "2"]
    with pytest.raises(SystemExit) as end:
        main(["leaderboard", *map(str, words), "--store", str(tmp_path / "store"), "--oracle", "none", "--no-looks"])
    assert end.value.code == 0
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["weights"] == "mine.safetensors" and card["name"] == "mine (cnn12)"
    assert str(tmp_path) not in json.dumps(card)
    assert validate(tmp_path / "out")["severe"]["policy"] == "mine (cnn12)"


def test_a_template_is_not_written_over(images):
    with pytest.raises(InvalidArgument, match=r"one without a card.json"):
        write_template(images, PROTOCOL)
