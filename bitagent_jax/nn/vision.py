"""Image encoders and decoders of convolutions with stride 1.

A k4 stride-2 convolution equals space-to-depth followed by a 2x2 convolution, and a k6 stride-2 transposed
convolution equals a 3x3 convolution followed by depth-to-space; cropped, it stands in for a k5 one.  On CPUs one matrix
product each, behind shifted slices or before shifted sums, is faster than XLA's own convolutions.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

NHWC = ("NHWC", "HWIO", "NHWC")
FEW, MANY = 16, 128  # channels
PRODUCT = "product"


def space_to_depth(x: jax.Array, block: int) -> jax.Array:
    """Fold ``block x block`` pixels into channels: ``[N, H, W, C] -> [N, H/b, W/b, b*b*C]`` (crops the rest)."""
    n, h, w, c = x.shape
    x = x[:, : h // block * block, : w // block * block]
    x = x.reshape(n, h // block, block, w // block, block, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, h // block, w // block, block * block * c)


def depth_to_space(x: jax.Array, block: int) -> jax.Array:
    """Unfold channels into ``block x block`` pixels, the inverse of :func:`space_to_depth`."""
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, block, block, c // block**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, h * block, w * block, c // block**2)


def windows(x: jax.Array, size: int) -> jax.Array:
    """Gather every ``size x size`` neighbourhood: ``[N, H, W, C] -> [N, H-size+1, W-size+1, size*size*C]``."""
    return jnp.concatenate(places(x, size), axis=-1)


def places(x: jax.Array, size: int) -> list[jax.Array]:
    """Return for each place in a ``size x size`` neighbourhood the pixels there, ``[N, H-size+1, W-size+1, C]``."""
    h, w = x.shape[1] - size + 1, x.shape[2] - size + 1
    return [x[:, i : i + h, j : j + w] for i in range(size) for j in range(size)]


def convolve(layer: nnx.Linear, x: jax.Array, size: int) -> jax.Array:
    """Apply a linear layer to every ``size x size`` neighbourhood, by what is fastest on the default backend.

    On CPU one matrix product of :func:`windows`, or, of many channels, the sum of a product for each place in them;
    elsewhere a convolution, which does not write them to memory.
    """
    if jax.default_backend() != "cpu":
        return convolution(layer, x, size)
    if x.shape[-1] < MANY:
        return product(layer, windows(x, size))
    x, kernel, bias = layer.promote_dtype((x, layer.kernel[...], layer.bias[...]), dtype=layer.dtype)
    kernel = kernel.reshape(size * size, x.shape[-1], -1)
    x = checkpoint_name(x, PRODUCT)
    pairs = zip(places(x, size), kernel, strict=True)
    shares = [jnp.matmul(*pair, preferred_element_type=jnp.float32) for pair in pairs]
    return checkpoint_name(sum(shares).astype(x.dtype) + bias, PRODUCT)


def convolve_around(layer: nnx.Linear, x: jax.Array, size: int) -> jax.Array:
    """Apply a linear layer to every neighbourhood that holds a pixel, ``[N, H, W, C] -> [N, H+size-1, W+size-1, O]``.

    On CPU each pixel's shares of all its neighbourhoods are one product, and are then added up where they belong, so
    that nothing is multiplied with the zeros around a picture.
    """
    if jax.default_backend() != "cpu":
        return convolution(layer, jnp.pad(x, ((0, 0), (size - 1,) * 2, (size - 1,) * 2, (0, 0))), size)
    x, kernel, bias = layer.promote_dtype((x, layer.kernel[...], layer.bias[...]), dtype=layer.dtype)
    kernel = kernel.reshape(size * size, x.shape[-1], -1)
    shares = jnp.einsum("nhwc,kco->nhwko", x, kernel, preferred_element_type=jnp.float32)
    shift = lambda i: (size - 1 - i, i)  # noqa: E731
    shares = jax.lax.split(shares.reshape(*x.shape[:3], -1), [kernel.shape[-1]] * size**2, axis=3)
    moved = [jnp.pad(one, ((0, 0), shift(k // size), shift(k % size), (0, 0))) for k, one in enumerate(shares)]
    return checkpoint_name(sum(moved).astype(x.dtype) + bias, PRODUCT)


def product(layer: nnx.Linear, x: jax.Array) -> jax.Array:
    """Return ``layer(x)``, to be kept for the gradient (:func:`in_parts`)."""
    return checkpoint_name(layer(x), PRODUCT)


def convolution(layer: nnx.Linear, x: jax.Array, size: int) -> jax.Array:
    """Compute ``layer(windows(x, size))`` as a convolution.

    Few output channels leave a matrix unit idle: then 2 x 2 pixels are folded into channels first, which takes 16/9
    of the products between four times as many channels.
    """
    x, kernel, bias = layer.promote_dtype((x, layer.kernel[...], layer.bias[...]), dtype=layer.dtype)
    kernel = kernel.reshape(size, size, x.shape[-1], -1)
    convolve = partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding="VALID", dimension_numbers=NHWC)
    if kernel.shape[-1] >= FEW or size % 2 == 0 or x.shape[1] % 2 or x.shape[2] % 2:
        return convolve(x, kernel) + bias
    return depth_to_space(convolve(space_to_depth(x, 2), folded(kernel)), 2) + bias


def folded(kernel: jax.Array) -> jax.Array:
    """Return the kernel between folded pictures: ``[k, k, C, O] -> [(k+1)/2, (k+1)/2, 4C, 4O]``, k odd."""
    k, _, inputs, outputs = kernel.shape
    shift = lambda i: (i, 1 - i)  # noqa: E731
    moved = [[jnp.pad(kernel, (shift(i), shift(j), (0, 0), (0, 0))) for j in range(2)] for i in range(2)]
    wide = jnp.stack([jnp.stack(row, -2) for row in moved], -3)  # k+1, k+1, C, 2, 2, O
    half = (k + 1) // 2
    wide = wide.reshape(half, 2, half, 2, inputs, 4 * outputs).transpose(0, 2, 1, 3, 4, 5)
    return wide.reshape(half, half, 4 * inputs, 4 * outputs)


def in_parts(network: Callable[[jax.Array], jax.Array], x: jax.Array, size: int) -> jax.Array:
    """Apply a network to ``[N, ...]``, on a single CPU ``size`` rows at a time, whose windows its cache holds.

    Of a part only what linear layers and convolutions return is kept for the gradient.
    """
    if jax.default_backend() != "cpu" or jax.device_count() > 1 or x.shape[0] <= size or x.shape[0] % size:
        return network(x)
    part = jax.checkpoint(network, policy=jax.checkpoint_policies.save_only_these_names(PRODUCT))
    y = jax.lax.map(part, x.reshape(-1, size, *x.shape[1:]))
    return y.reshape(-1, *y.shape[2:])


class ConvEncoder(nnx.Module):
    """Four k4 stride-2 convolutions, 64x64 pixels to ``2x2x8*depth`` features."""

    def __init__(self, depth: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        channels = [3, depth, 2 * depth, 4 * depth, 8 * depth]
        for i in range(4):
            setattr(self, f"conv{i}", nnx.Linear(16 * channels[i], channels[i + 1], dtype=dtype, rngs=rngs))
            setattr(self, f"norm{i}", nnx.LayerNorm(channels[i + 1], dtype=dtype, rngs=rngs))
        self.outputs = 4 * channels[-1]

    def __call__(self, image: jax.Array) -> jax.Array:
        """Encode ``[N, 64, 64, 3]`` floats to ``[N, 32 * depth]``."""
        return in_parts(self._encode, image, 16)

    def _encode(self, x: jax.Array) -> jax.Array:
        for i in range(4):
            x = convolve(getattr(self, f"conv{i}"), space_to_depth(x, 2), 2)
            x = nnx.silu(getattr(self, f"norm{i}")(x))
        return x.reshape(x.shape[0], -1)


class ConvDecoder(nnx.Module):
    """Transposed convolutions of stride 2, 1 -> 5 -> 13 -> 30 -> 64; all but the first have kernel 6."""

    def __init__(self, inputs: int, depth: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        channels = [inputs, 4 * depth, 2 * depth, depth, 3]
        self.conv0 = nnx.Linear(channels[0], 25 * channels[1], dtype=dtype, rngs=rngs)
        self.norm0 = nnx.LayerNorm(channels[1], dtype=dtype, rngs=rngs)
        for i in range(1, 4):
            setattr(self, f"conv{i}", nnx.Linear(9 * channels[i], 4 * channels[i + 1], dtype=dtype, rngs=rngs))
            if i < 3:
                setattr(self, f"norm{i}", nnx.LayerNorm(channels[i + 1], dtype=dtype, rngs=rngs))
        self.sizes = (13, 30, 64)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Decode ``[N, inputs]`` to images ``[N, 64, 64, 3]`` around zero."""
        return in_parts(self._decode, self.conv0(x).reshape(x.shape[0], 5, 5, -1), 8)

    def _decode(self, x: jax.Array) -> jax.Array:
        x = nnx.silu(self.norm0(x))
        for i, size in enumerate(self.sizes, start=1):
            x = depth_to_space(convolve_around(getattr(self, f"conv{i}"), x, 3), 2)[:, :size, :size]
            if i < 3:
                x = nnx.silu(getattr(self, f"norm{i}")(x))
        return x


