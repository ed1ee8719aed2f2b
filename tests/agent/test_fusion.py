import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bitagent_jax.agent.fusion import Expert, Fusion, Merged

EMBED, STATE, WIDTH, LAYERS = 4, 3, 6, 2


def make(kind="tamf", layers=LAYERS, scale=0.5, width=WIDTH, skip=False, skip_task=False):
    settings = types.SimpleNamespace(
        kind=kind, layers=layers, width=width, layer_scale=scale, skip=skip, skip_task=skip_task
    )
    return Fusion(settings, EMBED, STATE, rngs=nnx.Rngs(0))


def inputs(seed=0):
    e, s, tau = jax.random.split(jax.random.key(seed), 3)
    unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    return (
        unit(jax.random.normal(e, (5, EMBED))),
        jax.random.normal(s, (5, STATE)),
        unit(jax.random.normal(tau, (5, EMBED))),
    )


def norm(x):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)


def test_expert_by_hand():
    expert = Expert(2, 0.5, rngs=nnx.Rngs(0))
    expert.up.kernel[...] = jnp.array([[1.0, 0.0, 2.0, 0.0], [0.0, 1.0, 0.0, 0.0]])  # value = z, gate = (2 z_0, 0)
    expert.down.kernel[...] = jnp.eye(2)
    expert.down.bias[...] = jnp.array([0.0, 6.0])
    z = jnp.array([[3.0, 1.0]])  # LayerNorm: (1, -1)
    # GEGLU: 1 * gelu(2), -1 * gelu(0); gelu(2) = 1.9546 (tanh form); LayerScale .5
    alone = Merged.of(expert, Expert(2, 0.5, rngs=nnx.Rngs(1)))(z, jnp.zeros((1, 1)))
    np.testing.assert_allclose(alone, [[0.97730, 3.0]], atol=1e-4)


@pytest.mark.parametrize("dtype, near", [(jnp.float32, 1e-5), (jnp.bfloat16, 0.05)])
def test_merged_experts_are_the_weighted_sum_of_the_two(dtype, near):
    pair = [Expert(WIDTH, 0.5, dtype=dtype, rngs=nnx.Rngs(i)) for i in range(2)]
    for leaf in jax.tree.leaves(nnx.state(pair)):
        assert leaf.dtype == jnp.float32
    keys = iter(jax.random.split(jax.random.key(0), 20))
    for expert in pair:
        for leaf in (expert.norm.scale, expert.norm.bias, expert.up.bias, expert.down.bias, expert.scale):
            leaf[...] = jax.random.normal(next(keys), leaf.shape)
    z, share = jax.random.normal(next(keys), (5, WIDTH)), jax.random.uniform(next(keys), (5, 1))

    def alone(expert):
        value, gate = jnp.split(expert.up(expert.norm(z)), 2, axis=-1)
        return expert.scale[...] * expert.down(value * nnx.gelu(gate)).astype(jnp.float32)

    got = Merged.of(*pair)(z, share)
    assert got.dtype == dtype
    want = (1 - share) * alone(pair[0]) + share * alone(pair[1])
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=near * np.abs(want).max())


def test_tamf_by_hand():
    fusion = make(width=2)
    fusion.fuse.kernel[...] = jnp.zeros((EMBED + STATE, 2)).at[0, 0].set(1.0).at[EMBED, 1].set(1.0)
    fusion.gate_out.kernel[...] = jnp.zeros((2, LAYERS))
    fusion.gate_out.bias[...] = jnp.log(jnp.array([0.25 / 0.75, 0.9 / 0.1]))  # p = (.25, .9) whatever the task
    for i in range(LAYERS):
        for name, value in ((f"semantic{i}", 1.0), (f"dynamic{i}", -2.0)):
            expert = getattr(fusion, name)
            expert.down.kernel[...] = jnp.zeros((2, 2))
            expert.down.bias[...] = jnp.array([value, 0.0])  # a constant, so that the sum can be done by hand
    embedding, state = jnp.array([[0.8, 0.6, 0.0, 0.0]]), jnp.array([[2.0, 7.0, 7.0]])
    # z_0 = (0.8 * sqrt(4), 2) = (1.6, 2); a layer adds LayerScale .5 * ((1 - p) * 1 + p * (-2)):
    # p = .25 -> .5 * (.75 - .5) = .125;  p = .9 -> .5 * (.1 - 1.8) = -.85;  z_2 = (0.875, 2)
    np.testing.assert_allclose(fusion.gates(jnp.ones((1, EMBED))), [[0.25, 0.9]], atol=1e-6)
    out = fusion(embedding, jnp.array([True]), state, jnp.ones((1, EMBED)))
    np.testing.assert_allclose(out, norm(jnp.array([[0.875, 2.0]])), atol=1e-4)


