import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitagent_jax.nn import distributions as d


def test_unimix_moves_mass_to_the_uniform_distribution():
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1, 1e-30]]))
    probs = np.exp(d.categorical_log_probs(logits, 0.01))
    np.testing.assert_allclose(probs, [[0.6955, 0.2005, 0.1015, 0.0025]], atol=1e-6)
    np.testing.assert_allclose(np.exp(d.categorical_log_probs(logits, 0.0)), [[0.7, 0.2, 0.1, 0.0]], atol=1e-6)


def test_log_probs_are_float32_even_from_bfloat16():
    assert d.categorical_log_probs(jnp.zeros((2, 3), jnp.bfloat16), 0.01).dtype == jnp.float32


def test_categorical_kl_by_hand():
    left = jnp.log(jnp.array([[0.5, 0.5], [0.25, 0.75]]))
    right = jnp.log(jnp.array([[0.25, 0.75], [0.25, 0.75]]))
    # 0.5 ln(0.5 / 0.25) + 0.5 ln(0.5 / 0.75) = 0.5 (0.693147 - 0.405465); the second categorical adds nothing
    assert float(d.categorical_kl(left, right)) == pytest.approx(0.143841, abs=1e-5)
    assert float(d.categorical_kl(right, left)) == pytest.approx(0.130812, abs=1e-5)
    assert d.categorical_kl(jnp.zeros((3, 5, 2, 4)), jnp.zeros((3, 5, 2, 4))).shape == (3, 5)


def test_symlog_and_symexp_by_hand_and_as_inverses():
    np.testing.assert_allclose(d.symlog(jnp.array([0.0, 1.0, -1.0, np.e - 1])), [0, 0.693147, -0.693147, 1], atol=1e-5)
    np.testing.assert_allclose(d.symexp(jnp.array([0.0, 1.0, -1.0])), [0, 1.718282, -1.718282], atol=1e-5)
    x = jnp.linspace(-300, 300, 41)
    np.testing.assert_allclose(d.symexp(d.symlog(x)), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "x, expected",
    [
        (0.0, [0, 0, 1, 0, 0]),
        (0.25, [0, 0, 0.75, 0.25, 0]),
        (-1.5, [0.5, 0.5, 0, 0, 0]),
        (2.0, [0, 0, 0, 0, 1]),
        (9.0, [0, 0, 0, 0, 1]),
        (-9.0, [1, 0, 0, 0, 0]),
    ],
)
def test_two_hot_by_hand(x, expected):
    np.testing.assert_allclose(d.two_hot(jnp.array([[x]]), jnp.linspace(-2.0, 2.0, 5))[0, 0], expected, atol=1e-6)


def test_two_hot_keeps_the_mean():
    bins, x = jnp.linspace(-8.0, 8.0, 41), jnp.linspace(-7.9, 7.9, 33)
    probs = d.two_hot(x, bins)
    np.testing.assert_allclose(probs @ bins, x, atol=1e-4)
    np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize("draw", [lambda p: d.sample_onehot(jax.random.key(3), p), d.mode_onehot])
def test_latents_are_onehot_with_the_gradient_of_the_probabilities(draw):
    logits = jnp.array([[0.3, -0.2, 0.9], [1.0, 0.0, -1.0]])
    weight = jnp.array([[1.0, 2.0, -3.0], [0.5, 0.0, 4.0]])
    value = draw(d.categorical_log_probs(logits, 0.01))
    np.testing.assert_allclose(np.sort(value, -1), [[0, 0, 1]] * 2, atol=1e-6)
    got = jax.grad(lambda x: jnp.sum(weight * draw(d.categorical_log_probs(x, 0.01))))(logits)
    want = jax.grad(lambda x: jnp.sum(weight * jnp.exp(d.categorical_log_probs(x, 0.01))))(logits)
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert np.abs(want).max() > 0.1


def test_samples_follow_the_probabilities_and_the_mode_is_the_most_probable():
    log_probs = jnp.log(jnp.array([[0.1, 0.6, 0.3]]))
    draws = d.sample_onehot(jax.random.key(0), jnp.broadcast_to(log_probs, (20_000, 1, 3)))
    np.testing.assert_allclose(draws.mean(0)[0], [0.1, 0.6, 0.3], atol=0.02)
    np.testing.assert_allclose(d.mode_onehot(log_probs), [[0, 1, 0]], atol=1e-6)


def test_gaussian_samples_are_clipped_but_their_gradient_is_not():
    mean, std = jnp.full(2000, 0.9), jnp.full(2000, 0.5)
    sample, pull = jax.vjp(lambda m, s: d.gaussian_sample(jax.random.key(1), m, s), mean, std)
    noise = jax.random.normal(jax.random.key(1), (2000,))
    np.testing.assert_allclose(sample, np.clip(0.9 + 0.5 * noise, -1, 1), atol=1e-5)
    to_mean, to_std = pull(jnp.ones(2000))
    np.testing.assert_allclose(to_mean, 1, atol=1e-6)  # also where the sample was clipped
    np.testing.assert_allclose(to_std, noise, atol=1e-5)
    assert np.mean(np.asarray(sample) == 1.0) > 0.3


def test_gaussian_entropy_by_hand():
    # 0.5 ln(2 pi e) = 1.418939 a dimension; ln 0.5 = -0.693147
    assert float(d.gaussian_entropy(jnp.array([1.0, 0.5]))) == pytest.approx(2 * 1.418939 - 0.693147, abs=1e-5)
