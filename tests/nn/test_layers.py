import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bitagent_jax.nn.layers import GRU, MLP


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def layer_norm(x, eps=1e-6):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)


def test_mlp_is_linear_norm_silu_then_a_plain_linear():
    mlp = MLP(3, 4, 1, 2, rngs=nnx.Rngs(0))
    x = np.array([[0.5, -1.0, 2.0]], np.float32)
    hidden = layer_norm(x @ np.asarray(mlp.linear0.kernel[...]) + np.asarray(mlp.linear0.bias[...]))
    want = (hidden * sigmoid(hidden)) @ np.asarray(mlp.out.kernel[...])
    np.testing.assert_allclose(mlp(x), want, atol=1e-5)


def test_mlp_without_layers_or_output():
    assert MLP(3, 4, 0, 2, rngs=nnx.Rngs(0))(jnp.ones((5, 3))).shape == (5, 2)
    assert MLP(3, 4, 2, rngs=nnx.Rngs(0))(jnp.ones((5, 3))).shape == (5, 4)


def test_a_zero_output_is_exactly_zero_but_learns():
    mlp = MLP(3, 4, 2, 2, output_scale=0.0, rngs=nnx.Rngs(0))
    x = jnp.array([[1.0, -2.0, 3.0]])
    assert not np.any(mlp(x))
    gradient = nnx.grad(lambda m: jnp.sum(m(x)))(mlp)
    assert np.any(gradient.out.kernel[...]) and not np.any(gradient.linear0.kernel[...])


def test_output_scale_is_the_size_of_the_first_outputs():
    kernels = [MLP(3, 400, 1, 50, output_scale=scale, rngs=nnx.Rngs(0)).out.kernel[...] for scale in (1.0, 5.0)]
    np.testing.assert_allclose(kernels[1], 5 * kernels[0], rtol=1e-5)
    np.testing.assert_allclose(kernels[0].std() * 400**0.5, 1, atol=0.05)


def test_bfloat16_is_computed_in_bfloat16_with_float32_weights():
    mlp = MLP(3, 4, 1, 2, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert mlp(jnp.ones((1, 3))).dtype == jnp.bfloat16
    assert mlp.out.kernel[...].dtype == jnp.float32
    gru = GRU(3, 4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert gru(gru.inputs(jnp.ones((1, 3))), jnp.zeros((1, 4))).dtype == jnp.float32


def test_gru_by_hand():
    gru = GRU(2, 2, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    kernel, recurrent = rng.normal(size=(2, 6)).astype(np.float32), rng.normal(size=(2, 6)).astype(np.float32)
    gru.from_input.kernel[...], gru.from_state.kernel[...] = kernel, recurrent
    x, h = np.array([[0.3, -0.7]], np.float32), np.array([[0.5, -0.2]], np.float32)
    total = layer_norm(x @ kernel + h @ recurrent)
    reset, candidate, update = sigmoid(total[:, :2]), total[:, 2:4], sigmoid(total[:, 4:] - 1)
    want = update * np.tanh(reset * candidate) + (1 - update) * h
    np.testing.assert_allclose(gru(gru.inputs(x), h), want, atol=1e-5)


def test_gru_state_stays_bounded_and_the_gate_starts_near_remembering():
    gru = GRU(3, 8, rngs=nnx.Rngs(1))
    x = 100 * jax.random.normal(jax.random.key(0), (50, 4, 3))
    state = jnp.zeros((4, 8))
    for row in gru.inputs(x):
        state = gru(row, state)
    assert np.abs(state).max() <= 1
    gru.norm.scale[...] = jnp.zeros(24)  # gates at their bias: update = sigmoid(-1), candidate = 0
    np.testing.assert_allclose(gru(gru.inputs(x[0]), jnp.ones((4, 8))), 1 - sigmoid(-1.0), atol=1e-6)
