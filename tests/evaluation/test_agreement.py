"""Rank correlation, regret and precision by hand."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from bitagent_jax.evaluation import agreement as module
from bitagent_jax.evaluation.agreement import Agreement, Judged, Row, agreement

TRUE = np.arange(10.0)  # with top .2, the best two are 8 and 9


def test_the_true_order_is_perfect_and_its_reverse_as_wrong_as_can_be():
    assert agreement(TRUE**3, TRUE, 0.2) == pytest.approx(Agreement(1.0, 0.0, 1.0))
    assert agreement(-TRUE, TRUE, 0.2) == pytest.approx(Agreement(-1.0, 1.0, 0.0))


def test_regret_and_precision_by_hand():
    score = np.array([0, 1, 2, 3, 4, 5, 9, 6, 7, 8.0])  # its favourites have true 6 and 9
    got = agreement(score, TRUE, 0.2)
    assert got.regret == pytest.approx((9 - 6) / 9) and got.precision == 0.5
    assert got.correlation == pytest.approx(spearmanr(score, TRUE)[0])


def test_equal_scores_take_the_mean_of_all_their_orders():
    score = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 1.0])  # of true 7, 8, 9 any two may be its favourites
    got = agreement(score, TRUE, 0.2)
    assert got.regret == pytest.approx((9 - 8) / 9) and got.precision == pytest.approx(2 / 3)
    assert got.correlation == pytest.approx(spearmanr(score, TRUE)[0])
    flat = agreement(np.ones(10), TRUE, 0.2)
    assert np.isnan(flat.correlation) and flat.regret == 0.5 and flat.precision == pytest.approx(0.2)


def test_as_good_as_the_best_is_the_best():
    assert agreement([1.0, 3, 2, 0], [5.0, 5, 5, 0], 0.25) == pytest.approx((np.sqrt(0.6), 0, 1))


def test_one_trajectory_at_least_is_asked_for_and_equal_true_rewards_tell_nothing():
    assert agreement([1.0, 2], [1.0, 2], 0.1).precision == 1
    assert np.isnan(agreement([1.0, 2], [3.0, 3])).all()


@pytest.mark.parametrize(
    "score, true, message",
    [([], [], "N > 0"), ([1.0], [1.0, 2.0], r"\[1\] and \[2\]"), ([1.0, np.nan], [1.0, 2.0], "not finite")],
)
def test_bad_input_is_named(score, true, message):
    with pytest.raises(ValueError, match=message):
        agreement(score, true)


def found():
    """Two tasks; of the first, two episodes of two windows each; the judge prefers windows 1 and 4."""
    scores = {"judge": np.array([[0.0, 9], [4, 9], [1, 9], [2, 9], [0, 1], [0, 2]])}
    return Judged(
        np.array(["a"] * 4 + ["b"] * 2), np.array(["good", "good", "bad", "bad", "good", "bad"]),
        np.array([3, 3, 5, 5, 6, 7]), np.array([1.0, 3, 0, 2, 1, 0]), scores,
    )  # fmt: skip


def test_episodes_are_means_of_their_windows_and_only_a_tasks_own_count():
    rows = module.rows(found(), ["a", "b"])
    assert [row[:4] for row in rows] == [
        ("a", "judge", "window", 4), ("a", "judge", "episode", 2),
        ("b", "judge", "window", 2), ("b", "judge", "episode", 2),
    ]  # fmt: skip
    windows, episodes = rows[0].agreement, rows[1].agreement
    # windows: scores 0 4 1 2 against 1 3 0 2; episodes: (2, 1.5) against (2, 1); of b both orders are reversed
    assert windows == pytest.approx(Agreement(0.8, 0.0, 1.0))
    assert episodes == pytest.approx(Agreement(1.0, 0.0, 1.0))
    assert rows[3].agreement == pytest.approx(Agreement(-1.0, 1.0, 0.0))


def test_the_table_has_a_mean_over_the_tasks_and_dashes_for_what_cannot_be_said():
    lines = module.table(module.rows(found(), ["a", "b"]))
    assert [(line["task"], line["judge"]) for line in lines] == [("a", "judge"), ("b", "judge"), ("mean", "judge")]
    assert lines[2]["window correlation"] == "-0.10" and lines[2]["episode regret"] == "0.50"
    lone = module.table([Row("a", "judge", unit, 2, Agreement(np.nan, 0.5, 0.5)) for unit in module.UNITS])
    assert len(lone) == 1 and lone[0]["window correlation"] == "-" and lone[0]["episode precision"] == "0.50"


def test_policies_by_hand():
    good_b = {"episodes of": "b", "policy": "good", "windows": 1, "true": 1.0, "for a": 0.0, "for b": 1.0}
    lines = module.policies(found(), "judge", ["a", "b"])
    assert lines[3] == good_b and len(lines) == 4
    assert lines[1] == {"episodes of": "a", "policy": "good", "windows": 2, "true": 2.0, "for a": 2.0, "for b": 9.0}
