import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bitagent_jax.nn import vision
from bitagent_jax.nn.vision import (
    DECODERS,
    ENCODERS,
    ConvDecoder,
    ConvEncoder,
    convolution,
    convolve,
    convolve_around,
    depth_to_space,
    in_parts,
    space_to_depth,
    windows,
)

LAYOUT = ("NHWC", "HWIO", "NHWC")


def test_space_to_depth_by_hand_and_its_inverse():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(space_to_depth(x, 2)[0, 0, 0], [0, 1, 4, 5])
    np.testing.assert_array_equal(space_to_depth(x, 2)[0, 1, 0], [8, 9, 12, 13])
    y = jax.random.normal(jax.random.key(0), (2, 12, 8, 5))
    np.testing.assert_array_equal(depth_to_space(space_to_depth(y, 4), 4), y)
    assert space_to_depth(jnp.ones((1, 31, 31, 2)), 2).shape == (1, 15, 15, 8)


def test_windows_by_hand():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    np.testing.assert_array_equal(windows(x, 2)[0, 0, 0], [0, 1, 3, 4])
    np.testing.assert_array_equal(windows(x, 2)[0, 1, 1], [4, 5, 7, 8])


def as_kernel4(weight, outputs):
    """[2*2 blocks, 2*2 pixels, C] x O -> HWIO 4x4."""
    blocks = weight.reshape(2, 2, 2, 2, -1, outputs)  # block row, block column, pixel row, pixel column, C, O
    return blocks.transpose(0, 2, 1, 3, 4, 5).reshape(4, 4, -1, outputs)


def silu_norm(x):
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * jax.nn.sigmoid(x)


@pytest.mark.parametrize("size, height, outputs", [(2, 6, 7), (3, 6, 7), (3, 5, 7), (3, 6, 20), (5, 6, 7)])
def test_a_convolution_is_the_product_of_windows(size, height, outputs):
    layer = nnx.Linear(size * size * 5, outputs, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(float(outputs))
    x = jax.random.normal(jax.random.key(0), (2, height, 8, 5))
    np.testing.assert_allclose(convolution(layer, x, size), layer(windows(x, size)), atol=1e-5)


@pytest.mark.parametrize("channels", [5, vision.MANY])
@pytest.mark.parametrize("around", [0, 2])
def test_products_are_the_convolution_with_its_gradients(around, channels):
    graph, params = nnx.split(nnx.Linear(9 * channels, 7, rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), (2, 6, 8, channels))

    def value_and_gradients(apply):
        value = lambda params, x: jnp.sum(jnp.sin(apply(nnx.merge(graph, params), x, 3)))  # noqa: E731
        return jax.value_and_grad(value, argnums=(0, 1))(params, x)

    pad = ((0, 0), (around, around), (around, around), (0, 0))
    want = value_and_gradients(lambda layer, x, size: convolution(layer, jnp.pad(x, pad), size))
    got = value_and_gradients(convolve_around if around else convolve)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), got, want)


@pytest.mark.parametrize("dtype, near", [(jnp.float32, 1e-5), (jnp.bfloat16, 0.1)])
@pytest.mark.parametrize("make", [ENCODERS["conv"], *DECODERS.values()])
def test_networks_of_convolutions_are_those_of_products(make, dtype, near, monkeypatch):
    decodes = make in DECODERS.values()
    net = make(*([10] if decodes else []), 8, dtype=dtype, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (3, 10) if decodes else (3, 64, 64, 3))
    products = net(x)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(vision, "places", None)
    assert products.dtype == dtype
    np.testing.assert_allclose(net(x).astype(jnp.float32), products.astype(jnp.float32), atol=near)


def test_a_network_in_parts_is_the_network(monkeypatch):
    net = ConvDecoder(6, 4, rngs=nnx.Rngs(0))
    graph, params = nnx.split(net)
    x = net.conv0(jax.random.normal(jax.random.key(0), (12, 6))).reshape(12, 5, 5, 16)

    def value_and_gradients(size):
        apply = lambda params, x: jnp.sum(jnp.square(in_parts(nnx.merge(graph, params)._decode, x, size)))  # noqa: E731
        return jax.jit(jax.value_and_grad(apply, argnums=(0, 1)))(params, x)

    parts, whole = value_and_gradients(4), value_and_gradients(12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max()), parts, whole)
    loops = lambda size: str(jax.make_jaxpr(lambda x: in_parts(net._decode, x, size))(x)).count("scan[")  # noqa: E731
    assert (loops(4), loops(12), loops(5)) == (1, 0, 0)
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    assert loops(4) == 0


