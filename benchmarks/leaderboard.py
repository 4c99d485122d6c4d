"""The leaderboard: entries on suites, measured job by job, kept job by job, and put together into one table.

A job is one entry on one suite of one seed. What it finds is a function of the job alone, and stands in a file of its
own under a name that digests suite, weights and settings. So a run that was interrupted goes on, workers on other
machines may do the jobs in any order, a job that is done twice is counted once, and the table is always the same.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from restoration_env.benchmarks.comparison import (
    Entry,
    Measurement,
    Row,
    bootstrap_interval,
    fingerprint,
    measure,
    parameters,
    summarise,
)
from restoration_env.benchmarks.entries import Sources, load_entry, oracle_names
from restoration_env.benchmarks.suites import SEED, Suite, build_suite, suite_specification
from restoration_env.errors import InvalidArgument, check_at_least
from restoration_env.files import write_json

VERSION = 1  # of what is measured and how; another one measures everything anew
PATCH_SUITES = ("mild", "moderate", "severe")
Tell = Callable[[int, int, str], None]  # jobs done, in all, and what is measured now


@dataclass(frozen=True)
class Protocol:
    """What decides the numbers of a table, beside the entries.

    Attributes:
        suites: their names.
        images: a source of clean images.
        split: which part of it.
        count: patches of each suite and seed; None for the default of the suite.
        seeds: how many seeds, each with patches of its own.
        real: the photographs of the suite "real".
        looks: also measure LPIPS.
    """

    suites: tuple[str, ...] = PATCH_SUITES
    images: str = "bundled"
    split: str = "test"
    count: int | None = None
    seeds: int = 1
    real: str = "bundled-real"
    looks: bool = True

    def __post_init__(self) -> None:
        for name in self.suites:
            suite_specification(name)
        if not self.suites or len(set(self.suites)) < len(self.suites):
            raise InvalidArgument("suites", "at least one, none twice", self.suites)
        check_at_least(1, seeds=self.seeds, **({} if self.count is None else {"count": self.count}))

    def build(self, suite: str, seed: int = SEED) -> Suite:
        """A suite of this protocol; seeds count from `SEED` on."""
        return build_suite(suite, self.images, self.split, self.count, seed=seed, real=self.real)


@dataclass(frozen=True)
class Job:
    """One entry on one suite of one seed: all that a worker needs to know."""

    entry: str
    suite: str
    seed: int
    protocol: Protocol
    sources: Sources

    def key(self) -> str:
        """A digest of all that decides what this job finds."""
        entry, suite = load_entry(self.entry, self.sources), self.protocol.build(self.suite, self.seed)
        facts = [VERSION, suite.digest, entry.max_steps, self.protocol.looks, self.sources.precision]
        text = repr(facts) + fingerprint(entry.label, entry.policy, entry.toolbox)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def measure(self) -> Measurement:
        """Do it."""
        entry, suite = load_entry(self.entry, self.sources), self.protocol.build(self.suite, self.seed)
        return measure(entry.policy, entry.toolbox, suite, max_steps=entry.max_steps, looks=self.protocol.looks)


class Store:
    """What jobs found, each in a file of its own."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        """Where a job's measurement stands."""
        return self.folder / f"{key}.json"

    def __contains__(self, key: str) -> bool:
        return self.path(key).is_file()

    def write(self, key: str, job: Job, measured: Measurement) -> None:
        """Keep what a job found; doing it twice changes nothing."""
        about = {"entry": job.entry, "suite": job.suite, "seed": job.seed}
        write_json(self.path(key), {**about, **plain(measured)})

    def read(self, key: str) -> Measurement:
        """What a job found."""
        held = json.loads(self.path(key).read_text(encoding="utf-8"))
        values = {name: held[name] for name in asdict(Measurement())}
        return Measurement(**{name: _numbers(value) for name, value in values.items()})


def plain(measured: Measurement) -> dict[str, Any]:
    """A measurement as JSON holds it: six decimals, None for what nobody knows."""

    def short(value: Any) -> Any:
        if isinstance(value, list):
            return [short(part) for part in value]
        return value if isinstance(value, int) else round(value, 6) if math.isfinite(value) else None

    return {name: short(value) for name, value in asdict(measured).items()}


def _numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_numbers(part) for part in value]
    return math.nan if value is None else value


Spread = Callable[[Mapping[str, Job]], Iterator[tuple[str, Measurement]]]  # does jobs, in any order


def one_by_one(jobs: Mapping[str, Job]) -> Iterator[tuple[str, Measurement]]:
    """Do jobs here, one after the other."""
    for key, job in jobs.items():
        yield key, job.measure()


