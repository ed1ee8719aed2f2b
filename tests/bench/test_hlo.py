"""Counting in the text of compiled programs."""

import jax
import jax.numpy as jnp
import pytest

from bitagent_jax.bench import hlo

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


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.collectives("module @jit_step {")
