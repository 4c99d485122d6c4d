"""Looking at policies: the record of what they did, the numbers and pictures made from it, ``restoration-env look``."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import STOP, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scripted import scripted_agent

from restoration_env import registry
from restoration_env.agents.agent import save_agent
from restoration_env.agents.insight import (
    PlayRecord,
    action_shares,
    damage_thirds,
    harm_rate,
    mean_step_gains,
    mean_tools,
    play_record,
    restored_scenes,
    shares_by_damage,
    stop_rates,
    summary,
)
from restoration_env.agents.insight_figures import (
    CELL,
    CHART,
    ROW,
    STOP_COLOUR,
    TITLE,
    TOOL_COLOUR,
    draw_policy,
    draw_toolchains,
    q_chart,
)
from restoration_env.agents.policies import FixedChain, StopAtOnce
from restoration_env.cli import main
from restoration_env.distortions import LOSSLESS
from restoration_env.episodes import NO_ACTION
from restoration_env.errors import InvalidArgument
from restoration_env.images import ImagePool, load_images
from restoration_env.rendering import EMPTY, GAIN, INK

NAN = float("nan")


class StopHalf:
    """The first half of a batch stops at once, the others get the blur tool, then stop."""

    name = "half"

    def reset(self, count):
        self.actions = iter([[STOP] * (count // 2) + [2] * (count - count // 2), [STOP] * count])

    def act(self, observation):
        return torch.tensor(next(self.actions))


def played(policy, count=12, severity="moderate", **options):
    return play_record(policy, tiny(), load_images("bundled", "test"), severity, count, **{"size": 24, **options})


def chain(*tools):
    return FixedChain(tiny(), tools)


def record_of(actions, gain=None, blur=None, noise=None, quality=None):
    """A record with given facts; what is not given is zero, or no compression."""
    actions = torch.as_tensor(actions)
    zeros = torch.zeros(len(actions), dtype=torch.float64)
    facts = [zeros if value is None else torch.tensor(value).double() for value in (blur, noise)]
    facts.append(zeros + LOSSLESS if quality is None else torch.tensor(quality).double())
    names = (*tiny().names, "stop")
    gains = torch.zeros(actions.shape, dtype=torch.float64)
    return PlayRecord(
        "given", names, "moderate", *facts, actions, gains, zeros if gain is None else torch.tensor(gain).double()
    )


@st.composite
def records(draw):
    """Records as episodes leave them: after stop there are no more actions."""
    count, steps = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    actions = np.array(draw(st.lists(st.integers(0, STOP), min_size=count * steps, max_size=count * steps)))
    actions = actions.reshape(count, steps)
    stopped = np.cumsum(actions == STOP, axis=1) - (actions == STOP) > 0
    strengths = [draw(st.lists(st.floats(*span), min_size=count, max_size=count)) for span in ((0, 5), (0, 50))]
    quality = draw(st.lists(st.integers(10, 100), min_size=count, max_size=count))
    return record_of(np.where(stopped, NO_ACTION, actions), None, *strengths, quality)


@settings(max_examples=20, deadline=None)
@given(records())
def test_shares_sum_to_one_and_those_of_the_thirds_make_up_the_whole(record):
    whole, parts, thirds = action_shares(record), shares_by_damage(record), damage_thirds(record)
    going = record.going()
    for step in range(record.steps):
        left = going[:, step].sum()
        assert whole[step].isnan().all() if left == 0 else whole[step].sum() == pytest.approx(1)
        for kind in ("blur", "noise", "JPEG"):
            of_kind = [i for i, third in enumerate(thirds) if third.kind == kind]
            assert sum(thirds[i].members.long() for i in of_kind).tolist() == [1] * len(record)
            counts = sum(parts[i, step].nan_to_num() * going[thirds[i].members, step].sum() for i in of_kind)
            torch.testing.assert_close(counts, whole[step].nan_to_num() * left)


def test_a_policy_that_stops_at_once():
    record = played(StopAtOnce(tiny()))
    np.testing.assert_array_equal(stop_rates(record), [1, NAN, NAN])
    assert record.actions.tolist() == [[STOP, NO_ACTION, NO_ACTION]] * 12
    assert record.gain.tolist() == [0.0] * 12
    assert harm_rate(record) == mean_tools(record) == 0
    facts = summary(record)
    assert [step["stop_rate"] for step in facts["steps"]] == [1.0, None, None]
    assert [step["images"] for step in facts["steps"]] == [12, 0, 0]
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_a_fixed_chain():
    record = played(chain("brighten", "blur"))
    assert record.names == ("brighten", "darken", "blur", "stop")
    assert action_shares(record).tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert stop_rates(record).tolist() == [0, 0, 1]
    assert mean_tools(record) == 2
    torch.testing.assert_close(record.step_gains.sum(1), record.gain)
    assert record.step_gains[:, 2].tolist() == [0.0] * 12
    torch.testing.assert_close(mean_step_gains(record), record.step_gains.mean(0))
    shorter = played(chain("brighten", "blur"), max_steps=1)
    torch.testing.assert_close(shorter.gain, record.step_gains[:, 0])
    assert stop_rates(shorter).tolist() == [0]


def test_stop_rates_and_gains_are_of_the_images_still_going():
    record = played(StopHalf(), count=10)
    np.testing.assert_array_equal(stop_rates(record), [0.5, 1, NAN])
    assert record.going().sum(0).tolist() == [10, 5, 0]
    assert mean_tools(record) == 0.5
    gains = mean_step_gains(record)
    assert gains[0].item() == pytest.approx(record.gain.mean().item())
    assert gains[1].item() == 0 and gains[2].isnan()


def test_harm_is_a_loss_that_is_not_rounding():
    record = record_of([[0], [0], [STOP], [2]], gain=[-0.5, 1.0, 0.0, -1e-9])
    assert harm_rate(record) == 0.25
    spoiled = played(chain("blur", "blur", "blur"), severity="jpeg", count=40)
    worse = [gain < -1e-6 for gain in spoiled.gain.tolist()]
    assert sum(worse) > 0 and harm_rate(spoiled) == pytest.approx(sum(worse) / 40)


def test_the_strengths_are_those_of_the_images_they_stand_beside():
    """Averaging pixels helps the more, the more noise there is; 70 images are more than one batch."""
    record = played(chain("blur"), severity="noise", count=70, max_steps=1)
    assert record.blur.tolist() == [0.0] * 70 and record.quality.isinf().all()
    assert np.corrcoef(record.noise, record.gain)[0, 1] > 0.5


def test_the_same_seed_plays_the_same_episodes():
    one, again, other = (played(chain("blur"), seed=seed, count=4) for seed in (3, 3, 4))
    assert torch.equal(one.gain, again.gain) and torch.equal(one.blur, again.blur)
    assert not torch.equal(one.blur, other.blur)


def test_thirds_of_the_damage():
    blur, noise = [0.0, 1.6, 1.7, 3.3, 3.4, 5.0, 9.0], [0.0, 16.0, 17.0, 33.0, 34.0, 50.0, 99.0]
    record = record_of([[STOP]] * 7, None, blur, noise, [LOSSLESS, 47, 46, 27, 26, 10, 1])
    thirds = damage_thirds(record)
    assert [third.members.nonzero()[:, 0].tolist() for third in thirds] == [[0, 1], [2, 3], [4, 5, 6]] * 3
    assert [(t.kind, t.level, t.label) for t in thirds[3:7]] == [
        ("noise", "low", "0-17"),
        ("noise", "middle", "17-33"),
        ("noise", "high", "33-50"),
        ("JPEG", "low", "100-47"),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"severity": "awful"}, "severity must be one of mild"),
        ({"size": 5000}, "patch_size must be at most"),
    ],
)
def test_a_record_of_nothing_is_refused(options, message):
    with pytest.raises(InvalidArgument, match=message):
        played(chain("blur"), **options)


def where(picture, colour):
    """Rows and columns of the pixels of a colour."""
    return np.nonzero((picture == np.array(colour)).all(axis=2))


def runs(numbers):
    """The first and the last of each run of numbers without a gap."""
    numbers = np.unique(numbers)
    ends = np.nonzero(np.diff(numbers) > 1)[0]
    return list(zip(numbers[[0, *(ends + 1)]], numbers[[*ends, -1]], strict=True))


def test_the_policy_figure_shows_shares_in_colour_and_frames_the_highest():
    everything = {"blur": [0, 2, 4], "noise": [0, 20, 40], "quality": [90, 40, 20]}  # no column is empty
    picture = draw_policy(record_of([[0, STOP]] * 3, **everything))
    assert picture.dtype == np.uint8
    rows, columns = where(picture, TOOL_COLOUR)
    assert len(runs(rows)) == 1 and len(runs(columns)) == 9  # one action, in all columns of step 1
    (top, bottom), cells = runs(rows)[0], runs(columns)
    for left, right in cells:
        assert (right - left, bottom - top) == (CELL - 7, ROW - 7)
        frame = picture[top - 2 : bottom + 3, left - 2 : right + 3]
        for side in (frame[:2], frame[-2:], frame[:, :2], frame[:, -2:]):
            assert (side == np.array(INK)).all()
    stop_rows, stop_columns = where(picture, STOP_COLOUR)
    assert len(runs(stop_columns)) == 9 and stop_columns.min() > columns.max()  # step 2 is beside step 1
    assert stop_rows.min() > rows.max()


def test_no_colour_where_no_image_is_left():
    picture = draw_policy(record_of([[STOP, NO_ACTION]], blur=[0.1], noise=[20.0], quality=[20]))
    assert len(where(picture, TOOL_COLOUR)[0]) == 0
    assert len(runs(where(picture, STOP_COLOUR)[1])) == 3  # one third of each kind
    assert len(runs(where(picture, EMPTY)[1])) == 6 + 9  # the other columns of step 1, and all of step 2


def test_the_size_of_the_policy_figure_follows_from_the_steps():
    one, three, four = (draw_policy(record_of([[0] * steps])).shape for steps in (1, 3, 4))
    assert one[0] == three[0] and one[1] < three[1] == four[1]
    assert four[0] - TITLE == 2 * (three[0] - TITLE)


@pytest.mark.parametrize("values", [[0.2, 3.0, -8.0, 0.0], [-1.0, -0.5, -0.1, -2.0], [0.0, 0.0, 0.0, 0.1]])
def test_a_chart_highlights_the_highest_q_value(values):
    picture = q_chart(np.array(values, dtype=np.float32), ("a", "b", "c", "stop"))
    assert picture.shape == (CHART, CHART, 3)
    (rows, _), height = where(picture, GAIN), CHART / 4
    assert {int(row / height) for row in rows} == {int(np.argmax(values))}
    with pytest.raises(InvalidArgument, match="one for each value"):
        q_chart(np.zeros(3), ("a",))


def small_pool(count=3, side=70):
    rng = np.random.default_rng(0)
    coarse = [rng.integers(40, 215, (5, 5, 3), dtype=np.uint8) for _ in range(count)]
    images = [np.array(Image.fromarray(c).resize((side, side), Image.Resampling.BICUBIC)) for c in coarse]
    return ImagePool(images, [f"image.{i}.png" for i in range(count)])


def test_toolchains_with_their_q_values():
    agent = scripted_agent(("brighter", "narrow"))
    scenes = restored_scenes(agent, small_pool(), count=3)
    assert sorted(scene.name for scene in scenes) == ["image.0", "image.1", "image.2"]
    for scene in scenes:
        assert scene.restoration.toolchain == ("brighter", "narrow")
        assert scene.restoration.q_values.argmax(1).tolist() == [2, 1, 4]
        assert scene.clean.shape == (70, 70, 3) and len(scene.psnr) == 3
        error = np.mean((scene.restoration.frames[-1] / 255 - scene.clean / 255) ** 2)
        assert scene.psnr[-1] == pytest.approx(-10 * np.log10(error), abs=1e-3)
        assert 0 < scene.strengths[0] <= 5 and 10 <= scene.strengths[2] <= 100
    picture = draw_toolchains(scenes, agent.toolbox.action_names(), "title")
    one = draw_toolchains(scenes[:1], agent.toolbox.action_names(), "title")
    stopped = restored_scenes(scripted_agent(()), small_pool(), count=1)
    short = draw_toolchains(stopped, agent.toolbox.action_names(), "title")
    assert picture.shape[1] == one.shape[1] > short.shape[1] and picture.shape[0] > 2 * one.shape[0]
    assert shows(one, scenes[0].restoration.frames[1].repeat(2, axis=0).repeat(2, axis=1))
    assert shows(one, q_chart(scenes[0].restoration.q_values[2], agent.toolbox.action_names()))
    assert not shows(one, q_chart(scenes[0].restoration.q_values[2] + 1, agent.toolbox.action_names()))


def shows(picture, frame):
    """Whether a frame stands in the picture, pixel for pixel; its first row of many colours is looked for."""
    height, width = frame.shape[:2]
    first = int(np.argmax(frame.std(axis=(1, 2))))
    windows = np.lib.stride_tricks.sliding_window_view(picture[:, :, 0], width, axis=1)
    rows, columns = np.nonzero((windows == frame[first, :, 0]).all(axis=2))
    found = zip(rows - first, columns, strict=True)
    return any(np.array_equal(picture[y : y + height, x : x + width], frame) for y, x in found)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs ``restoration-env look`` on small images, with an agent that makes each brighter, then stops."""
    monkeypatch.setitem(registry._TOOLBOXES, "quick", "scripted:quick")
    monkeypatch.setenv("COLUMNS", "200")
    weights, work = tmp_path / "agent" / "lamp.safetensors", tmp_path / "work"
    save_agent(weights, scripted_agent(("brighter",)), {})
    pool = small_pool()
    (tmp_path / "images").mkdir()
    work.mkdir()
    for image, name in zip(pool.images, pool.names, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "images" / name)
    monkeypatch.chdir(work)

    def command(*words: object) -> tuple[int, str, str]:
        options = {"--agent": weights, "--images": tmp_path / "images", "--split": "all", "--count": 5}
        given = [str(word) for pair in options.items() if pair[0] not in words for word in pair]
        with pytest.raises(SystemExit) as ended:
            main(["look", "--device", "cpu", *given, *map(str, words)])
        output = capsys.readouterr()
        assert "Traceback" not in output.out + output.err
        return ended.value.code, output.out, output.err

    return command


