"""The trainable MLLM side: adapter on video embeddings, aligner from text to video, semantic decoder.

The encoder itself is frozen and outside the step.  Adapter and aligner are residual with a zero last layer, so that
before training they return the frozen encoder's embeddings unchanged.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from bitagent_jax.nn.layers import MLP


def unit(x: jax.Array) -> jax.Array:
    """Scale vectors ``[..., D]`` to length one."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-8)


class Residual(nnx.Module):
    """``unit(e + g(e))``, ``g`` zero at the start: the adapter (video side) and the aligner ``f_psi`` (text side)."""

    def __init__(self, embed: int, units: int, layers: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.scale = embed**0.5
        self.mlp = MLP(embed, units, layers, embed, output_scale=0.0, dtype=dtype, rngs=rngs)

    def __call__(self, embedding: jax.Array) -> jax.Array:
        """Map unit embeddings ``[..., D]`` to unit embeddings ``[..., D]``."""
        return unit(embedding + self.mlp(embedding * self.scale).astype(jnp.float32))


class SemanticDecoder(nnx.Module):
    """``f_dec``: from the fused part of the feature back to a unit embedding."""

    def __init__(self, width: int, embed: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.width = width
        self.mlp = MLP(width, width, 1, embed, dtype=dtype, rngs=rngs)

    def __call__(self, fused: jax.Array) -> jax.Array:
        """Map the first W entries of ``[..., W or more]`` to unit embeddings ``[..., D]``."""
        return unit(self.mlp(fused[..., : self.width]).astype(jnp.float32))


def add_noise(key: jax.Array, embedding: jax.Array, noise: float) -> jax.Array:
    """Return ``unit((1 - noise) e + noise n)`` with a random unit vector ``n``: a stand-in for a text embedding.

    Denoising such vectors teaches the aligner to bridge the gap between text and video without paired data.
    """
    direction = unit(jax.random.normal(key, embedding.shape))
    return unit((1 - noise) * embedding + noise * direction)