@pytest.mark.parametrize("bias, used, idle", [(-100.0, "semantic", "dynamic"), (100.0, "dynamic", "semantic")])
def test_a_gate_at_its_end_selects_one_expert(bias, used, idle):
    fusion, (embedding, state, task) = make(), inputs()
    fusion.gate_out.bias[...] = jnp.full(LAYERS, bias)
    has = jnp.ones(5, bool)
    before = fusion(embedding, has, state, task)
    for i in range(LAYERS):
        getattr(fusion, f"{idle}{i}").down.bias[...] = 9.0 * jnp.arange(WIDTH)
    np.testing.assert_array_equal(fusion(embedding, has, state, task), before)
    getattr(fusion, f"{used}0").down.bias[...] = 9.0 * jnp.arange(WIDTH)
    assert np.abs(fusion(embedding, has, state, task) - before).max() > 0.1


def test_gates_depend_on_the_task_alone_and_lie_between_0_and_1():
    fusion, (_, _, task) = make(layers=3), inputs()
    gates = np.asarray(fusion.gates(task))
    assert gates.shape == (5, 3) and np.all((gates > 0) & (gates < 1)) and np.ptp(gates, axis=0).min() > 0


@pytest.mark.parametrize("kind", ["tamf", "concat"])
def test_a_missing_embedding_is_the_learned_token_and_never_zeros(kind):
    fusion, (embedding, state, task) = make(kind), inputs()
    has = jnp.array([True, False, True, False, False])
    got = fusion(embedding, has, state, task)
    full, none = fusion(embedding, jnp.ones(5, bool), state, task), fusion(None, None, state, task)
    np.testing.assert_allclose(got, jnp.where(has[:, None], full, none), atol=1e-6)
    np.testing.assert_array_equal(fusion(7 * embedding, jnp.zeros(5, bool), state, task), none)
    token = jnp.broadcast_to(fusion.missing[...] / EMBED**0.5, (5, EMBED))
    np.testing.assert_allclose(fusion(token, jnp.ones(5, bool), state, task), none, atol=1e-5)
    assert np.abs(fusion(jnp.zeros((5, EMBED)), jnp.ones(5, bool), state, task) - none).max() > 1e-4


def test_every_input_matters_in_tamf_and_concat_and_none_ignores_the_embedding():
    embedding, state, task = inputs()
    other = inputs(1)
    has = jnp.ones(5, bool)
    for kind, changes in (("tamf", (1, 1, 1)), ("concat", (1, 1, 1)), ("none", (0, 1, 1))):
        fusion = make(kind, scale=1.0)
        base = fusion(embedding, has, state, task)
        moved = (
            fusion(other[0], has, state, task),
            fusion(embedding, has, other[1], task),
            fusion(embedding, has, state, other[2]),
        )
        assert [int(np.abs(m - base).max() > 1e-4) for m in moved] == list(changes), kind


def test_a_task_is_broadcast_over_time():
    fusion, (embedding, state, task) = make(), inputs()
    rows = fusion(embedding[:, None].repeat(3, 1), jnp.ones((5, 3), bool), state[:, None].repeat(3, 1), task[:, None])
    np.testing.assert_allclose(rows[:, 2], fusion(embedding, jnp.ones(5, bool), state, task), atol=1e-5)


@pytest.mark.parametrize("skip", [False, True])
def test_none_is_state_and_task_themselves(skip):
    fusion, (embedding, state, tau) = make("none", skip=skip, skip_task=skip), inputs()
    got = fusion(embedding, jnp.ones(5, bool), state, tau)
    np.testing.assert_array_equal(got, jnp.concatenate([state, tau * EMBED**0.5], -1))
    assert not jax.tree.leaves(nnx.state(fusion)) and fusion.outputs == fusion.width == got.shape[1]


@pytest.mark.parametrize("kind", ["tamf", "concat"])
@pytest.mark.parametrize("skip, skip_task", [(True, False), (False, True), (True, True)])
def test_state_and_task_follow_the_fused_part_where_they_skip_it(kind, skip, skip_task):
    plain, skipping, (embedding, state, tau) = make(kind), make(kind, skip=skip, skip_task=skip_task), inputs()
    has = jnp.ones(5, bool)
    got = skipping(embedding, has, state, tau)
    beside = [state] * skip + [tau * EMBED**0.5] * skip_task
    np.testing.assert_array_equal(got, jnp.concatenate([plain(embedding, has, state, tau), *beside], -1))
    assert plain.outputs == WIDTH and skipping.outputs == got.shape[1]
