"""ViCLIP (Wang et al. 2023, InternVid, arXiv 2307.06942): CLIP whose vision tower sees 8 frames at once.

The checkpoint's sizes are read from its arrays. It comes without a tokenizer of ``transformers``: those of any CLIP
of OpenAI's (vocab.json and merges.txt, or tokenizer.json) must lie beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bitagent_jax.mllm import tables, tokens
from bitagent_jax.mllm.blocks import BlockConfig, Stack, causal, layer_norm
from bitagent_jax.mllm.frozen import FrozenEncoder, JointVideo, default_dtype
from bitagent_jax.mllm.pixels import Pixels
from bitagent_jax.mllm.sources import locate
from bitagent_jax.mllm.tables import Rule, norm
from bitagent_jax.mllm.towers import unit

EXAMPLES = ("OpenGVLab/ViCLIP-L-14-hf",)
TOKENIZER = (
    "hf download openai/clip-vit-large-patch14 tokenizer.json tokenizer_config.json vocab.json merges.txt "
    "--local-dir {folder}"
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEAD = 64  # channels of an attention head, in both towers and all sizes


@dataclass(frozen=True)
class Sizes:
    """Sizes of the towers: widths and layers of both, patch and picture in pixels, the rest as named."""

    width: int = 1024
    layers: int = 24
    patch: int = 14
    image: int = 224
    frames: int = 8
    text_width: int = 768
    text_layers: int = 12
    vocabulary: int = 49408
    length: int = 32
    embed: int = 768
    head: int = HEAD


def _blocks(width: int, head: int) -> BlockConfig:
    return BlockConfig(width, width // head, 4 * width, activation="quick_gelu", eps=1e-5)


class VideoTower(nnx.Module):
    """A vision transformer over the patches of all frames and one class token."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        config, self.size = _blocks(sizes.width, sizes.head), sizes.patch
        self.patch = nnx.Linear(3 * sizes.patch**2, sizes.width, use_bias=False, rngs=rngs)
        self.token = nnx.Param(jnp.zeros(sizes.width))
        self.place = nnx.Param(jnp.zeros((1 + (sizes.image // sizes.patch) ** 2, sizes.width)))
        self.time = nnx.Param(jnp.zeros((sizes.frames, sizes.width)))
        self.norm_in = layer_norm(sizes.width, config.eps, rngs=rngs)
        self.stack = Stack(sizes.layers, config, rngs=rngs)
        self.norm_out = layer_norm(sizes.width, config.eps, rngs=rngs)
        self.out = nnx.Linear(sizes.width, sizes.embed, use_bias=False, rngs=rngs)

    def tokens(self, features: jax.Array) -> jax.Array:
        """Map the patches of frames [B, T, P, W] to the first block's input [B, 1 + T P, W]."""
        x = features + self.place[1:] + self.time[:, None]
        first = jnp.broadcast_to(self.token[...] + self.place[0], (x.shape[0], 1, x.shape[-1]))
        return self.norm_in(jnp.concatenate([first, x.reshape(x.shape[0], -1, x.shape[-1])], 1))

    def __call__(self, features: jax.Array) -> jax.Array:
        """Map the patches of frames [B, T, P, W] to embeddings [B, D]."""
        return self.out(self.norm_out(self.stack(self.tokens(features))[:, 0]))


class TextTower(nnx.Module):
    """CLIP's text transformer, read at the end of the text, which is the largest id."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        config = _blocks(sizes.text_width, sizes.head)
        self.table = nnx.Embed(sizes.vocabulary, sizes.text_width, rngs=rngs)
        self.position = nnx.Param(jnp.zeros((sizes.length, sizes.text_width)))
        self.stack = Stack(sizes.text_layers, config, rngs=rngs)
        self.norm_out = layer_norm(sizes.text_width, config.eps, rngs=rngs)
        self.out = nnx.Linear(sizes.text_width, sizes.embed, use_bias=False, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Map ids [n, L] to embeddings [n, D]."""
        x = self.norm_out(self.stack(self.table(ids) + self.position[...], causal(ids.shape[-1])))
        return self.out(jnp.take_along_axis(x, jnp.argmax(ids, -1)[:, None, None], 1)[:, 0])


class ViClip(JointVideo):
    """Both towers, as a ``Model``."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        self.video = VideoTower(sizes, rngs=rngs)
        self.words = TextTower(sizes, rngs=rngs)

    def text(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Embed ids [n, L] to unit vectors [n, D]."""
        return unit(self.words(ids))


def _blocks_table(pattern: str, path: str) -> list[Rule]:
    names = {"attention.out": "attn.out_proj", "norm1": "ln_1", "norm2": "ln_2"}
    names |= {"mlp.inner": "mlp.c_fc", "mlp.outer": "mlp.c_proj"}
    packed = path + r".layers.attention.{query,key,value}"
    return [
        *tables.block(pattern, path, names),
        Rule(pattern + r"\.attn\.in_proj_weight", packed + r".kernel[\1]", tables.thirds),
        Rule(pattern + r"\.attn\.in_proj_bias", packed + r".bias[\1]", tables.thirds),
    ]


TABLE = [
    Rule(r"vision_encoder\.class_embedding", "video.token"),
    Rule(r"vision_encoder\.positional_embedding", "video.place"),
    Rule(r"vision_encoder\.temporal_positional_embedding", "video.time", tables.flat),
    Rule(r"vision_encoder\.conv1\.weight", "video.patch.kernel", tables.patches),
    *norm(r"vision_encoder\.ln_pre", "video.norm_in"),
    *_blocks_table(r"vision_encoder\.transformer\.resblocks\.(\d+)", "video.stack"),
    *norm(r"vision_encoder\.ln_post", "video.norm_out"),
    Rule(r"vision_encoder\.proj", "video.out.kernel"),
    Rule(r"text_encoder\.token_embedding\.weight", "words.table.embedding"),
    Rule(r"text_encoder\.positional_embedding", "words.position"),
    *_blocks_table(r"text_encoder\.transformer\.resblocks\.(\d+)", "words.stack"),
    *norm(r"text_encoder\.ln_final", "words.norm_out"),
    Rule(r"text_encoder\.text_projection", "words.out.kernel"),
    Rule(r"temp", None),
]


def sizes_of_arrays(arrays: Mapping[str, np.ndarray], head: int = HEAD) -> Sizes:
    """Read the sizes from the shapes of a checkpoint; KeyError naming an array that is not there."""
    patch, place = arrays["vision_encoder.conv1.weight"].shape[-1], arrays["vision_encoder.positional_embedding"].shape
    vocabulary, text_width = arrays["text_encoder.token_embedding.weight"].shape
    layers = {
        tower: len([key for key in arrays if key.startswith(tower) and key.endswith("attn.in_proj_bias")])
        for tower in ("vision_encoder", "text_encoder")
    }
    return Sizes(
        place[1], layers["vision_encoder"], patch, round((place[0] - 1) ** 0.5) * patch,
        arrays["vision_encoder.temporal_positional_embedding"].shape[-2], text_width, layers["text_encoder"],
        vocabulary, arrays["text_encoder.positional_embedding"].shape[0], arrays["vision_encoder.proj"].shape[1], head,
    )  # fmt: skip


def load(weights: str, head: int = HEAD) -> FrozenEncoder:
    """Load ViCLIP from a folder or repository with its safetensors and a CLIP tokenizer.

    Args:
        weights: folder or repository.
        head: channels of an attention head, which the arrays do not tell.

    Raises:
        WeightsError: files are missing, gated or damaged.
        ValueError: the weights are those of another model.
    """
    from transformers import CLIPTokenizer

    source = locate("viclip", weights, EXAMPLES)
    words = tokens.load_tokenizer(source, CLIPTokenizer, TOKENIZER)
    arrays = dict(source.arrays())
    try:
        sizes = sizes_of_arrays(arrays, head)
    except KeyError as error:
        raise ValueError(f"{source} do not fit the model: no tensor {error}") from error
    graph, template = tables.template(lambda rngs: ViClip(sizes, rngs=rngs))
    return FrozenEncoder(
        "viclip", graph, tables.fill(TABLE, arrays.items(), template, source, default_dtype()),
        tokenize=tokens.padded(words, sizes.length),
        pixels=Pixels((sizes.image, sizes.image), "bilinear", MEAN, STD, whole=False),
        embed_dim=sizes.embed, num_frames=sizes.frames, digest=source.digest(), batch=8,
    )  # fmt: skip
