"""A user study in one SQLite file: pictures, questions, raters and their answers (Wang et al., CVPR 2018, Section 4.2).

Part I shows two pictures of one scene, ours and one other method's, and asks which looks more natural; part II shows
several, the photograph itself among them, and asks to rank them. The order of the questions, and where each picture
stands, follow from the study's seed and the rater: nobody sees a name, no place tells anything, and a rater who comes
back goes on where they stopped.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from restoration_env.errors import InvalidArgument
from restoration_env.files import replacing

_TABLES = """
create table settings (name text primary key, value text not null);
create table pictures (
    scene text, method text, category text not null, sha256 text not null, png blob not null,
    primary key (scene, method));
create table questions (
    id integer primary key, part integer not null, scene text not null, category text not null, methods text not null);
create table raters (id integer primary key, token text unique not null, name text not null, began text not null);
create table answers (
    rater integer not null references raters, question integer not null references questions,
    shown text not null, ranked text not null, seconds real not null, given text not null,
    primary key (rater, question));
"""
COLUMNS = ("rater", "name", "part", "scene", "category", "shown", "ranked", "seconds", "given")


@dataclass(frozen=True)
class Question:
    """One question as one rater sees it; ``shown`` names the methods from left to right."""

    id: int
    part: int
    scene: str
    category: str
    shown: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """One answer; ``ranked`` names the methods from the best to the worst."""

    rater: int
    part: int
    scene: str
    category: str
    ranked: tuple[str, ...]
    seconds: float = 0.0


class Study:
    """A study's file.

    Args:
        path: as `make_study` wrote it.

    Raises:
        InvalidArgument: if it is no study.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        expected = "a file that `restoration-env study make` wrote"
        if not self.path.is_file():
            raise InvalidArgument("study", expected, f"no {self.path}")
        try:
            with self._open() as database:
                found = dict(database.execute("select name, value from settings"))
                self.questions = database.execute("select count(*) from questions").fetchone()[0]
            self.title, self.ours, self.seed = found["title"], found["ours"], found["seed"]
        except (sqlite3.DatabaseError, KeyError) as error:
            raise InvalidArgument("study", expected, f"{path}: {error}") from None

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=30.0)) as database, database:
            yield database

    def begin(self, name: str = "") -> str:
        """A new rater; returns the token that lets them go on later."""
        token = secrets.token_urlsafe(12)
        with self._open() as database:
            row = (token, name.strip()[:60], _now())
            database.execute("insert into raters (token, name, began) values (?, ?, ?)", row)
        return token

    def _rater(self, database: sqlite3.Connection, token: str) -> int:
        row = database.execute("select id from raters where token = ?", (token,)).fetchone()
        if row is None:
            raise InvalidArgument("rater", "the token of a rater of this study", repr(token))
        return row[0]

    def _order(self, rater: int, *about: object) -> str:
        return hashlib.sha256("|".join(map(str, (self.seed, rater, *about))).encode()).hexdigest()

    def _question(self, database: sqlite3.Connection, rater: int, number: int) -> Question:
        asked = "select part, scene, category, methods from questions where id = ?"
        row = database.execute(asked, (number,)).fetchone()
        if row is None:
            raise InvalidArgument("question", "the number of a question of this study", number)
        part, scene, category, methods = row
        shown = sorted(json.loads(methods), key=lambda method: self._order(rater, number, method))
        return Question(number, part, scene, category, tuple(shown))

    def next_question(self, token: str) -> tuple[Question | None, int]:
        """The rater's next question, None after the last, and how many they have answered. Part I comes first."""
        with self._open() as database:
            rater = self._rater(database, token)
            done = {row[0] for row in database.execute("select question from answers where rater = ?", (rater,))}
            left = [row for row in database.execute("select id, part from questions") if row[0] not in done]
            if not left:
                return None, len(done)
            number = min(left, key=lambda row: (row[1], self._order(rater, row[0])))[0]
            return self._question(database, rater, number), len(done)

    def picture(self, token: str, number: int, place: int) -> bytes:
        """The PNG that a rater sees at a place of a question, counted from 0."""
        with self._open() as database:
            question = self._question(database, self._rater(database, token), number)
            if not 0 <= place < len(question.shown):
                raise InvalidArgument("place", f"from 0 to {len(question.shown) - 1}", place)
            where = (question.scene, question.shown[place])
            return database.execute("select png from pictures where scene = ? and method = ?", where).fetchone()[0]

    def answer(self, token: str, number: int, places: Sequence[int], seconds: float = 0.0) -> None:
        """Keep an answer.

        Args:
            token: of the rater.
            number: of the question.
            places: the places of its pictures from the best to the worst, each once.
            seconds: how long the rater looked.

        Raises:
            InvalidArgument: for an unknown rater or question, places that are no ranking, and a second answer.
        """
        if not 0.0 <= seconds < math.inf:
            raise InvalidArgument("seconds", "0 or more", seconds)
        with self._open() as database:
            rater = self._rater(database, token)
            question = self._question(database, rater, number)
            if sorted(places) != list(range(len(question.shown))):
                expected = f"each of 0 to {len(question.shown) - 1} once, the best first"
                raise InvalidArgument("places", expected, list(places))
            ranked = json.dumps([question.shown[place] for place in places])
            row = (rater, number, json.dumps(question.shown), ranked, round(float(seconds), 2), _now())
            try:
                database.execute("insert into answers values (?, ?, ?, ?, ?, ?)", row)
            except sqlite3.IntegrityError:
                raise InvalidArgument("question", "one that this rater has not answered yet", number) from None

    def _rows(self) -> list[tuple[Any, ...]]:
        with self._open() as database:
            return database.execute(
                "select raters.id, raters.name, part, scene, category, shown, ranked, seconds, given from answers "
                "join raters on raters.id = rater join questions on questions.id = question order by raters.id, given"
            ).fetchall()

    def answers(self) -> list[Answer]:
        """All answers so far."""
        return [Answer(r[0], r[2], r[3], r[4], tuple(json.loads(r[6])), r[7]) for r in self._rows()]

    def export(self, path: str | Path) -> int:
        """Write all answers as CSV, methods separated by ">" from best to worst; returns how many."""
        rows, text = self._rows(), io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            shown, ranked = " | ".join(json.loads(row[5])), " > ".join(json.loads(row[6]))
            writer.writerow((*row[:5], shown, ranked, *row[7:]))
        with replacing(path) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")
        return len(rows)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def make_study(
    path: str | Path,
    pictures: str | Path,
    ours: str,
    against: Sequence[str] = (),
    ranked: Sequence[str] = (),
    *,
    title: str = "Which picture looks more natural?",
    per_category: int = 0,
    seed: int = 0,
) -> Study:
    """Write a new study.

    Args:
        path: the file to write.
        pictures: a folder that holds ``<method>/<category>/<scene>.png``, the same scenes for each method.
        ours: the method of part I.
        against: other methods of part I, each against ours.
        ranked: methods of part II.
        title: what raters read above the first page.
        per_category: scenes of each category, evenly chosen; 0 takes all.
        seed: of the order in which everything is shown.

    Raises:
        InvalidArgument: if the file is there already, a method has no pictures or lacks a scene, pictures of a scene
            differ in size, or there is nothing to compare.
    """
    path, pictures = Path(path), Path(pictures)
    if path.exists():
        raise InvalidArgument("study", "a new file, so that no answers are lost", f"{path}, which exists")
    if not against and len(ranked) < 2:
        raise InvalidArgument("methods", "one to set against ours, or two to rank", "none")
    if ours in against or len(set(against)) < len(against) or len(set(ranked)) < len(ranked):
        raise InvalidArgument("methods", "each named once", ", ".join((ours, *against, *ranked)))
    methods = list(dict.fromkeys((*((ours,) if against else ()), *against, *ranked)))
    found = {method: _scenes(pictures, method) for method in methods}
    scenes = _chosen(found[methods[0]], per_category)
    rows = []
    for scene, category in scenes.items():
        sizes = set()
        for method in methods:
            if found[method].get(scene) != category:
                missing = pictures / method / category / f"{scene}.png"
                raise InvalidArgument("pictures", "a folder with every scene of every method", f"no {missing}")
            png = (pictures / method / category / f"{scene}.png").read_bytes()
            try:
                with Image.open(io.BytesIO(png)) as image:
                    image.verify()
                    sizes.add(image.size)
            except Exception as error:  # Pillow raises many kinds for damaged bytes
                raise InvalidArgument("pictures", "PNG files", f"{scene}.png of {method}: {error}") from None
            rows.append((scene, method, category, hashlib.sha256(png).hexdigest(), png))
        if len(sizes) > 1:
            raise InvalidArgument("pictures", "of one size for each scene", f"{scene}: {sorted(sizes)}")
    questions = [(1, scene, category, [ours, other]) for scene, category in scenes.items() for other in against]
    questions += [(2, scene, category, list(ranked)) for scene, category in scenes.items() if ranked]
    with replacing(path) as temporary, closing(sqlite3.connect(temporary)) as database, database:
        database.executescript(_TABLES)
        settings = {"title": title, "ours": ours, "seed": str(seed), "made": _now()}
        database.executemany("insert into settings values (?, ?)", settings.items())
        database.executemany("insert into pictures values (?, ?, ?, ?, ?)", rows)
        database.executemany(
            "insert into questions (part, scene, category, methods) values (?, ?, ?, ?)",
            [(part, scene, category, json.dumps(sorted(names))) for part, scene, category, names in questions],
        )
    return Study(path)


def _scenes(folder: Path, method: str) -> dict[str, str]:
    """The category of each scene of a method."""
    files = sorted((folder / method).glob("*/*.png")) if method else []
    if not files:
        raise InvalidArgument("pictures", f"a folder with {method}/<category>/<scene>.png", folder)
    found: dict[str, str] = {}
    for file in files:
        if file.stem in found:
            raise InvalidArgument("pictures", "scenes with a name of their own", f"{file.stem} twice in {method}")
        found[file.stem] = file.parent.name
    return found


def _chosen(scenes: dict[str, str], per_category: int) -> dict[str, str]:
    """So many scenes of each category, evenly chosen."""
    if per_category < 0:
        raise InvalidArgument("per_category", "0 or more", per_category)
    kept: dict[str, str] = {}
    for category in sorted(set(scenes.values())):
        names = sorted(scene for scene, its in scenes.items() if its == category)
        count = min(per_category or len(names), len(names))
        kept |= {names[len(names) * i // count]: category for i in range(count)}
    return kept