def test_the_command_draws_both_pictures_and_prints_json(run):
    status, out, _ = run("--json", "-o", "new/a.png", "--strips", "b.PNG", "--severity", "mild", "--seed", 2)
    assert status == 0
    facts = json.loads(out)
    assert facts["pictures"] == ["new/a.png", "b.PNG"]
    for picture in facts["pictures"]:
        with Image.open(picture) as image:
            assert image.format == "PNG" and image.width > 500
    assert (facts["policy"], facts["severity"], facts["patches"], facts["seed"]) == ("lamp", "mild", 5, 2)
    assert facts["images"] == "images (all, 3 images)" and facts["mean_tools"] == 1
    assert [step["stop_rate"] for step in facts["steps"]] == [0, 1, None]
    assert facts["steps"][0]["shares"] == {"wide": 0, "narrow": 0, "brighter": 1, "redder": 0, "stop": 0}
    assert len(facts["steps"][0]["by_damage"]) == 9
    assert len(facts["photographs"]) == 4
    for photograph in facts["photographs"]:
        assert np.argmax(photograph["q_values"], axis=1).tolist() == [2, 4]
        assert [step["name"] for step in photograph["steps"]] == ["damaged", "brighter"]


def test_the_command_draws_what_was_made_most_worse(run, tmp_path):
    status, out, _ = run("--json", "--harmed", "worse.png", "--count", 9)
    facts = json.loads(out)
    assert status == 0 and facts["harmed"] > 0 and facts["pictures"][-1] == "worse.png"
    gains = [scene["gain"] for scene in facts["most_harmed"]]
    assert gains == sorted(gains) and all(gain < 0 for gain in gains) and 1 <= len(gains) <= 4
    agent, pool = scripted_agent(("brighter",)), load_images(tmp_path / "images", "all")
    record = play_record(agent, agent.toolbox, pool, count=9, size=agent.network.patch_size)
    assert gains == pytest.approx(sorted(record.gain.tolist())[: len(gains)], abs=0.05)  # the scenes are in eight bits
    with Image.open("worse.png") as image:
        assert image.width > 300


