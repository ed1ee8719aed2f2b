import json

import numpy as np
import pytest
from scipy.stats import bootstrap, trim_mean, ttest_1samp

from bitagent_jax.envs.tasks import TASKS
from bitagent_jax.evaluation import scores

SCALES = {name: (TASKS[name].random_score, TASKS[name].expert_score) for name in ("walker_stand", "walker_run")}
STAND, RUN = ([low, (low + high) / 2, high] for low, high in SCALES.values())
RETURNS = {"walker_stand": [STAND[2], STAND[1]], "walker_run": [RUN[1], RUN[1]]}
PROMPTS = {"walker_stand": "standing up", "walker_run": "running"}


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


def test_one_tasks_interval_of_the_mean_is_students():
    values = np.random.default_rng(1).normal(0.5, 0.2, 5)
    theirs = ttest_1samp(values, 0).confidence_interval(0.95)
    assert scores.mean_interval(values) == pytest.approx((values.mean(), theirs.low, theirs.high))


@pytest.mark.parametrize("sizes", [(3,), (4,), (10,), (4, 4, 4), (3, 12)])
def test_intervals_of_the_mean_hold_the_true_one_as_often_as_they_say(sizes):
    rng, held = np.random.default_rng(0), 0
    for _ in range(2000):
        strata = [rng.normal(k, 1 + k, size) for k, size in enumerate(sizes)]
        found, true = scores.mean_interval(strata), np.repeat(np.arange(len(sizes)), sizes).mean()
        held += found.low <= true <= found.high
    assert 0.935 < held / 2000 < 0.975


def test_one_tasks_interval_of_the_iqm_agrees_with_scipy():
    values = np.random.default_rng(1).normal(0.5, 0.2, 20)
    ours, rng = scores.iqm_interval(values, seed=0), np.random.default_rng(0)
    theirs = bootstrap((values,), scores.iqm, method="percentile", rng=rng).confidence_interval
    assert ours.value == pytest.approx(scores.iqm(values))
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


@pytest.mark.parametrize("interval", [scores.mean_interval, scores.iqm_interval])
def test_strata_are_apart(interval):
    apart = interval([np.array([0.0, 0.0]), np.array([1.0, 1.0])])
    assert apart == scores.Interval(0.5, 0.5, 0.5)  # no spread within a task: no uncertainty
    pooled = interval(np.array([0.0, 0.0, 1.0, 1.0]))
    assert pooled.low <= 0.0 and pooled.high >= 1.0


def test_of_one_value_no_interval_is_known():
    for values in ([0.3], [np.array([0.3]), np.array([0.1, 0.5])]):
        assert scores.mean_interval(values).value == pytest.approx(0.3)
        assert np.isnan(scores.mean_interval(values)[1:]).all()
    one = scores.summary({"walker_run": [RUN[1]]})
    assert scores.to_text(one).splitlines()[-1].split()[-2:] == ["0.500", "-"]
    assert json.loads(scores.to_json(one))[0]["normalised"] == {"value": 0.5, "low": None, "high": None}


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(2).normal(size=9)
    assert scores.iqm_interval(values, seed=3) == scores.iqm_interval(values, seed=3)
    assert scores.iqm_interval(values, seed=3) != scores.iqm_interval(values, seed=4)


@pytest.mark.parametrize("interval", [scores.mean_interval, scores.iqm_interval])
def test_bad_input_is_named(interval):
    for nothing in ([], [np.array([])]):
        with pytest.raises(ValueError, match="at least one value"):
            interval(nothing)


def test_a_summary_has_a_row_a_task_and_one_of_all():
    random = {"walker_stand": [120.0], "walker_run": [8.0, 12.0]}
    stand, run, everything = scores.summary(RETURNS, PROMPTS, random)
    assert (stand.task, stand.prompt, stand.episodes) == ("walker_stand", "standing up", 2)
    assert stand.mean_return == np.mean(RETURNS["walker_stand"])
    half = 12.7062 * 0.25  # t of one degree of freedom; .25 is the standard error
    assert stand.normalised == pytest.approx((0.75, 0.75 - half, 0.75 + half), rel=1e-4)
    assert run.normalised == scores.Interval(0.5, 0.5, 0.5) and run.random == 10.0
    assert everything.episodes == 4 and everything.normalised.value == pytest.approx(0.625)
    assert len(scores.summary({"walker_run": [1.0]})) == 1


def test_the_table_lines_up():
    random = {"walker_stand": [120.0], "walker_run": [10.0]}
    returns = {"walker_stand": STAND * 4, "walker_run": [RUN[1], RUN[1]]}
    assert scores.to_text(scores.summary(returns, PROMPTS, random)).splitlines() == [
        "task          prompt       episodes  random  return  normalised          95% CI",
        "------------  -----------  --------  ------  ------  ----------  --------------",
        "walker_stand  standing up        12   120.0   560.0       0.500  [0.229, 0.771]",
        "walker_run    running             2    10.0   400.0       0.500  [0.500, 0.500]",
        "all                              14    65.0   537.1       0.500  [0.268, 0.732]",
    ]
    assert "random" not in scores.to_text(scores.summary(returns))


def test_json_holds_every_return_and_both_statistics():
    rows = json.loads(scores.to_json(scores.summary(RETURNS, PROMPTS)))
    assert rows[0]["returns"] == RETURNS["walker_stand"] and rows[0]["random"] is None
    assert set(rows[0]["normalised"]) == set(rows[0]["iqm"]) == {"value", "low", "high"}
