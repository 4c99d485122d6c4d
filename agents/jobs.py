"""What ``restoration-env restore`` reads and writes, and what it refuses before it begins."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from restoration_env.agents.photo import Restoration, check_size, check_target
from restoration_env.errors import InvalidArgument
from restoration_env.photos import SUFFIXES, read_photo
from restoration_env.rendering import save_png


@dataclass(frozen=True)
class Job:
    """A photograph to restore.

    Attributes:
        source: the file that holds it.
        target: where the restored one is written.
        steps: folder for the photograph after each step, or None.
        named: whether it was asked for itself, not found in a folder.
    """

    source: Path
    target: Path
    steps: Path | None
    named: bool


def plan(photos: Sequence[Path], output: Path, steps: Path | None) -> list[Job]:
    """What to read and what to write.

    One file may be written to a file; several, and those in folders, go to a folder as PNG.

    Raises:
        InvalidArgument: if the output must be a folder and is not, or a folder holds no images.
    """
    several = len(photos) > 1 or photos[0].is_dir()
    if not output.is_dir() and (output.exists() or output.suffix.lower() in SUFFIXES) and several:
        raise InvalidArgument("--output", "a folder, for several photographs", repr(str(output)))
    if not several and not output.is_dir() and (output.exists() or output.suffix):
        folder = steps / photos[0].stem if steps else None
        return [Job(photos[0], output, folder, named=True)]
    jobs = []
    for photo in photos:
        files = list(_inside(photo, [output, *([steps] if steps else [])])) if photo.is_dir() else [photo]
        if not files:
            raise InvalidArgument(str(photo), "a folder with " + ", ".join(SUFFIXES) + " files")
        for file in files:
            place = file.relative_to(photo) if photo.is_dir() else Path(file.name)
            stem = place.parent / place.stem
            target = output / place.parent / f"{place.stem}.png"
            jobs.append(Job(file, target, steps / stem if steps else None, named=not photo.is_dir()))
    return jobs


def _inside(folder: Path, results: Sequence[Path]) -> Iterator[Path]:
    """The images in a folder, without those in a folder inside it that results are written to."""
    own = [path.resolve() for path in results if folder.resolve() in path.resolve().parents]
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in SUFFIXES and file.is_file():
            parents = file.resolve().parents
            if not any(path in parents for path in own):
                yield file


def check(jobs: Sequence[Job], overwrite: bool) -> None:
    """Refuse whatever can be known to fail, before anything is written.

    Raises:
        InvalidArgument: for two photographs with one target, files that are there already, and photographs
            asked for by name that cannot be read.
    """
    sources: dict[str, Path] = {}
    for job in jobs:
        check_target(job.target, overwrite=overwrite)
        other = sources.setdefault(str(job.target.absolute()).casefold(), job.source)
        if other is not job.source:
            got = f"{job.target} for both {other} and {job.source}"
            raise InvalidArgument("photos", "files of different names without their endings", got)
        if job.steps:
            check_target(job.steps / "step-0-input.png", overwrite=overwrite)
    for job in jobs:
        if job.named:
            check_size(read_photo(job.source), str(job.source))


def write_steps(job: Job, result: Restoration) -> list[str]:
    """Write each frame into the job's folder, in the place of those of an earlier run."""
    if job.steps is None:
        return []
    for old in job.steps.glob("step-*.png"):
        old.unlink()
    names = [re.sub(r"[^\w.-]+", "-", name) for name in ("input", *result.toolchain)]
    paths = [job.steps / f"step-{number}-{name}.png" for number, name in enumerate(names)]
    for path, frame in zip(paths, result.frames, strict=True):
        save_png(path, frame)
    return [str(path) for path in paths]
