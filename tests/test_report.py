"""The web page of the leaderboard, looked at in a real browser, and what it is made of."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from helpers import tiny
from PIL import Image

from restoration_env.agents.policies import FixedChain
from restoration_env.benchmarks.ablations import ablation_table, ablations
from restoration_env.benchmarks.comparison import Entry
from restoration_env.benchmarks.entries import Sources
from restoration_env.benchmarks.leaderboard import Protocol
from restoration_env.benchmarks.report import pareto, pareto_front, write_report
from restoration_env.benchmarks.scenes import damaged_scenes, real_scenes, strips

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (Debian package: chromium)")


def row(policy, gain, cost, family="toolchain", **more):
    return {"policy": policy, "family": family, "gain": gain, "multiply_adds": cost, **more}


ROWS = [
    row("agent <b>", 3.5, 4e8, lpips=0.30),
    row("small", 2.0, 1e8, "single network", lpips=0.10),
    row("large", 3.9, 17e8, "single network", lpips=0.20),
    row("dear", 3.0, 9e8, "published", lpips=None),
    row("oracle", 5.0, 4e8, "oracle", lpips=0.25),
]
SUITE = {"patches": 5, "images": "some", "sha256": ["a" * 64]}
BOARD = {
    **{"command": "restoration-env leaderboard run", "version": "1", "commit": "abc", "device": "CPU", "threads": 1},
    "suites": {"mild": {**SUITE, "rows": ROWS[:2]}, "severe": {**SUITE, "rows": ROWS}},
}


def entries():
    box = tiny()
    return [
        Entry("blur, darken", FixedChain(box, ["blur", "darken"]), box),
        Entry("darken", FixedChain(box, ["darken"]), box),
    ]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    scenes = [*damaged_scenes(entries(), severities=("severe",), side=64), *real_scenes(entries(), count=1)]
    table = "| Stop | severe |\n|---|---|\n| without | +1.00 ± 0.10 |\n\nA note."
    return write_report(tmp_path_factory.mktemp("report"), BOARD, scenes, [("Ablations", table)])


def browse(page, tmp_path, address, *arguments):
    """What Chromium prints of a page, without a profile and without the network."""
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    quiet += [
        "--no-first-run",
        "--disable-component-update",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path}/profile",
    ]
    environment = {**os.environ, "HOME": str(tmp_path)}
    command = [BROWSER, *quiet, *arguments, f"{page.as_uri()}{address}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


@needs_browser
def test_the_page_sorts_and_chooses_suites_and_pictures_in_a_browser(page, tmp_path):
    shown = browse(page, tmp_path, "#suite=severe&sort=lpips&zoom=4", "--dump-dom")
    assert 'data-ready="true"' in shown  # the script ran to its end
    section = shown[shown.index('id="severe"') :]
    order = re.findall(r'<tr class="[a-z]+"><td data-value="([^"]+)"', section)
    assert order == ["small", "large", "oracle", "agent &lt;b&gt;", "dear"]  # less is better, nothing known last
    assert re.search(r'data-key="lpips"[^>]*aria-sort="ascending"', section)
    assert re.search(r'<section class="suite" id="mild" hidden=""', shown)
    assert shown.count("scale(4)") == 2  # both pictures
    assert '<img alt="damaged" src="images/0-0.png"' in shown and "blur &gt; darken" in shown


@needs_browser
def test_the_page_is_seen(page, tmp_path):
    browse(page, tmp_path, "#suite=severe", "--window-size=1200,1700", f"--screenshot={tmp_path}/page.png")
    seen = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).astype(int)
    assert seen.shape == (1700, 1200, 3)
    assert (seen.std(axis=2) > 12).mean() > 0.001  # coloured dots of the plot, and the button
    dark = (seen.sum(axis=2) < 250).mean()
    assert 0.005 < dark < 0.6  # text and pictures on paper


def test_the_page_stands_alone_and_shows_only_what_is_there(page):
    text = page.read_text()
    assert "{{" not in text and "agent <b>" not in text
    assert not re.search(r'(src|href)="(https?:)?//', text)  # nothing from elsewhere
    scenes = json.loads(re.search(r'id="scenes">(.*?)</script>', text, re.S)[1])
    assert [len(scene["pictures"]) for scene in scenes] == [4, 3]  # damaged, two entries, clean; no clean photograph
    for scene in scenes:
        for picture in scene["pictures"]:
            assert (page.parent / picture["file"]).is_file()
    assert "dB" in scenes[0]["pictures"][1]["caption"] and "dB" not in scenes[1]["pictures"][1]["caption"]
    assert "<td>+1.00 ± 0.10</td>" in text and "<p>A note.</p>" in text


def test_the_front_is_what_nothing_cheaper_beats():
    assert [row["policy"] for row in pareto_front(ROWS)] == ["small", "agent <b>", "large"]
    picture = pareto(ROWS)
    assert picture.count("<circle") == 5 and picture.count("polyline") == 1
    assert pareto([{"policy": "a", "gain": 1.0, "multiply_adds": None}]) == ""


def test_strips_show_every_step_and_a_single_network():
    scenes = damaged_scenes(entries(), severities=("severe",), side=64)
    assert [picture.name for picture in scenes[0].steps] == ["input", "blur", "darken"]
    with_single, without = strips(scenes, ["darken"]), strips(scenes)
    assert with_single.shape[1] > without.shape[1]
    assert strips(real_scenes(entries(), count=2)).ndim == 3


def test_a_single_network_stands_in_the_same_column_of_every_strip():
    (scene,) = damaged_scenes(entries(), severities=("severe",), side=64)
    shorter = replace(scene, steps=scene.steps[:2])
    stopped = replace(shorter.steps[-1], name="stop")
    filled = replace(scene, steps=(*shorter.steps, stopped))
    assert (strips([scene, shorter], ["darken"]) == strips([scene, filled], ["darken"])).all()


def test_ablations_are_measured_and_drawn(tmp_path):
    titles = []

    def tell(title):
        titles.append(title)
        return lambda done, total, note: None

    protocol = Protocol(suites=("severe",), count=1, looks=False)
    found = ablations("drqn", "", protocol, Sources(), tmp_path, tell=tell)
    assert list(found) == ["stop", "tools", "steps"] and len(titles) == 2 + 5 + 8
    steps = {words: rows["severe"]["gain"] for words, rows in found["steps"]["rows"].items()}
    oracle = [steps[f"{count}, oracle"] for count in (1, 2, 3, 4)]
    assert oracle == sorted(oracle)
    tools = {words: rows["severe"]["gain"] for words, rows in found["tools"]["rows"].items()}
    assert tools["eighteen, oracle"] > 0 and tools["twelve, oracle"] == pytest.approx(oracle[2], abs=1e-3)
    text = ablation_table(found["stop"])
    assert text.startswith("| With the stop action and without | severe | harmed | tools |")
    assert f"| without | {found['stop']['rows']['without']['severe']['gain']:+.2f} ±" in text
