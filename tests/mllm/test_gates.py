"""Retrieval and rank correlation of the embedded encoder's report, by numbers worked out by hand."""

import numpy as np
import pytest

from experiments.embedded_encoder import gates


def test_a_sentence_finds_the_clip_of_its_behaviour_or_does_not():
    cosine = np.array([[0.9, 0.1, 0.2], [0.8, 0.7, 0.1], [0.1, 0.2, 0.3]])
    found, chance = gates.recall_at_one(cosine, np.eye(3), draws=5)
    np.testing.assert_array_equal(found, [1, 0, 1])
    np.testing.assert_allclose(chance, 1 / 3)


def test_a_clip_drawn_for_another_behaviour_counts_if_it_shows_this_one_too():
    labels = np.array([[1, 1], [0, 1]])
    found, chance = gates.recall_at_one(np.array([[0.2, 0.9], [0.2, 0.9]]), labels, draws=50)
    np.testing.assert_array_equal(found, [1, 1])
    # Half of the galleries hold the second clip alone: there both sentences are sure to be right.
    assert chance[0] == 1 and chance[1] == pytest.approx(0.75, abs=0.15)


def test_clips_of_which_it_cannot_be_said_are_left_out():
    labels = np.array([[1, np.nan, 0], [0, 1, 0], [0, 0, 1]])
    found, chance = gates.recall_at_one(np.array([[0.5, 0.9, 0.1], [0, 1, 0], [0, 0, 1.0]]), labels, draws=3)
    np.testing.assert_array_equal(found, [1, 1, 1])
    np.testing.assert_allclose(chance, [1 / 2, 1 / 3, 1 / 3])


def test_recall_is_the_share_of_galleries():
    """Two clips show the first behaviour, one of them scored below the distractor: found in half of the galleries."""
    labels = np.array([[1, 1, 0], [0, 0, 1]])
    cosine = np.array([[0.9, 0.1, 0.5], [0.0, 0.0, 1.0]])
    found, chance = gates.recall_at_one(cosine, labels, draws=400)
    assert found[0] == pytest.approx(0.5, abs=0.1) and found[1] == 1
    np.testing.assert_allclose(chance, 0.5)


def test_auc_and_rank_correlation():
    score, truth = np.arange(20.0), np.repeat([0, 1], 10)
    assert gates.auc(score, truth) == 1 and gates.auc(-score, truth) == 0
    assert np.isnan(gates.auc(score[:12], truth[:12]))
    assert gates.spearman(score, score**3) == pytest.approx(1)
    assert np.isnan(gates.spearman(score, 0 * score)) and np.isnan(gates.spearman(score[:3], score[:3]))
