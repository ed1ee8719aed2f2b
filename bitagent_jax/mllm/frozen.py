"""What every ported encoder shares: fixed batches, one compilation each, sharding, the fingerprint."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bitagent_jax.mllm.encoder import CLIP, check_frames, check_sentences
from bitagent_jax.mllm.pixels import Pixels
from bitagent_jax.mllm.towers import patchify, unit

_SENTENCES = 32
Tokenize = Callable[[list[str]], tuple[np.ndarray, np.ndarray]]
"""Maps n sentences to token ids int32 [n, L] and which are tokens bool [n, L], always of one length L."""


class Model(Protocol):
    """The module behind an encoder; what needs one frame only is apart, since windows share their frames."""

    def frame(self, pixels: jax.Array) -> jax.Array:
        """Map preprocessed frames [F, S, S, 3] to features [F, ...]."""
        ...

    def clip(self, features: jax.Array) -> jax.Array:
        """Map the features of clips [B, N, ...] to unit vectors [B, D]."""
        ...

    def text(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Map token ids and their mask [n, L] to unit vectors [n, D]."""
        ...


class FrameMean(nnx.Module):
    """A ``Model`` of an ``image`` tower and a ``words`` tower: a clip is the mean of its frames."""

    def frame(self, pixels: jax.Array) -> jax.Array:
        """Embed frames [F, S, S, 3] to unit vectors [F, D]."""
        return unit(self.image(pixels))

    def clip(self, features: jax.Array) -> jax.Array:
        """Average the frames' embeddings [B, N, D] to unit vectors [B, D]."""
        return unit(features.mean(-2))

    def text(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Embed ids [n, L] to unit vectors [n, D]; the towers need no mask."""
        return unit(self.words(ids))


class JointVideo(nnx.Module):
    """The frames' side of a ``Model`` whose ``video`` tower sees the patches of all frames at once."""

    def frame(self, pixels: jax.Array) -> jax.Array:
        """Project the patches of frames [F, S, S, 3] to [F, P, W]."""
        return self.video.patch(patchify(pixels, self.video.size))

    def clip(self, features: jax.Array) -> jax.Array:
        """Embed the frames of clips [B, T, P, W] to unit vectors [B, D]."""
        return unit(self.video(features))


def default_dtype() -> jnp.dtype:
    """Return the dtype of weights and features on this machine: bfloat16, on CPU float32."""
    return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)


class FrozenEncoder:
    """A ported model as an ``Encoder``."""

    def __init__(self, name: str, graph: nnx.GraphDef, params: nnx.State, *, tokenize: Tokenize, pixels: Pixels,
                 embed_dim: int, num_frames: int, digest: str, batch: int = 16,
                 devices: Sequence[jax.Device] | None = None):  # fmt: skip
        """Place the weights and prepare the functions.

        Args:
            name, embed_dim, num_frames: as in ``Encoder``.
            graph, params: of the model; every weight is of one dtype.
            tokenize: of the model's text tower.
            pixels: the preprocessing of the frames.
            digest: hash of the weights and of the files beside them.
            batch: clips embedded at a time, rounded up to a multiple of the devices.
            devices: to spread the batch over; by default all of this process.
        """
        devices = list(devices or jax.local_devices())
        mesh = Mesh(np.asarray(devices), ("data",))
        self._rows, self._even = NamedSharding(mesh, P("data")), len(devices)
        self.name, self.embed_dim, self.num_frames = name, embed_dim, num_frames
        self.tokenize, self.pixels = tokenize, pixels
        self.graph, self.params = graph, jax.device_put(params, NamedSharding(mesh, P()))
        self.stride = 1 if isinstance(nnx.merge(graph, params), FrameMean) else CLIP
        self._batch, self._sentences = self._round(batch), self._round(_SENTENCES)
        dtype = jax.tree.leaves(params)[0].dtype
        self.fingerprint = _fingerprint(name, digest, pixels, num_frames, dtype)
        self._clips, self._windows, self._text = (
            _jit(function, graph, dtype) for function in (self._embed_clips, self._embed_windows, self._embed_text)
        )

    def embed_video(self, clips: np.ndarray) -> np.ndarray:
        """Embed clips, uint8 [B, N, H, W, 3]; returns float32 [B, D]. Any height and width will do."""
        clips = check_frames(clips, (None, self.num_frames), f"clips [B, {self.num_frames}, H, W, 3]")
        return self._map(self._clips, (clips,), self._batch)

    def embed_text(self, sentences: Sequence[str]) -> np.ndarray:
        """Embed n sentences; returns float32 [n, D]. ValueError if there is none, or one is blank."""
        return self._map(self._text, self.tokenize(check_sentences(sentences)), self._sentences)

    def embed_windows(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Embed every window of frames uint8 [L, H, W, 3]; see ``Encoder.embed_windows``."""
        frames = check_frames(frames, (None,), "frames [L, H, W, 3]")
        context = self.num_frames - 1
        out = np.zeros((len(frames), self.embed_dim), np.float32)
        for start in range(context, len(frames), self._batch):
            chunk = frames[start - context : start + self._batch]
            rows = self._call(self._windows, (chunk,), self._round(self._batch + context))
            out[start : start + self._batch] = rows[: len(chunk) - context]
        return out, np.arange(len(frames)) >= context

    def _map(self, function: Callable, arrays: tuple[np.ndarray, ...], size: int) -> np.ndarray:
        out = np.zeros((len(arrays[0]), self.embed_dim), np.float32)
        for start in range(0, len(out), size):
            parts = tuple(array[start : start + size] for array in arrays)
            out[start : start + size] = self._call(function, parts, size)[: len(parts[0])]
        return out

    def _call(self, function: Callable, arrays: tuple[np.ndarray, ...], length: int) -> np.ndarray:
        """Call with every array filled up to ``length`` by repeating its first row, spread over the devices."""
        full = (np.concatenate([a, np.repeat(a[:1], length - len(a), axis=0)]) for a in arrays)
        return np.asarray(function(self.params, *(jax.device_put(a, self._rows) for a in full)), np.float32)

    def _round(self, size: int) -> int:
        return -(-size // self._even) * self._even

    def _embed_clips(self, model: Model, clips: jax.Array) -> jax.Array:
        features = self._features(model, clips.reshape(-1, *clips.shape[2:]))
        return model.clip(features.reshape(*clips.shape[:2], *features.shape[1:]))

    def _embed_windows(self, model: Model, frames: jax.Array) -> jax.Array:
        features = self._features(model, frames)
        index = jnp.arange(self._batch)[:, None] + jnp.arange(self.num_frames)
        return model.clip(jax.lax.with_sharding_constraint(features[index], self._rows))

    def _embed_text(self, model: Model, ids: jax.Array, mask: jax.Array) -> jax.Array:
        return model.text(ids, mask)

    def _features(self, model: Model, frames: jax.Array) -> jax.Array:
        dtype = jax.tree.leaves(self.params)[0].dtype
        return model.frame(self.pixels(frames).astype(dtype))


def _jit(function: Callable, graph: nnx.GraphDef, dtype: jnp.dtype) -> Callable:
    """Jit ``function(model, *arrays)`` as one of the weights; products of float32 are exact on every device."""

    def call(params: nnx.State, *arrays: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("float32" if dtype == jnp.float32 else "default"):
            return function(nnx.merge(graph, params), *arrays)

    return jax.jit(call)


def _fingerprint(name: str, digest: str, pixels: Pixels, num_frames: int, dtype: jnp.dtype) -> str:
    text = f"{name}/{digest}/{pixels}/{num_frames}/{jnp.dtype(dtype).name}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