def run(
    names: Sequence[str],
    protocol: Protocol,
    sources: Sources,
    folder: str | Path,
    *,
    spread: Spread = one_by_one,
    tell: Tell = lambda done, total, note: None,
) -> dict[str, Any]:
    """Measure entries and the oracles of their toolboxes on suites, as far as that has not been done.

    Args:
        names: of the entries, as `load_entry` takes them.
        protocol: on what they are measured, and how.
        sources: where entries come from.
        folder: keeps what jobs found.
        spread: does the jobs.
        tell: told of progress.

    Returns:
        The suites of the table by name: where the images come from, how many, the sha256 of each seed, and the rows.

    Raises:
        InvalidArgument: for unknown entries, two of the same label, and weights that are missing.
    """
    entries = {name: load_entry(name, sources) for name in names}
    labels = [entry.label for entry in entries.values()]
    if len(set(labels)) < len(labels):
        twice = sorted({label for label in labels if labels.count(label) > 1})
        raise InvalidArgument("entries", "of different labels", ", ".join(twice))
    for name in oracle_names(list(entries.values()), sources):
        entries.setdefault(name, load_entry(name, sources))
    store, keys, jobs = Store(folder), dict[tuple[str, str, int], str](), dict[str, Job]()
    for suite in protocol.suites:
        for seed in range(SEED, SEED + protocol.seeds if suite != "real" else SEED + 1):
            for name, entry in entries.items():
                if _fits(entry, suite):
                    job = Job(name, suite, seed, protocol, sources)
                    keys[name, suite, seed] = key = job.key()
                    jobs[key] = job
    todo = {key: job for key, job in jobs.items() if key not in store}
    done = len(jobs) - len(todo)
    tell(done, len(jobs), _note(next(iter(todo.values()), None)))
    waiting = iter([*list(todo.values())[1:], None])
    for key, measured in spread(todo):
        store.write(key, jobs[key], measured)
        done += 1
        tell(done, len(jobs), _note(next(waiting)))
    return {suite: _table(suite, entries, protocol, keys, store) for suite in protocol.suites}


def _fits(entry: Entry, suite: str) -> bool:
    """Oracles need a clean image; a policy of Stable-Baselines3 takes patches of one size."""
    kind = suite_specification(suite).kind
    return kind == "patches" or not (entry.family == "oracle" or hasattr(entry.policy, "model"))


def _note(job: Job | None) -> str:
    return f"{job.entry} on {job.suite}" if job else ""


def _table(
    suite: str, entries: Mapping[str, Entry], protocol: Protocol, keys: Mapping[tuple[str, str, int], str], store: Store
) -> dict[str, Any]:
    """One suite of the table: its seeds put together, and the regret to the oracle of each toolbox."""
    rows: list[Row] = []
    seeds = sorted({seed for _, name, seed in keys if name == suite})
    for name, entry in entries.items():
        found = [store.read(keys[name, suite, seed]) for seed in seeds if (name, suite, seed) in keys]
        if found:
            whole = Measurement()
            for part in found:
                whole.extend(part)
            rows.append({**entry_facts(name, entry), **summarise(whole, entry.toolbox)})
    built = [protocol.build(suite, seed) for seed in seeds]
    return {
        "patches": sum(len(part) for part in built),
        "images": built[0].source,
        "sha256": [part.digest for part in built],
        "rows": know_regrets(rows),
    }


def know_regrets(rows: Sequence[Row]) -> list[Row]:
    """Rows with their regret to the oracle of their toolbox, where the table has one."""
    best = {row["toolbox"]: row["gain"] for row in rows if row["family"] == "oracle" and "gain" in row}
    return [
        {**row, "regret": round(best[row["toolbox"]] - row["gain"], 4)}
        if row["toolbox"] in best and "gain" in row
        else row
        for row in rows
    ]


def paired_differences(
    name: str, others: Sequence[str], protocol: Protocol, sources: Sources, folder: str | Path
) -> dict[str, dict[str, Row]]:
    """How far an entry is above others, image by image on the same images, as far as they have been measured.

    A difference of means hides how much of its uncertainty both share; the bootstrap is over the differences.

    Args:
        name: of the entry.
        others: names of those it is held against.
        protocol: on what they were measured.
        sources: where they come from.
        folder: keeps what was measured.

    Returns:
        By the other's label and by suite: ``difference`` in dB of PSNR, with ``low`` and ``high`` of its 95 % interval.
    """
    store, found = Store(folder), dict[str, dict[str, Row]]()
    for other in others:
        label = load_entry(other, sources).label
        for suite in protocol.suites:
            pairs = []
            for seed in range(SEED, SEED + protocol.seeds):
                keys = [Job(entry, suite, seed, protocol, sources).key() for entry in (name, other)]
                if all(key in store for key in keys):
                    ours, theirs = (np.array(store.read(key).psnr_out) for key in keys)
                    pairs.append(ours - theirs)
            if pairs and np.isfinite(pairs[0]).all():
                values = np.concatenate(pairs)
                low, high = bootstrap_interval(values)
                row = {"difference": round(float(values.mean()), 4), "low": low, "high": high}
                found.setdefault(label, {})[suite] = row
    return found


def entry_facts(name: str, entry: Entry) -> Row:
    """What a row says of its entry, whatever the suite."""
    return {
        "entry": name if not Path(name).is_absolute() else Path(name).name,
        "policy": entry.label,
        "family": entry.family,
        "toolbox": entry.toolbox.name,
        "parameters": parameters(entry),
        "training_patches": entry.training_patches,
        "training_seconds": entry.training_seconds,
        "training_data": entry.training_data,
    }
