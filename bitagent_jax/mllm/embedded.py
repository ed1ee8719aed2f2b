"""The embedded encoder: a small frozen video-text model whose weights ship with the package.

It knows the bodies walker, cheetah and quadruped of dm_control and the stickman, and was trained by
``experiments/embedded_encoder`` on clips whose captions were computed from the SIMULATOR'S STATE. It is
therefore privileged, close to an oracle of the tasks it was shown, and results obtained with it must not be
compared with the paper's. The card beside the weights states provenance and measured quality.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bitagent_jax.mllm import tables, towers
from bitagent_jax.mllm.encoder import check_frames, check_sentences
from bitagent_jax.mllm.hashing import BUCKETS, MAX_NGRAMS, hash_sentences

WEIGHTS = Path(__file__).parent / "weights" / "embedded.safetensors"
CARD = WEIGHTS.with_suffix(".json")
PREPROCESSING = f"crc32-{BUCKETS}-{MAX_NGRAMS}/bilinear-{towers.IMAGE_SIZE}/pairs-of-{towers.NUM_FRAMES}"
_CLIPS, _ROWS, _SENTENCES = 32, 256, 32
_CONTEXT = towers.NUM_FRAMES - 1


def load(weights: Path = WEIGHTS) -> "EmbeddedEncoder":
    """Load the shipped weights, or another file of the same kind with its card (the same name, ``.json``).

    Raises:
        FileNotFoundError: the file or its card is missing.
        ValueError: the file is not the one that the card describes, or has other tensors than the model.
    """
    from safetensors.numpy import load as parse

    weights = Path(weights)
    raw = weights.read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    expected = json.loads(weights.with_suffix(".json").read_text())["sha256"]
    if digest != expected:
        raise ValueError(f"{weights} has sha256 {digest}, but its card says {expected}: reinstall the package")
    return EmbeddedEncoder(params_from_arrays(parse(raw)), digest)


def init(seed: int = 0) -> "EmbeddedEncoder":
    """Make an encoder of random weights: for training and for tests, its embeddings mean nothing."""
    return EmbeddedEncoder(init_params(seed), f"random-{seed}")


def init_params(seed: int) -> nnx.State:
    """Draw fresh float32 weights."""
    return _draw(jax.random.key(seed))


@jax.jit
def _draw(key: jax.Array) -> nnx.State:
    return nnx.split(towers.Towers(rngs=nnx.Rngs(key)))[1]


def graph() -> nnx.GraphDef:
    """Return the model's structure without weights, for ``nnx.merge``."""
    return _template()[0]


def _template() -> tuple[nnx.GraphDef, nnx.State]:
    return tables.template(lambda rngs: towers.Towers(rngs=rngs))


def params_to_arrays(params: nnx.State) -> dict[str, np.ndarray]:
    """Flatten weights to float16 arrays by dotted name, as they are stored."""
    flat = nnx.to_flat_state(params)
    return {".".join(map(str, path)): np.asarray(leaf[...], np.float16) for path, leaf in flat}


def params_from_arrays(arrays: dict[str, np.ndarray]) -> nnx.State:
    """Rebuild float32 weights from arrays by dotted name; ValueError if names or shapes differ."""
    return jax.device_put(tables.fill([tables.Rule(".+", r"\g<0>")], arrays.items(), _template()[1], "weights"))


class EmbeddedEncoder:
    """The embedded encoder as an ``Encoder``; made by ``load`` or ``init``."""

    name = "embedded"
    embed_dim = towers.EMBED_DIM
    num_frames = towers.NUM_FRAMES
    stride = 1

    def __init__(self, params: nnx.State, digest: str):
        self.params = params
        self._graph = graph()
        self.fingerprint = hashlib.sha256(f"{self.name}/{digest}/{PREPROCESSING}".encode()).hexdigest()[:16]

    def embed_video(self, clips: np.ndarray) -> np.ndarray:
        """Embed clips, uint8 [B, 8, H, W, 3]; returns float32 [B, D]. Other sizes are resized to 64 x 64."""
        clips = check_frames(clips, (None, self.num_frames), f"clips [B, {self.num_frames}, H, W, 3]")
        return self._map(_embed_clips, clips, _CLIPS)

    def embed_text(self, sentences: Sequence[str]) -> np.ndarray:
        """Embed n sentences; returns float32 [n, D]. ValueError if there is none, or one is blank."""
        return self._map(_embed_sentences, hash_sentences(check_sentences(sentences)), _SENTENCES)

    def embed_windows(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Embed every window of frames uint8 [L, H, W, 3]; see ``Encoder.embed_windows``."""
        frames = check_frames(frames, (None,), "frames [L, H, W, 3]")
        out = np.zeros((len(frames), self.embed_dim), np.float32)
        for start in range(_CONTEXT, len(frames), _ROWS):
            chunk = frames[start - _CONTEXT : start + _ROWS]
            rows = _embed_rows(self._graph, self.params, _pad(chunk, _CONTEXT + _ROWS))
            out[start : start + _ROWS] = np.asarray(rows)[: len(chunk) - _CONTEXT]
        return out, np.arange(len(frames)) >= _CONTEXT

    def _map(self, function, array: np.ndarray, chunk: int) -> np.ndarray:
        """Apply a jitted function to chunks of one fixed size, so that it is compiled once."""
        out = np.zeros((len(array), self.embed_dim), np.float32)
        for start in range(0, len(array), chunk):
            part = array[start : start + chunk]
            out[start : start + chunk] = np.asarray(function(self._graph, self.params, _pad(part, chunk)))[: len(part)]
        return out


def _pad(array: np.ndarray, length: int) -> np.ndarray:
    """Append zeros along the first axis up to ``length``."""
    return np.pad(array, [(0, length - len(array))] + [(0, 0)] * (array.ndim - 1))


def _resize(frames: jax.Array) -> jax.Array:
    size = towers.IMAGE_SIZE
    if frames.shape[-3:-1] == (size, size):
        return frames
    return jax.image.resize(frames.astype(jnp.float32), (*frames.shape[:-3], size, size, 3), "bilinear")


def _jit(function):
    """Jit with exact float32 products on every device; the model's structure is static."""

    @functools.wraps(function)
    def exact(graph, params, array):
        with jax.default_matmul_precision("float32"):
            return function(nnx.merge(graph, params), array)

    return jax.jit(exact, static_argnums=0)


@_jit
def _embed_clips(model: towers.Towers, clips: jax.Array) -> jax.Array:
    return model.video(_resize(clips))


@_jit
def _embed_sentences(model: towers.Towers, ids: jax.Array) -> jax.Array:
    return model.text(ids)


@_jit
def _embed_rows(model: towers.Towers, frames: jax.Array) -> jax.Array:
    rows = model.video.rows(_resize(frames))
    return model.video.head(rows.windows(len(frames) - _CONTEXT))
