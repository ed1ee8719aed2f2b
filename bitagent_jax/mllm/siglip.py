"""SigLIP (Zhai et al. 2023, arXiv 2303.15343) and SigLIP 2 of fixed resolution (arXiv 2502.14786).

One picture, one sentence; a clip is the mean of its frames. Any checkpoint of the ``transformers`` format of
``SiglipModel`` will do; the NaFlex variants of SigLIP 2, which pack pictures of any shape, will not.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bitagent_jax.mllm import pixels, tables, tokens
from bitagent_jax.mllm.blocks import MLP, Attention, Stack, layer_norm
from bitagent_jax.mllm.clip import NAMES, NUM_FRAMES, block_config
from bitagent_jax.mllm.frozen import FrameMean, FrozenEncoder, default_dtype
from bitagent_jax.mllm.sources import locate
from bitagent_jax.mllm.tables import Rule, linear, norm
from bitagent_jax.mllm.towers import patchify

EXAMPLES = ("google/siglip-base-patch16-224",)
EXAMPLES2 = ("google/siglip2-base-patch16-224",)
_PACKED = "image.pool.attention.{query,key,value}"

TABLE = [
    Rule(r"vision_model\.embeddings\.patch_embedding\.weight", "image.patch.kernel", tables.patches),
    Rule(r"vision_model\.embeddings\.patch_embedding\.bias", "image.patch.bias"),
    Rule(r"vision_model\.embeddings\.position_embedding\.weight", "image.position"),
    *tables.block(r"vision_model\.encoder\.layers\.(\d+)", "image.stack", NAMES),
    *norm(r"vision_model\.post_layernorm", "image.norm_out"),
    Rule(r"vision_model\.head\.probe", "image.pool.probe", tables.flat),
    Rule(r"vision_model\.head\.attention\.in_proj_weight", f"{_PACKED}.kernel", tables.thirds),
    Rule(r"vision_model\.head\.attention\.in_proj_bias", f"{_PACKED}.bias", tables.thirds),
    *linear(r"vision_model\.head\.attention\.out_proj", "image.pool.attention.out"),
    *norm(r"vision_model\.head\.layernorm", "image.pool.norm"),
    *linear(r"vision_model\.head\.mlp\.fc1", "image.pool.mlp.inner"),
    *linear(r"vision_model\.head\.mlp\.fc2", "image.pool.mlp.outer"),
    Rule(r"text_model\.embeddings\.token_embedding\.weight", "words.table.embedding"),
    Rule(r"text_model\.embeddings\.position_embedding\.weight", "words.position"),
    *tables.block(r"text_model\.encoder\.layers\.(\d+)", "words.stack", NAMES),
    *norm(r"text_model\.final_layer_norm", "words.norm_out"),
    *linear(r"text_model\.head", "words.out"),
    Rule(r"logit_scale|logit_bias|.*\.position_ids", None),
]


class Pool(nnx.Module):
    """A learned query attends to all patches; an MLP follows on a residual branch."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        blocks = block_config(config)
        self.probe = nnx.Param(jnp.zeros(blocks.width))
        self.attention = Attention(blocks, rngs=rngs)
        self.norm = layer_norm(blocks.width, blocks.eps, rngs=rngs)
        self.mlp = MLP(blocks, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map patches [F, K, W] to one vector [F, W]."""
        query = jnp.broadcast_to(self.probe[...], (*x.shape[:-2], 1, x.shape[-1]))
        x = self.attention(query, x)
        return (x + self.mlp(self.norm(x)))[..., 0, :]


class ImageTower(nnx.Module):
    """A vision transformer over the patches of one picture."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        blocks = block_config(config)
        self.size = config.patch_size
        self.patch = nnx.Linear(3 * self.size**2, blocks.width, rngs=rngs)
        self.position = nnx.Param(jnp.zeros(((config.image_size // self.size) ** 2, blocks.width)))
        self.stack = Stack(config.num_hidden_layers, blocks, rngs=rngs)
        self.norm_out = layer_norm(blocks.width, blocks.eps, rngs=rngs)
        self.pool = Pool(config, rngs=rngs)

    def tokens(self, pixels: jax.Array) -> jax.Array:
        """Map pictures [F, S, S, 3] to the first block's input [F, patches, W]."""
        return self.patch(patchify(pixels, self.size)) + self.position[...]

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Map pictures [F, S, S, 3] to embeddings [F, W]."""
        return self.pool(self.norm_out(self.stack(self.tokens(pixels))))


class TextTower(nnx.Module):
    """A transformer without a mask, read at the last position, be it padding or not."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        blocks = block_config(config)
        self.table = nnx.Embed(config.vocab_size, blocks.width, rngs=rngs)
        self.position = nnx.Param(jnp.zeros((config.max_position_embeddings, blocks.width)))
        self.stack = Stack(config.num_hidden_layers, blocks, rngs=rngs)
        self.norm_out = layer_norm(blocks.width, blocks.eps, rngs=rngs)
        self.out = nnx.Linear(blocks.width, config.projection_size, rngs=rngs)

    def tokens(self, ids: jax.Array) -> jax.Array:
        """Map ids [n, L] to the first block's input [n, L, W]."""
        return self.table(ids) + self.position[: ids.shape[-1]]

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Map ids [n, L] to embeddings [n, D]."""
        return self.out(self.norm_out(self.stack(self.tokens(ids)))[:, -1])


class Siglip(FrameMean):
    """Both towers, as a ``Model``."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        self.image = ImageTower(config.vision_config, rngs=rngs)
        self.words = TextTower(config.text_config, rngs=rngs)


def load(weights: str) -> FrozenEncoder:
    """Load SigLIP from a folder or repository with config.json, preprocessor_config.json, safetensors, tokenizer.

    Raises:
        WeightsError: files are missing, gated or damaged.
        ValueError: the weights do not fit the config, or it is that of another model.
    """
    return _load("siglip", weights, EXAMPLES, str)


def load2(weights: str) -> FrozenEncoder:
    """Load SigLIP 2 of fixed resolution; like ``load``, but sentences are put in lower case, as in its training."""
    return _load("siglip2", weights, EXAMPLES2, str.lower)


def _load(name: str, weights: str, examples: tuple[str, ...], prepare: Callable[[str], str]) -> FrozenEncoder:
    from transformers import SiglipConfig

    source = locate(name, weights, examples)
    given = source.json("config.json")
    kind = given.get("model_type")
    if kind != "siglip":
        raise ValueError(f"{source}: config.json has model_type {kind!r}; models of fixed resolution have 'siglip'")
    config = SiglipConfig.from_dict(given)
    graph, template = tables.template(lambda rngs: Siglip(config, rngs=rngs))
    look = source.json("preprocessor_config.json", optional=True)
    tokenize = tokens.padded(tokens.load_tokenizer(source), config.text_config.max_position_embeddings, prepare)
    return FrozenEncoder(
        name, graph, tables.fill(TABLE, source.arrays(), template, source, default_dtype()), tokenize=tokenize,
        pixels=pixels.from_config(look, config.vision_config.image_size, mean=(0.5,) * 3, std=(0.5,) * 3),
        embed_dim=config.text_config.projection_size, num_frames=NUM_FRAMES, digest=source.digest(), batch=32,
    )  # fmt: skip
