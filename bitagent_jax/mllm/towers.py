"""The two towers of the embedded encoder: frames of a clip, and hashed sentences, to one space of unit vectors.

Nothing here convolves: XLA's CPU convolutions are slow, so frames are cut into patches and mixed by matrix
products (MLP-Mixer, Tolstikhin et al. 2021). Motion is read by the stem, which sees a frame together with
the frame before it, so an episode's rows are computed once and a window costs only the temporal head.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from bitagent_jax.mllm.hashing import BUCKETS

NUM_FRAMES = 8
IMAGE_SIZE = 64
EMBED_DIM = 128
PATCH = 8
FEATURES = 256
_GRID = IMAGE_SIZE // PATCH
_CHANNELS = 64
_WIDE = 128
_WORD = 64


def unit(x: jax.Array) -> jax.Array:
    """Scale the last axis to unit norm."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-12)


def patchify(images: jax.Array, size: int) -> jax.Array:
    """Cut [..., H, W, C] into non-overlapping squares: [..., (H/size) * (W/size), size * size * C]."""
    *lead, height, width, channels = images.shape
    x = images.reshape(*lead, height // size, size, width // size, size, channels)
    x = jnp.moveaxis(x, -3, -4)
    return x.reshape(*lead, (height // size) * (width // size), size * size * channels)


class Mixer(nnx.Module):
    """One residual block over [..., tokens, channels]: across tokens, then across channels."""

    def __init__(self, tokens: int, channels: int, *, rngs: nnx.Rngs):
        self.norm_tokens = nnx.LayerNorm(channels, rngs=rngs)
        self.tokens_in = nnx.Linear(tokens, tokens, rngs=rngs)
        self.tokens_out = nnx.Linear(tokens, tokens, rngs=rngs)
        self.norm_channels = nnx.LayerNorm(channels, rngs=rngs)
        self.channels_in = nnx.Linear(channels, 2 * channels, rngs=rngs)
        self.channels_out = nnx.Linear(2 * channels, channels, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jnp.swapaxes(self.norm_tokens(x), -1, -2)
        y = self.tokens_out(nnx.gelu(self.tokens_in(y)))
        x = x + jnp.swapaxes(y, -1, -2)
        y = self.channels_in(self.norm_channels(x))
        return x + self.channels_out(nnx.gelu(y))


class VideoTower(nnx.Module):
    """Frames to one feature row per pair of neighbouring frames, and rows of a window to an embedding."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.stem = nnx.Linear(PATCH * PATCH * 3, 2 * _CHANNELS, rngs=rngs)
        self.fine = Mixer(_GRID**2, _CHANNELS, rngs=rngs)
        self.merge = nnx.Linear(4 * _CHANNELS, _WIDE, rngs=rngs)
        self.coarse = Mixer(_GRID**2 // 4, _WIDE, rngs=rngs)
        self.norm = nnx.LayerNorm(_WIDE, rngs=rngs)
        self.flat = nnx.Linear(_GRID**2 // 4 * _WIDE, FEATURES, rngs=rngs)
        pairs = NUM_FRAMES - 1
        self.step = nnx.Linear(FEATURES, 96, rngs=rngs)
        self.whole = nnx.Linear(pairs * 96 + FEATURES, FEATURES, rngs=rngs)
        self.norm_head = nnx.LayerNorm(FEATURES, rngs=rngs)
        self.hidden = nnx.Linear(FEATURES, FEATURES, rngs=rngs)
        self.out = nnx.Linear(FEATURES, EMBED_DIM, rngs=rngs)

    def rows(self, frames: jax.Array) -> jax.Array:
        """Encode frames [..., T, 64, 64, 3] (0..255) to rows [..., T-1, FEATURES], one per pair (t-1, t)."""
        x = self.stem(patchify(frames.astype(jnp.float32) / 64.0 - 1.5, PATCH))
        before, now = jnp.split(x, 2, axis=-1)
        x = nnx.gelu(before[..., :-1, :, :] + now[..., 1:, :, :])
        x = self.fine(x)
        x = patchify(x.reshape(*x.shape[:-2], _GRID, _GRID, _CHANNELS), 2)
        x = self.norm(self.coarse(self.merge(x)))
        return nnx.gelu(self.flat(x.reshape(*x.shape[:-2], -1)))

    def head(self, rows: jax.Array) -> jax.Array:
        """Embed windows of rows [..., N-1, FEATURES] to unit vectors [..., D]."""
        steps = nnx.gelu(self.step(rows))
        x = jnp.concatenate([steps.reshape(*steps.shape[:-2], -1), rows.mean(-2)], -1)
        x = nnx.gelu(self.whole(x))
        x = x + nnx.gelu(self.hidden(self.norm_head(x)))
        return unit(self.out(x))

    def __call__(self, clips: jax.Array) -> jax.Array:
        """Embed clips [B, N, 64, 64, 3] (0..255) to unit vectors [B, D]."""
        return self.head(self.rows(clips))


class TextTower(nnx.Module):
    """Hashed n-grams to an embedding: the mean of their vectors through a small MLP."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.table = nnx.Embed(BUCKETS, _WORD, rngs=rngs)
        self.norm = nnx.LayerNorm(_WORD, rngs=rngs)
        self.inner = nnx.Linear(_WORD, FEATURES, rngs=rngs)
        self.hidden = nnx.Linear(FEATURES, FEATURES, rngs=rngs)
        self.out = nnx.Linear(FEATURES, EMBED_DIM, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Embed bucket numbers [n, MAX_NGRAMS] (0 is padding) to unit vectors [n, D]."""
        mask = (ids > 0)[..., None]
        x = (self.table(ids) * mask).sum(-2) / jnp.maximum(mask.sum(-2), 1)
        x = nnx.gelu(self.inner(self.norm(x)))
        return unit(self.out(x + nnx.gelu(self.hidden(x))))


class Towers(nnx.Module):
    """Both towers; all the weights of the embedded encoder."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.video = VideoTower(rngs=rngs)
        self.text = TextTower(rngs=rngs)
