"""Counting in the text of compiled programs."""

import jax
import jax.numpy as jnp
import pytest

from bitagent_jax.bench import hlo
from bitagent_jax.nn import vision

TEXT = """HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (state: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %state = (s32[], f32[8,4]{1,0}) parameter(0)
  %count = s32[] get-tuple-element(%state), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%state), index=1
  %w = f32[4,4]{1,0} constant({...})
  %dot.1 = f32[8,4]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %reduced = (f32[8,4]{1,0}, bf16[2]{0}) all-reduce(%dot.1, %y), to_apply=%add, metadata={op_name="jit(step)/while/dot"}
  ROOT %next = (s32[], f32[8,4]{1,0}) tuple(%count, %dot.1)
}

%condition (state: (s32[], f32[8,4])) -> pred[] {
  ROOT %done = pred[] constant(true)
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %loop = (s32[], f32[8,4]{1,0}) while(%init), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
  %gathered = (f32[1,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%x), dimensions={0}
  %gemm = (bf16[8,3]{1,0}, s8[64]{0}) custom-call(%x, %w), custom_call_target="__cublas$gemm", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
  ROOT %out = f32[8,4]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_collectives_by_hand():
    outside, looped = hlo.collectives(TEXT)
    assert outside == ("all-gather", (((8, 4), 128),), 1, "")
    assert looped == ("all-reduce", (((8, 4), 128), ((2,), 4)), 5, "jit(step)/while/dot")


def test_matrix_products_by_hand():
    assert hlo.matmul_flops(TEXT) == 5 * 2 * 8 * 4 * 4 + 2 * 8 * 3 * 4


def test_matrix_products_of_a_compiled_loop():
    def step(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=7)[0] @ w[:, :3]

    compiled = jax.jit(step).lower(jnp.ones((5, 6)), jnp.ones((6, 6))).compile()
    assert hlo.matmul_flops(compiled.as_text()) == 7 * 2 * 5 * 6 * 6 + 2 * 5 * 6 * 3


CONVOLUTIONS = """HloModule jit_step

ENTRY %main (x: f32[8,9,9,4]) -> f32[8,7,7,6] {
  %x = f32[8,9,9,4]{3,2,1,0} parameter(0)
  %w = f32[3,3,4,6]{3,2,1,0} parameter(1)
  %y = (f32[8,7,7,6]{3,2,1,0}, u8[0]{0}) custom-call(%x, %w), window={size=3x3}, dim_labels=b01f_01io->b01f, \
custom_call_target="__cudnn$convForward"
  %g = f32[8,7,7,6]{3,2,1,0} get-tuple-element(%y), index=0
  %dx = (f32[8,9,9,4]{3,2,1,0}, u8[0]{0}) custom-call(%g, %w), window={size=3x3}, dim_labels=b01f_01io->b01f, \
custom_call_target="__cudnn$convBackwardInput"
  %dw = (f32[3,3,4,6]{3,2,1,0}, u8[0]{0}) custom-call(%x, %g), window={size=3x3}, dim_labels=b01f_01io->b01f, \
custom_call_target="__cudnn$convBackwardFilter"
  ROOT %out = f32[8,7,7,6]{3,2,1,0} get-tuple-element(%y), index=0
}
"""


def test_convolutions_by_hand_forward_and_backward():
    assert hlo.matmul_flops(CONVOLUTIONS) == 3 * 2 * (8 * 7 * 7 * 6) * (3 * 3 * 4)


def test_a_compiled_convolution():
    def layer(x, w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    compiled = jax.jit(layer).lower(jnp.ones((8, 9, 9, 4)), jnp.ones((3, 3, 4, 6))).compile()
    assert hlo.matmul_flops(compiled.as_text()) == 2 * (8 * 7 * 7 * 6) * (3 * 3 * 4)


def test_a_compiled_convolution_and_its_gradients():
    def gradients(x, w, g):
        def layer(x, w):
            return jax.lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

        return jax.vjp(layer, x, w)[1](g)

    shapes = (8, 9, 9, 4), (3, 3, 4, 6), (8, 7, 7, 6)
    compiled = jax.jit(gradients).lower(*map(jnp.ones, shapes)).compile()
    assert hlo.matmul_flops(compiled.as_text()) == 2 * 2 * (8 * 7 * 7 * 6) * (3 * 3 * 4)


def test_units_say_what_runs_where_it_was_traced():
    def step(x, w):
        return jax.lax.scan(lambda x, _: (vision.space_to_depth(jnp.sin(x @ w), 2).reshape(x.shape), None), x, length=7)

    compiled = jax.jit(step).lower(jnp.ones((1, 4, 4, 6)), jnp.ones((6, 6))).compile()
    units = hlo.units(compiled.as_text()).values()
    assert [unit.looped for unit in units if unit.product and unit.opcode == "dot"] == [True]
    assert any(unit.function == "vision.space_to_depth" and unit.looped for unit in units)


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.collectives("module @jit_step {")