def test_conv_encoder_is_four_k4_stride_2_convolutions():
    encoder = ConvEncoder(4, rngs=nnx.Rngs(0))
    image = jax.random.uniform(jax.random.key(0), (2, 64, 64, 3)) - 0.5
    x, sizes = image, [64]
    for i in range(4):
        layer = getattr(encoder, f"conv{i}")
        kernel = as_kernel4(layer.kernel[...], layer.kernel.shape[1])
        x = jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=LAYOUT) + layer.bias[...]
        sizes.append(x.shape[1])
        x = silu_norm(x)
    assert sizes == [64, 31, 14, 6, 2]
    np.testing.assert_allclose(encoder(image), x.reshape(2, -1), atol=1e-3)
    assert encoder.outputs == encoder(image).shape[-1] == 32 * 4


def as_transposed_kernel(weight, outputs, size):
    """[3*3 neighbours, C] x [2*2 pixels, O] -> HWIO of a stride-2 transposed convolution with ``size`` taps.

    Output pixel 2m + a sums inputs m-2 .. m (the input is padded by 2), so that tap ``a + 2 * (2 - neighbour)``.
    """
    w = np.asarray(weight).reshape(3, 3, -1, 2, 2, outputs)
    kernel = np.zeros((6, 6, w.shape[2], outputs), np.float32)
    for i in range(3):
        for j in range(3):
            for a in range(2):
                for b in range(2):
                    kernel[a + 2 * (2 - i), b + 2 * (2 - j)] = w[i, j, :, a, b]
    assert size == 6 or not (kernel[5:].any() or kernel[:, 5:].any())
    return kernel[:size, :size]


def zero_odd_taps(layer, outputs):
    """Make the 6-tap kernel a 5-tap one: its sixth row and column are pixel (1, .) of neighbour (0, .)."""
    w = np.array(layer.kernel[...]).reshape(3, 3, -1, 2, 2, outputs)
    w[0, :, :, 1] = 0
    w[:, 0, :, :, 1] = 0
    layer.kernel[...] = jnp.asarray(w.reshape(layer.kernel.shape))


def test_conv_decoder_is_transposed_convolutions_1_5_13_30_64():
    decoder = ConvDecoder(6, 4, rngs=nnx.Rngs(0))
    zero_odd_taps(decoder.conv1, 8)
    x = jax.random.normal(jax.random.key(1), (3, 6))
    y = silu_norm((x @ decoder.conv0.kernel[...]).reshape(3, 5, 5, 16))
    sizes = [1, y.shape[1]]
    for i, (outputs, taps) in enumerate([(8, 5), (4, 6), (3, 6)], start=1):
        kernel = as_transposed_kernel(getattr(decoder, f"conv{i}").kernel[...], outputs, taps)
        y = jax.lax.conv_transpose(
            y, kernel[::-1, ::-1], (2, 2), "VALID", dimension_numbers=LAYOUT
        )  # lax correlates: flip to scatter the taps in order
        sizes.append(y.shape[1])
        y = silu_norm(y) if i < 3 else y
    assert sizes == [1, 5, 13, 30, 64]
    np.testing.assert_allclose(decoder(x), y, atol=1e-3)


@pytest.mark.parametrize("kind", ENCODERS)
def test_shapes_and_widths_of_every_kind(kind):
    encoder, decoder = ENCODERS[kind](4, rngs=nnx.Rngs(0)), DECODERS[kind](7, 4, rngs=nnx.Rngs(0))
    assert jax.eval_shape(encoder, jnp.zeros((5, 64, 64, 3))).shape == (5, encoder.outputs)
    assert jax.eval_shape(decoder, jnp.zeros((5, 7))).shape == (5, 64, 64, 3)


def test_patch_encoder_sees_every_pixel_and_decoder_reaches_every_pixel():
    encoder, decoder = ENCODERS["patch"](4, rngs=nnx.Rngs(0)), DECODERS["patch"](7, 4, rngs=nnx.Rngs(0))
    image = jax.random.uniform(jax.random.key(0), (1, 64, 64, 3))
    assert np.all(jax.jit(jax.grad(lambda x: jnp.sum(encoder(x) ** 2)))(image) != 0)
    x = jax.random.normal(jax.random.key(0), (1, 7))
    moved = jax.jit(lambda x: jax.jvp(decoder, (x,), (jnp.ones_like(x),))[1])(x)
    assert np.all(moved != 0)
