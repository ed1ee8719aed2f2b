"""VideoPrism LvT (Zhao et al. 2024, arXiv 2402.13217), base (16 frames) and large (8 frames).

Every frame passes a spatial transformer alone; then each place is followed through time; then all tokens meet.
Both published forms of the weights are read: the original npz and the safetensors of ``transformers``. Where they
differ, the original is followed: sinusoids of positions whose wavelengths end at 10,000, and sentences in lower
case without punctuation but a final dot.
"""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bitagent_jax.mllm import pixels, tables, tokens
from bitagent_jax.mllm.blocks import BlockConfig, Stack, attend, causal, layer_norm
from bitagent_jax.mllm.frozen import FrozenEncoder, default_dtype
from bitagent_jax.mllm.sources import TENSORS, Source, locate
from bitagent_jax.mllm.tables import Rule, linear
from bitagent_jax.mllm.towers import patchify, unit

EXAMPLES = ("google/videoprism-lvt-large-f8r288", "google/videoprism-lvt-base-f16r288")
_SOFTPLUS_0 = 0.6931471805599453


@dataclass(frozen=True)
class Sizes:
    """Sizes of the towers.

    Attributes:
        vision, text: their blocks.
        spatial, temporal, auxiliary, words: layers of each stack.
        trained: frames of the clips that the model was trained on.
        image, patch: pixels a side.
        pool: width within the pooling attention.
        vocabulary, length: of the text.
    """

    vision: BlockConfig
    text: BlockConfig
    spatial: int
    temporal: int
    auxiliary: int
    words: int
    trained: int
    image: int
    patch: int
    pool: int
    vocabulary: int
    length: int = 64


class Pool(nnx.Module):
    """A learned query attends to all tokens, with a learned scale for each channel of a head."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        width, self.heads = sizes.vision.width, sizes.vision.heads
        self.probe = nnx.Param(jnp.zeros(width))
        self.scale = nnx.Param(jnp.zeros(sizes.pool // self.heads))
        self.query, self.key, self.value = (nnx.Linear(width, sizes.pool, rngs=rngs) for _ in range(3))
        self.out = nnx.Linear(sizes.pool, width, rngs=rngs)
        self.norm = layer_norm(width, sizes.vision.eps, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map tokens [B, K, W] to [B, W]."""
        query = self.query(jnp.broadcast_to(self.probe[...], (x.shape[0], 1, x.shape[-1])))
        scale = jax.nn.softplus(self.scale[...]) / (_SOFTPLUS_0 * self.scale.shape[-1] ** 0.5)
        return self.norm(self.out(attend(query, self.key(x), self.value(x), self.heads, scale=scale)))[:, 0]


