import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bitagent_jax.agent import behavior


def test_lambda_returns_by_hand():
    reward, value = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[10.0, 20.0, 30.0]])
    # R_2 = 3 + .5 * 30 = 18;  R_1 = 2 + .5 (.25 * 20 + .75 * 18) = 11.25;  R_0 = 1 + .5 (.25 * 10 + .75 * 11.25)
    want = [[6.46875, 11.25, 18.0]]
    np.testing.assert_allclose(behavior.lambda_returns(reward, value, 0.5, 0.75), want, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(behavior.lambda_returns)(reward, value, 0.5, 0.75), want, rtol=1e-6)


@pytest.mark.parametrize("trace, want", [(0.0, [1 + 5.0, 2 + 10.0, 3 + 15.0]), (1.0, [6.5, 11.0, 18.0])])
def test_lambda_returns_are_one_step_at_0_and_the_whole_sum_at_1(trace, want):
    reward, value = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[10.0, 20.0, 30.0]])
    np.testing.assert_allclose(behavior.lambda_returns(reward, value, 0.5, trace), [want], rtol=1e-6)


def test_percentiles_move_slowly_and_the_scale_is_at_least_one():
    norms = {"low": jnp.array(0.0), "high": jnp.array(0.0)}
    norms, scale = behavior.update_norms(norms, jnp.linspace(0, 100, 101), 0.9)
    assert float(norms["low"]) == pytest.approx(0.5) and float(norms["high"]) == pytest.approx(9.5)
    assert float(scale) == pytest.approx(9.0)
    assert float(behavior.update_norms(norms, jnp.zeros(10), 0.0)[1]) == 1.0


@pytest.mark.parametrize("stride, rows", [(1, list(range(16))), (8, [7, 15]), (5, [0, 5, 10, 15]), (16, [15])])
def test_rollouts_start_from_every_so_many_rows_and_the_last(stride, rows):
    numbers = jnp.arange(48).reshape(3, 16)
    started = behavior.start_rows({"number": numbers, "wide": numbers[..., None]}, stride)
    np.testing.assert_array_equal(started["number"], numbers[:, np.array(rows)].reshape(-1))
    assert started["wide"].shape == (3 * len(rows), 1)


def test_actor_loss_by_hand():
    returns, std = jnp.array([[4.0, 8.0]]), jnp.ones((1, 2, 3))
    entropy = 3 * 1.418939
    want = [[-(4 / 2 + 0.1 * entropy), -0.9 * (8 / 2 + 0.1 * entropy)]]
    np.testing.assert_allclose(behavior.actor_loss(returns, std, 2.0, 0.9, 0.1), want, rtol=1e-5)
    gradient = jax.grad(lambda r: behavior.actor_loss(r, std, 2.0, 0.9, 0.1).sum())(returns)
    np.testing.assert_allclose(gradient, [[-0.5, -0.45]], rtol=1e-6)


SETTINGS = types.SimpleNamespace(units=8, layers=1, min_std=0.1, init_std=0.4, bins=41)


def test_actor_is_bounded():
    actor = behavior.Actor(4, 3, SETTINGS, rngs=nnx.Rngs(0))
    mean, std = actor(100 * jax.random.normal(jax.random.key(0), (50, 4)))
    assert mean.shape == std.shape == (50, 3)
    assert np.abs(mean).max() <= 1 and std.min() >= 0.1 and std.max() <= 1
    actor.mlp.out.kernel[...] = jnp.zeros_like(actor.mlp.out.kernel[...])
    np.testing.assert_allclose(actor(jnp.ones((1, 4)))[1], 0.4, rtol=1e-5)


def test_critic_starts_at_zero_and_its_loss_is_the_two_hot_cross_entropy():
    critic = behavior.Critic(4, SETTINGS, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (5, 4))
    np.testing.assert_allclose(critic(x), 0, atol=1e-5)
    np.testing.assert_allclose(critic.loss(x, jnp.arange(5.0)), np.log(41), rtol=1e-5)  # uniform
    critic.mlp.out.bias[...] = jnp.log(jnp.full(41, 0.5 / 39).at[20].set(0.3).at[21].set(0.2))
    # bins are 0.4 apart, bin 20 is at 0: symlog 0.1 lies a quarter of the way to bin 21
    target = jnp.full(5, float(np.expm1(0.1)))
    np.testing.assert_allclose(critic.loss(x, target), -(0.75 * np.log(0.3) + 0.25 * np.log(0.2)), rtol=1e-4)
