import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bitagent_jax.agent.semantics import Residual, SemanticDecoder, add_noise, unit

E = unit(jax.random.normal(jax.random.key(0), (6, 16)))


@pytest.mark.parametrize("layers", [1, 2])
def test_adapter_and_aligner_start_as_the_identity_and_can_learn(layers):
    module = Residual(16, 8, layers, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(module(E), E, atol=1e-6)
    gradient = nnx.grad(lambda m: jnp.sum(m(E)[:, 0]))(module)
    assert np.any(gradient.mlp.out.kernel[...])
    module.mlp.out.kernel[...] = jnp.ones((8, 16))
    assert np.abs(module(E) - E).max() > 1e-3
    np.testing.assert_allclose(jnp.linalg.norm(module(E), axis=-1), 1, atol=1e-5)


def test_the_semantic_decoder_returns_unit_vectors():
    out = SemanticDecoder(5, 16, rngs=nnx.Rngs(0))(jax.random.normal(jax.random.key(1), (2, 3, 5)))
    np.testing.assert_allclose(jnp.linalg.norm(out, axis=-1), np.ones((2, 3)), atol=1e-5)


def test_noise_by_hand():
    noise = unit(jax.random.normal(jax.random.key(2), E.shape))
    np.testing.assert_allclose(add_noise(jax.random.key(2), E, 0.25), unit(0.75 * E + 0.25 * noise), atol=1e-6)
    np.testing.assert_allclose(add_noise(jax.random.key(2), E, 0.0), E, atol=1e-6)
    half = add_noise(jax.random.key(2), E, 0.5)
    np.testing.assert_allclose(jnp.linalg.norm(half, axis=-1), 1, atol=1e-5)


def test_unit_is_finite_at_zero():
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(unit(x)))(jnp.zeros(3))
    assert value == 0 and np.all(np.isfinite(gradient))