class VideoTower(nnx.Module):
    """Space, then time, then both, and a pool."""

    def __init__(self, sizes: Sizes, frames: int, *, rngs: nnx.Rngs):
        config, self.size = sizes.vision, sizes.patch
        self.patch = nnx.Linear(3 * sizes.patch**2, config.width, rngs=rngs)
        self.place = nnx.Param(jnp.zeros(((sizes.image // sizes.patch) ** 2, config.width)))
        self.time = nnx.Param(jnp.zeros((frames, config.width)))
        self.spatial = Stack(sizes.spatial, config, rngs=rngs)
        self.temporal = Stack(sizes.temporal, config, rngs=rngs)
        self.auxiliary = Stack(sizes.auxiliary, config, rngs=rngs)
        self.norm_space = layer_norm(config.width, config.eps, rngs=rngs)
        self.norm_time = layer_norm(config.width, config.eps, rngs=rngs)
        self.pool = Pool(sizes, rngs=rngs)

    def patches(self, pixels: jax.Array) -> jax.Array:
        """Map frames [F, S, S, 3] to the spatial stack's input [F, P, W]."""
        return self.patch(patchify(pixels, self.size)) + self.place[...]

    def through_time(self, x: jax.Array) -> jax.Array:
        """Map spatial features [B, T, P, W] to features of all tokens [B, T P, W]."""
        x = self.temporal(jnp.swapaxes(x, 1, 2) + self.time[...])
        return jnp.swapaxes(self.norm_time(x), 1, 2).reshape(x.shape[0], -1, x.shape[-1])


class TextTower(nnx.Module):
    """A causal transformer whose class token comes last and is read."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        config = sizes.text
        self.table = nnx.Embed(sizes.vocabulary, config.width, rngs=rngs)
        self.last = nnx.Param(jnp.zeros(config.width))
        self.stack = Stack(sizes.words, config, rngs=rngs)
        self.norm_out = layer_norm(config.width, config.eps, rngs=rngs)

    def tokens(self, ids: jax.Array, position: jax.Array | None = None) -> jax.Array:
        """Map ids [n, L] to the first block's input [n, L + 1, W]; positions [L, W] are sinusoids unless given."""
        width = self.last.shape[-1]
        x = self.table(ids) * width**0.5
        x = x + (sinusoids(ids.shape[-1], width).astype(x.dtype) if position is None else position)
        last = jnp.broadcast_to(self.last[...] * width**0.5, (len(ids), 1, width))
        return jnp.concatenate([x, last.astype(x.dtype)], 1)

    def __call__(self, ids: jax.Array, mask: jax.Array, position: jax.Array | None = None) -> jax.Array:
        """Map ids and their mask [n, L] to embeddings [n, W]."""
        seen = jnp.pad(mask, ((0, 0), (0, 1)), constant_values=True)[:, None, None, :] & causal(ids.shape[-1] + 1)
        return self.norm_out(self.stack(self.tokens(ids, position), seen)[:, -1])


class VideoPrism(nnx.Module):
    """Both towers, as a ``Model``."""

    def __init__(self, sizes: Sizes, frames: int = 0, *, rngs: nnx.Rngs):
        self.video = VideoTower(sizes, frames or sizes.trained, rngs=rngs)
        self.words = TextTower(sizes, rngs=rngs)

    def frame(self, pixels: jax.Array) -> jax.Array:
        """Map frames [F, S, S, 3] to spatial features [F, P, W]."""
        return self.video.norm_space(self.video.spatial(self.video.patches(pixels)))

    def clip(self, features: jax.Array) -> jax.Array:
        """Embed the frames of clips [B, T, P, W] to unit vectors [B, W]."""
        return unit(self.video.pool(self.video.auxiliary(self.video.through_time(features))))

    def text(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Embed ids and their mask [n, L] to unit vectors [n, W]."""
        return unit(self.words(ids, mask))


def sinusoids(length: int, width: int) -> jax.Array:
    """Return positions [length, width]: sines, then cosines, of wavelengths from 2 pi to 10,000 times that."""
    rate = np.exp(-np.log(1e4) * np.arange(width // 2) / max(width // 2 - 1, 1))
    angle = np.arange(length)[:, None] * rate
    return jnp.asarray(np.concatenate([np.sin(angle), np.cos(angle)], -1), jnp.float32)


def canonical(sentence: str) -> str:
    """Put a sentence in the form of the training: lower case, spaces for punctuation, a dot at the end."""
    plain = sentence.translate({ord(mark): " " for mark in string.punctuation})
    return " ".join(plain.lower().split()) + "."


_NORM = [("weight", "scale", tables.add_one), ("bias", "bias", tables.same)]  # stored as the difference from one


def _norm(pattern: str, path: str, index: str = "") -> list[Rule]:
    return [Rule(rf"{pattern}\.{name}", f"{path}.{ours}{index}", change) for name, ours, change in _NORM]


def table(sizes: Sizes, frames: int) -> list[Rule]:
    """Return the weight table of the ``transformers`` form."""
    roles = dict(zip(("query", "key", "value", "out"), "qkvo", strict=True))
    names = {f"attention.{role}": f"attention.{letter}_proj" for role, letter in roles.items()}
    names |= {"mlp.inner": "mlp.fc1", "mlp.outer": "mlp.fc2"}
    vision, head, text = r"video_model\.vision_model\.", r"video_model\.head\.", r"text_model\."
    stacks = {
        vision + r"spatial_layers": "video.spatial",
        vision + r"temporal_layers": "video.temporal",
        r"video_model\.auxiliary_layers": "video.auxiliary",
        text + r"layers": "words.stack",
    }
    rules = [
        Rule(
            vision + r"spatial_embeddings\.patch_embeddings\.projection\.weight", "video.patch.kernel", tables.patches
        ),
        Rule(vision + r"spatial_embeddings\.patch_embeddings\.projection\.bias", "video.patch.bias"),
        Rule(vision + r"spatial_embeddings\.position_embeddings", "video.place", tables.flat),
        Rule(vision + r"temporal_embeddings\.position_embeddings", "video.time", tables.over_time(frames, 1, 0)),
        *_norm(vision + "layernorm1", "video.norm_space"),
        *_norm(vision + "layernorm2", "video.norm_time"),
        *_norm(r"video_model\.head_layernorm", "video.pool.norm"),
        Rule(head + "per_dim_scale", "video.pool.scale"),
        Rule(head + "pooling_attention_query", "video.pool.probe", tables.flat),
        Rule(text + r"embeddings\.token_embedding\.weight", "words.table.embedding"),
        Rule(text + r"embeddings\.cls_emb", "words.last", tables.flat),
        Rule(text + r"embeddings\.position_(embedding|ids)", None),
        *_norm(text + "layernorm", "words.norm_out"),
    ]
    for role, letter in roles.items():
        rules += linear(rf"{head}{letter}_proj", f"video.pool.{role}")
    for pattern, path in stacks.items():
        rules += tables.block(rf"{pattern}\.(\d+)", path, names)
        for theirs, ours in (("layernorm_before", "norm1"), ("layernorm_after", "norm2")):
            rules += _norm(rf"{pattern}\.(\d+)\.{theirs}", f"{path}.layers.{ours}", r"[\1]")
    return rules


def _merge_heads(x: np.ndarray) -> np.ndarray:
    return x.reshape(*x.shape[:-2], -1)


def _merge_heads_out(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(_merge_heads(x), -1, -2)


def npz_table(frames: int) -> list[Rule]:
    """Return the weight table of the original npz, whose arrays hold all layers of a stack."""
    head, text, pool = "params/vision_encoder/", "params/text_encoder/", "params/contrastive_vision_pooler/"
    stacks = {
        head + "spatial_encoder/transformers_stack/x_layers": "video.spatial.layers",
        head + "temporal_encoder/transformers_stack/x_layers": "video.temporal.layers",
        "params/auxiliary_encoder/transformers_stack/x_layers": "video.auxiliary.layers",
        text + "unimodal_transformer/x_layers": "words.stack.layers",
    }
    rules = [
        Rule(head + "patch_projection/linear/(kernel|bias)", r"video.patch.\1"),
        Rule(head + "spatial_pos_emb/emb_var", "video.place", tables.flat),
        Rule(head + "temporal_pos_emb/emb_var", "video.time", tables.over_time(frames, 1, 0)),
        *_npz_norm(head + "spatial_ln", "video.norm_space"),
        *_npz_norm(head + "temporal_ln", "video.norm_time"),
        *_npz_norm(pool + "pooling_attention_layer_norm", "video.pool.norm"),
        *_npz_attention(pool + "pooling_attention", "video.pool."),
        Rule(pool + "pooling_attention/per_dim_scale/per_dim_scale", "video.pool.scale"),
        Rule(pool + "pooling_attention_query", "video.pool.probe", tables.flat),
        Rule(text + "token_emb/emb_var", "words.table.embedding"),
        Rule(text + "cls_emb", "words.last", tables.flat),
        *_npz_norm(text + "unimodal_ln", "words.norm_out"),
    ]
    for pattern, path in stacks.items():
        rules += _npz_attention(f"{pattern}/self_attention", f"{path}.attention.")
        rules += _npz_norm(f"{pattern}/layer_norm", f"{path}.norm1")
        rules += _npz_norm(f"{pattern}/ff_layer/layer_norm", f"{path}.norm2")
        for number, ours in (("1", "inner"), ("2", "outer")):
            rules.append(Rule(f"{pattern}/ff_layer/ffn_layer{number}/linear/(kernel|bias)", rf"{path}.mlp.{ours}.\1"))
    return rules


def _npz_norm(pattern: str, path: str) -> list[Rule]:
    return [Rule(f"{pattern}/scale", f"{path}.scale", tables.add_one), Rule(f"{pattern}/bias", f"{path}.bias")]


def _npz_attention(pattern: str, path: str) -> list[Rule]:
    return [
        Rule(f"{pattern}/(query|key|value)/w", rf"{path}\1.kernel", _merge_heads),
        Rule(f"{pattern}/(query|key|value)/b", rf"{path}\1.bias", _merge_heads),
        Rule(f"{pattern}/post/w", f"{path}out.kernel", _merge_heads_out),
        Rule(f"{pattern}/post/b", f"{path}out.bias"),
    ]


def sizes_of_config(config: Any) -> Sizes:
    """Read the sizes from a ``VideoPrismConfig`` of ``transformers``."""
    vision, text = config.vision_config, config.text_config
    image = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
    return Sizes(
        _blocks(vision), _blocks(text), vision.num_spatial_layers, vision.num_temporal_layers,
        vision.num_auxiliary_layers, text.num_hidden_layers, vision.num_frames, image, vision.tubelet_size[-1],
        vision.intermediate_size, text.vocab_size, text.max_position_embeddings,
    )  # fmt: skip


def _blocks(config: Any) -> BlockConfig:
    return BlockConfig(
        config.hidden_size, config.num_attention_heads, config.intermediate_size, activation=config.hidden_act,
        eps=config.layer_norm_eps, qkv_bias=config.qkv_bias, soft_cap=config.attn_logit_softcapping,
    )  # fmt: skip


def sizes_of_arrays(arrays: Mapping[str, np.ndarray]) -> Sizes:
    """Read the sizes from the shapes of an original npz; KeyError naming an array that is not there."""
    stacks = {
        "spatial": "params/vision_encoder/spatial_encoder/transformers_stack",
        "temporal": "params/vision_encoder/temporal_encoder/transformers_stack",
        "auxiliary": "params/auxiliary_encoder/transformers_stack",
        "words": "params/text_encoder/unimodal_transformer",
    }
    query = {name: arrays[f"{path}/x_layers/self_attention/query/w"].shape for name, path in stacks.items()}
    hidden = {
        name: arrays[f"{path}/x_layers/ff_layer/ffn_layer1/linear/bias"].shape[-1] for name, path in stacks.items()
    }
    blocks = {
        name: BlockConfig(query[name][1], query[name][2], hidden[name], activation=activation, soft_cap=50.0)
        for name, activation in (("spatial", "gelu"), ("words", "relu"))
    }
    patch = round((arrays["params/vision_encoder/patch_projection/linear/kernel"].shape[0] / 3) ** 0.5)
    grid = round(arrays["params/vision_encoder/spatial_pos_emb/emb_var"].shape[-2] ** 0.5)
    return Sizes(
        blocks["spatial"], blocks["words"], *(query[name][0] for name in stacks),
        trained=arrays["params/vision_encoder/temporal_pos_emb/emb_var"].shape[-2], image=grid * patch, patch=patch,
        pool=int(np.prod(arrays["params/contrastive_vision_pooler/pooling_attention/query/b"].shape)),
        vocabulary=arrays["params/text_encoder/token_emb/emb_var"].shape[0],
    )  # fmt: skip


def load(weights: str, frames: int = 0) -> FrozenEncoder:
    """Load VideoPrism LvT from a folder or repository with its safetensors and config.json, or the original npz.

    Args:
        weights: folder or repository; in both cases with the tokenizer of ``transformers``.
        frames: of a clip; 0 = as many as the model was trained on. For other numbers the embeddings of time are
            stretched, as the original does.

    Raises:
        WeightsError: files are missing, gated or damaged.
        ValueError: the weights do not fit the config.
    """
    source = locate("videoprism", weights, EXAMPLES, TENSORS)
    arrays: Any = source.arrays()
    original = source.tensor_files()[0].suffix == ".npz"
    if original:
        arrays = dict(arrays)
    sizes = _sizes(source, arrays if original else None)
    frames = frames or sizes.trained
    graph, template = tables.template(lambda rngs: VideoPrism(sizes, frames, rngs=rngs))
    rules = npz_table(frames) if original else table(sizes, frames)
    resample = "lanczos" if original else "bicubic"  # the original demonstrates Lanczos' filter
    look = source.json("video_preprocessor_config.json", True) or source.json("preprocessor_config.json", True)
    return FrozenEncoder(
        "videoprism", graph,
        tables.fill(rules, arrays.items() if original else arrays, template, source, default_dtype()),
        tokenize=tokens.padded(tokens.load_tokenizer(source), sizes.length, canonical),
        pixels=pixels.from_config({"do_normalize": False} | look, sizes.image, resample=resample),
        embed_dim=sizes.vision.width, num_frames=frames, digest=source.digest(), batch=4,
    )  # fmt: skip


def _sizes(source: Source, arrays: Mapping[str, np.ndarray] | None) -> Sizes:
    from transformers import VideoPrismConfig

    if arrays is None:
        return sizes_of_config(VideoPrismConfig.from_dict(source.json("config.json")))
    try:
        return sizes_of_arrays(arrays)
    except KeyError as error:
        raise ValueError(f"{source} do not fit the model: no tensor {error}") from error
