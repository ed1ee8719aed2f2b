"""Acting: one pure step from a frame and a task embedding to an action, batched over environments."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from bitagent_jax.agent.world_model import feature
from bitagent_jax.nn.distributions import gaussian_sample

Carry = dict[str, jax.Array]


def initial_carry(config: ConfigDict, actions: int, count: int) -> Carry:
    """Return the memory of ``count`` environments before their first frame."""
    model = config.world_model
    return {
        "deter": jnp.zeros((count, model.deter)),
        "stoch": jnp.zeros((count, model.stoch * model.classes)),
        "action": jnp.zeros((count, actions)),
    }


def make_act(graph: nnx.GraphDef, config: ConfigDict) -> Callable:
    """Build ``act(params, carry, image, is_first, task, embedding, has, key, sample) -> (action, carry)``.

    Shapes: image uint8 ``[N, 64, 64, 3]``, is_first bool ``[N]``, task ``[N, D]``, embedding ``[N, D]`` with has
    bool ``[N]`` (read only when ``imagination.semantics`` is ``hold``: with ``decode`` no encoder is needed to act),
    sample a Python bool (False: the posterior's mode and the mean action). Returns actions ``[N, A]``.
    """
    hold = config.imagination.semantics == "hold"

    def act(params, carry, image, is_first, task, embedding, has, key, sample):
        agent = nnx.merge(graph, params)
        model_key, action_key = jax.random.split(key)
        state = {"deter": carry["deter"], "stoch": carry["stoch"]}
        features = agent.world_model.encode(image)
        state, _ = agent.world_model.filter(state, features, carry["action"], is_first, model_key if sample else None)
        fuse = agent.fuser(task)
        if hold:
            embedding = agent.adapt(embedding)
        else:
            embedding, has = agent.read_semantics(state, fuse), jnp.ones_like(is_first)
        mean, std = agent.actor(fuse(embedding, has, feature(state)))
        action = gaussian_sample(action_key, mean, std) if sample else mean
        return action, {**state, "action": action}

    return jax.jit(act, static_argnames="sample")
