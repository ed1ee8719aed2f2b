"""Regression toward actions of the data: for each sentence, toward those that were followed by what it says.

Which rows these are, ``training.exemplars`` draws.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bitagent_jax.agent.rewards import task_reward
from bitagent_jax.agent.world_model import as_observed, feature

FIELDS = ("deter", "post", "embedding", "has_embedding", "action", "task")
"""Of a batch of such rows, each named ``shown/FIELD``; ``action`` is the one taken there."""


def judge(agent, rows: dict, prompts: jax.Array, config: ConfigDict, key: jax.Array) -> jax.Array:
    """Score an episode for each sentence, in windows as long as imagined rollouts by the reward of these.

    Args:
        agent: the modules.
        rows: ``deter [T, D]``, ``post [T, S, C]``, ``action [T, A]`` of the episode; T a multiple of the horizon.
        prompts: ``tau [K, D]``.
        key: draws ``z``.

    Returns:
        rewards ``[T, K]``.
    """
    horizon = config.imagination.horizon
    windows = jax.tree.map(lambda x: x.reshape(-1, horizon, *x.shape[1:]), rows)
    seen = as_observed(windows, key)
    path = {"deter": seen["deter"], "stoch": seen["stoch"], "prior": seen["post"], "action": windows["action"]}

    def of_task(task):
        ids = jnp.full(len(windows["action"]), task)
        return task_reward(agent, path, prompts, ids, config)[0].reshape(-1)

    return jax.lax.map(of_task, jnp.arange(len(prompts))).T


def regression(agent, batch: dict, prompts: jax.Array, semantics: str, key: jax.Array) -> jax.Array:
    """Return the distance of the policy from the actions shown, ``|mean - a|_1``, smooth near 0; ``[B, T]``.

    The square would settle on the mean of what several actors do, with their noise: a timid action that none of them
    takes; the absolute difference settles on what most do.

    Args:
        agent: the modules; only the actor learns.
        batch: with ``shown/FIELD [B, T, ...]`` for each of ``FIELDS``.
        prompts: ``tau [K, D]``.
        semantics: as in :func:`bitagent_jax.agent.behavior.rollout`.
        key: draws ``z``.
    """
    shown = {name: batch[f"shown/{name}"] for name in FIELDS}
    state = as_observed(shown, key)
    fuse = agent.fuser(prompts[shown["task"]])
    if semantics == "decode":
        embedding, has = agent.read_semantics(state, fuse), jnp.ones_like(shown["has_embedding"])
    else:
        embedding, has = agent.adapt(shown["embedding"]), shown["has_embedding"]
    fused = jax.lax.stop_gradient(fuse(embedding, has, feature(state)).astype(jnp.float32))
    mean, _ = agent.actor(fused)
    return jnp.sum(jnp.sqrt(jnp.square(mean - shown["action"]) + 1e-3), -1)
