"""Tables that grow: rows of an earlier result stand beside those measured now, if both were measured on the same.

Who adds one row to a table of twenty need not measure nineteen again. Each row that is taken over says with which
command, on which machine and at which commit it was made.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from restoration_env.benchmarks.agent_study import Contestant
from restoration_env.benchmarks.entries import Sources, load_entry
from restoration_env.benchmarks.leaderboard import entry_facts, know_regrets
from restoration_env.errors import InvalidArgument

_MADE = ("command", "version", "commit", "torch", "device", "threads")
_WEIGHTS = ("toolbox", "parameters", "training_patches", "training_seconds", "training_data")


def with_board(board: Mapping[str, Any], earlier: Mapping[str, Any], sources: Sources) -> dict[str, Any]:
    """A leaderboard with the rows of an earlier one that it does not have itself.

    Args:
        board: as `restoration-env leaderboard run` makes it.
        earlier: another one, of the same protocol.
        sources: where entries come from.

    Returns:
        The table in the order of the earlier one, new rows after its own; the regret of each row is to the oracle of
        its toolbox in this table.

    Raises:
        InvalidArgument: if the earlier table was measured on other images, in another precision or with other steps,
            or one of its rows with weights that an entry of that name no longer has; the message says which.
    """
    _same("protocol", earlier.get("protocol", {}), json.loads(json.dumps(board["protocol"])))
    _same("settings", _settings(earlier), {"precision": sources.precision, "max_steps": sources.max_steps})
    sources = replace(sources, oracle="greedy") if sources.oracle == "none" else sources  # to look at kept oracles
    suites = {}
    for name, suite in board["suites"].items():
        held = earlier["suites"].get(name, {})
        _same("sha256", {"sha256": held.get("sha256")}, {"sha256": suite["sha256"]})
        new = {row["policy"]: row for row in suite["rows"]}
        rows = [
            new.pop(row["policy"]) if row["policy"] in new else _kept(row, earlier, sources) for row in held["rows"]
        ]
        suites[name] = {**suite, "rows": know_regrets([*rows, *new.values()])}
    return {**board, "suites": suites}


def _settings(board: Mapping[str, Any]) -> dict[str, Any]:
    """How a table was played, which its command alone says."""
    usual, words = Sources(), board.get("command", "").split()
    given = dict(itertools.pairwise(words))
    return {
        "precision": given.get("--precision", usual.precision),
        "max_steps": int(given.get("--max-steps", usual.max_steps)),
    }


def _kept(row: Mapping[str, Any], earlier: Mapping[str, Any], sources: Sources) -> dict[str, Any]:
    """A row that is taken over, after a look at whether its entry is still the same."""
    try:
        facts = {} if row.get("submitted") else entry_facts(row["entry"], load_entry(row["entry"], sources))
    except InvalidArgument:  # its weights are not here, so they have not changed here
        facts = {}
    changed = [key for key in _WEIGHTS if facts and facts[key] != row.get(key)]
    if changed:
        said = ", ".join(f"{key} was {row.get(key)}, is {facts[key]}" for key in changed)
        raise InvalidArgument("--keep", f"a table with the {row['policy']} that there is now: name it, too", said)
    return _made(row, earlier)


def with_study(
    result: Mapping[str, Any],
    earlier: Mapping[str, Any],
    contestants: Sequence[Contestant],
    changes: Mapping[str, Any],
    seeds: int,
) -> dict[str, Any]:
    """A study with the rows of an earlier one that it does not have itself.

    Args:
        result: suites and rows as `restoration-env agent-study` makes them.
        earlier: another one.
        contestants: all of the study, in the order of the table.
        changes: settings in place of the contestants' own.
        seeds: runs of each.

    Raises:
        InvalidArgument: if the earlier one was judged on other images, or has rows of other settings, other seeds, or
            of nobody in this study; the message says what differs.
    """
    _same("suites", earlier.get("suites", {}), result["suites"])
    rows, ours = dict(result["rows"]), {contestant.label: contestant for contestant in contestants}
    for label, row in earlier["rows"].items():
        if label in rows:
            continue
        if label not in ours:
            raise InvalidArgument("--keep", "a result of this study: " + ", ".join(ours), repr(label))
        config = ours[label].config(0, changes)
        usual = {field.name: field.default for field in fields(config)}  # of a setting that there was none of then
        _same(label, {**usual, **row["training"], "seeds": row["seeds"]}, {**asdict(config), "seeds": seeds})
        rows[label] = _made(row, earlier)
    return {**result, "rows": {label: rows[label] for label in ours if label in rows}}


def _made(row: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "made": row.get("made", {key: earlier[key] for key in _MADE if key in earlier})}


def _same(what: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    changed = [f"{key} was {theirs.get(key)}, is {value}" for key, value in ours.items() if theirs.get(key) != value]
    if changed:
        raise InvalidArgument("--keep", f"a result with the same {what}", "; ".join(changed))
