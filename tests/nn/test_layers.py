import jax
import jax.numpy as jnp
import numpy as np
import pytest
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


@pytest.mark.parametrize("forgets", [True, False])
def test_gru_unrolled_is_the_cell_step_by_step_with_its_gradients(forgets):
    graph, params = nnx.split(GRU(3, 8, rngs=nnx.Rngs(0)))
    keys = jax.random.split(jax.random.key(0), 4)
    x, start = jax.random.normal(keys[0], (4, 6, 3)), jax.random.normal(keys[1], (4, 8))
    first = jax.random.bernoulli(keys[2], 0.3, (4, 6)) if forgets else None
    weight = jax.random.normal(keys[3], (4, 6, 8))

    def stepwise(params, x, start):
        gru, state, states = nnx.merge(graph, params), start, []
        for t in range(6):
            state = state if first is None else jnp.where(first[:, t, None], 0.0, state)
            state = gru(gru.inputs(x)[:, t], state)
            states.append(state)
        return jnp.stack(states, 1)

    def unrolled(params, x, start):
        gru = nnx.merge(graph, params)
        return gru.unroll(gru.inputs(x), start, first)

    np.testing.assert_allclose(unrolled(params, x, start), stepwise(params, x, start), atol=1e-6)
    got, want = (
        jax.grad(lambda *a, run=run: jnp.sum(weight * run(*a)), argnums=(0, 1, 2))(params, x, start)
        for run in (unrolled, stepwise)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)
    assert np.abs(want[0]["from_state"]["kernel"][...]).max() > 0.1


def test_the_gradient_of_the_recurrent_kernel_is_one_product_behind_the_loop():
    gru = GRU(3, 8, rngs=nnx.Rngs(0))
    graph, params = nnx.split(gru)
    gates, start = jnp.ones((4, 6, 24)), jnp.zeros((4, 8))
    gradient = jax.grad(lambda p: jnp.sum(nnx.merge(graph, p).unroll(gates, start)))
    loops = [e for e in jax.make_jaxpr(gradient)(params).eqns if e.primitive.name == "scan"]
    carried = [v.aval.shape for e in loops for v in e.invars[e.params["num_consts"] :][: e.params["num_carry"]]]
    assert len(loops) == 2 and (8, 24) not in carried
