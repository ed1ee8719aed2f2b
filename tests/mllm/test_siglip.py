"""SigLIP and SigLIP 2 against ``transformers.SiglipModel`` with random weights."""

import json

import jax.numpy as jnp
import numpy as np
import parity
import pytest
from transformers import AutoTokenizer, SiglipConfig

from bitagent_jax.mllm import siglip
from bitagent_jax.mllm.encoder import load_encoder
from bitagent_jax.mllm.tokens import padded

SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
TOKENIZERS = {"siglip": parity.sentencepiece_model, "siglip2": parity.siglip2_tokenizer}


def config(vocabulary):
    text = SMALL | dict(vocab_size=vocabulary, max_position_embeddings=64)
    return SiglipConfig(vision_config=SMALL | dict(image_size=36, patch_size=8), text_config=text)


@pytest.fixture(scope="module", params=TOKENIZERS)
def folder(request, tmp_path_factory):
    """A folder like a downloaded one, of a tiny random model; its name is the encoder's."""
    parity.torch()
    from transformers import SiglipImageProcessorPil, SiglipModel

    folder = tmp_path_factory.mktemp("siglip") / request.param
    folder.mkdir()
    model = parity.randomize(SiglipModel(config(TOKENIZERS[request.param](folder))))
    model.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 36, "width": 36}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reference(folder):
    from transformers import SiglipModel

    return SiglipModel.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def encoder(folder):
    return load_encoder(folder.name, str(folder))


def pictures(folder, frames):
    from transformers import SiglipImageProcessorPil

    return SiglipImageProcessorPil.from_pretrained(folder)(list(frames), return_tensors="pt")["pixel_values"]


def tokens(folder):
    """Tokenize the prompts as the reference's processor does, of a folder that fills up at the end."""
    sentences = parity.prompts()
    if folder.name == "siglip2":
        sentences = [sentence.lower() for sentence in sentences]
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
    return tokenizer(sentences, padding="max_length", truncation=True, max_length=64, return_tensors="np")["input_ids"]


def test_every_layer_of_both_towers(reference):
    torch = parity.torch()
    ours = parity.ported(siglip.TABLE, lambda rngs: siglip.Siglip(reference.config, rngs=rngs), reference)
    pixels = np.random.default_rng(0).normal(size=(3, 36, 36, 3)).astype(np.float32)
    ids = np.random.default_rng(0).integers(0, 200, (5, 64))
    with torch.no_grad():
        seen = reference.vision_model(torch.tensor(pixels).permute(0, 3, 1, 2), output_hidden_states=True)
        read = reference.text_model(torch.tensor(ids), output_hidden_states=True)
    x = ours.image.tokens(jnp.asarray(pixels))
    parity.close(x, seen.hidden_states[0])
    each, last = ours.image.stack.run(x, every=True)
    parity.close(each, torch.stack(seen.hidden_states[1:3]))
    parity.close(ours.image.pool(ours.image.norm_out(last)), seen.pooler_output)
    x = ours.words.tokens(jnp.asarray(ids))
    parity.close(x, read.hidden_states[0])
    parity.close(ours.words.stack.run(x, every=True)[0], torch.stack(read.hidden_states[1:3]))


@pytest.mark.parametrize("shape", [(64, 64), (48, 80)])
def test_pixels_equal_the_processors(folder, encoder, shape):
    frames = np.random.default_rng(0).integers(0, 256, (4, *shape, 3), np.uint8)
    parity.close(encoder.pixels(frames), pictures(folder, frames).permute(0, 2, 3, 1), 1e-6)


def test_tokens_equal_the_tokenizers(folder, encoder):
    ids, _ = encoder.tokenize(parity.prompts())
    assert np.array_equal(ids, tokens(folder))
    assert len({tuple(row) for row in ids}) > len(parity.prompts()) - 3


def test_sentences_are_filled_up_at_the_end_whatever_the_folder_says(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    ids, mask = padded(tokenizer, 64, str.lower)(["walk fast"])
    assert mask[0, :2].all() and not mask[0, -1] and ids[0, -1] == tokenizer.pad_token_id


def test_the_encoder_equals_the_reference(folder, encoder, reference):
    torch = parity.torch()
    frames = parity.frames(10)
    with torch.no_grad():
        each = parity.normalized(reference.get_image_features(pixel_values=pictures(folder, frames)).pooler_output)
        read = parity.normalized(reference.get_text_features(torch.tensor(tokens(folder))).pooler_output)
    parity.close(encoder.embed_windows(frames)[0][7:], parity.normalized(each.unfold(0, 8, 1).mean(-1)))
    parity.close(encoder.embed_text(parity.prompts()), read)


def test_a_naflex_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    with pytest.raises(ValueError, match="model_type 'siglip2'; models of fixed resolution have 'siglip'"):
        load_encoder("siglip2", str(tmp_path))


def test_parameters_at_full_size():
    full = SiglipConfig(vision_config={"image_size": 224, "patch_size": 16}, text_config={})
    assert parity.full_size(lambda rngs: siglip.Siglip(full, rngs=rngs)) / 1e6 == pytest.approx(203, abs=0.3)
