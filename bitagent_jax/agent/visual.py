"""What the model sees: decoded frames of filtering, of open-loop prediction and of the task imagination."""

import jax
import jax.numpy as jnp
from flax import nnx

from bitagent_jax.agent import behavior


def to_uint8(image: jax.Array) -> jax.Array:
    """Turn decoded floats around zero into pixels."""
    return (jnp.clip(image + 0.5, 0, 1) * 255).astype(jnp.uint8)


def open_loop(graph: nnx.GraphDef, params, batch: dict, context: int, key: jax.Array) -> dict[str, jax.Array]:
    """Compare true frames with the model's: uint8 ``[B, T, 64, 64, 3]`` each.

    ``posterior`` decodes the filtered states; ``prediction`` sees only the first ``context`` frames, then follows
    the true actions.
    """
    agent = nnx.merge(graph, params)
    model = agent.world_model
    observe_key, key = jax.random.split(key)
    seen = model.observe(batch["image"], batch["action"], batch["is_first"], observe_key)

    def step(state, inputs):
        state, _ = model.imagine(state, *inputs)
        return state, state

    start = {name: seen[name][:, context - 1] for name in ("deter", "stoch")}
    actions = batch["action"][:, context:].swapaxes(0, 1)
    _, ahead = jax.lax.scan(step, start, (actions, jax.random.split(key, actions.shape[0])))
    states = {name: jnp.concatenate([seen[name][:, :context], ahead[name].swapaxes(0, 1)], 1) for name in ahead}
    return {
        "truth": batch["image"],
        "posterior": to_uint8(model.decode(seen)),
        "prediction": to_uint8(model.decode(states)),
    }


def task_frames(graph: nnx.GraphDef, params, task: jax.Array, steps: int) -> jax.Array:
    """Decode the task imagination of ``tau [D]``: uint8 ``[steps, 64, 64, 3]``."""
    agent = nnx.merge(graph, params)
    actions = jnp.zeros((1, steps, agent.actions))
    probs = jnp.exp(agent.target(task[None], actions))
    stoch = jax.nn.one_hot(jnp.argmax(probs, -1), probs.shape[-1]).reshape(1, steps, -1)
    deter = jnp.zeros((1, steps, agent.world_model.config.deter))
    return to_uint8(agent.world_model.decode({"deter": deter, "stoch": stoch}))[0]


def policy_frames(graph, params, carry: dict, task, embedding, has, steps: int, semantics: str, key) -> jax.Array:
    """Decode the policy's imagined rollout from one environment's memory: uint8 ``[steps, 64, 64, 3]``.

    Args:
        carry: what ``act`` returned for one environment.
        task: ``tau [D]``.
        embedding, has: the clip's frozen ``e_v [1, D]`` and whether there is one ``[1]``; used with ``hold``.
        semantics: ``imagination.semantics`` of the run.
    """
    agent = nnx.merge(graph, params)
    start = {name: carry[name] for name in ("deter", "stoch")}
    if semantics == "decode":
        embedding, has = agent.read_semantics(start, agent.fuser(task[None])), jnp.ones_like(has)
    else:
        embedding = agent.adapt(embedding)
    path = behavior.rollout(agent, start, embedding, has, task[None], steps, semantics, key)
    return to_uint8(agent.world_model.decode({name: path[name] for name in ("deter", "stoch")}))[0]
