"""The two towers of the embedded encoder: frames of a clip, and hashed sentences, to one space of unit vectors.

XLA's CPU convolutions are slow, so frames are cut into patches and mixed by matrix products (MLP-Mixer,
Tolstikhin et al. 2021). The stem sees a frame together with the frame before it. How the floor slides past is
measured, not learned: bands of a frame are correlated with the same bands of an earlier frame at every shift of
a few pixels. Where the body faces may show in a few pixels only (a spider's eyes), so the middle of the picture
is also looked at closely. All of that is done once per frame; a window costs only the head.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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
_BANDS = 16
_LAGS = (1, 4)
_REACH = (16, 8)
_MIDDLE = slice(20, 44)
CLOSE = 64
_LOOKS = slice(1, None, 2)  # frames of a window that are looked at closely
_SHIFTS = _BANDS * sum(2 * reach + 1 for reach in _REACH)


def unit(x: jax.Array) -> jax.Array:
    """Scale the last axis to unit norm, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-12)


def patchify(images: jax.Array, size: int) -> jax.Array:
    """Cut [..., H, W, C] into non-overlapping squares: [..., (H//size) * (W//size), size * size * C].

    What is left at the right and at the bottom is left out, as by a convolution without padding.
    """
    *lead, height, width, channels = images.shape
    images = images[..., : height // size * size, : width // size * size, :]
    x = images.reshape(*lead, height // size, size, width // size, size, channels)
    x = jnp.moveaxis(x, -3, -4)
    return x.reshape(*lead, (height // size) * (width // size), size * size * channels)


def unfold(x: jax.Array, size: int, stride: int) -> jax.Array:
    """Gather every window of a convolution without padding: [..., H, W, C] to [..., H', W', size * size * C]."""
    rows, columns = (side - size + 1 for side in x.shape[-3:-1])
    parts = [x[..., i : i + rows : stride, j : j + columns : stride, :] for i in range(size) for j in range(size)]
    return jnp.concatenate(parts, -1)


def correlate(frames: jax.Array, lags: tuple[int, ...] = _LAGS) -> tuple[jax.Array, ...]:
    """Correlate each frame with the one ``lag`` frames before it, in horizontal and vertical bands.

    A band is the mean grey profile of 4 neighbouring rows (or columns), less its own mean. Its normalised
    correlation at shift d is ``sum_x a[x] b[x+d] / sqrt(|a|^2 |b|^2)``, with a floor under the norms so that
    bands without texture say nothing; the brightness of the picture cancels. It is computed as a product of
    discrete Fourier transforms, long enough not to wrap around, written as matrix products.

    Args:
        frames: [..., T, 64, 64, 3], values 0..255.
        lags: frames between the two of a pair.

    Returns:
        For each lag [..., T-lag, 800]: 16 bands at shifts of -16..16 pixels across, then 16 at -8..8 down.
    """
    grey = frames.mean(-1)
    out = [[] for _ in lags]
    for picture, reach in zip((grey, jnp.swapaxes(grey, -1, -2)), _REACH, strict=True):
        bands = picture.reshape(*picture.shape[:-2], _BANDS, IMAGE_SIZE // _BANDS, IMAGE_SIZE).mean(-2)
        bands = bands - bands.mean(-1, keepdims=True)
        bands = bands * jax.lax.rsqrt(jnp.square(bands).sum(-1, keepdims=True) + 64.0)
        (cos, sin), (back_cos, back_sin) = _fourier(reach)
        real, imag = bands @ cos, bands @ sin
        for found, lag in zip(out, lags, strict=True):
            a, b, c, d = real[..., :-lag, :, :], imag[..., :-lag, :, :], real[..., lag:, :, :], imag[..., lag:, :, :]
            scores = (a * c + b * d) @ back_cos + (a * d - b * c) @ back_sin
            found.append(scores.reshape(*scores.shape[:-2], -1))
    return tuple(jax.lax.stop_gradient(jnp.concatenate(found, -1)) for found in out)


def _fourier(reach: int) -> tuple:
    """Matrices from a band to its spectrum, and from a cross spectrum to shifts -reach..reach: (cos, sin) each."""
    length = IMAGE_SIZE + 2 * reach
    wave = np.arange(length // 2 + 1)
    there = 2 * np.pi / length * np.outer(np.arange(IMAGE_SIZE), wave)
    back = 2 * np.pi / length * np.outer(wave, np.arange(-reach, reach + 1))
    weight = (np.where((wave == 0) | (wave == length // 2), 1, 2) / length)[:, None]
    pairs = (np.cos(there), np.sin(there)), (weight * np.cos(back), weight * np.sin(back))
    return tuple(tuple(jnp.asarray(matrix, jnp.float32) for matrix in pair) for pair in pairs)


class Rows(NamedTuple):
    """What is computed once per frame.

    Pair features [..., T-1, FEATURES], correlations [..., T-lag, 800] per lag, close-ups [..., T, 64].
    """

    pairs: jax.Array
    slides: tuple[jax.Array, ...]
    close: jax.Array

    def windows(self, count: int) -> "Rows":
        """Gather rows of ``count`` sliding windows of N frames each: a new axis of windows before the rows."""
        starts = jnp.arange(count)[:, None]
        slides = zip(self.slides, _LAGS, strict=True)
        return Rows(
            self.pairs[starts + jnp.arange(NUM_FRAMES - 1)],
            tuple(slide[starts + jnp.arange(NUM_FRAMES - lag)] for slide, lag in slides),
            self.close[starts + jnp.arange(NUM_FRAMES)[_LOOKS]],
        )


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


class CloseUp(nnx.Module):
    """The middle 24 x 24 pixels at full resolution through three 3 x 3 convolutions."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.conv1 = nnx.Linear(9 * 3, 32, rngs=rngs)
        self.conv2 = nnx.Linear(9 * 32, 48, rngs=rngs)
        self.conv3 = nnx.Linear(9 * 48, 64, rngs=rngs)
        self.norm = nnx.LayerNorm(64, rngs=rngs)
        self.flat = nnx.Linear(8 * 8 * 64, CLOSE, rngs=rngs)

    def __call__(self, frames: jax.Array) -> jax.Array:
        """Map frames [..., 64, 64, 3], values around zero, to features [..., 64]."""
        x = nnx.gelu(self.conv1(unfold(frames[..., _MIDDLE, _MIDDLE, :], 3, 1)))
        x = nnx.gelu(self.conv2(unfold(x, 3, 2)))
        x = nnx.gelu(self.norm(self.conv3(unfold(x, 3, 1))))
        return nnx.gelu(self.flat(x.reshape(*x.shape[:-3], -1)))


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
        self.motion = nnx.Linear(len(_LAGS) * _SHIFTS, 128, rngs=rngs)
        self.close = CloseUp(rngs=rngs)
        self.fuse = nnx.Linear(FEATURES + 128 + CLOSE, 2 * 192, rngs=rngs)
        self.fused = nnx.Linear(192, FEATURES, rngs=rngs)
        self.norm_head = nnx.LayerNorm(FEATURES, rngs=rngs)
        self.hidden = nnx.Linear(FEATURES, FEATURES, rngs=rngs)
        self.out = nnx.Linear(FEATURES, EMBED_DIM, rngs=rngs)

    def rows(self, frames: jax.Array, looks: slice = slice(None)) -> Rows:
        """Encode frames [..., T, 64, 64, 3] (0..255), T >= 5, to rows; only ``looks`` of them get a close-up."""
        frames = frames.astype(jnp.float32)
        slides = correlate(frames)
        frames = frames / 64.0 - 1.5
        close = self.close(frames[..., looks, :, :, :])
        x = self.stem(patchify(frames, PATCH))
        before, now = jnp.split(x, 2, axis=-1)
        x = nnx.gelu(before[..., :-1, :, :] + now[..., 1:, :, :])
        x = self.fine(x)
        x = patchify(x.reshape(*x.shape[:-2], _GRID, _GRID, _CHANNELS), 2)
        x = self.norm(self.coarse(self.merge(x)))
        return Rows(nnx.gelu(self.flat(x.reshape(*x.shape[:-2], -1))), slides, close)

    def head(self, rows: Rows) -> jax.Array:
        """Embed the rows of windows of N frames to unit vectors [..., D].

        The floor's motion meets the pose in a gated layer, since "forward" depends on where the body faces.
        """
        steps = nnx.gelu(self.step(rows.pairs))
        x = jnp.concatenate([steps.reshape(*steps.shape[:-2], -1), rows.pairs.mean(-2)], -1)
        x = nnx.gelu(self.whole(x))
        slide = jnp.concatenate([slide.mean(-2) for slide in rows.slides], -1)
        slide = nnx.gelu(self.motion(4.0 * slide))
        value, gate = jnp.split(self.fuse(jnp.concatenate([x, slide, rows.close.mean(-2)], -1)), 2, -1)
        x = x + self.fused(value * nnx.gelu(gate))
        x = x + nnx.gelu(self.hidden(self.norm_head(x)))
        return unit(self.out(x))

    def clip_rows(self, clips: jax.Array) -> Rows:
        """Encode clips of N frames [B, N, 64, 64, 3] (0..255) to what the head reads of each."""
        return self.rows(clips, _LOOKS)

    def __call__(self, clips: jax.Array) -> jax.Array:
        """Embed clips [B, N, 64, 64, 3] (0..255) to unit vectors [B, D]."""
        return self.head(self.clip_rows(clips))


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
