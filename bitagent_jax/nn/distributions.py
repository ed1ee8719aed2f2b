"""Categorical latents, two-hot scalars and bounded Gaussian actions, as plain functions."""

import jax
import jax.numpy as jnp


def categorical_log_probs(logits: jax.Array, unimix: float) -> jax.Array:
    """Return log-probabilities ``[..., S, C]`` of softmax mixed with ``unimix`` of the uniform distribution."""
    logits = logits.astype(jnp.float32)
    if unimix:
        probs = (1.0 - unimix) * jax.nn.softmax(logits) + unimix / logits.shape[-1]
        return jnp.log(probs)
    return jax.nn.log_softmax(logits)


def sample_onehot(key: jax.Array, log_probs: jax.Array) -> jax.Array:
    """Sample one-hot ``[..., S, C]``; the gradient is that of the probabilities (straight-through).

    Inverts the cumulated probabilities: one random number a categorical, where Gumbel noise takes C of them.
    """
    probs = jnp.exp(log_probs)
    below = jnp.cumsum(probs, -1)
    point = jax.random.uniform(key, (*probs.shape[:-1], 1)) * below[..., -1:]  # less than the last, whatever it is
    sample = jax.nn.one_hot(jnp.sum(below <= point, -1), probs.shape[-1], dtype=probs.dtype)
    return sample + probs - jax.lax.stop_gradient(probs)


def mode_onehot(log_probs: jax.Array) -> jax.Array:
    """Return the most probable one-hot ``[..., S, C]`` with the straight-through gradient."""
    probs = jnp.exp(log_probs)
    mode = jax.nn.one_hot(jnp.argmax(log_probs, -1), log_probs.shape[-1], dtype=probs.dtype)
    return mode + probs - jax.lax.stop_gradient(probs)


def categorical_kl(left: jax.Array, right: jax.Array) -> jax.Array:
    """Return ``KL(left || right)`` in nats, summed over the S categoricals: ``[..., S, C] -> [...]``."""
    return jnp.sum(jnp.exp(left) * (left - right), axis=(-2, -1))


def symlog(x: jax.Array) -> jax.Array:
    """Return ``sign(x) log(1 + |x|)``."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: jax.Array) -> jax.Array:
    """Invert :func:`symlog`."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


def two_hot(x: jax.Array, bins: jax.Array) -> jax.Array:
    """Spread each ``x [...]`` over its two neighbouring bins so that the mean is ``x``: ``[..., K]``.

    ``bins [K]`` ascend evenly; values outside are clipped to the ends.
    """
    position = jnp.clip((x - bins[0]) / (bins[1] - bins[0]), 0, len(bins) - 1)
    below = jnp.clip(jnp.floor(position), 0, len(bins) - 2)
    weight = position - below
    index = below.astype(jnp.int32)
    left = jax.nn.one_hot(index, len(bins)) * (1 - weight)[..., None]
    return left + jax.nn.one_hot(index + 1, len(bins)) * weight[..., None]


def gaussian_sample(key: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Sample ``N(mean, std)`` clipped to [-1, 1]; the gradient passes through the clip unchanged."""
    sample = mean + std * jax.random.normal(key, mean.shape)
    return sample + jax.lax.stop_gradient(jnp.clip(sample, -1.0, 1.0) - sample)


def gaussian_entropy(std: jax.Array) -> jax.Array:
    """Return the entropy of the unclipped Gaussian in nats, summed over the last axis."""
    return jnp.sum(0.5 * jnp.log(2 * jnp.pi * jnp.e) + jnp.log(std), axis=-1)
