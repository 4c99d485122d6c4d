"""The user study: its file, its order, its page, and what its answers say. All raters here are synthetic."""

import csv
import http.client
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scenery import write_scenes
from synthetic_raters import METHODS, SCENES, TRUE, rate, write_pictures, write_study

from restoration_env.benchmarks import study_server as study_server_module
from restoration_env.benchmarks.study import COLUMNS, Study, make_study
from restoration_env.benchmarks.study_server import study_server
from restoration_env.cli import main
from restoration_env.errors import InvalidArgument

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (Debian: chromium)")


@pytest.fixture
def study(tmp_path):
    return write_study(tmp_path)


@pytest.fixture
def address(study):
    """A running server's host and port."""
    with study_server(study, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[0], server.server_address[1]
        server.shutdown()
        thread.join()


def ask(address, path, body=None):
    connection = http.client.HTTPConnection(*address, timeout=20)
    connection.request("POST" if body is not None else "GET", path, None if body is None else json.dumps(body))
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    kind = answer.headers["Content-Type"]
    return answer.status, json.loads(content) if kind == "application/json" else content


def test_a_rater_sees_every_question_once_part_one_first(study):
    token, seen = study.begin("synthetic rater"), []
    while (found := study.next_question(token))[0]:
        question, done = found
        assert done == len(seen)
        seen.append((question.part, question.scene, frozenset(question.shown)))
        study.answer(token, question.id, range(len(question.shown)))
    assert [part for part, _, _ in seen] == [1] * 4 + [2] * 4
    assert len(set(seen)) == 8 == study.questions
    assert {methods for part, _, methods in seen if part == 1} == {frozenset(("ours", "gan"))}
    assert {methods for part, _, methods in seen if part == 2} == {frozenset(METHODS)}


def test_orders_and_places_differ_between_raters_and_tell_nothing(study):
    firsts, left = Counter(), Counter()
    for number in range(60):
        token = study.begin(f"synthetic rater {number}")
        question = study.next_question(token)[0]
        firsts[question.scene] += 1
        left[question.shown[0]] += 1
    assert set(firsts) == set(SCENES)
    assert 15 < left["ours"] < 45  # of 60 first places: neither method is always on the left


def test_a_rater_who_comes_back_goes_on_where_they_stopped(study):
    token = rate(study, 1, TRUE, count=3)
    before = study.next_question(token)
    again = Study(study.path)
    assert again.next_question(token) == before and before[1] == 3
    pictures = [again.picture(token, before[0].id, place) for place in range(2)]
    assert pictures == [study.picture(token, before[0].id, place) for place in range(2)] and pictures[0] != pictures[1]


def test_the_picture_at_a_place_is_that_of_the_method_that_the_answer_names(study, tmp_path):
    token = study.begin()
    question = study.next_question(token)[0]
    for place, method in enumerate(question.shown):
        file = tmp_path / "pictures" / method / question.category / f"{question.scene}.png"
        assert study.picture(token, question.id, place) == file.read_bytes()
    study.answer(token, question.id, [1, 0], 2.5)
    (kept,) = study.answers()
    assert kept.ranked == (question.shown[1], question.shown[0]) and kept.seconds == 2.5


def test_bad_answers_are_refused_and_nothing_is_kept(study):
    token = study.begin()
    question = study.next_question(token)[0]
    for places in ([0], [0, 0], [0, 2], [0, 1, 2]):
        with pytest.raises(InvalidArgument, match="places"):
            study.answer(token, question.id, places)
    with pytest.raises(InvalidArgument, match="rater"):
        study.answer("nobody", question.id, [0, 1])
    with pytest.raises(InvalidArgument, match="question"):
        study.answer(token, 99, [0, 1])
    with pytest.raises(InvalidArgument, match="seconds"):
        study.answer(token, question.id, [0, 1], math.nan)
    assert study.answers() == []
    study.answer(token, question.id, [0, 1])
    with pytest.raises(InvalidArgument, match="not answered yet"):
        study.answer(token, question.id, [1, 0])
    assert len(study.answers()) == 1


def test_answers_are_exported_as_csv(study, tmp_path):
    rate(study, 1, TRUE)
    assert study.export(tmp_path / "answers.csv") == 8
    with open(tmp_path / "answers.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 8
    assert {row["name"] for row in rows} == {"synthetic rater 1"}
    for row, kept in zip(rows, study.answers(), strict=True):
        assert row["ranked"].split(" > ") == list(kept.ranked)
        assert sorted(row["shown"].split(" | ")) == sorted(kept.ranked)


def test_studies_that_cannot_be_made_say_why_and_leave_no_file(tmp_path):
    folder = write_pictures(tmp_path / "pictures")

    def refused(match, **changes):
        settings = {"ours": "ours", "against": ["gan"], "ranked": METHODS, **changes}
        with pytest.raises(InvalidArgument, match=match):
            make_study(tmp_path / "new.db", folder, **settings)
        assert not list(tmp_path.glob("*.db*"))

    refused("nobody/<category>", against=["nobody"])
    refused("each named once", against=["ours"])
    refused("two to rank", against=[], ranked=["ours"])
    refused("per_category", per_category=-1)
    Image.new("RGB", (8, 8)).save(folder / "gan" / "water" / "sea.png")
    refused("of one size")
    (folder / "gan" / "water" / "sea.png").write_bytes(b"no picture")
    refused("PNG files")
    (folder / "gan" / "water" / "sea.png").unlink()
    refused("every scene of every method")
    (tmp_path / "answers.txt").write_text("not a study")
    with pytest.raises(InvalidArgument, match="study"):
        Study(tmp_path / "answers.txt")
    with pytest.raises(InvalidArgument, match="new file"):
        make_study(tmp_path / "answers.txt", folder, "ours", ["gan"])
    assert (tmp_path / "answers.txt").read_text() == "not a study"


def test_scenes_of_a_category_can_be_limited(tmp_path):
    study = write_study(tmp_path, per_category=1)
    assert study.questions == 6  # of four scenes two are of water


def test_the_page_names_no_method_and_answers_are_kept(address, study):
    status, page = ask(address, "/")
    token = ask(address, "/begin", {"name": "synthetic rater"})[1]["rater"]
    said = ask(address, f"/next?rater={token}")[1]
    assert status == 200 and said["total"] == 8 and said["question"]["count"] == 2
    status, png = ask(address, f"/picture?rater={token}&question={said['question']['id']}&place=0")
    assert status == 200 and png.startswith(b"\x89PNG")
    secrets = [f'"{method}"' for method in METHODS] + [f"{scene}.png" for scene in SCENES] + list(SCENES.values())
    assert not [secret for secret in secrets for text in (page.decode(), json.dumps(said)) if secret in text]
    given_answer = {"rater": token, "question": said["question"]["id"], "places": [1, 0], "seconds": 1.5}
    assert ask(address, "/answer", given_answer) == (200, {"kept": True})
    assert len(study.answers()) == 1


@pytest.mark.parametrize(
    ("path", "body", "match"),
    [
        ("/next?rater=nobody", None, "rater must be the token"),
        ("/next", None, "not complete"),
        ("/picture?rater=nobody&question=1&place=0", None, "rater"),
        ("/answer", {"rater": "nobody", "question": 1, "places": [0, 1], "seconds": 1}, "rater"),
        ("/answer", {"rater": "nobody"}, "not complete"),
        ("/answer", [1, 2], "JSON object"),
        ("/begin", {"name": "x" * 20_000}, "bytes"),
        ("/answers.csv", None, "no such page"),
    ],
)
def test_bad_requests_get_a_clear_answer(address, path, body, match):
    status, said = ask(address, path, body)
    assert status in (400, 404) and match in said["error"]


def test_the_server_listens_on_this_machine_only_and_says_when_it_cannot(study):
    with study_server(study, port=0) as server:
        assert server.server_address[0] == "127.0.0.1"
        with pytest.raises(InvalidArgument, match="host and port"):
            study_server(study, port=server.server_address[1])


def test_the_commands_make_export_and_analyse(tmp_path, capsys):
    write_pictures(tmp_path / "pictures")
    path = str(tmp_path / "study.db")
    ranked = [word for method in METHODS for word in ("--ranked", method)]
    assert (
        run(
            "study",
            "make",
            path,
            "--pictures",
            str(tmp_path / "pictures"),
            "--ours",
            "ours",
            "--against",
            "gan",
            *ranked,
        )
        == 0
    )
    assert run("study", "analyse", path) == 2
    assert "nobody has rated yet" in capsys.readouterr().err
    for number in range(3):
        rate(Study(path), number, TRUE)
    assert run("study", "export", path, "-o", str(tmp_path / "a.csv")) == 0
    options = ["--json", str(tmp_path / "a.json"), "--chart", str(tmp_path / "a.png"), "--draws", "50"]
    assert run("study", "analyse", path, *options) == 0
    assert "Part I: ours preferred" in capsys.readouterr().out
    assert json.loads((tmp_path / "a.json").read_text())["raters"] == 3 and (tmp_path / "a.png").stat().st_size > 1000
    assert run("study", "serve", str(tmp_path / "none.db")) == 2


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


def chromium(*options, folder):
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--disable-sync", "--no-first-run", f"--user-data-dir={folder}", "--virtual-time-budget=8000"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_browser
def test_a_browser_shows_the_pictures_of_the_raters_next_question(address, study, tmp_path):
    token = rate(study, 1, TRUE, count=4)  # part I is done
    question = study.next_question(token)[0]
    page = f"http://{address[0]}:{address[1]}/?rater={token}"
    shot = tmp_path / "page.png"
    dom = chromium("--dump-dom", page, folder=tmp_path / "profile")
    assert f'data-ready="{question.id}"' in dom and "Part 2, 5 of 8" in dom
    assert dom.count('src="/picture?rater=') == 4
    chromium(f"--screenshot={shot}", "--window-size=1280,900", page, folder=tmp_path / "profile")
    pixels = np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3)
    for method in METHODS:  # each picture is of one colour, and all four are on the page
        path = Path(tmp_path, "pictures", method, question.category, f"{question.scene}.png")
        colour = np.asarray(Image.open(path).convert("RGB"))[0, 0]
        assert (np.abs(pixels.astype(int) - colour).max(1) <= 3).sum() > 10_000


SYNTHETIC_RATER = """<script>setInterval(() => {
  const begin = document.getElementById("begin"), send = document.getElementById("send");
  if (begin) { document.querySelector("input").value = "synthetic rater in a browser"; begin.click(); }
  else if (send && !send.disabled) send.click();
  else document.querySelector(".pictures button:not(.chosen)")?.click();
}, 40);</script></body>"""


@needs_browser
def test_a_browser_goes_through_the_whole_study_by_clicks(address, study, tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    page.write_text(study_server_module._PAGE.read_text().replace("</body>", SYNTHETIC_RATER))
    monkeypatch.setattr(study_server_module, "_PAGE", page)
    dom = chromium("--dump-dom", f"http://{address[0]}:{address[1]}/", folder=tmp_path / "profile")
    assert 'id="thanks"' in dom and "All 8 answers are kept" in dom
    answers = study.answers()
    assert [len(answer.ranked) for answer in answers] == [2] * 4 + [4] * 4
    assert len({answer.rater for answer in answers}) == 1 and all(answer.seconds >= 0 for answer in answers)
    study.export(tmp_path / "answers.csv")
    assert "synthetic rater in a browser" in (tmp_path / "answers.csv").read_text()


def test_the_command_serves_until_it_is_interrupted(study):
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # some shells have it ignored
    program += "from restoration_env.cli import main; main()"
    command = [sys.executable, "-c", program, "study", "serve", str(study.path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            host, port = re.search(r"http://([\d.]+):(\d+)/", process.stdout.readline()).groups()
            status, page = ask((host, int(port)), "/")
            assert status == 200 and b"Picture study" in page and host == "127.0.0.1"
        finally:
            process.send_signal(signal.SIGINT)
        assert "0 answers" in process.stdout.read() and process.wait(timeout=60) == 0


def test_pictures_of_held_out_scenes_make_a_study(tmp_path):
    folder = write_scenes(tmp_path / "scenes", count=40, categories=8)
    out = tmp_path / "pictures"
    assert run("study", "pictures", "bicubic", "--scenes", str(folder), "--out", str(out), "--per-category", "2") == 0
    files = sorted(path.relative_to(out / "bicubic") for path in (out / "bicubic").glob("*/*.png"))
    assert files and all((out / "photograph" / file).is_file() for file in files)
    counts = Counter(file.parent.name for file in files)
    assert max(counts.values()) <= 2 and "background" not in counts
    study = make_study(tmp_path / "s.db", out, "bicubic", ranked=["photograph", "bicubic"])
    assert study.questions == len(files)
    assert run("study", "pictures", "bicubic", "--scenes", str(folder), "--out", str(out), "--per-category", "0") == 2
