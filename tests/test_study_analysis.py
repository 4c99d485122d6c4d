"""What the answers of a user study say: shares, ranks, strengths and the chart. All raters here are synthetic."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_raters import TRUE, rate, synthetic_answers, write_study

from restoration_env.benchmarks.study import Answer
from restoration_env.benchmarks.study_analysis import (
    analysis,
    bradley_terry,
    preferences,
    rank_shares,
    strengths,
    wilson,
    win_matrix,
)
from restoration_env.benchmarks.study_chart import draw_study
from restoration_env.errors import InvalidArgument


@given(st.integers(0, 50), st.integers(0, 50))
def test_wilsons_interval_holds_the_share_and_narrows(wins, losses):
    low, high = wilson(wins, wins + losses)
    assert 0 <= low <= high <= 1
    if wins + losses:
        assert low - 1e-12 <= wins / (wins + losses) <= high + 1e-12
        more = wilson(10 * wins, 10 * (wins + losses))
        assert more[1] - more[0] < high - low
    mirrored = wilson(losses, wins + losses)
    assert (low, high) == pytest.approx((1 - mirrored[1], 1 - mirrored[0]))


def test_shares_count_votes_by_category():
    votes = [("ours", "gan", "water"), ("gan", "ours", "water"), ("ours", "gan", "sky"), ("ours", "other", "sky")]
    answers = [Answer(i, 1, "scene", category, (best, worst)) for i, (best, worst, category) in enumerate(votes)]
    found = preferences(answers, "ours")
    assert {other: {c: (row["votes"], row["share"]) for c, row in rows.items()} for other, rows in found.items()} == {
        "gan": {"all": (3, pytest.approx(2 / 3)), "sky": (1, 1.0), "water": (2, 0.5)},
        "other": {"all": (1, 1.0), "sky": (1, 1.0)},
    }


def test_shares_of_ranks_sum_to_one_and_the_best_comes_first():
    rankings = [("a", "b", "c"), ("a", "c", "b"), ("b", "a", "c")]
    found = rank_shares([Answer(0, 2, "scene", "sky", ranked) for ranked in rankings])
    assert list(found) == ["a", "b", "c"]
    assert found["a"] == [pytest.approx(2 / 3), pytest.approx(1 / 3), 0]
    assert np.allclose(np.array(list(found.values())).sum(0), 1)


def test_two_methods_have_the_odds_of_their_votes():
    wins = np.array([[0.0, 30.0], [10.0, 0.0]])
    found = bradley_terry(wins, prior=0.0)
    assert found[0] - found[1] == pytest.approx(math.log(3)) and found.sum() == pytest.approx(0, abs=1e-9)


def test_strengths_are_where_the_likelihood_has_no_slope():
    random = np.random.default_rng(0)
    wins = random.integers(1, 30, (5, 5)).astype(float)
    np.fill_diagonal(wins, 0)
    found = bradley_terry(wins, prior=0.0)
    expected = 1 / (1 + np.exp(found[None] - found[:, None]))
    np.testing.assert_allclose(((wins + wins.T) * expected).sum(1), wins.sum(1), rtol=1e-6)


def test_a_method_that_always_wins_has_a_finite_strength_and_methods_that_never_met_are_refused():
    assert np.isfinite(bradley_terry(np.array([[0.0, 9.0], [0.0, 0.0]]))).all()
    with pytest.raises(InvalidArgument, match="connect"):
        bradley_terry(np.zeros((2, 2)))


def test_strengths_of_synthetic_raters_are_found_again_within_their_intervals():
    true = {name: value - np.mean(list(TRUE.values())) for name, value in TRUE.items()}
    found = strengths(synthetic_answers(true, raters=30, each=40), draws=200)
    assert list(found) == ["photograph", "ours", "gan", "plain"]
    for name, row in found.items():
        assert row["low"] < row["strength"] < row["high"]
        assert row["low"] - 0.15 < true[name] < row["high"] + 0.15
    few = strengths(synthetic_answers(true, raters=5, each=40), draws=200)
    assert few["ours"]["high"] - few["ours"]["low"] > found["ours"]["high"] - found["ours"]["low"]
    assert strengths(synthetic_answers(true, raters=30, each=40), draws=200) == found
    assert "low" not in strengths(synthetic_answers(true, raters=1))["ours"]


def test_a_ranking_counts_as_the_pairs_it_implies():
    wins = win_matrix([Answer(0, 2, "scene", "sky", ("b", "a", "c"))], ["a", "b", "c"])
    assert wins.tolist() == [[0, 0, 1], [1, 0, 1], [0, 0, 0]]


def test_the_analysis_and_its_chart(tmp_path):
    study = write_study(tmp_path)
    for number in range(6):
        rate(study, number, TRUE)
    result = analysis(study.answers(), study.ours, draws=100)
    assert result["raters"] == 6 and result["answers"] == {"1": 24, "2": 24}
    assert json.loads(json.dumps(result)) == result
    chart = draw_study(result)
    assert chart.dtype == np.uint8 and min(chart.shape[:2]) > 300 and chart.std() > 10
    with pytest.raises(InvalidArgument, match="nobody has rated"):
        analysis([], "ours")
