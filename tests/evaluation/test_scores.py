import json

import numpy as np
import pytest
from scipy.stats import bootstrap, trim_mean

from bitagent_jax.evaluation import scores

SCALES = {"walker_stand": (100.0, 900.0), "walker_run": (0.0, 500.0)}
RETURNS = {"walker_stand": [900.0, 500.0], "walker_run": [250.0, 250.0]}
PROMPTS = {"walker_stand": "standing up", "walker_run": "running"}


def test_normalised_scores_by_hand():
    returns = np.array([30.0, 410.0, 790.0, 866.0, -46.0])
    np.testing.assert_allclose(scores.normalise(returns, 30, 790), [0, 0.5, 1, 1.1, -0.1])
    with pytest.raises(ValueError, match="both 5"):
        scores.normalise(np.ones(2), 5, 5)


@pytest.mark.parametrize(
    "values, expected",
    [
        ([3.0], 3.0),
        ([0.0, 10.0], 5.0),
        ([0.0, 1.0, 2.0, 90.0], 1.5),  # the middle two
        ([1.0, 2.0, 3.0, 4.0, 100.0], (0.75 * 2 + 3 + 0.75 * 4) / 2.5),
    ],
)
def test_interquartile_mean_by_hand(values, expected):
    assert scores.iqm(np.array(values)) == pytest.approx(expected)


def test_interquartile_mean_is_the_trimmed_mean_where_quarters_are_whole():
    values = np.random.default_rng(0).normal(size=(3, 12))
    np.testing.assert_allclose(scores.iqm(values), trim_mean(values, 0.25, axis=-1))


def test_one_tasks_interval_agrees_with_scipy():
    values = np.random.default_rng(1).normal(0.5, 0.2, 20)
    ours = scores.interval(values, seed=0)
    theirs = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_strata_are_resampled_apart():
    apart = scores.interval([np.array([0.0, 0.0]), np.array([1.0, 1.0])])
    assert apart == scores.Interval(0.5, 0.5, 0.5)  # no spread within a task: no uncertainty
    pooled = scores.interval(np.array([0.0, 0.0, 1.0, 1.0]))
    assert pooled.low == 0.0 and pooled.high == 1.0


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(2).normal(size=9)
    assert scores.interval(values, seed=3, statistic="iqm") == scores.interval(values, seed=3, statistic="iqm")
    assert scores.interval(values, seed=3) != scores.interval(values, seed=4)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="median"):
        scores.interval([1.0], statistic="median")
    for nothing in ([], [np.array([])]):
        with pytest.raises(ValueError, match="at least one value"):
            scores.interval(nothing)


def test_a_summary_has_a_row_a_task_and_one_of_all():
    random = {"walker_stand": [120.0], "walker_run": [8.0, 12.0]}
    stand, run, everything = scores.summary(RETURNS, SCALES, PROMPTS, random)
    assert (stand.task, stand.prompt, stand.episodes) == ("walker_stand", "standing up", 2)
    assert stand.mean_return == 700.0
    assert stand.normalised == pytest.approx((0.75, 0.5, 1.0))
    assert run.normalised == scores.Interval(0.5, 0.5, 0.5) and run.random == 10.0
    assert everything.episodes == 4 and everything.normalised.value == pytest.approx(0.625)
    assert len(scores.summary({"walker_run": [1.0]}, SCALES)) == 1


def test_the_table_lines_up():
    random = {"walker_stand": [120.0], "walker_run": [10.0]}
    assert scores.to_text(scores.summary(RETURNS, SCALES, PROMPTS, random)).splitlines() == [
        "task          prompt       episodes  random  return  normalised          95% CI",
        "------------  -----------  --------  ------  ------  ----------  --------------",
        "walker_stand  standing up         2   120.0   700.0       0.750  [0.500, 1.000]",
        "walker_run    running             2    10.0   250.0       0.500  [0.500, 0.500]",
        "all                               4    65.0   475.0       0.625  [0.500, 0.750]",
    ]
    assert "random" not in scores.to_text(scores.summary(RETURNS, SCALES))


def test_json_holds_every_return_and_both_statistics():
    rows = json.loads(scores.to_json(scores.summary(RETURNS, SCALES, PROMPTS)))
    assert rows[0]["returns"] == [900.0, 500.0] and rows[0]["random"] is None
    assert set(rows[0]["normalised"]) == set(rows[0]["iqm"]) == {"value", "low", "high"}
