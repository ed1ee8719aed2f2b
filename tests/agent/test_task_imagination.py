import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bitagent_jax.agent.task_imagination import TaskImagination, clip_segments, matching_losses

SETTINGS = types.SimpleNamespace(deter=6, hidden=8, stoch=3, classes=4, unimix=0.01)


def make(with_action=False):
    return TaskImagination(SETTINGS, 5, 2, with_action, rngs=nnx.Rngs(0))


def numbered(batch, length):
    """An embedding whose first entry says its row."""
    return jnp.broadcast_to(jnp.arange(1.0, 1 + length)[None, :, None], (batch, length, 5))


def test_every_row_of_a_clip_gets_the_embedding_of_its_last_row():
    clips, valid = clip_segments(numbered(2, 32), jnp.ones((2, 32), bool), 16)
    assert clips.shape == (4, 16, 5) and valid.shape == (4, 16) and valid.all()
    np.testing.assert_array_equal(clips[0, :, 0], [8] * 8 + [16] * 8)
    np.testing.assert_array_equal(clips[1, :, 0], [24] * 8 + [32] * 8)
    np.testing.assert_array_equal(clips[2], clips[0])


@pytest.mark.parametrize(
    "missing, valid",
    [
        (7, [0, 0, 1, 1]),  # the first clip of a segment spoils the second: its latents would follow from nothing
        (15, [1, 0, 1, 1]),
        (23, [1, 1, 0, 0]),
        (6, [1, 1, 1, 1]),  # only a clip's last row counts
    ],
)
def test_a_clip_without_an_embedding_is_masked_with_those_after_it_in_its_segment(missing, valid):
    has = jnp.ones((1, 32), bool).at[0, missing].set(False)
    clips, got = clip_segments(numbered(1, 32), has, 16)
    assert got.reshape(4, 8).astype(int).tolist() == [[v] * 8 for v in valid]
    if missing % 8 == 7:
        assert not np.any(clips.reshape(4, 8, 5)[missing // 8])


def test_the_trajectory_follows_the_embedding_and_ignores_actions_unless_told():
    rows = jax.random.normal(jax.random.key(0), (2, 4, 5))
    zeros, ones = jnp.zeros((2, 4, 2)), jnp.ones((2, 4, 2))
    module = make()
    base = module.rollout(rows, zeros)
    assert base.shape == (2, 4, 3, 4)
    np.testing.assert_allclose(jnp.exp(base).sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(module.rollout(rows, ones), base)
    later = module.rollout(rows.at[:, 2].add(1), zeros)
    np.testing.assert_array_equal(later[:, :2], base[:, :2])
    assert np.abs(later[:, 2] - base[:, 2]).max() > 1e-3
    told = make(with_action=True)
    assert np.abs(told.rollout(rows, ones) - told.rollout(rows, zeros)).max() > 1e-3


def test_without_a_key_the_trajectory_is_fixed_and_with_one_it_varies():
    module, rows, zeros = make(), jax.random.normal(jax.random.key(0), (8, 6, 5)), jnp.zeros((8, 6, 2))
    np.testing.assert_array_equal(module.rollout(rows, zeros), module.rollout(rows, zeros))
    a, b = (module.rollout(rows, zeros, jax.random.key(seed)) for seed in (1, 2))
    np.testing.assert_array_equal(a[:, 0], b[:, 0])  # the start is learned, not drawn
    assert np.abs(a - b).max() > 1e-4


def test_fed_with_its_own_latents_it_follows_its_own_trajectory():
    module, rows, zeros = make(), jax.random.normal(jax.random.key(0), (2, 6, 5)), jnp.zeros((2, 6, 2))
    own = module.rollout(rows, zeros)
    latents = jax.nn.one_hot(jnp.argmax(own, -1), 4).reshape(2, 6, 12)
    np.testing.assert_allclose(module.follow(rows, zeros, latents), own, atol=1e-5)
    other = module.follow(rows, zeros, latents.at[:, 2].set(0.5))
    np.testing.assert_array_equal(other[:, :3], module.follow(rows, zeros, latents)[:, :3])  # a step sees those before
    assert np.abs(other[:, 3:] - own[:, 3:]).max() > 1e-3


def test_embeddings_enter_at_the_scale_of_sqrt_d():
    module, rows = make(), jax.random.normal(jax.random.key(0), (1, 1, 5))
    deter = jnp.tanh(module.start[...])[None]
    stoch = jax.nn.one_hot(jnp.argmax(module.dynamics.prior(deter), -1), 4).reshape(1, -1)
    want = module.dynamics.prior(module.dynamics.step(deter, stoch, rows[:, 0] * 5**0.5))
    np.testing.assert_allclose(module.rollout(rows, jnp.zeros((1, 1, 2)))[:, 0], want, atol=1e-5)


@pytest.mark.parametrize("feed", ["data", "own"])
def test_matching_losses_are_the_two_kls_with_their_gradients_into_the_task_prior_alone(feed):
    module, key = make(), jax.random.key(3)
    logits = jax.random.normal(key, (2, 2, 16, 3, 4))
    post, prior = jax.nn.log_softmax(logits)
    rows, has = jax.random.normal(key, (2, 16, 5)), jnp.ones((2, 16), bool).at[1, 7].set(False)
    action = jnp.zeros((2, 16, 2))
    observed = {"post": post, "prior": prior, "stoch": jax.random.uniform(key, (2, 16, 12))}

    def losses(observed):
        return matching_losses(module, observed, action, rows, has, 8, feed, key)

    got = losses(observed)
    clips, _ = clip_segments(rows, has, 8)
    actions, stoch = action.reshape(4, 8, 2), observed["stoch"].reshape(4, 8, 12)
    task = module.follow(clips, actions, stoch) if feed == "data" else module.rollout(clips, actions, key)
    task = task.reshape(2, 16, 3, 4)
    kl = lambda p, q: np.sum(np.exp(p) * (p - q), (-2, -1))  # noqa: E731
    np.testing.assert_allclose(got["task_kl"], kl(post, task), rtol=1e-4)
    np.testing.assert_allclose(got["dynamics_kl"], kl(prior, task), rtol=1e-4)
    assert got["valid"].astype(int).tolist() == [[1] * 16, [0] * 8 + [1] * 8]
    gradient = jax.grad(lambda o: sum(losses(o)[name].sum() for name in ("task_kl", "dynamics_kl")))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient(observed)))
