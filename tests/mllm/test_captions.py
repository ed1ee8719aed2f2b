"""Captions and their exact labels: golden scores by hand, ambiguous bands, shipped prompts word for word."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def captions():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2])
        from experiments.embedded_encoder import captions
    return captions


def window(**values):
    """Eight equal frames [1, 8, F] of the named measurements, the others nought."""
    from experiments.embedded_encoder.clips import FIELDS

    states = np.zeros((1, 8, len(FIELDS)), np.float32)
    for name, value in values.items():
        states[..., FIELDS.index(name)] = value
    return states


def score(captions, name, body, **values):
    column = [concept.name for concept in captions.CONCEPTS].index(name)
    return captions.score_table(window(**values), np.array([body]))[0, column]


def test_every_judged_prompt_is_a_trained_phrasing_of_its_body(captions):
    from experiments.embedded_encoder.gates import JUDGED

    assert len(JUDGED) == 7
    for task in JUDGED:
        spoken = [c for c in captions.CONCEPTS if task.prompt in c.phrases and task.body in c.scores]
        assert {c.graded for c in spoken} == {True, False}, task.name


def test_held_out_phrasings_are_never_trained(captions):
    trained = {phrase for concept in captions.CONCEPTS for phrase in concept.phrases}
    assert not trained & {phrase for concept in captions.CONCEPTS for phrase in concept.held_out}


@pytest.mark.parametrize(("speed", "expected"), [(7.0, 1), (4.5, np.nan), (1.0, 0)])
def test_running_is_true_ambiguous_or_false_by_speed(captions, speed, expected):
    found = score(captions, "running", "walker", speed=speed, upright=0.95, height=1.3)
    np.testing.assert_equal(found, np.float32(expected))


def test_a_fast_walker_on_the_floor_does_not_run(captions):
    assert score(captions, "running", "walker", speed=8, upright=0.1, height=0.3) == 0
    assert score(captions, "lying", "walker", speed=0, upright=0.1, height=0.2) == 1


def test_graded_standing_is_the_reward_less_a_penalty_for_speed(captions):
    assert score(captions, "stand", "walker", stand=0.5) == pytest.approx(0.5)
    assert score(captions, "stand", "walker", stand=1.0, speed=6) == pytest.approx(0.8)
    assert np.isnan(score(captions, "spider stand", "walker", stand=1.0))


def test_graded_running_grows_with_speed_even_when_slow(captions):
    grades = [score(captions, "run", "cheetah", speed=v, upright=1) for v in (-2, 0, 0.2, 1, 5, 10)]
    assert grades == sorted(grades) and grades[-1] == pytest.approx(1)
    assert grades[2] - grades[1] > 0.03


def test_conjunctions_follow_three_valued_logic(captions):
    left = np.array([1, 1, 1, 0, np.nan, np.nan])
    right = np.array([1, 0, np.nan, np.nan, 0, np.nan])
    np.testing.assert_equal(captions.conjoin(left, right), [1, 0, np.nan, 0, 0, np.nan])


def test_sampled_captions_come_with_labels_of_every_clip(captions):
    states = np.concatenate([window(speed=8, upright=1, height=1.3), window(height=0.1)])
    bodies = np.array(["walker", "cheetah"])
    said = captions.sample(np.random.default_rng(0), captions.score_table(states, bodies), bodies, 50)
    again = captions.sample(np.random.default_rng(0), captions.score_table(states, bodies), bodies, 50)
    assert said.sentences == again.sentences and all(s.strip() for s in said.sentences)
    assert said.labels.shape == (2, 50) and said.graded.shape == (50,)
    assert np.nanmin(said.labels) >= 0 and np.nanmax(said.labels) <= 1
