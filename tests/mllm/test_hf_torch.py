"""The torch encoder: equal to our port of the same model, and clear about what it cannot run."""

import json
import sys

import numpy as np
import parity
import pytest

from bitagent_jax.mllm.encoder import Encoder, load_encoder


@pytest.fixture(scope="module")
def encoder(clip_folder):
    return load_encoder("hf_torch", str(clip_folder))


def test_it_equals_the_port_of_the_same_model(clip_folder, encoder):
    port, frames = load_encoder("clip", str(clip_folder)), parity.frames(20)
    assert isinstance(encoder, Encoder)
    assert (encoder.num_frames, encoder.embed_dim) == (port.num_frames, port.embed_dim)
    rows, full = encoder.embed_windows(frames)
    expected, flags = port.embed_windows(frames)
    assert np.array_equal(full, flags) and encoder.fingerprint != port.fingerprint
    parity.close(rows, expected)
    parity.close(encoder.embed_video(frames[None, 4:12]), expected[11:12])
    parity.close(encoder.embed_text(parity.prompts()), port.embed_text(parity.prompts()))


def test_short_and_empty_input(encoder):
    rows, full = encoder.embed_windows(parity.frames(3))
    assert rows.shape == (3, 16) and not rows.any() and not full.any()
    assert encoder.embed_video(np.zeros((0, 8, 64, 64, 3), np.uint8)).shape == (0, 16)
    with pytest.raises(ValueError, match="sentence in words"):
        encoder.embed_text([""])


def test_a_model_without_a_joint_space_is_refused(tmp_path):
    parity.torch()
    from transformers import BertConfig, BertModel

    small = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    BertModel(BertConfig(**small)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="BertModel has no joint space"):
        load_encoder("hf_torch", str(tmp_path))


def test_files_that_make_no_model_are_refused(tmp_path):
    parity.torch()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(ValueError, match="AutoModel cannot be made of them"):
        load_encoder("hf_torch", str(tmp_path))


def test_without_torch_the_extra_is_named(clip_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"hf_torch needs torch: pip install 'bitagent_jax\[torch\]'"):
        load_encoder("hf_torch", str(clip_folder))
