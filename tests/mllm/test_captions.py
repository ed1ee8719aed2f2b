"""Captions and their exact labels: golden scores by hand, ambiguous bands, shipped prompts word for word."""

import numpy as np
import pytest

from experiments.embedded_encoder import captions
from experiments.embedded_encoder.clips import FIELDS
from experiments.embedded_encoder.gates import JUDGED, POSED


def window(**values):
    """Eight equal frames [1, 8, F] of the named measurements, the others nought."""
    states = np.zeros((1, 8, len(FIELDS)), np.float32)
    for name, value in values.items():
        states[..., FIELDS.index(name)] = value
    return states


def score(name, body, **values):
    column = [concept.name for concept in captions.CONCEPTS].index(name)
    return captions.score_table(window(**values), np.array([body]))[0, column]


def test_every_prompt_is_a_trained_phrasing_of_its_body():
    assert len(JUDGED) == 10 and len(JUDGED + POSED) == 31
    for task in JUDGED + POSED:
        spoken = [c for c in captions.CONCEPTS if task.prompt in c.phrases and task.body in c.scores]
        assert {c.graded for c in spoken} == {True, False}, task.name


def test_held_out_phrasings_are_never_trained():
    trained = {phrase for concept in captions.CONCEPTS for phrase in concept.phrases}
    assert not trained & {phrase for concept in captions.CONCEPTS for phrase in concept.held_out}


@pytest.mark.parametrize(("speed", "expected"), [(7.0, 1), (4.5, np.nan), (1.0, 0)])
def test_running_is_true_ambiguous_or_false_by_speed(speed, expected):
    found = score("running", "walker", speed=speed, upright=0.95, height=1.3)
    np.testing.assert_equal(found, np.float32(expected))


def test_a_fast_walker_on_the_floor_does_not_run():
    assert score("running", "walker", speed=8, upright=0.1, height=0.3) == 0
    assert score("lying", "walker", speed=0, upright=0.1, height=0.2) == 1


def test_graded_standing_is_the_reward_less_a_penalty_for_speed():
    assert score("stand", "walker", stand=0.5) == pytest.approx(0.5)
    assert score("stand", "walker", stand=1.0, speed=6) == pytest.approx(0.8)
    assert np.isnan(score("spider stand", "walker", stand=1.0))


def test_graded_running_grows_with_speed_even_when_slow():
    grades = [score("run", "cheetah", speed=v, upright=1) for v in (-2, 0, 0.2, 1, 5, 10)]
    assert grades == sorted(grades) and grades[-1] == pytest.approx(1)
    assert grades[2] - grades[1] > 0.03


STANDS = dict(upright=0.99, height=1.2, hands=0.8, knees=0.55)


@pytest.mark.parametrize(
    ("name", "truth", "lie"),
    [
        ("standing", STANDS, STANDS | {"height": 0.7}),
        ("walking", STANDS | {"speed": 1.5}, STANDS | {"speed": 0.2}),
        ("running", STANDS | {"speed": 7}, STANDS | {"speed": 2}),
        ("hands up", STANDS | {"hands": 1.7}, STANDS),
        ("punching", STANDS | {"punch": 5}, STANDS | {"punch": 1}),
        ("one foot", STANDS | {"feet_high": 0.6}, STANDS | {"feet_high": 0.2}),
        ("kick", STANDS | {"feet_high": 1.1}, STANDS | {"feet_high": 0.4}),
        ("kneeling", dict(upright=0.95, height=0.75, knees=0.06), dict(upright=0.95, height=0.3, knees=0.1)),
        ("kneeling", dict(upright=0.95, height=0.5, knees=0.06), STANDS),
        ("lying", dict(height=0.08), dict(height=0.5)),
        ("lying legs up", dict(height=0.08, feet_low=0.8), dict(height=0.08, feet_low=0.1)),
        ("on its head", dict(upright=-0.95, feet_low=1.6), dict(upright=-0.95, feet_low=0.3)),
        ("on its head", dict(upright=-0.95, feet_low=1.6), dict(upright=-0.95, feet_low=1.6, clearance=0.5)),
    ],
)
def test_a_stickman_is_described_by_its_state(name, truth, lie):
    assert score(name, "stickman", **truth) == 1
    assert score(name, "stickman", **lie) == 0


@pytest.mark.parametrize("task", POSED, ids=lambda task: task.name)
def test_every_pose_is_graded_by_its_reward(task):
    (mine,) = (c for c in captions.CONCEPTS if c.graded and task.prompt in c.phrases and task.body in c.scores)
    lying = dict(height=0.1) if task.name == "cheetah_lying_down" else {}
    grades = [score(mine.name, task.body, **{task.goal: reward}, **lying) for reward in (0, 0.3, 0.6, 0.9, 1)]
    assert grades == sorted(grades) and grades[0] <= 0.4 and grades[-1] == pytest.approx(1) and grades[2] < grades[4]
    assert bool(grades[0]) == bool(lying)


def test_what_a_task_pays_but_its_sentence_does_not_mean_is_worth_less():
    assert score("lying_down", "cheetah", lying_down=0.45, height=0.1) == pytest.approx(0.46)
    assert score("lying_down", "cheetah", lying_down=0.45, height=0.7) == pytest.approx(0.06)
    assert np.isnan(score("lying", "cheetah", lying_down=0.45, height=0.1))
    assert score("back flipping", "walker", flipping=1, spin=-5) == pytest.approx(1)
    assert score("back flipping", "walker", flipping=1, spin=5) == pytest.approx(0.5)


def test_what_idle_standing_earns_is_pressed_to_a_tenth():
    assert score("high_kick", "stickman", high_kick=0.25) == pytest.approx(0.1)
    assert score("high_kick", "stickman", high_kick=0.625) == pytest.approx(0.55)
    assert score("boxing", "stickman", boxing=1.0, speed=6) == pytest.approx(0.6)


def test_conjunctions_follow_three_valued_logic():
    left = np.array([1, 1, 1, 0, np.nan, np.nan])
    right = np.array([1, 0, np.nan, np.nan, 0, np.nan])
    np.testing.assert_equal(captions.conjoin(left, right), [1, 0, np.nan, 0, 0, np.nan])


def test_sampled_captions_come_with_labels_of_every_clip():
    states = np.concatenate([window(speed=8, upright=1, height=1.3), window(height=0.1)])
    bodies = np.array(["walker", "cheetah"])
    said = captions.sample(np.random.default_rng(0), captions.score_table(states, bodies), bodies, 50)
    again = captions.sample(np.random.default_rng(0), captions.score_table(states, bodies), bodies, 50)
    assert said.sentences == again.sentences and all(s.strip() for s in said.sentences)
    assert said.labels.shape == (2, 50) and said.graded.shape == (50,)
    assert np.nanmin(said.labels) >= 0 and np.nanmax(said.labels) <= 1
