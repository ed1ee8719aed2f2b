"""Dense text-conditioned rewards: how well an imagined rollout follows the task imagination.

``Sim`` has several forms, because the paper writes cosine (Eq. 10) and negative KL (Eq. 14) for the same symbol.
"""

import math

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bitagent_jax import errors
from bitagent_jax.agent.dynamics import flatten_latent
from bitagent_jax.nn.distributions import mode_onehot

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


def task_reward(slow, path: dict, prompts, ids, config: ConfigDict) -> tuple[jax.Array, jax.Array]:
    """Score imagined rollouts against the slow task imagination: rewards ``[N, H]`` and offsets ``[N]``.

    The decoder's linear layer that the cosine forms act on is held fixed: it measures, it does not learn from this.
    """
    stop = jax.lax.stop_gradient
    if config.task_imagination.action:
        target = slow.target(prompts[ids], stop(path["action"]))
    else:
        steps = jnp.zeros((prompts.shape[0], *path["action"].shape[1:]))
        target = slow.target(prompts, steps)[ids]
    if config.reward.similarity in ("neg_kl", "likelihood"):
        sides = {"log_probs": path["prior"], "stoch": path["stoch"]}, {"log_probs": stop(target)}
    else:
        measure = slow.world_model.latent_features
        sides = {"features": measure(path["stoch"])}, {"features": measure(flatten_latent(stop(mode_onehot(target))))}
    matrix = similarity(config.reward.similarity, *sides)
    reward, offset = align(matrix, config.reward.window)
    if share := config.reward.semantic:
        reward = (1 - share) * reward + share * semantic_reward(slow, path, prompts[ids])
    return reward, offset


def semantic_reward(slow, path: dict, task: jax.Array) -> jax.Array:
    """Return the cosine of what states mean with the sentence, ``f_dec(f_TAMF(no e_v, s, tau)) . f_psi(tau)``.

    Args:
        slow: modules that measure, held fixed; else fusion and decoder would learn to see what is wanted.
        path: states ``deter`` and ``stoch [N, H, ...]``.
        task: ``tau [N, D]``.
    """
    state = {name: path[name] for name in ("deter", "stoch")}
    meant = slow.read_semantics(state, slow.fuser(task[:, None]))
    return jnp.einsum("nhd,nd->nh", meant, jax.lax.stop_gradient(slow.aligner(task)))
