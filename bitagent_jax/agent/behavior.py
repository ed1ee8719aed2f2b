"""Task-aware behaviour learning: actor, critic and rollouts in imagination (actor-critic of DreamerV3)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from bitagent_jax.agent.world_model import feature
from bitagent_jax.nn.distributions import gaussian_entropy, gaussian_sample, symexp, symlog, two_hot
from bitagent_jax.nn.layers import MLP


class Actor(nnx.Module):
    """Gaussian policy with a tanh mean and a standard deviation in [min_std, 1]."""

    def __init__(self, inputs: int, actions: int, config, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.min_std = config.min_std
        share = (config.init_std - config.min_std) / (1 - config.min_std)
        self.shift = math.log(share / (1 - share))
        self.mlp = MLP(inputs, config.units, config.layers, 2 * actions, dtype=dtype, rngs=rngs)

    def __call__(self, fused: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return mean and standard deviation, each ``[..., A]``."""
        mean, std = jnp.split(self.mlp(fused).astype(jnp.float32), 2, axis=-1)
        return jnp.tanh(mean), self.min_std + (1 - self.min_std) * nnx.sigmoid(std + self.shift)


class Critic(nnx.Module):
    """Value of a fused feature as a categorical over evenly spaced symlog bins."""

    def __init__(self, inputs: int, config, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.count = config.bins
        self.mlp = MLP(  # zero at the start: so are the first values
            inputs, config.units, config.layers, config.bins, output_scale=0.0, dtype=dtype, rngs=rngs
        )

    def bins(self) -> jax.Array:
        """Return the bin centres ``[K]`` in symlog space."""
        return jnp.linspace(-8.0, 8.0, self.count)

    def logits(self, fused: jax.Array) -> jax.Array:
        """Return float32 logits ``[..., K]``."""
        return self.mlp(fused).astype(jnp.float32)

    def __call__(self, fused: jax.Array) -> jax.Array:
        """Return values ``[...]``."""
        return symexp(jnp.sum(jax.nn.softmax(self.logits(fused)) * self.bins(), -1))

    def loss(self, fused: jax.Array, target: jax.Array) -> jax.Array:
        """Return the two-hot cross-entropy ``[...]`` toward ``target [...]``."""
        probs = two_hot(symlog(target), self.bins())
        return -jnp.sum(probs * jax.nn.log_softmax(self.logits(fused)), -1)


def start_rows(rows, stride: int):
    """Take every so many rows of sequences, the last among them: a tree of ``[B, T, ...]`` -> ``[B*T/stride, ...]``.

    The last and not the first, which has seen no other picture, and whose clip, where an encoder has embedded every
    eighth row of an episode, has no embedding.
    """

    def take(x):
        x = x[:, (x.shape[1] - 1) % stride :: stride]
        return x.reshape(-1, *x.shape[2:])

    return jax.tree.map(take, rows)


def rollout(agent, start, embedding, has, task, horizon: int, semantics: str, key) -> dict[str, jax.Array]:
    """Imagine ``horizon`` steps with the policy: ``a_t ~ pi(.|z_t)``, ``s_{t+1} ~ p_theta``, then fuse again.

    Imagined steps have no pixels: with ``semantics="decode"`` the embedding of a new state is what the semantic
    decoder reads from that state (with ``e_v`` hidden); with ``"hold"`` the start's embedding stays. For the backward
    pass only matrix products are kept; what lies between them is computed again.

    Args:
        agent: the modules.
        start: states ``[N, ...]``.
        embedding, has: adapted ``e_v [N, D]`` of the start and whether it exists ``[N]``.
        task: ``tau [N, D]``.

    Returns:
        ``fused [N, H+1, W]``; ``prior [N, H, S, C]``, ``mean``, ``std`` and ``action [N, H, A]``, where step ``t`` of
        ``prior`` is the state that action ``t`` led to; ``deter`` and ``stoch [N, H, ...]`` of those states.
    """

    fuse = agent.fuser(task)

    def step(carry, key):
        state, fused, embedding, has = carry
        act_key, state_key = jax.random.split(key)
        mean, std = agent.actor(fused)
        action = gaussian_sample(act_key, mean, std)
        state, prior = agent.world_model.imagine(state, action, state_key)
        if semantics == "decode":
            embedding, has = agent.read_semantics(state, fuse), jnp.ones_like(has)
        after = fuse(embedding, has, feature(state)).astype(jnp.float32)
        out = {"fused": after, "prior": prior, "mean": mean, "std": std, "action": action, **state}
        return (state, after, embedding, has), out

    first = fuse(embedding, has, feature(start)).astype(jnp.float32)
    step = jax.checkpoint(step, prevent_cse=False, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    _, out = jax.lax.scan(step, (start, first, embedding, has), jax.random.split(key, horizon))
    out = jax.tree.map(lambda x: x.swapaxes(0, 1), out)
    return out | {"fused": jnp.concatenate([first[:, None], out["fused"]], 1)}


def lambda_returns(reward: jax.Array, value: jax.Array, discount: float, trace: float) -> jax.Array:
    """Return ``R_t = r_t + g ((1 - l) v_{t+1} + l R_{t+1})`` with ``R_H = v_H``.

    Args:
        reward: ``[N, H]``, of arriving at state ``t+1``.
        value: ``[N, H]``, of state ``t+1``.
    """

    def step(following, inputs):
        reward, value = inputs
        total = reward + discount * ((1 - trace) * value + trace * following)
        return total, total

    _, returns = jax.lax.scan(step, value[:, -1], (reward.T, value.T), reverse=True)
    return returns.T


def actor_loss(returns: jax.Array, std: jax.Array, scale: jax.Array, discount: float, entropy: float) -> jax.Array:
    """Return ``-gamma^t (R_t / scale + entropy * H[pi])``, ``[N, H]``; its gradient runs through the dynamics."""
    weight = discount ** jnp.arange(returns.shape[1])
    return -weight * (returns / scale + entropy * gaussian_entropy(std))


def update_norms(norms: dict, returns: jax.Array, decay: float) -> tuple[dict, jax.Array]:
    """Track the 5th and 95th percentiles of returns; their distance, at least 1, scales the actor's objective."""
    low, high = jnp.percentile(returns, jnp.array([5.0, 95.0]))
    norms = {
        "low": decay * norms["low"] + (1 - decay) * low,
        "high": decay * norms["high"] + (1 - decay) * high,
    }
    return norms, jnp.maximum(1.0, norms["high"] - norms["low"])


def actor_critic(critic: Critic, slow: Critic, path: dict, reward: jax.Array, norms: dict, settings) -> tuple:
    """Return the losses ``actor`` and ``critic [N, H]`` of imagined rollouts, metrics, and new norms.

    Args:
        critic, slow: the learning critic and its moving average, which gives the values.
        path: of :func:`rollout`.
        reward: ``[N, H]``.
        norms: moving percentiles of the returns.
        settings: the config's ``behavior``.
    """
    stop = jax.lax.stop_gradient
    value = slow(path["fused"][:, 1:])
    returns = lambda_returns(reward, value, settings.discount, settings.trace)
    norms, scale = update_norms(norms, stop(returns), settings.return_decay)
    losses = {
        "actor": actor_loss(returns, path["std"], scale, settings.discount, settings.entropy),
        "critic": critic.loss(stop(path["fused"][:, :-1]), stop(returns)),
    }
    metrics = {
        "imagined/value": jnp.mean(value),
        "actor/std": jnp.mean(path["std"]),
        "actor/return_scale": scale,
    }
    return losses, metrics, norms
