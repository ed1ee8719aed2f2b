"""Layers shared by every network: multilayer perceptrons and a layer-normalised GRU."""

import jax
import jax.numpy as jnp
from flax import nnx


class MLP(nnx.Module):
    """Hidden layers of Linear, LayerNorm and SiLU, then an optional plain linear output."""

    def __init__(self, inputs: int, units: int, layers: int, outputs: int | None = None, *,
                 output_scale: float = 1.0, dtype=jnp.float32, rngs: nnx.Rngs):  # fmt: skip
        self.layers = layers
        for i in range(layers):
            setattr(self, f"linear{i}", nnx.Linear(inputs if i == 0 else units, units, dtype=dtype, rngs=rngs))
            setattr(self, f"norm{i}", nnx.LayerNorm(units, dtype=dtype, rngs=rngs))
        self.projects = outputs is not None
        if self.projects:
            init = nnx.initializers.zeros
            if output_scale:
                init = nnx.initializers.variance_scaling(output_scale**2, "fan_in", "truncated_normal")
            width = units if layers else inputs
            self.out = nnx.Linear(width, outputs, kernel_init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``[..., inputs]`` to ``[..., outputs]`` (``[..., units]`` without an output layer)."""
        for i in range(self.layers):
            x = nnx.silu(getattr(self, f"norm{i}")(getattr(self, f"linear{i}")(x)))
        return self.out(x) if self.projects else x


class GRU(nnx.Module):
    """Gated recurrent cell with LayerNorm over the three gates; the input's share is computed apart.

    ``inputs`` runs on a whole ``[B, T]`` batch at once, so that a scan holds only the recurrent product.
    """

    def __init__(self, inputs: int, deter: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.from_input = nnx.Linear(inputs, 3 * deter, dtype=dtype, rngs=rngs)
        self.from_state = nnx.Linear(deter, 3 * deter, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(3 * deter, dtype=jnp.float32, rngs=rngs)

    def inputs(self, x: jax.Array) -> jax.Array:
        """Return the input's share of the gates: ``[..., inputs] -> [..., 3 * deter]``."""
        return self.from_input(x)

    def __call__(self, gates: jax.Array, deter: jax.Array) -> jax.Array:
        """Advance ``deter [..., deter]`` by one step; the state stays float32."""
        return _advance(self.norm, gates + self.from_state(deter), deter)

    def unroll(self, gates: jax.Array, start: jax.Array, first: jax.Array | None = None) -> jax.Array:
        """Advance step by step along time.

        Args:
            gates: the input's share, ``[B, T, 3 * deter]``.
            start: the state before, ``[B, deter]``.
            first: bool ``[B, T]``, steps that forget the state before them; None: no step does.

        Returns:
            the state after each step, ``[B, T, deter]``.
        """
        norm, scales = nnx.split(self.norm)
        keep = jnp.ones(gates.shape[:2], bool) if first is None else ~first
        kernel = self.from_state.kernel[...].astype(gates.dtype)
        time_first = [x.swapaxes(0, 1) for x in (gates, keep)]
        return _unroll(norm, kernel, nnx.to_pure_dict(scales), start, *time_first).swapaxes(0, 1)


def _advance(norm, total, deter):
    reset, candidate, update = jnp.split(norm(total.astype(jnp.float32)), 3, axis=-1)
    candidate = jnp.tanh(nnx.sigmoid(reset) * candidate)
    update = nnx.sigmoid(update - 1.0)  # starts near "remember"
    return update * candidate + (1.0 - update) * deter


def _scan(norm, kernel, scales, start, gates, keep):
    def step(deter, inputs):
        gate, keep = inputs
        deter = jnp.where(keep[:, None], deter, 0.0)
        deter = _advance(nnx.merge(norm, scales), gate + deter.astype(gate.dtype) @ kernel, deter)
        return deter, deter

    return jax.lax.scan(step, start, (gates, keep))[1]


_unroll = jax.custom_jvp(_scan, nondiff_argnums=(0,))


@_unroll.defjvp
def _unroll_jvp(norm, primals, tangents):
    """Let the kernel's gradient be one product over all steps instead of a sum of one for each within the loop.

    ``d(gates_t + h_{t-1} W) = (d gates_t + h_{t-1} dW) + dh_{t-1} W``: the bracket needs no loop.
    """
    kernel, scales, start, gates, keep = primals
    to_kernel, to_scales, to_start, to_gates, _ = tangents
    deter, linear = jax.linearize(lambda *rest: _scan(norm, kernel, *rest, keep), scales, start, gates)
    before = jnp.where(keep[..., None], jnp.concatenate([start[None], deter[:-1]]), 0.0).astype(gates.dtype)
    return deter, linear(to_scales, to_start, to_gates + before @ to_kernel)
