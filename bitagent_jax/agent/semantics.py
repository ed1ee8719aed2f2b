"""The trainable MLLM side: adapter on video embeddings, aligner from text to video, semantic decoder.

The encoder itself is frozen and outside the step.  Adapter and aligner are residual with a zero last layer, so that
before training they return the frozen encoder's embeddings unchanged.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from bitagent_jax.agent.task_imagination import CLIP
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


class LowRank(nnx.Module):
    """``unit(e + B A e)``, ``B`` zero at the start: an adapter that changes embeddings in few directions only.

    The encoder's own last projection would change the same way if ``e`` were not scaled to unit length behind it.
    """

    def __init__(self, embed: int, rank: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.scale = embed**0.5
        self.down = nnx.Linear(embed, rank, use_bias=False, dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(rank, embed, use_bias=False, kernel_init=nnx.initializers.zeros, dtype=dtype, rngs=rngs)

    def __call__(self, embedding: jax.Array) -> jax.Array:
        """Map unit embeddings ``[..., D]`` to unit embeddings ``[..., D]``."""
        return unit(embedding + self.up(self.down(embedding * self.scale)).astype(jnp.float32))


def make_adapter(config, embed: int, *, dtype=jnp.float32, rngs: nnx.Rngs) -> nnx.Module | None:
    """Build the adapter that ``config.adapter`` (of ``config.mllm``) names; None for ``none``."""
    if config.adapter == "residual":
        return Residual(embed, config.adapter_units, 1, dtype=dtype, rngs=rngs)
    return LowRank(embed, config.adapter_rank, dtype=dtype, rngs=rngs) if config.adapter == "lowrank" else None


class SemanticDecoder(nnx.Module):
    """``f_dec``: from the fused part of the feature, its first ``inputs`` entries, back to a unit embedding."""

    def __init__(self, inputs: int, units: int, embed: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.inputs = inputs
        self.mlp = MLP(inputs, units, 1, embed, dtype=dtype, rngs=rngs)

    def __call__(self, fused: jax.Array) -> jax.Array:
        """Map ``[..., inputs or more]`` to unit embeddings ``[..., D]``."""
        return unit(self.mlp(fused[..., : self.inputs]).astype(jnp.float32))


def add_noise(key: jax.Array, embedding: jax.Array, noise: float) -> jax.Array:
    """Return ``unit((1 - noise) e + noise n)`` with a random unit vector ``n``: a stand-in for a text embedding.

    Denoising such vectors teaches the aligner to bridge the gap between text and video without paired data.
    """
    direction = unit(jax.random.normal(key, embedding.shape))
    return unit((1 - noise) * embedding + noise * direction)


def separate_clips(x: jax.Array) -> jax.Array:
    """Take the rows of ``[B, T, ...]`` that end clips without a common frame: ``[B*T/8, ...]``, T a multiple of 8."""
    return x[:, CLIP - 1 :: CLIP].reshape(-1, *x.shape[2:])


def relation_loss(frozen, adapted, has, texts, has_text) -> tuple[jax.Array, jax.Array]:
    """Compare the similarities of clips with clips and with sentences before and after the adapter.

    Where the anchor holds each embedding in its place, this holds how embeddings lie to one another.

    Args:
        frozen, adapted: ``e_v [B, T, D]`` and what the adapter makes of it.
        has: bool ``[B, T]``.
        texts: sentences ``[N, D]``, which no adapter changes, and whether each exists, ``has_text [N]``.

    Returns:
        squared differences of cosines ``[M, M + N]`` of the M separate clips with all clips and sentences, and which
        of these pairs exist and are of two different things.
    """
    before, after, there = separate_clips(frozen), separate_clips(adapted), separate_clips(has)
    change = [after @ after.T - before @ before.T, (after - before) @ texts.T]
    pairs = [there[:, None] & there & ~jnp.eye(len(there), dtype=bool), there[:, None] & has_text]
    return jnp.square(jnp.concatenate(change, 1)), jnp.concatenate(pairs, 1)


def effective_rank(x: jax.Array) -> jax.Array:
    """Return ``exp(entropy)`` of the normalised singular values of vectors ``[N, D]``: 1 if all are parallel."""
    values = jnp.linalg.svd(x, compute_uv=False)
    share = values / (jnp.sum(values) + 1e-8)
    return jnp.exp(-jnp.sum(share * jnp.log(share + 1e-12)))


def mean_similarity(x: jax.Array) -> jax.Array:
    """Return the mean cosine of two different ones of K > 1 unit vectors ``[K, D]``."""
    count = len(x)
    return (jnp.sum(x @ x.T) - count) / (count * (count - 1))


def make_probe(graph: nnx.GraphDef, prompts: jax.Array) -> Callable[[dict, dict], dict[str, jax.Array]]:
    """Build ``probe(params, batch) -> metrics``: has the MLLM side collapsed, or drifted from the frozen encoder?

    And do the gates of fusion still tell the tasks apart: the largest difference between two tasks at any layer.

    Too dear for every step (a singular value decomposition), so that it is called when metrics are logged.

    Args:
        graph: the agent's.
        prompts: the task set ``[K, D]``.
    """
    prompts = jnp.asarray(prompts)

    def probe(params: dict, batch: dict) -> dict[str, jax.Array]:
        agent = nnx.merge(graph, params)
        has = batch["has_embedding"][..., None]
        frozen, adapted = (jnp.where(has, x, 0) for x in (batch["embedding"], agent.adapt(batch["embedding"])))
        out = {
            "adapter/effective_rank": effective_rank(separate_clips(adapted)),
            "adapter/effective_rank_frozen": effective_rank(separate_clips(frozen)),
        }
        if len(prompts) > 1:
            out["aligner/text_similarity"] = mean_similarity(agent.aligner(prompts))
            out["aligner/text_similarity_frozen"] = mean_similarity(prompts)
            if agent.fusion.kind == "tamf":
                out["fusion/gate_range"] = jnp.max(jnp.ptp(agent.fusion.gates(prompts), axis=0))
        return out

    return probe
