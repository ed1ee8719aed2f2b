import jax.numpy as jnp
import numpy as np
import pytest

from bitagent_jax.agent import rewards
from bitagent_jax.config import CHOICES

ROLLOUT = {"features": jnp.array([[[3.0, 4.0], [0.0, 2.0]]])}
TARGET = {"features": jnp.array([[[3.0, 4.0], [6.0, 8.0], [-4.0, 3.0]]])}


def test_cosine_by_hand():
    got = rewards.similarity("cosine", ROLLOUT, TARGET)
    np.testing.assert_allclose(got, [[[1, 1, 0], [0.8, 0.8, 0.6]]], atol=1e-6)


def test_max_cosine_by_hand():
    # u.v / max(|u|, |v|)^2: 50 / 100 for the target twice as long; (0, 2).(3, 4) = 8 over 25
    got = rewards.similarity("max_cosine", ROLLOUT, TARGET)
    np.testing.assert_allclose(got, [[[1, 0.5, 0], [0.32, 0.16, 0.24]]], atol=1e-6)


def test_neg_kl_by_hand():
    rollout = jnp.log(jnp.array([[[[0.5, 0.5], [0.25, 0.75]]]]))
    target = jnp.log(jnp.array([[[[0.25, 0.75], [0.25, 0.75]], [[0.5, 0.5], [0.25, 0.75]]]]))
    got = rewards.similarity("neg_kl", {"log_probs": rollout}, {"log_probs": target})
    np.testing.assert_allclose(got, [[[-0.143841 / 2, 0]]], atol=1e-5)


def test_likelihood_by_hand():
    drawn = jnp.array([[[0.0, 1.0, 1.0, 0.0]]])  # S = 2 of C = 2: the second class, then the first
    target = jnp.log(jnp.array([[[[0.5, 0.5], [0.5, 0.5]], [[0.25, 0.75], [0.9, 0.1]]]]))
    got = rewards.similarity("likelihood", {"stoch": drawn}, {"log_probs": target})
    np.testing.assert_allclose(got, [[[0, (np.log(2 * 0.75) + np.log(2 * 0.9)) / 2]]], atol=1e-6)


@pytest.mark.parametrize("kind", ["max_cosine", "cosine", "neg_kl"])
def test_every_similarity_is_greatest_for_equals(kind):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 5, 4, 3)) * 2
    log_probs = jnp.asarray(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    side = {"log_probs": log_probs, "features": jnp.exp(log_probs).reshape(2, 5, -1)}
    matrix = np.asarray(rewards.similarity(kind, side, side))
    best = {"max_cosine": 1, "cosine": 1, "neg_kl": 0}[kind]
    np.testing.assert_allclose(np.diagonal(matrix, axis1=1, axis2=2), best, atol=1e-5)
    assert matrix.shape == (2, 5, 5) and np.all(matrix <= best + 1e-5)


def test_the_config_offers_exactly_these_forms():
    assert CHOICES["reward.similarity"] == rewards.SIMILARITIES
    with pytest.raises(ValueError, match="'cosin'. Did you mean 'cosine'"):
        rewards.similarity("cosin", ROLLOUT, TARGET)


@pytest.mark.parametrize("shift", range(5))
def test_a_target_that_begins_later_is_found_and_scores_one_from_there(shift):
    steps = np.eye(8)[None]  # eight target steps, all different
    before = np.full((1, shift, 8), 8**-0.5)
    rollout = np.concatenate([before, steps], 1)[:, :8]
    matrix = rewards.similarity("cosine", {"features": jnp.asarray(rollout)}, {"features": jnp.asarray(steps)})
    reward, offset = rewards.align(matrix, 4)
    assert offset.tolist() == [shift]
    np.testing.assert_allclose(reward[0, shift:], 1, atol=1e-5)
    np.testing.assert_allclose(reward[0, :shift], 8**-0.5, atol=1e-5)  # compared with the target's first step


def test_window_alignment_by_hand():
    matrix = jnp.array([[[0.9, 0.0, 5.0], [0.2, 0.1, 6.0], [0.8, 0.3, 7.0]]])
    # windows of 2 along diagonals: offset 0 -> (.9 + .1) / 2 = .5; offset 1 -> (.2 + .3) / 2 = .25
    reward, offset = rewards.align(matrix, 2)
    assert offset.tolist() == [0]
    np.testing.assert_allclose(reward, [[0.9, 0.1, 7.0]])
    reward, offset = rewards.align(matrix.at[0, 2, 1].set(0.9), 2)  # offset 1 -> (.2 + .9) / 2 = .55
    assert offset.tolist() == [1]
    np.testing.assert_allclose(reward, [[0.9, 0.2, 0.9]])


def test_a_window_as_long_as_the_rollout_allows_no_shift():
    reward, offset = rewards.align(jnp.arange(32.0).reshape(2, 4, 4), 4)
    assert offset.tolist() == [0, 0]
    np.testing.assert_allclose(reward[0], [0, 5, 10, 15])
