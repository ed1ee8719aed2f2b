"""Weight tables: every key has a place and every array a key, or it is an error that names them."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bitagent_jax.mllm import tables
from bitagent_jax.mllm.blocks import BlockConfig, Stack
from bitagent_jax.mllm.tables import Rule


class Small(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 2, rngs=rngs)
        self.stack = Stack(2, BlockConfig(4, 2, 8), rngs=rngs)


RULES = [
    *tables.linear("out", "linear"),
    *tables.block(r"layers\.(\d)", "stack", {"attention.out": "proj", "norm1": "a", "norm2": "b"}),
    *tables.block(r"layers\.(\d)", "stack", {"mlp.inner": "up", "mlp.outer": "down"}),
    Rule(r"layers\.(\d)\.qkv", r"stack.layers.attention.{query,key,value}.kernel[\1]", tables.thirds),
    Rule(r"layers\.(\d)\.qkv_bias", r"stack.layers.attention.{query,key,value}.bias[\1]", tables.thirds),
    Rule("step", None),
]


def checkpoint():
    rng = np.random.default_rng(0)
    shapes = {"out.weight": (2, 3), "out.bias": (2,), "step": ()}
    for i in range(2):
        shapes |= {f"layers.{i}.{name}.weight": shape for name, shape in (("proj", (4, 4)), ("a", (4,)), ("b", (4,)))}
        shapes |= {f"layers.{i}.{name}.bias": (4,) for name in ("proj", "a", "b", "down")}
        shapes |= {f"layers.{i}.up.weight": (8, 4), f"layers.{i}.up.bias": (8,), f"layers.{i}.down.weight": (4, 8)}
        shapes |= {f"layers.{i}.qkv": (12, 4), f"layers.{i}.qkv_bias": (12,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def fill(arrays, dtype=jnp.float32):
    return tables.fill(RULES, arrays.items(), tables.template(Small)[1], "small weights", dtype)


def test_arrays_land_where_the_table_says():
    arrays = checkpoint()
    state = fill(arrays)
    assert np.array_equal(state["linear"]["kernel"][...], arrays["out.weight"].T)
    layers = state["stack"]["layers"]
    assert np.array_equal(layers["mlp"]["outer"]["kernel"][1], arrays["layers.1.down.weight"].T)
    assert np.array_equal(layers["attention"]["key"]["kernel"][0], arrays["layers.0.qkv"][4:8].T)
    assert np.array_equal(layers["attention"]["value"]["bias"][1], arrays["layers.1.qkv_bias"][8:])
    assert tables.count(state) == sum(value.size for value in arrays.values()) - 1
    assert fill(arrays, jnp.bfloat16)["linear"]["bias"].dtype == jnp.bfloat16


def test_a_key_without_a_rule_and_an_array_without_a_key_are_named():
    arrays = checkpoint() | {"extra.weight": np.zeros(1)}
    del arrays["layers.1.proj.bias"]
    expected = "small weights do not fit the model: tensors that it has no place for: extra.weight; no tensors for "
    with pytest.raises(ValueError, match=expected + "stack.layers.attention.out.bias$"):
        fill(arrays)


def test_one_layer_too_many_is_named():
    arrays = checkpoint()
    arrays |= {name.replace(".1.", ".2."): value for name, value in arrays.items() if ".1." in name}
    with pytest.raises(ValueError, match="no tensors for stack.layers.attention.*and 8 more"):
        fill(arrays)


def test_another_shape_is_named():
    with pytest.raises(ValueError, match=r"small weights: linear.kernel has shape \[3, 5\], the model \[3, 2\]"):
        fill(checkpoint() | {"out.weight": np.zeros((5, 3))})
    with pytest.raises(ValueError, match=r"mlp.inner.bias has shape \[9\], the model \[8\]"):
        fill(checkpoint() | {"layers.0.up.bias": np.zeros(9)})


def test_two_keys_for_one_array_are_refused():
    rules = [Rule(".*weight", "linear.kernel", tables.transpose)]
    arrays = [("a.weight", np.zeros((2, 3))), ("b.weight", np.zeros((2, 3)))]
    with pytest.raises(ValueError, match="b.weight would fill linear.kernel a second time"):
        tables.fill(rules, arrays, tables.template(Small)[1], "weights")


def test_patches_of_a_convolution_become_a_kernel_over_rows_columns_and_channels():
    weight = np.arange(2 * 3 * 1 * 2 * 2).reshape(2, 3, 1, 2, 2)
    kernel = tables.patches(weight)
    assert kernel.shape == (12, 2) and kernel[(1 * 2 + 0) * 3 + 2, 1] == weight[1, 2, 0, 1, 0]


def test_positions_are_stretched_between_the_centres_of_frames():
    x = np.array([9.0, 0.0, 10.0, 1.0, 11.0])[None, :, None]  # a class token; 2 frames of 2 patches
    out = tables.over_time(4, 2)(x)[:, 0]
    np.testing.assert_allclose(out, [9, 0, 10, 0.25, 10.25, 0.75, 10.75, 1, 11])
    assert np.array_equal(tables.over_time(2, 2)(x), x[0])
    assert len(tables.over_time(2, 3)(x)) == 5  # of another picture size: left alone, so that its shape is refused
