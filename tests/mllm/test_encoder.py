"""The encoder's protocol, its door, and the errors of bad inputs."""

import numpy as np
import pytest

from bitagent_jax.mllm import embedded
from bitagent_jax.mllm.encoder import Encoder, check_frames, check_sentences, load_encoder


@pytest.fixture(scope="module")
def encoder():
    return embedded.init(seed=0)


def test_the_embedded_encoder_follows_the_protocol(encoder):
    assert isinstance(encoder, Encoder)
    assert (encoder.name, encoder.num_frames) == ("embedded", 8)


def test_load_encoder_names_the_nearest_match():
    with pytest.raises(ValueError, match="unknown encoder 'embeded'. Did you mean 'embedded'"):
        load_encoder("embeded")


@pytest.mark.parametrize("sentences", [[""], ["run", "  \n"], ["run", None]])
def test_a_blank_prompt_is_refused_with_its_index(encoder, sentences):
    with pytest.raises(ValueError, match=f"sentence in words.*index {len(sentences) - 1}"):
        encoder.embed_text(sentences)


def test_one_string_or_no_sentence_is_refused():
    with pytest.raises(ValueError, match=r"write \['run'\]"):
        check_sentences("run")
    with pytest.raises(ValueError, match="empty list"):
        check_sentences([])


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((2, 8, 64, 64, 3), np.float32), ((2, 7, 64, 64, 3), np.uint8), ((8, 64, 64, 3), np.uint8)]
    + [((2, 8, 3, 64, 64), np.uint8), ((2, 8, 0, 64, 3), np.uint8)],
)
def test_clips_of_another_type_or_shape_are_refused(encoder, shape, dtype):
    with pytest.raises(ValueError, match=r"expected uint8 clips \[B, 8, H, W, 3\], got"):
        encoder.embed_video(np.zeros(shape, dtype))


def test_frames_of_another_shape_are_refused(encoder):
    with pytest.raises(ValueError, match=r"expected uint8 frames \[L, H, W, 3\], got uint8 \[8, 64, 64\]"):
        encoder.embed_windows(np.zeros((8, 64, 64), np.uint8))


def test_check_frames_returns_what_fits():
    frames = np.zeros((5, 2, 3, 3), np.uint8)
    assert check_frames(frames, (None,), "frames") is frames
