import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bitagent_jax.agent import semantics
from bitagent_jax.agent.semantics import LowRank, Residual, SemanticDecoder, add_noise, unit
from bitagent_jax.agent.state import build

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


def test_a_low_rank_adapter_starts_as_the_identity_and_changes_few_directions():
    module = LowRank(16, 2, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(module(E), E, atol=1e-6)
    gradient = nnx.grad(lambda m: jnp.sum(m(E)[:, 0]))(module)
    assert np.any(gradient.up.kernel[...])
    down, up = jax.random.normal(jax.random.key(3), (16, 2)), jax.random.normal(jax.random.key(4), (2, 16))
    module.down.kernel[...], module.up.kernel[...] = down, up
    np.testing.assert_allclose(module(E), unit(E + 4 * E @ down @ up), atol=1e-5)


@pytest.mark.parametrize("kind, leaves", [("residual", 6), ("lowrank", 2), ("none", 0)])
def test_every_adapter_leaves_the_frozen_embeddings_as_they_are_at_step_0(tiny, kind, leaves):
    config = tiny(mllm__adapter=kind)
    graph, init = build(config, 16, 2)
    params = init(jax.random.key(0))
    assert len(jax.tree.leaves(params.get("adapter", {}))) == leaves
    np.testing.assert_allclose(nnx.merge(graph, params).adapt(E), E, atol=1e-6)


def test_relations_by_hand():
    x, y, z = jnp.eye(3)
    rows = lambda *clips: jnp.zeros((2, 16, 3)).at[:, 7::8].set(jnp.array(clips).reshape(2, 2, 3))  # noqa: E731
    frozen, adapted = rows(x, x, y, z), rows(x, y, z, z)
    has = jnp.ones((2, 16), bool).at[1, 15].set(False)  # the last of the four clips is missing
    texts, known = jnp.stack([x, y]), jnp.array([True, False])
    loss, pairs = semantics.relation_loss(frozen, adapted, has, texts, known)
    assert loss.shape == pairs.shape == (4, 6)
    np.testing.assert_array_equal(pairs[:, :4], np.array([[0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [0] * 4]))
    np.testing.assert_array_equal(pairs[:, 4:], np.array([[1, 0], [1, 0], [1, 0], [0, 0]]))
    # clips 0 and 1 were alike (1 -> 0), 0 and 2 remain apart, as do 1 and 2; clip 1 has left the first sentence
    np.testing.assert_array_equal(loss[:3, :3], [[0, 1, 0], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(loss[:3, 4], [0, 1, 0])
    turned = frozen[..., jnp.array([1, 2, 0])]  # all clips together turned: their relations remain
    assert not np.any(semantics.relation_loss(frozen, turned, has, texts, known)[0][:, :4])


def test_effective_rank_and_mean_similarity_by_hand():
    assert semantics.effective_rank(jnp.eye(5, 8)) == pytest.approx(5, rel=1e-4)
    assert semantics.effective_rank(jnp.ones((7, 3))) == pytest.approx(1, rel=1e-4)
    two = jnp.diag(jnp.array([3.0, 1.0]))  # shares 3/4 and 1/4
    want = np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))
    assert semantics.effective_rank(two) == pytest.approx(want, rel=1e-4)
    assert np.isfinite(semantics.effective_rank(jnp.zeros((4, 4))))
    angle = jnp.array([[1.0, 0], [0, 1], [0.6, 0.8]])
    assert semantics.mean_similarity(angle) == pytest.approx((0 + 0.6 + 0.8) / 3)


def test_the_probe_reads_the_frozen_encoder_at_step_0_and_sees_a_collapse(tiny, start, batch, prompts):
    graph, _ = build(tiny(), 16, 2)
    params = start(tiny()).params
    compiled = jax.jit(semantics.make_probe(graph, prompts))
    probe = lambda *args: {name: float(value) for name, value in compiled(*args).items()}  # noqa: E731
    before = probe(params, batch)
    for name in ("adapter/effective_rank", "aligner/text_similarity"):
        assert before[name] == pytest.approx(before[f"{name}_frozen"], rel=1e-4)
    assert before["adapter/effective_rank"] > 5  # seven clips of noise
    bias = params["adapter"]["mlp"]["out"]["bias"] + 100.0
    out = params["adapter"]["mlp"]["out"] | {"bias": bias}
    after = probe(params | {"adapter": {"mlp": params["adapter"]["mlp"] | {"out": out}}}, batch)
    assert after["adapter/effective_rank"] < 1.1 and set(after) == set(before)
    dead = params["fusion"]["gate_in"] | {"bias": params["fusion"]["gate_in"]["bias"] - 100.0}
    blind = probe(params | {"fusion": params["fusion"] | {"gate_in": dead}}, batch)
    assert before["fusion/gate_range"] > 1e-3 and blind["fusion/gate_range"] == 0
    lone = jax.eval_shape(semantics.make_probe(graph, prompts[:1]), params, batch)
    assert set(lone) == {"adapter/effective_rank", "adapter/effective_rank_frozen"}


def test_the_semantic_decoder_returns_unit_vectors():
    out = SemanticDecoder(5, 5, 16, rngs=nnx.Rngs(0))(jax.random.normal(jax.random.key(1), (2, 3, 5)))
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
