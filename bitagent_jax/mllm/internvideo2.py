"""InternVideo2, stage 2, 1B (Wang et al. 2024, arXiv 2403.15377): the encoder of GenRL and of the BiTAgent paper.

The vision tower sees 8 frames at once; the text tower is the lower 19 layers of a BERT-large. The published
weights were trained on 4 frames: their position embeddings are stretched over 8 in time, as GenRL does. The MLPs
use the exact GELU, as GenRL's and the authors' own inference do.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bitagent_jax.mllm import tables, tokens
from bitagent_jax.mllm.blocks import BlockConfig, Stack, attend, layer_norm
from bitagent_jax.mllm.frozen import FrozenEncoder, JointVideo, Tokenize, default_dtype
from bitagent_jax.mllm.pixels import Pixels
from bitagent_jax.mllm.sources import locate
from bitagent_jax.mllm.tables import Rule, linear, norm
from bitagent_jax.mllm.towers import unit

EXAMPLES = ("OpenGVLab/InternVideo2-Stage2_1B-224p-f4",)
TOKENIZER = "hf download google-bert/bert-large-uncased vocab.txt --local-dir {folder}"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Sizes:
    """Sizes of the towers; the defaults are those of the published model."""

    embed: int = 512
    frames: int = 8
    image: int = 224
    patch: int = 14
    vision: BlockConfig = BlockConfig(1408, 16, 6144, rms=True, qkv_bias=False, qk_norm=True, layer_scale=True)
    vision_layers: int = 40
    pooled: int = 768
    text: BlockConfig = BlockConfig(1024, 16, 4096, eps=1e-12, post_norm=True)
    text_layers: int = 19
    vocabulary: int = 30522
    positions: int = 512
    words: int = 40  # tokens of a sentence, [CLS] included

    @property
    def patches(self) -> int:
        """Patches of a frame."""
        return (self.image // self.patch) ** 2


class Pool(nnx.Module):
    """The mean token attends to all tokens, each role under a norm of its own."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        width, self.heads = sizes.vision.width, sizes.vision.heads
        self.norm_query, self.norm_key, self.norm_value = (layer_norm(width, 1e-5, rngs=rngs) for _ in range(3))
        self.query, self.key, self.value = (nnx.Linear(width, width, rngs=rngs) for _ in range(3))
        self.out = nnx.Linear(width, sizes.pooled, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map tokens [B, K, W] to [B, pooled]."""
        query = self.query(self.norm_query(x.mean(-2, keepdims=True)))
        out = attend(query, self.key(self.norm_key(x)), self.value(self.norm_value(x)), self.heads)
        return self.out(out)[..., 0, :]


class VideoTower(nnx.Module):
    """A vision transformer over the patches of all frames and a class token, without a norm at its end."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        width, self.size = sizes.vision.width, sizes.patch
        self.patch = nnx.Linear(3 * sizes.patch**2, width, rngs=rngs)
        self.token = nnx.Param(jnp.zeros(width))
        self.position = nnx.Param(jnp.zeros((1 + sizes.frames * sizes.patches, width)))
        self.stack = Stack(sizes.vision_layers, sizes.vision, rngs=rngs)
        self.pool = Pool(sizes, rngs=rngs)
        self.out = nnx.Linear(sizes.pooled, sizes.embed, rngs=rngs)

    def tokens(self, features: jax.Array) -> jax.Array:
        """Map the patches of frames [B, T, P, W] to the first block's input [B, 1 + T P, W]."""
        x = features.reshape(features.shape[0], -1, features.shape[-1])
        first = jnp.broadcast_to(self.token[...], (x.shape[0], 1, x.shape[-1]))
        return jnp.concatenate([first, x], 1) + self.position[...]

    def __call__(self, features: jax.Array) -> jax.Array:
        """Map the patches of frames [B, T, P, W] to embeddings [B, D]."""
        return self.out(self.pool(self.stack(self.tokens(features))))


class TextTower(nnx.Module):
    """The lower layers of a BERT, read at [CLS]."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        width = sizes.text.width
        self.table = nnx.Embed(sizes.vocabulary, width, rngs=rngs)
        self.position = nnx.Param(jnp.zeros((sizes.positions, width)))
        self.kind = nnx.Param(jnp.zeros((2, width)))
        self.norm_in = layer_norm(width, sizes.text.eps, rngs=rngs)
        self.stack = Stack(sizes.text_layers, sizes.text, rngs=rngs)
        self.out = nnx.Linear(width, sizes.embed, rngs=rngs)

    def tokens(self, ids: jax.Array) -> jax.Array:
        """Map ids [n, L] to the first block's input [n, L, W]."""
        return self.norm_in(self.table(ids) + self.position[: ids.shape[-1]] + self.kind[0])

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Map ids and their mask [n, L] to embeddings [n, D]."""
        return self.out(self.stack(self.tokens(ids), mask[:, None, None, :])[:, 0])


class InternVideo2(JointVideo):
    """Both towers, as a ``Model``."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        self.video = VideoTower(sizes, rngs=rngs)
        self.words = TextTower(sizes, rngs=rngs)

    def text(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Embed ids and their mask [n, L] to unit vectors [n, D]."""
        return unit(self.words(ids, mask))


def table(sizes: Sizes) -> list[Rule]:
    """Return the weight table; what only serves distillation, fusion and pretraining is left out."""
    above = "|".join(str(layer) for layer in range(sizes.text_layers, sizes.text_layers + 64))
    return [
        Rule(r"vision_encoder\.(clip_|img_|clip_img_)pos_embed|vision_encoder\.(final_)?clip_decoder\..*", None),
        Rule(r"text_encoder\.cls\..*|text_encoder\.(bert\.)?pooler\..*|.*\.position_ids|itm_head\..*|temp", None),
        Rule(rf"text_encoder\.(?:bert\.)?encoder\.layer\.(?:{above})\..*", None),
        *_vision_table(sizes),
        *_text_table(),
    ]


def _vision_table(sizes: Sizes) -> list[Rule]:
    head, block, pool = r"vision_encoder\.", r"vision_encoder\.blocks\.(\d+)", r"vision_encoder\.clip_projector\."
    attention = "video.stack.layers.attention."
    names = {"attention.out": "attn.proj", "mlp.inner": "mlp.fc1", "mlp.outer": "mlp.fc2"}
    rules = [
        Rule(head + r"cls_token", "video.token", tables.flat),
        Rule(head + r"pos_embed", "video.position", tables.over_time(sizes.frames, sizes.patches)),
        Rule(head + r"patch_embed\.proj\.weight", "video.patch.kernel", tables.patches),
        Rule(head + r"patch_embed\.proj\.bias", "video.patch.bias"),
        *tables.block(block, "video.stack", names),
        Rule(rf"{block}\.attn\.qkv\.weight", attention + r"{query,key,value}.kernel[\1]", tables.thirds),
        Rule(rf"{block}\.norm(\d)\.weight", r"video.stack.layers.norm\2.scale[\1]"),
        Rule(rf"{block}\.ls(\d)\.gamma", r"video.stack.layers.scale\2[\1]"),
        *linear(pool + r"cross_attn\.proj", "video.pool.out"),
        *linear("vision_proj", "video.out"),
    ]
    for letter, name in (("q", "query"), ("k", "key"), ("v", "value")):
        rules += norm(rf"{pool}norm1_{letter}", f"video.pool.norm_{name}")
        rules.append(Rule(rf"{pool}cross_attn\.{letter}\.weight", f"video.pool.{name}.kernel", tables.transpose))
        rules.append(Rule(rf"{pool}cross_attn\.{letter}_bias", f"video.pool.{name}.bias"))
    for letter, name in (("q", "query"), ("k", "key")):
        rules.append(Rule(rf"{block}\.attn\.{letter}_norm\.weight", attention + name + r"_norm.scale[\1]"))
    return rules


def _text_table() -> list[Rule]:
    bert = r"text_encoder\.(?:bert\.)?"
    names = {
        "attention.query": "attention.self.query",
        "attention.key": "attention.self.key",
        "attention.value": "attention.self.value",
        "attention.out": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "mlp.inner": "intermediate.dense",
        "mlp.outer": "output.dense",
        "norm2": "output.LayerNorm",
    }
    return [
        Rule(bert + r"embeddings\.word_embeddings\.weight", "words.table.embedding"),
        Rule(bert + r"embeddings\.position_embeddings\.weight", "words.position"),
        Rule(bert + r"embeddings\.token_type_embeddings\.weight", "words.kind"),
        *norm(bert + r"embeddings\.LayerNorm", "words.norm_in"),
        *tables.block(bert + r"encoder\.layer\.(\d+)", "words.stack", names),
        *linear("text_proj", "words.out"),
    ]


def tokenizer(bert: Any, length: int) -> Tokenize:
    """Return the model's own way to tokenize: [CLS] and the sentence, without the [SEP] that BERT expects."""

    def tokenize(sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
        pieces = bert(sentences, add_special_tokens=False, truncation=True, max_length=length - 1)["input_ids"]
        ids = np.full((len(sentences), length), bert.pad_token_id, np.int32)
        for row, piece in zip(ids, pieces, strict=True):
            row[: len(piece) + 1] = [bert.cls_token_id, *piece]
        return ids, np.arange(length) <= np.asarray([len(piece) for piece in pieces])[:, None]

    return tokenize


def load(weights: str, sizes: Sizes | None = None) -> FrozenEncoder:
    """Load InternVideo2 from a folder with one safetensors file (``bitagent convert``) and a BERT tokenizer.

    Args:
        weights: folder or repository; beside the weights, vocab.txt (or tokenizer.json) of bert-large-uncased.
        sizes: of another model of this kind.

    Raises:
        WeightsError: files are missing, gated or damaged.
        ValueError: the weights do not fit the sizes.
    """
    from transformers import BertTokenizer

    sizes = sizes or Sizes()
    source = locate("internvideo2", weights, EXAMPLES, ("*.safetensors",))
    words = tokens.load_tokenizer(source, BertTokenizer, TOKENIZER)
    graph, template = tables.template(lambda rngs: InternVideo2(sizes, rngs=rngs))
    return FrozenEncoder(
        "internvideo2", graph, tables.fill(table(sizes), source.arrays(), template, source, default_dtype()),
        tokenize=tokenizer(words, sizes.words),
        pixels=Pixels((sizes.image, sizes.image), "bilinear", MEAN, STD, whole=False),
        embed_dim=sizes.embed, num_frames=sizes.frames, digest=source.digest(), batch=8,
    )  # fmt: skip
