"""The recurrent cell that the world model and the task imagination share (an RSSM's prior)."""

import jax
import jax.numpy as jnp
from flax import nnx

from bitagent_jax.nn.distributions import categorical_log_probs
from bitagent_jax.nn.layers import GRU, MLP


class Dynamics(nnx.Module):
    """``h' = GRU(h, [z, control])`` and the prior ``p(z' | h')`` over S categoricals of C classes."""

    def __init__(self, control: int, config, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.stoch, self.classes, self.unimix = config.stoch, config.classes, config.unimix
        self.deter = config.deter
        latent = config.stoch * config.classes
        self.inputs = MLP(latent + control, config.hidden, 1, dtype=dtype, rngs=rngs)
        self.gru = GRU(config.hidden, config.deter, dtype=dtype, rngs=rngs)
        self.prior_head = MLP(config.deter, config.hidden, 1, latent, dtype=dtype, rngs=rngs)

    def gates(self, stoch: jax.Array, control: jax.Array) -> jax.Array:
        """Return the input's share of the GRU gates for ``stoch [..., S*C]`` and ``control [..., K]``."""
        return self.gru.inputs(self.inputs(jnp.concatenate([stoch, control], -1)))

    def prior(self, deter: jax.Array) -> jax.Array:
        """Return prior log-probabilities ``[..., S, C]`` for ``deter [..., D]``."""
        return self.log_probs(self.prior_head(deter))

    def step(self, deter: jax.Array, stoch: jax.Array, control: jax.Array) -> jax.Array:
        """Advance ``deter [..., D]`` by one step."""
        return self.gru(self.gates(stoch, control), deter)

    def log_probs(self, logits: jax.Array) -> jax.Array:
        """Reshape logits ``[..., S*C]`` to mixed log-probabilities ``[..., S, C]``."""
        return categorical_log_probs(logits.reshape(*logits.shape[:-1], self.stoch, self.classes), self.unimix)


def flatten_latent(stoch: jax.Array) -> jax.Array:
    """Flatten ``[..., S, C]`` to ``[..., S*C]``."""
    return stoch.reshape(*stoch.shape[:-2], -1)