def test_nothing_is_drawn_of_what_was_not_harmed(run, tmp_path):
    save_agent(tmp_path / "agent" / "lamp.safetensors", scripted_agent(()), {})  # it stops at once
    status, out, _ = run("--harmed", "worse.png")
    assert status == 0 and "worse.png" not in out and not Path("worse.png").exists()


def test_the_command_prints_a_table(run):
    status, out, err = run()
    assert status == 0 and "made worse" in out and "patches" in err
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    shares = {row[0]: row[1:] for row in rows}
    assert shares["brighter"] == ["100%", "0%", ""] and shares["stop"] == ["0%", "100%", ""]
    assert shares["patches"] == ["5", "5", "0"]
    assert sorted(path.name for path in Path().iterdir()) == ["policy.png", "strips.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--agent", "nobody"], "agent must be one of"),
        (["-o", "policy.jpg"], "--output must be a path that ends in .png"),
        (["--strips", "strips"], "--strips must be a path that ends in .png"),
        (["--strips", "./policy.png"], "--strips must be another file than --output"),
        (["--harmed", "worse.gif"], "--harmed must be a path that ends in .png"),
        (["--harmed", "strips.png"], "--harmed must be another file than --strips"),
        (["--severity", "awful"], "severity must be one of"),
        (["--count", 0], "count must be at least 1"),
        (["--seed", -1], "seed must be at least 0"),
        (["--images", "no/such/folder"], "existing folder"),
        (["--split", "most"], "split must be one of"),
    ],
)
def test_bad_input_ends_in_one_sentence(run, words, message):
    status, out, err = run(*words)
    assert status == 2 and message in err and not out
    assert not list(Path().iterdir())
