"""CLIP (Radford et al. 2021, arXiv 2103.00020): one picture, one sentence; a clip is the mean of its frames.

It sees no motion, only poses. Any checkpoint of the ``transformers`` format of ``CLIPModel`` will do.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bitagent_jax.mllm import pixels, tables, tokens
from bitagent_jax.mllm.blocks import BlockConfig, Stack, causal, layer_norm
from bitagent_jax.mllm.frozen import FrameMean, FrozenEncoder, default_dtype
from bitagent_jax.mllm.sources import locate
from bitagent_jax.mllm.tables import Rule, linear, norm
from bitagent_jax.mllm.towers import patchify

NUM_FRAMES = 8
EXAMPLES = ("openai/clip-vit-large-patch14", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
NAMES = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.out_proj",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "mlp.inner": "mlp.fc1",
    "mlp.outer": "mlp.fc2",
}
"""Our names within a block, and those of CLIP and SigLIP in ``transformers``."""

TABLE = [
    Rule(r"vision_model\.embeddings\.class_embedding", "image.token"),
    Rule(r"vision_model\.embeddings\.patch_embedding\.weight", "image.patch.kernel", tables.patches),
    Rule(r"vision_model\.embeddings\.position_embedding\.weight", "image.position"),
    *norm(r"vision_model\.pre_layrnorm", "image.norm_in"),
    *tables.block(r"vision_model\.encoder\.layers\.(\d+)", "image.stack", NAMES),
    *norm(r"vision_model\.post_layernorm", "image.norm_out"),
    *linear(r"visual_projection", "image.out", bias=False),
    Rule(r"text_model\.embeddings\.token_embedding\.weight", "words.table.embedding"),
    Rule(r"text_model\.embeddings\.position_embedding\.weight", "words.position"),
    *tables.block(r"text_model\.encoder\.layers\.(\d+)", "words.stack", NAMES),
    *norm(r"text_model\.final_layer_norm", "words.norm_out"),
    *linear(r"text_projection", "words.out", bias=False),
    Rule(r"logit_scale|.*\.position_ids", None),
]


class ImageTower(nnx.Module):
    """A vision transformer over the patches of one picture and a class token."""

    def __init__(self, config: Any, width: int, *, rngs: nnx.Rngs):
        blocks = block_config(config)
        self.size = config.patch_size
        self.patch = nnx.Linear(3 * self.size**2, blocks.width, use_bias=False, rngs=rngs)
        self.token = nnx.Param(jnp.zeros(blocks.width))
        self.position = nnx.Param(jnp.zeros((1 + (config.image_size // self.size) ** 2, blocks.width)))
        self.norm_in = layer_norm(blocks.width, blocks.eps, rngs=rngs)
        self.stack = Stack(config.num_hidden_layers, blocks, rngs=rngs)
        self.norm_out = layer_norm(blocks.width, blocks.eps, rngs=rngs)
        self.out = nnx.Linear(blocks.width, width, use_bias=False, rngs=rngs)

    def tokens(self, pixels: jax.Array) -> jax.Array:
        """Map pictures [F, S, S, 3] to the first block's input [F, 1 + patches, W]."""
        x = self.patch(patchify(pixels, self.size))
        first = jnp.broadcast_to(self.token[...], (*x.shape[:-2], 1, x.shape[-1]))
        return self.norm_in(jnp.concatenate([first, x], -2) + self.position[...])

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Map pictures [F, S, S, 3] to embeddings [F, D]."""
        return self.out(self.norm_out(self.stack(self.tokens(pixels))[..., 0, :]))


class TextTower(nnx.Module):
    """A causal transformer, read at the end-of-text token."""

    def __init__(self, config: Any, width: int, *, rngs: nnx.Rngs):
        blocks = block_config(config)
        self.end = config.eos_token_id
        self.table = nnx.Embed(config.vocab_size, blocks.width, rngs=rngs)
        self.position = nnx.Param(jnp.zeros((config.max_position_embeddings, blocks.width)))
        self.stack = Stack(config.num_hidden_layers, blocks, rngs=rngs)
        self.norm_out = layer_norm(blocks.width, blocks.eps, rngs=rngs)
        self.out = nnx.Linear(blocks.width, width, use_bias=False, rngs=rngs)

    def tokens(self, ids: jax.Array) -> jax.Array:
        """Map ids [n, L] to the first block's input [n, L, W]."""
        return self.table(ids) + self.position[: ids.shape[-1]]

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Map ids [n, L] to embeddings [n, D]."""
        x = self.norm_out(self.stack(self.tokens(ids), causal(ids.shape[-1])))
        # Configs of OpenAI's models say 2, which is wrong: there the end of text is the largest id.
        last = jnp.argmax(ids if self.end == 2 else ids == self.end, -1)
        return self.out(jnp.take_along_axis(x, last[:, None, None], 1)[:, 0])


class Clip(FrameMean):
    """Both towers, as a ``Model``."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        self.image = ImageTower(config.vision_config, config.projection_dim, rngs=rngs)
        self.words = TextTower(config.text_config, config.projection_dim, rngs=rngs)


def block_config(config: Any) -> BlockConfig:
    """Return the blocks of a tower of a ``transformers`` config."""
    return BlockConfig(
        config.hidden_size, config.num_attention_heads, config.intermediate_size,
        activation=config.hidden_act, eps=config.layer_norm_eps,
    )  # fmt: skip


def load(weights: str) -> FrozenEncoder:
    """Load CLIP from a folder or repository with config.json, preprocessor_config.json, safetensors and tokenizer.

    Raises:
        WeightsError: files are missing, gated or damaged.
        ValueError: the weights do not fit the config.
    """
    from transformers import CLIPConfig

    source = locate("clip", weights, EXAMPLES)
    config = CLIPConfig.from_dict(source.json("config.json"))
    graph, template = tables.template(lambda rngs: Clip(config, rngs=rngs))
    given = source.json("preprocessor_config.json", optional=True)
    length = config.text_config.max_position_embeddings
    return FrozenEncoder(
        "clip", graph, tables.fill(TABLE, source.arrays(), template, source, default_dtype()),
        tokenize=tokens.padded(tokens.load_tokenizer(source), length),
        pixels=pixels.from_config(given, config.vision_config.image_size, mean=MEAN, std=STD, crop=True),
        embed_dim=config.projection_dim, num_frames=NUM_FRAMES, digest=source.digest(), batch=32,
    )  # fmt: skip
