"""The embedded encoder's machinery with random weights: shapes, norms, windows, chunks, storage."""

import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from bitagent_jax.mllm import embedded, towers


@pytest.fixture(scope="module")
def encoder():
    return embedded.init(seed=0)


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (300, 64, 64, 3), np.uint8)


def test_patchify_cuts_squares_in_reading_order():
    image = np.arange(16).reshape(4, 4, 1)
    expected = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert np.array_equal(towers.patchify(image, 2), expected)


def test_embeddings_are_float32_unit_vectors(encoder, frames):
    seen = encoder.embed_video(frames[:40].reshape(5, 8, 64, 64, 3))
    said = encoder.embed_text(["run", "stand up", "lying on the floor"])
    assert seen.shape == (5, encoder.embed_dim) and said.shape == (3, encoder.embed_dim)
    for rows in (seen, said):
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1, atol=1e-5)


def test_windows_equal_clips_one_by_one_across_chunks(encoder, frames):
    rows, full = encoder.embed_windows(frames)
    assert full.tolist() == [False] * 7 + [True] * 293
    ends = [7, 8, 100, 262, 263, 299]
    clips = np.stack([frames[end - 7 : end + 1] for end in ends])
    np.testing.assert_allclose(rows[ends], encoder.embed_video(clips), atol=1e-5)
    np.testing.assert_allclose(rows[8], encoder.embed_video(frames[None, 1:9])[0], atol=1e-5)


@pytest.mark.parametrize("length", [0, 1, 7])
def test_rows_without_a_full_window_have_no_embedding(encoder, frames, length):
    rows, full = encoder.embed_windows(frames[:length])
    assert rows.shape == (length, encoder.embed_dim) and not full.any() and not rows.any()


def test_more_items_than_a_chunk_come_back_in_order(encoder, frames):
    clips = np.lib.stride_tricks.sliding_window_view(frames[:45], 8, axis=0).transpose(0, 4, 1, 2, 3)
    np.testing.assert_allclose(encoder.embed_video(clips)[36:], encoder.embed_video(clips[36:]), atol=1e-5)
    sentences = [f"run {i}" for i in range(40)]
    np.testing.assert_allclose(encoder.embed_text(sentences)[39:], encoder.embed_text(sentences[39:]), atol=1e-5)
    assert encoder.embed_video(clips[:0]).shape == (0, encoder.embed_dim)


def test_frames_of_another_size_are_resized(encoder, frames):
    tiles = frames[None, :8, :2, :2].repeat(32, axis=2).repeat(32, axis=3)
    halves = tiles.repeat(2, axis=2).repeat(2, axis=3)
    assert halves.shape == (1, 8, 128, 128, 3)
    np.testing.assert_allclose(encoder.embed_video(halves), encoder.embed_video(tiles), atol=0.02)
    np.testing.assert_allclose(encoder.embed_windows(halves[0])[0][7:], encoder.embed_video(halves), atol=1e-5)


def test_a_new_order_of_frames_is_another_embedding(encoder, frames):
    forth, back = encoder.embed_video(np.stack([frames[:8], frames[:8][::-1]]))
    assert np.abs(forth - back).max() > 1e-3


def test_fingerprint_depends_on_the_weights_only(encoder):
    assert embedded.init(0).fingerprint == encoder.fingerprint != embedded.init(1).fingerprint


def test_weights_come_back_from_storage(encoder, frames, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(embedded.params_to_arrays(encoder.params), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps({"sha256": digest}))
    clips = frames[None, :8]
    np.testing.assert_allclose(embedded.load(path).embed_video(clips), encoder.embed_video(clips), atol=5e-3)


def test_weights_that_the_card_does_not_describe_are_refused(encoder, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(embedded.params_to_arrays(encoder.params), path)
    path.with_suffix(".json").write_text(json.dumps({"sha256": "0" * 64}))
    with pytest.raises(ValueError, match="but its card says 000"):
        embedded.load(path)


def test_weights_of_another_model_are_refused(encoder):
    arrays = embedded.params_to_arrays(encoder.params)
    arrays["video.stem.bias"] = arrays["video.stem.bias"][:-1]
    with pytest.raises(ValueError, match="weights: video.stem.bias has shape"):
        embedded.params_from_arrays(arrays)
