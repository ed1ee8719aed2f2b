"""Transformer layers of the ported encoders: every one of them is a stack of these blocks with other options.

Statistics of norms and the attention's softmax are float32 whatever the weights are; everything else follows the
weights' dtype. The layers of a stack share one set of arrays with a leading axis of layers and run in a scan, so
that a tower compiles as fast as one of its layers.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from bitagent_jax.errors import unknown

ACTIVATIONS = {
    "gelu": lambda x: nnx.gelu(x, approximate=False),
    "gelu_python": lambda x: nnx.gelu(x, approximate=False),
    "gelu_pytorch_tanh": nnx.gelu,
    "quick_gelu": lambda x: x * nnx.sigmoid(1.702 * x),
    "relu": nnx.relu,
}
"""The activations by the name that a model's ``config.json`` gives them."""


@dataclass(frozen=True)
class BlockConfig:
    """Sizes and options of a block.

    Attributes:
        width, heads, hidden: of the tokens, of the attention, and of the MLP.
        activation: a name out of ``ACTIVATIONS``.
        eps: of every norm.
        rms: RMSNorm instead of LayerNorm.
        qkv_bias: whether query, key and value have a bias.
        qk_norm: RMSNorm over query and key, all heads together, before they are split into heads.
        layer_scale: a learned factor per channel on both residual branches.
        soft_cap: logits are squashed to ``c tanh(x / c)``; None leaves them.
        post_norm: norms follow the sums (BERT) instead of opening the branches.
    """

    width: int
    heads: int
    hidden: int
    activation: str = "gelu"
    eps: float = 1e-6
    rms: bool = False
    qkv_bias: bool = True
    qk_norm: bool = False
    layer_scale: bool = False
    soft_cap: float | None = None
    post_norm: bool = False

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise unknown("activation", self.activation, ACTIVATIONS)
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} cannot be split into {self.heads} heads")


def layer_norm(width: int, eps: float, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Make a LayerNorm whose variance is computed in two passes, as the references do."""
    return nnx.LayerNorm(width, epsilon=eps, use_fast_variance=False, rngs=rngs)


def attend(query: jax.Array, key: jax.Array, value: jax.Array, heads: int, *, mask: jax.Array | None = None,
           soft_cap: float | None = None, scale: jax.Array | float | None = None) -> jax.Array:  # fmt: skip
    """Multi-head attention over projected inputs.

    Args:
        query: [..., Q, W]; key and value: [..., K, W].
        heads: number of heads that W is split into.
        mask: bool, broadcastable to [..., heads, Q, K]; False hides a key.
        soft_cap: see ``BlockConfig``.
        scale: factor on the query, a number or one per channel of a head; by default 1 / sqrt(W / heads).

    Returns:
        [..., Q, W].
    """
    query, key, value = (x.reshape(*x.shape[:-1], heads, -1) for x in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    logits = jnp.einsum("...qhd,...khd->...hqk", query * scale, key, preferred_element_type=jnp.float32)
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    out = jnp.einsum("...hqk,...khd->...qhd", weights, value)
    return out.reshape(*out.shape[:-2], -1)


def causal(length: int) -> jax.Array:
    """Return the mask [length, length] by which a token sees itself and those before it."""
    return jnp.tril(jnp.ones((length, length), bool))


class Attention(nnx.Module):
    """Projections around ``attend``; a memory may be given instead of attending to oneself."""

    def __init__(self, config: BlockConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.query = nnx.Linear(config.width, config.width, use_bias=config.qkv_bias, rngs=rngs)
        self.key = nnx.Linear(config.width, config.width, use_bias=config.qkv_bias, rngs=rngs)
        self.value = nnx.Linear(config.width, config.width, use_bias=config.qkv_bias, rngs=rngs)
        self.out = nnx.Linear(config.width, config.width, rngs=rngs)
        if config.qk_norm:
            self.query_norm = nnx.RMSNorm(config.width, epsilon=config.eps, rngs=rngs)
            self.key_norm = nnx.RMSNorm(config.width, epsilon=config.eps, rngs=rngs)

    def __call__(self, x: jax.Array, memory: jax.Array | None = None, mask: jax.Array | None = None) -> jax.Array:
        """Attend from ``x`` [..., Q, W] to ``memory`` [..., K, W], by default ``x``; returns [..., Q, W]."""
        memory = x if memory is None else memory
        query, key, value = self.query(x), self.key(memory), self.value(memory)
        if self.config.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        return self.out(attend(query, key, value, self.config.heads, mask=mask, soft_cap=self.config.soft_cap))


class MLP(nnx.Module):
    """Two linear layers around an activation."""

    def __init__(self, config: BlockConfig, *, rngs: nnx.Rngs):
        self.activation = config.activation
        self.inner = nnx.Linear(config.width, config.hidden, rngs=rngs)
        self.outer = nnx.Linear(config.hidden, config.width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., W] to [..., W]."""
        return self.outer(ACTIVATIONS[self.activation](self.inner(x)))


class Block(nnx.Module):
    """Attention and MLP, each on a residual branch."""

    def __init__(self, config: BlockConfig, *, rngs: nnx.Rngs):
        self.config = config
        norm = nnx.RMSNorm if config.rms else layer_norm
        eps = {"epsilon": config.eps} if config.rms else {"eps": config.eps}
        self.norm1, self.norm2 = norm(config.width, **eps, rngs=rngs), norm(config.width, **eps, rngs=rngs)
        self.attention = Attention(config, rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)
        if config.layer_scale:
            self.scale1, self.scale2 = nnx.Param(jnp.ones(config.width)), nnx.Param(jnp.ones(config.width))

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Map tokens [..., K, W] to [..., K, W]; ``mask`` as in ``attend``."""
        if self.config.post_norm:
            x = self.norm1(x + self.attention(x, mask=mask))
            return self.norm2(x + self.mlp(x))
        change = self.attention(self.norm1(x), mask=mask)
        x = x + (change * self.scale1[...] if self.config.layer_scale else change)
        change = self.mlp(self.norm2(x))
        return x + (change * self.scale2[...] if self.config.layer_scale else change)


class Stack(nnx.Module):
    """Blocks one after the other; each weight has a leading axis of layers."""

    def __init__(self, layers: int, config: BlockConfig, *, rngs: nnx.Rngs):
        graph = nnx.split(nnx.eval_shape(lambda: Block(config, rngs=nnx.Rngs(0))))[0]
        stacked = jax.vmap(lambda key: nnx.split(Block(config, rngs=nnx.Rngs(key)))[1])
        self.layers = nnx.merge(graph, stacked(jax.random.split(rngs.params(), layers)))

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Map tokens [..., K, W] to [..., K, W]; ``mask`` as in ``attend``."""
        return self.run(x, mask)[-1]

    def run(self, x: jax.Array, mask: jax.Array | None = None, every: bool = False) -> tuple[jax.Array | None, ...]:
        """Return what each layer gives, [layers, ..., K, W] (None unless ``every``), and the last, [..., K, W]."""
        graph, params = nnx.split(self.layers)

        def step(x: jax.Array, layer: nnx.State):
            x = nnx.merge(graph, layer)(x, mask)
            return x, x if every else None

        last, each = jax.lax.scan(step, x, params)
        return each, last
