"""What ported encoders share: batches, one compilation, windows, fingerprints, sharding."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bitagent_jax.mllm.encoder import Encoder
from bitagent_jax.mllm.frozen import FrameMean, FrozenEncoder
from bitagent_jax.mllm.pixels import Pixels
from bitagent_jax.mllm.towers import unit

TRACES = []


class Toy(nnx.Module):
    """A model whose clips depend on the order of frames; it notes when it is traced."""

    def __init__(self, rngs):
        self.image = nnx.Linear(8 * 8 * 3, 5, rngs=rngs)
        self.video = nnx.Linear(3 * 5, 4, rngs=rngs)
        self.table = nnx.Embed(10, 4, rngs=rngs)

    def frame(self, pixels):
        TRACES.append("frame")
        return self.image(pixels.reshape(len(pixels), -1))

    def clip(self, features):
        return unit(self.video(features.reshape(len(features), -1)))

    def text(self, ids, mask):
        TRACES.append("text")
        return unit((self.table(ids) * mask[..., None]).sum(1))


def tokenize(sentences):
    ids = np.asarray([[len(word) % 10 for word in (sentence + " a b").split()[:3]] for sentence in sentences], np.int32)
    return ids, ids > 0


def make(dtype=jnp.float32, digest="x", pixels=None, **options):
    graph, params = nnx.split(Toy(nnx.Rngs(0)))
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    fixed = dict(tokenize=tokenize, pixels=pixels or Pixels((8, 8)), embed_dim=4, num_frames=3, digest=digest, batch=4)
    return FrozenEncoder("toy", graph, params, **fixed | options)


@pytest.fixture(scope="module")
def encoder():
    return make()


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (11, 8, 8, 3), np.uint8)


def test_it_is_an_encoder_of_float32_unit_vectors(encoder, frames):
    assert isinstance(encoder, Encoder)
    for rows in (encoder.embed_video(frames[None, :3]), encoder.embed_text(["run", "stand up"])):
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1, atol=1e-6)


def test_every_window_equals_its_clip(encoder, frames):
    rows, full = encoder.embed_windows(frames)
    clips = np.stack([frames[end - 2 : end + 1] for end in range(2, 11)])
    assert full.tolist() == [False] * 2 + [True] * 9 and not rows[:2].any()
    np.testing.assert_allclose(rows[2:], encoder.embed_video(clips), atol=1e-6)


@pytest.mark.parametrize("length", [0, 1, 2])
def test_rows_without_a_full_window_have_no_embedding(encoder, frames, length):
    rows, full = encoder.embed_windows(frames[:length])
    assert rows.shape == (length, 4) and not full.any()


def test_each_function_is_compiled_once_whatever_the_lengths(frames):
    encoder = make()
    TRACES.clear()
    for length in (3, 5, 11):
        encoder.embed_windows(frames[:length])
    assert TRACES == ["frame"]
    for count in (1, 9, 4):
        encoder.embed_video(np.stack([frames[:3]] * count))
    for count in (1, 40):
        encoder.embed_text(["run"] * count)
    assert TRACES == ["frame", "frame", "text"]
    assert encoder.embed_video(np.zeros((0, 3, 8, 8, 3), np.uint8)).shape == (0, 4)


def test_every_window_is_embedded_only_where_windows_share_their_frames(encoder):
    class Mean(FrameMean):
        def __init__(self, rngs):
            self.image = nnx.Linear(3, 4, rngs=rngs)

    graph, params = nnx.split(Mean(nnx.Rngs(0)))
    fixed = dict(tokenize=tokenize, pixels=Pixels((8, 8)), embed_dim=4, num_frames=3, digest="x")
    assert (encoder.stride, FrozenEncoder("mean", graph, params, **fixed).stride) == (8, 1)


def test_bad_input_is_refused(encoder):
    with pytest.raises(ValueError, match=r"expected uint8 clips \[B, 3, H, W, 3\], got uint8 \[1, 2, 8, 8, 3\]"):
        encoder.embed_video(np.zeros((1, 2, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"expected uint8 frames \[L, H, W, 3\], got float64"):
        encoder.embed_windows(np.zeros((4, 8, 8, 3)))
    with pytest.raises(ValueError, match="sentence in words"):
        encoder.embed_text([" "])


def test_the_fingerprint_tells_weights_preprocessing_frames_and_dtype_apart(encoder):
    others = [make(digest="y"), make(pixels=Pixels((8, 8), "bilinear")), make(jnp.bfloat16), make(num_frames=2)]
    assert make().fingerprint == encoder.fingerprint
    assert len({other.fingerprint for other in others} | {encoder.fingerprint}) == 5


def test_bfloat16_weights_give_nearly_the_same(encoder, frames):
    rows = make(jnp.bfloat16).embed_windows(frames)[0]
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, encoder.embed_windows(frames)[0], atol=0.05)


SHARDED = """
import jax, numpy as np
from flax import nnx
from transformers import CLIPConfig
from bitagent_jax.mllm import clip, frozen
from bitagent_jax.mllm.pixels import Pixels

sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
text = sizes | dict(vocab_size=30, eos_token_id=29)
config = CLIPConfig(vision_config=sizes | dict(image_size=16, patch_size=8), text_config=text, projection_dim=8)
graph, params = nnx.split(clip.Clip(config, rngs=nnx.Rngs(0)))
ids = np.random.default_rng(0).integers(0, 30, (100, 77)).astype(np.int32)
tokenize = lambda sentences: (ids[: len(sentences)], ids[: len(sentences)] >= 0)
one, all = (
    frozen.FrozenEncoder("clip", graph, params, tokenize=tokenize, pixels=Pixels((16, 16)), embed_dim=8,
                         num_frames=8, digest="", batch=12, devices=devices)
    for devices in (jax.devices()[:1], None)
)
assert len(jax.devices()) == 8 and len(all.params["image"]["token"][...].sharding.device_set) == 8
frames = np.random.default_rng(0).integers(0, 256, (45, 20, 20, 3), np.uint8)
clips = np.stack([frames[i : i + 8] for i in range(19)])
pairs = [(e.embed_windows(frames)[0], e.embed_video(clips), e.embed_text(["run"] * 50)) for e in (one, all)]
for left, right in zip(*pairs):
    np.testing.assert_allclose(left, right, atol=1e-6)
assert one.fingerprint == all.fingerprint
print("equal")
"""


def test_sharded_encoding_equals_unsharded():
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    options = dict(cwd=Path(__file__).parents[2], env=env, capture_output=True, text=True, timeout=600)
    done = subprocess.run([sys.executable, "-c", SHARDED], **options)
    assert done.stdout.strip() == "equal", done.stderr
