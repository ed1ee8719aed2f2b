"""Dense text-conditioned rewards: how well an imagined rollout follows the task imagination.

``Sim`` has several forms, because the paper writes cosine (Eq. 10) and negative KL (Eq. 14) for the same symbol.
"""

import math

import jax
import jax.numpy as jnp

from bitagent_jax import errors

SIMILARITIES = ("max_cosine", "cosine", "neg_kl", "likelihood")


def similarity(kind: str, rollout: dict, target: dict) -> jax.Array:
    """Compare every rollout step with every target step.

    Args:
        kind: ``cosine``: ``u.v / (|u||v|)``; ``max_cosine``: ``u.v / max(|u|, |v|)^2`` (also compares lengths);
            ``neg_kl``: ``-KL(rollout || target) / S`` in nats per categorical; ``likelihood``: ``log(C q(z)) / S``,
            nats per categorical by which the target q prefers the drawn z to a uniform draw.
        rollout: ``features [B, H, F]`` of the cosines, ``log_probs [B, H, S, C]`` of ``neg_kl``, ``stoch [B, H, S*C]``
            of ``likelihood``.
        target: of J steps, ``features`` of the cosines and ``log_probs`` of the others.

    Returns:
        ``[B, H, J]``; larger is better.
    """
    if kind == "neg_kl":
        left, right = rollout["log_probs"], target["log_probs"]
        probs = jnp.exp(left)
        negative_entropy = jnp.sum(probs * left, axis=(-2, -1))
        cross = jnp.einsum("bhsc,bjsc->bhj", probs, right)
        return (cross - negative_entropy[..., None]) / left.shape[-2]
    if kind == "likelihood":
        log_probs = target["log_probs"]
        count, classes = log_probs.shape[-2:]
        flat = log_probs.reshape(*log_probs.shape[:-2], -1)
        return jnp.einsum("bhk,bjk->bhj", rollout["stoch"], flat) / count + math.log(classes)
    if kind not in SIMILARITIES:
        raise errors.unknown("similarity", kind, SIMILARITIES)
    u, v = rollout["features"], target["features"]
    dot = jnp.einsum("bhf,bjf->bhj", u, v)
    u2, v2 = jnp.sum(jnp.square(u), -1)[..., None], jnp.sum(jnp.square(v), -1)[:, None]
    if kind == "cosine":
        return dot * jax.lax.rsqrt(u2 * v2 + 1e-8)
    return dot / (jnp.maximum(u2, v2) + 1e-8)


def align(matrix: jax.Array, window: int) -> tuple[jax.Array, jax.Array]:
    """Find where in the rollout the target begins, then score each step against its target step.

    Args:
        matrix: similarities ``[B, H, J]`` with ``J >= window``.
        window: target steps compared when searching.

    Returns:
        rewards ``[B, H]``: step ``t`` against target index ``max(0, t - t*)``, and the offset ``t* [B]`` that
        maximises the mean similarity of the first ``window`` target steps, ``0 <= t* <= H - window``.
    """
    horizon = matrix.shape[1]
    offsets = jnp.arange(horizon - window + 1)
    steps = jnp.arange(window)
    scores = jnp.mean(matrix[:, offsets[:, None] + steps, steps], axis=-1)
    best = jnp.argmax(scores, axis=-1)
    index = jnp.maximum(0, jnp.arange(horizon) - best[:, None])
    return jnp.take_along_axis(matrix, index[..., None], axis=-1)[..., 0], best