class PatchEncoder(nnx.Module):
    """Two patch-merging layers for small models: 8x8 patches, then 4x4 groups of them, then one projection."""

    def __init__(self, depth: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.patch = nnx.Linear(8 * 8 * 3, depth, dtype=dtype, rngs=rngs)
        self.norm0 = nnx.LayerNorm(depth, dtype=dtype, rngs=rngs)
        self.merge = nnx.Linear(4 * depth, 2 * depth, dtype=dtype, rngs=rngs)
        self.norm1 = nnx.LayerNorm(2 * depth, dtype=dtype, rngs=rngs)
        self.outputs = 16 * 2 * depth

    def __call__(self, image: jax.Array) -> jax.Array:
        """Encode ``[N, 64, 64, 3]`` floats to ``[N, 32 * depth]``."""
        x = nnx.silu(self.norm0(self.patch(space_to_depth(image, 8))))
        x = nnx.silu(self.norm1(self.merge(space_to_depth(x, 2))))
        return x.reshape(x.shape[0], -1)


class PatchDecoder(nnx.Module):
    """One projection to a 4x4 grid, two sub-pixel growths by 2, then 4x4 pixel patches."""

    def __init__(self, inputs: int, depth: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        channels = [2 * depth, 4 * depth // 3, depth]
        self.grid = nnx.Linear(inputs, 16 * channels[0], dtype=dtype, rngs=rngs)
        for i in range(2):
            setattr(self, f"grow{i}", nnx.Linear(9 * channels[i], 4 * channels[i + 1], dtype=dtype, rngs=rngs))
        for i in range(3):
            setattr(self, f"norm{i}", nnx.LayerNorm(channels[i], dtype=dtype, rngs=rngs))
        self.pixels = nnx.Linear(depth, 4 * 4 * 3, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Decode ``[N, inputs]`` to images ``[N, 64, 64, 3]`` around zero."""
        x = nnx.silu(self.norm0(self.grid(x).reshape(x.shape[0], 4, 4, -1)))
        for grow, norm in ((self.grow0, self.norm1), (self.grow1, self.norm2)):
            around = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            x = nnx.silu(norm(depth_to_space(convolve(grow, around, 3), 2)))
        return depth_to_space(self.pixels(x), 4)


ENCODERS = {"conv": ConvEncoder, "patch": PatchEncoder}
DECODERS = {"conv": ConvDecoder, "patch": PatchDecoder}
