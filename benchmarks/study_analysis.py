"""What the answers of a user study say: shares by category, shares of ranks, and strengths with intervals.

The strengths are those of Bradley and Terry (1952): the odds that one method is preferred to another are the ratio of
their strengths. A ranking of part II counts as the pairs it implies. Answers of one rater are not independent, so
intervals come from drawing whole raters anew (a bootstrap), and shares have Wilson's interval beside them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from restoration_env.benchmarks.study import Answer
from restoration_env.errors import InvalidArgument, check_at_least

_Z = 1.959963984540054  # 95 %
_PRIOR = 0.5  # of a win and of a loss between each two that met: keeps the strength of one that always wins finite
EVERYTHING = "all"


def wilson(wins: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927); from 0 to 1 of nothing."""
    if total == 0:
        return 0.0, 1.0
    share = wins / total
    middle, width = share + _Z**2 / (2 * total), _Z * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2))
    scale = 1 + _Z**2 / total
    return max(0.0, (middle - width) / scale), min(1.0, (middle + width) / scale)


def preferences(answers: Sequence[Answer], ours: str) -> dict[str, dict[str, dict[str, float]]]:
    """Part I: how often ours was preferred.

    Returns:
        for each other method and each category, and "all": votes, share, and its interval ``low`` to ``high``.
    """
    counts: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for answer in answers:
        if answer.part == 1:
            (other,) = set(answer.ranked) - {ours}
            for category in (EVERYTHING, answer.category):
                counts[other][category][0] += answer.ranked[0] == ours
                counts[other][category][1] += 1
    found: dict[str, dict[str, dict[str, float]]] = {}
    for other, categories in sorted(counts.items()):
        found[other] = {}
        for category, (wins, total) in sorted(categories.items(), key=lambda item: (item[0] != EVERYTHING, item[0])):
            low, high = wilson(wins, total)
            found[other][category] = {"votes": total, "share": wins / total, "low": low, "high": high}
    return found


def rank_shares(answers: Sequence[Answer]) -> dict[str, list[float]]:
    """Part II: for each method the shares of first, second, ... places; the best mean rank first."""
    rankings = [answer.ranked for answer in answers if answer.part == 2]
    methods = sorted({method for ranked in rankings for method in ranked})
    places = max((len(ranked) for ranked in rankings), default=0)
    found = {
        method: [sum(r[place : place + 1] == (method,) for r in rankings) / len(rankings) for place in range(places)]
        for method in methods
    }
    return dict(sorted(found.items(), key=lambda item: sum(i * share for i, share in enumerate(item[1]))))


def win_matrix(answers: Sequence[Answer], methods: Sequence[str]) -> np.ndarray:
    """How often each method (rows) was preferred to each other (columns), in both parts."""
    index, wins = {method: i for i, method in enumerate(methods)}, np.zeros((len(methods), len(methods)))
    for answer in answers:
        places = [index[method] for method in answer.ranked]
        for i, better in enumerate(places):
            for worse in places[i + 1 :]:
                wins[better, worse] += 1
    return wins


def bradley_terry(wins: np.ndarray, *, prior: float = _PRIOR, steps: int = 10_000) -> np.ndarray:
    """Log strengths with a mean of zero, by Hunter's iteration (Annals of Statistics, 2004, Section 3).

    Args:
        wins: (n, n), how often the row was preferred to the column.
        prior: wins added in both directions between each two that met, so that the strengths stay finite.
        steps: the most iterations.

    Raises:
        InvalidArgument: if the methods fall into groups that never met: then there is nothing to tell between them.
    """
    met = (wins + wins.T) > 0
    reach = np.linalg.matrix_power((met | np.eye(len(wins), dtype=bool)).astype(float), len(wins)) > 0
    if not reach.all():
        raise InvalidArgument("answers", "comparisons that connect all methods", "methods that never met")
    wins = wins + prior * met
    games, total = wins + wins.T, wins.sum(1)
    strengths = np.ones(len(wins))
    for _ in range(steps):
        new = total / (games / (strengths[:, None] + strengths[None])).sum(1)
        new /= np.exp(np.log(new).mean())
        still = np.abs(np.log(new / strengths)).max() < 1e-10
        strengths = new
        if still:
            break
    return np.log(strengths)


def strengths(answers: Sequence[Answer], *, draws: int = 1000, seed: int = 0) -> dict[str, dict[str, float]]:
    """Bradley and Terry's log strengths of all methods, the strongest first.

    Args:
        answers: of both parts.
        draws: of whole raters, with replacement, for the 95 % interval; with one rater there is no interval.
        seed: of the draws.

    Returns:
        for each method its ``strength``, and ``low`` and ``high`` where there are two raters or more.
    """
    check_at_least(1, draws=draws)
    methods = sorted({method for answer in answers for method in answer.ranked})
    if not methods:
        return {}
    raters = sorted({answer.rater for answer in answers})
    by_rater = np.stack([win_matrix([a for a in answers if a.rater == rater], methods) for rater in raters])
    middle = bradley_terry(by_rater.sum(0))
    bounds = None
    if len(raters) > 1:
        random, found = np.random.default_rng(seed), []
        met = by_rater.sum(0) + by_rater.sum(0).T > 0
        for _ in range(draws):
            drawn = by_rater[random.integers(len(raters), size=len(raters))].sum(0)
            # Two methods that none of the drawn raters compared keep the prior alone.
            found.append(bradley_terry(drawn + 1e-9 * met))
        bounds = np.quantile(np.stack(found), (0.025, 0.975), axis=0)
    order = np.argsort(-middle)
    result = {}
    for i in order:
        row = {"strength": float(middle[i])}
        if bounds is not None:
            row |= {"low": float(bounds[0, i]), "high": float(bounds[1, i])}
        result[methods[i]] = row
    return result


def analysis(answers: Sequence[Answer], ours: str, *, draws: int = 1000) -> dict[str, Any]:
    """Everything above in one dictionary.

    Raises:
        InvalidArgument: if there are no answers yet.
    """
    if not answers:
        raise InvalidArgument("answers", "at least one", "none: nobody has rated yet")
    return {
        "ours": ours,
        "raters": len({answer.rater for answer in answers}),
        "answers": {str(part): sum(a.part == part for a in answers) for part in (1, 2)},
        "median_seconds": float(np.median([answer.seconds for answer in answers])),
        "preferred": preferences(answers, ours),
        "ranks": rank_shares(answers),
        "strengths": strengths(answers, draws=draws),
        "interval": "95 %: of shares Wilson's, of strengths from drawing raters anew",
    }
