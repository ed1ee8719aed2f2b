"""Task-Aware Modular Fusion: the forward path, from the MLLM's semantics into the world model's latent space.

    z_0 = h_fuse([e_v ; s_t]),   p = sigmoid(W2 gelu(W1 LN(tau))),
    z_l = z_{l-1} + (1 - p_l) A_sem_l(z_{l-1}) + p_l A_dyn_l(z_{l-1}),   A = LayerScale(Linear(GEGLU(LN(z)))).

The paper lists a residual inside A as well; with it z would double at each layer because (1-p) + p = 1, so here the
outer sum is the residual.  A hidden or not yet available ``e_v`` is a learned token, never a zero vector.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx


class Expert(nnx.Module):
    """The parameters of ``A(z) = LayerScale(Linear(GEGLU(LN(z))))``; two are applied as :class:`Merged`."""

    def __init__(self, width: int, scale: float, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(width, 2 * width, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.scale = nnx.Param(jnp.full((width,), scale, jnp.float32))


class Fusion(nnx.Module):
    """``f_TAMF(e_v, s, tau)``: the feature that actor, critic and semantic decoder read.

    ``kind`` selects the paper's module (``tamf``), one linear layer of ``[e_v; s; tau]`` (``concat``), or ``[s; tau]``
    itself (``none``, a policy on the world model's state; it has no parameters).  With ``skip`` the state follows the
    fused part, for a narrow ``z`` that only the semantics train forgets what the state says of the body's motion; with
    ``skip_task`` also the task, of which ``z`` holds one number a layer.

    Attributes:
        width, outputs: of the fused part, which comes first, and of the whole feature.
    """

    def __init__(self, config, embed: int, features: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.kind, self.layers, self.embed = config.kind, config.layers, embed
        if self.kind == "none":
            self.width = self.outputs = features + embed
            return
        self.skip, self.skip_task, self.width, width = config.skip, config.skip_task, config.width, config.width
        self.outputs = width + features * self.skip + embed * self.skip_task
        inputs = features + embed + (embed if self.kind == "concat" else 0)
        self.fuse = nnx.Linear(inputs, width, dtype=dtype, rngs=rngs)
        self.missing = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (embed,)))
        if self.kind == "tamf":
            self.gate_norm = nnx.LayerNorm(embed, dtype=dtype, rngs=rngs)
            self.gate_in = nnx.Linear(embed, width, dtype=dtype, rngs=rngs)
            self.gate_out = nnx.Linear(width, self.layers, dtype=dtype, rngs=rngs)
            for i in range(self.layers):
                setattr(self, f"semantic{i}", Expert(width, config.layer_scale, dtype=dtype, rngs=rngs))
                setattr(self, f"dynamic{i}", Expert(width, config.layer_scale, dtype=dtype, rngs=rngs))
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)

    def gates(self, task: jax.Array) -> jax.Array:
        """Return the dynamics share ``p`` of each layer, ``[..., D] -> [..., L]`` in (0, 1)."""
        hidden = nnx.gelu(self.gate_in(self.gate_norm(task)))
        return nnx.sigmoid(self.gate_out(hidden).astype(jnp.float32))

    def __call__(self, embedding, has, state, task, learn_gates: bool = True) -> jax.Array:
        """Fuse.

        Args:
            embedding: unit ``e_v [..., D]`` (or a decoded one); ignored where ``has`` is False.
            has: bool ``[...]``, or None when no row has an embedding.
            state: world-model feature ``[..., F]``.
            task: unit ``tau [..., D]``, of which axes may be 1.
            learn_gates: False where ``tau`` has nothing to do with what is learned.

        Returns:
            ``z [..., W]``, layer-normalised, followed by ``s`` and ``tau`` where ``skip`` and ``skip_task`` say so;
            of ``none``, ``s`` and ``tau``.
        """
        return self.fuser(task, learn_gates)(embedding, has, state)

    def fuser(self, task: jax.Array, learn_gates: bool = True) -> Callable[..., jax.Array]:
        """Return ``fuse(embedding, has, state)`` for a task: what a loop can do once, before it begins, is done."""
        scaled_task = task * self.embed**0.5
        if self.kind == "tamf":
            gates = self.gates(task) if learn_gates else jax.lax.stop_gradient(self.gates(task))
            pairs = [(getattr(self, f"semantic{i}"), getattr(self, f"dynamic{i}")) for i in range(self.layers)]
            merged = [Merged.of(*pair) for pair in pairs]

        def fuse(embedding, has, state):
            shape = (*state.shape[:-1], self.embed)
            of_task = jnp.broadcast_to(scaled_task, shape)
            if self.kind == "none":
                return jnp.concatenate([state, of_task], -1)
            missing = jnp.broadcast_to(self.missing[...], shape)
            scaled = missing if has is None else jnp.where(has[..., None], embedding * self.embed**0.5, missing)
            if self.kind == "tamf":
                z = self.fuse(jnp.concatenate([scaled, state], -1)).astype(jnp.float32)
                for i, experts in enumerate(merged):
                    z = z + experts(z, gates[..., i, None])
            else:
                z = self.fuse(jnp.concatenate([scaled, state, of_task], -1))
            fused = self.norm(z)
            skipped = [state] * self.skip + [of_task] * self.skip_task
            return jnp.concatenate([fused, *(x.astype(fused.dtype) for x in skipped)], -1)

        return fuse


class Merged(NamedTuple):
    """A layer's two experts side by side, so that their weighted sum takes two products instead of four.

    The scales of LayerNorm and LayerScale are part of the kernels; the shares act on the hidden units.

    Attributes:
        up, up_bias: of both experts side by side, ``[W, 4W]`` and ``[4W]``.
        down, down_bias: of both, ``[2W, W]`` and ``[2, W]``.
    """

    up: jax.Array
    up_bias: jax.Array
    down: jax.Array
    down_bias: jax.Array

    @classmethod
    def of(cls, semantic: Expert, dynamic: Expert) -> "Merged":
        """Merge two experts, in the dtype that they compute in."""
        experts = semantic, dynamic
        merged = cls(
            jnp.concatenate([e.norm.scale[:, None] * e.up.kernel[...] for e in experts], 1),
            jnp.concatenate([e.norm.bias[...] @ e.up.kernel[...] + e.up.bias[...] for e in experts]),
            jnp.concatenate([e.down.kernel[...] * e.scale[...] for e in experts]),
            jnp.stack([e.down.bias[...] * e.scale[...] for e in experts]),
        )
        return cls(*(x.astype(semantic.up.dtype) for x in merged))

    def __call__(self, z: jax.Array, share: jax.Array) -> jax.Array:
        """Return ``(1 - share) A_sem(z) + share A_dyn(z)``: z ``[..., W]``, share ``[..., 1]``."""
        x = jax.nn.standardize(z.astype(jnp.float32), epsilon=1e-6).astype(self.up.dtype)
        value, gate, other, other_gate = jnp.split(x @ self.up + self.up_bias, 4, axis=-1)
        shares = jnp.concatenate([1 - share, share], -1).astype(x.dtype)
        hidden = [shares[..., :1] * value * nnx.gelu(gate), shares[..., 1:] * other * nnx.gelu(other_gate)]
        return jnp.concatenate(hidden, -1) @ self.down + shares @ self.down_bias
