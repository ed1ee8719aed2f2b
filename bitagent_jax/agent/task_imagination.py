"""Task imagination: from an embedding to the latent trajectory that fulfils it (``f_map`` and ``p~_psi``).

A second RSSM cell is driven by an embedding instead of pixels, from a learned initial state.  On data it is fed each
clip's own embedding and matched to the world model's posterior; for a prompt it is fed the aligned text embedding.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from bitagent_jax.agent.dynamics import Dynamics, flatten_latent
from bitagent_jax.nn.distributions import categorical_kl, mode_onehot, sample_onehot

CLIP = 8


class TaskImagination(nnx.Module):
    """``z~_{t+1} ~ p~_psi(. | z~_t, embedding[, a_t])``."""

    def __init__(self, config, embed: int, actions: int, with_action: bool, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.embed, self.with_action = embed, with_action
        self.dynamics = Dynamics(embed + (actions if with_action else 0), config, dtype=dtype, rngs=rngs)
        self.start = nnx.Param(jnp.zeros((config.deter,)))

    def rollout(self, embedding: jax.Array, action: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Imagine a trajectory from the learned initial state.

        Args:
            embedding: unit vectors ``[B, H, D]``, one per step.
            action: ``[B, H, A]``; used only if the task prior is conditioned on actions.
            key: samples the latents with it; None follows the mode, which makes the trajectory a fixed target.

        Returns:
            task-prior log-probabilities ``[B, H, S, C]``.
        """
        deter, stoch = self._start(embedding.shape[0])
        keys = None if key is None else jax.random.split(key, embedding.shape[1])

        def step(carry, inputs):
            deter, stoch = carry
            control, key = inputs
            deter = self.dynamics.step(deter, stoch, control)
            prior = self.dynamics.prior(deter)
            stoch = mode_onehot(prior) if key is None else sample_onehot(key, prior)
            return (deter, flatten_latent(stoch)), prior

        _, priors = jax.lax.scan(step, (deter, stoch), (self._control(embedding, action).swapaxes(0, 1), keys))
        return priors.swapaxes(0, 1)

    def follow(self, embedding: jax.Array, action: jax.Array, stoch: jax.Array) -> jax.Array:
        """Predict each step from what came before it in the data: like ``rollout``, but fed ``z`` of the data.

        Args:
            embedding, action: as of ``rollout``.
            stoch: drawn posterior latents ``[B, H, S*C]``, of which step ``t`` is told those before it.

        Returns:
            task-prior log-probabilities ``[B, H, S, C]``.
        """
        deter, first = self._start(embedding.shape[0])
        before = jnp.concatenate([first[:, None], stoch[:, :-1]], 1)
        gates = self.dynamics.gates(before, self._control(embedding, action))
        return self.dynamics.prior(self.dynamics.gru.unroll(gates, deter))

    def _start(self, batch: int) -> tuple[jax.Array, jax.Array]:
        deter = jnp.broadcast_to(jnp.tanh(self.start[...]), (batch, self.start.shape[0]))
        return deter, flatten_latent(mode_onehot(self.dynamics.prior(deter)))

    def _control(self, embedding: jax.Array, action: jax.Array) -> jax.Array:
        control = embedding * self.embed**0.5
        return jnp.concatenate([control, action], -1) if self.with_action else control


def clip_segments(embedding: jax.Array, has: jax.Array, segment: int) -> tuple[jax.Array, jax.Array]:
    """Give each row the embedding of the aligned 8-frame clip that it belongs to, and cut into segments.

    Args:
        embedding: ``[B, T, D]``; row ``t`` embeds frames ``t-7..t``.
        has: bool ``[B, T]``.
        segment: rows rolled from the initial state; a multiple of 8 that divides T.

    Returns:
        embeddings ``[B*T/segment, segment, D]`` (zero where missing) and validity ``[B*T/segment, segment]``: a
        clip is valid if it and all before it in its segment have an embedding.
    """
    clips = segment // CLIP
    last = has[:, CLIP - 1 :: CLIP]
    valid = jnp.cumprod(last.reshape(-1, clips), axis=1)
    clip = jnp.where(last[..., None], embedding[:, CLIP - 1 :: CLIP], 0.0).reshape(-1, clips, embedding.shape[-1])
    return jnp.repeat(clip, CLIP, axis=1), jnp.repeat(valid, CLIP, axis=1).astype(bool)


def matching_losses(module: TaskImagination, observed, action, embedding, has, segment: int, feed: str, key) -> dict:
    """Match the task prior to the world model on data, per row.

    Returns:
        ``task_kl``: ``KL(sg posterior || p~_psi)``, and ``dynamics_kl``: Eq. 9, ``KL(sg p_theta || p~_psi)``, both
        ``[B, T]`` nats, and ``valid`` bool ``[B, T]``. Both weigh by the data's side: where an embedding leaves the
        pose open, the task prior spreads over the poses that occur instead of settling on one.
    """
    batch, length = has.shape
    clips, valid = clip_segments(embedding, has, segment)
    stop, cut = jax.lax.stop_gradient, lambda x: x.reshape(-1, segment, x.shape[-1])
    if feed == "data":
        prior = module.follow(clips, cut(action), cut(stop(observed["stoch"])))
    else:
        prior = module.rollout(clips, cut(action), key)
    prior = prior.reshape(batch, length, *prior.shape[2:])
    return {
        "task_kl": categorical_kl(stop(observed["post"]), prior),
        "dynamics_kl": categorical_kl(stop(observed["prior"]), prior),
        "valid": valid.reshape(batch, length),
    }
