"""Task-Aware Modular Fusion: the forward path, from the MLLM's semantics into the world model's latent space.

    z_0 = h_fuse([e_v ; s_t]),   p = sigmoid(W2 gelu(W1 LN(tau))),
    z_l = z_{l-1} + (1 - p_l) A_sem_l(z_{l-1}) + p_l A_dyn_l(z_{l-1}),   A = LayerScale(Linear(GEGLU(LN(z)))).

The paper lists a residual inside A as well; with it z would double at each layer because (1-p) + p = 1, so here the
outer sum is the residual.  A hidden or not yet available ``e_v`` is a learned token, never a zero vector.
"""

import jax
import jax.numpy as jnp
from flax import nnx


class Expert(nnx.Module):
    """``A(z) = LayerScale(Linear(GEGLU(LN(z))))``."""

    def __init__(self, width: int, scale: float, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(width, 2 * width, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.scale = nnx.Param(jnp.full((width,), scale, jnp.float32))

    def __call__(self, z: jax.Array) -> jax.Array:
        """Map ``[..., W]`` to ``[..., W]``."""
        value, gate = jnp.split(self.up(self.norm(z)), 2, axis=-1)
        return self.scale[...] * self.down(value * nnx.gelu(gate))


class Fusion(nnx.Module):
    """``f_TAMF(e_v, s, tau)``: the feature that actor, critic and semantic decoder read.

    ``kind`` selects the paper's module (``tamf``), one linear layer of ``[e_v; s; tau]`` (``concat``) or of
    ``[s; tau]`` (``none``, a policy on the world model's state alone).  With ``skip`` the state follows the fused
    part, for a narrow ``z`` that only the semantics train forgets what the state says of the body's motion; with
    ``skip_task`` also the task, of which ``z`` holds one number a layer.
    """

    def __init__(self, config, embed: int, features: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.kind, self.layers, self.width, self.embed = config.kind, config.layers, config.width, embed
        self.skip, self.skip_task, width = config.skip, config.skip_task, config.width
        self.outputs = width + features * self.skip + embed * self.skip_task
        inputs = features + (embed if self.kind != "none" else 0) + (embed if self.kind != "tamf" else 0)
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
            task: unit ``tau [..., D]``.
            learn_gates: False where ``tau`` has nothing to do with what is learned.

        Returns:
            ``z [..., W]``, layer-normalised, followed by ``s`` and ``tau`` where ``skip`` and ``skip_task`` say so.
        """
        shape = (*state.shape[:-1], self.embed)
        missing = jnp.broadcast_to(self.missing[...], shape)
        scaled = missing if has is None else jnp.where(has[..., None], embedding * self.embed**0.5, missing)
        task = jnp.broadcast_to(task, shape)
        scaled_task = task * self.embed**0.5
        if self.kind == "tamf":
            gates = self.gates(task) if learn_gates else jax.lax.stop_gradient(self.gates(task))
            fused = self.norm(self._layers(self.fuse(jnp.concatenate([scaled, state], -1)), gates))
        else:
            parts = [scaled] if self.kind == "concat" else []
            fused = self.norm(self.fuse(jnp.concatenate([*parts, state, scaled_task], -1)))
        skipped = [state] * self.skip + [scaled_task] * self.skip_task
        return jnp.concatenate([fused, *(x.astype(fused.dtype) for x in skipped)], -1)

    def _layers(self, z, gates):
        for i in range(self.layers):
            dynamics = gates[..., i, None].astype(z.dtype)
            semantic, dynamic = getattr(self, f"semantic{i}")(z), getattr(self, f"dynamic{i}")(z)
            z = z + (1 - dynamics) * semantic + dynamics * dynamic
        return z
