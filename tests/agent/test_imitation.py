"""Rows of the data that are imitated: judged as imagined rollouts are, by what follows them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bitagent_jax.agent import imitation
from bitagent_jax.agent.rewards import task_reward
from bitagent_jax.agent.state import build
from bitagent_jax.agent.world_model import as_observed


@pytest.mark.parametrize("names", ["frozen_world_model", "frozen_world_model,no_mllm_loss"])
def test_an_episode_is_judged_window_by_window_as_rollouts_are(tiny, start, prompts, shown, names):
    config = tiny(names)
    graph, _ = build(config, prompts.shape[1], shown["shown/action"].shape[-1])
    agent = nnx.merge(graph, start(config).params)
    rows = {name: np.concatenate(shown[f"shown/{name}"]) for name in ("deter", "post", "action")}
    key = jax.random.key(3)
    got = imitation.judge(agent, rows, jnp.asarray(prompts), config, key)
    assert got.shape == (64, 3)
    seen = as_observed({name: shown[f"shown/{name}"] for name in ("deter", "post")}, key)
    path = {**seen, "prior": seen["post"], "action": shown["shown/action"]}
    want, _ = task_reward(agent, path, jnp.asarray(prompts), jnp.full(8, 2), config)
    np.testing.assert_allclose(got[:, 2], want.reshape(-1), atol=1e-5)


@pytest.mark.parametrize("semantics", ["decode", "hold"])
def test_regression_settles_on_what_most_do_not_on_the_mean(tiny, start, prompts, shown, semantics):
    config = tiny("frozen_world_model")
    graph, _ = build(config, prompts.shape[1], shown["shown/action"].shape[-1])
    agent = nnx.merge(graph, start(config).params)
    action = np.resize([0.9, 0.9, 0.9, -1.0, -0.8], shown["shown/action"].shape).astype(np.float32)
    action[..., 1] = action[..., 0]

    def at(mean):
        agent.actor = lambda fused: (jnp.full((*fused.shape[:-1], 2), mean), None)
        told = shown | {"shown/action": action}
        loss = imitation.regression(agent, told, jnp.asarray(prompts), semantics, jax.random.key(0))
        assert loss.shape == (8, 8)
        return float(loss.mean())

    grid = np.linspace(-1, 1, 41)
    assert grid[np.argmin([at(mean) for mean in grid])] == pytest.approx(0.9, abs=0.06)  # the mean is .18
