"""CLIP against ``transformers.CLIPModel`` with random weights: layers, features, pixels, tokens, whole encoder."""

import jax.numpy as jnp
import numpy as np
import parity
import pytest
from transformers import AutoTokenizer, CLIPConfig

from bitagent_jax.mllm import clip
from bitagent_jax.mllm.encoder import Encoder, load_encoder


@pytest.fixture(scope="module")
def reference(clip_folder):
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(clip_folder, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def encoder(clip_folder):
    return load_encoder("clip", str(clip_folder))


def pictures(folder, frames):
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil.from_pretrained(folder)(list(frames), return_tensors="pt")["pixel_values"]


def test_every_layer_of_both_towers(reference):
    torch = parity.torch()
    ours = parity.ported(clip.TABLE, lambda rngs: clip.Clip(reference.config, rngs=rngs), reference)
    pixels = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
    ids = np.random.default_rng(0).integers(0, 1100, (5, 77))
    with torch.no_grad():
        seen = reference.vision_model(torch.tensor(pixels).permute(0, 3, 1, 2), output_hidden_states=True)
        read = reference.text_model(torch.tensor(ids), output_hidden_states=True)
    x = ours.image.tokens(jnp.asarray(pixels))
    parity.close(x, seen.hidden_states[0])
    parity.close(ours.image.stack.run(x, every=True)[0], torch.stack(seen.hidden_states[1:4]))
    x = ours.words.tokens(jnp.asarray(ids))
    parity.close(x, read.hidden_states[0])
    parity.close(ours.words.stack.run(x, clip.causal(77), every=True)[0], torch.stack(read.hidden_states[1:3]))


@pytest.mark.parametrize("shape", [(64, 64), (32, 32), (20, 20), (64, 96), (90, 50)])
def test_pixels_equal_the_processors(clip_folder, encoder, shape):
    frames = np.random.default_rng(0).integers(0, 256, (4, *shape, 3), np.uint8)
    expected = pictures(clip_folder, frames).permute(0, 2, 3, 1)
    parity.close(encoder.pixels(frames), expected, 1e-6)


def test_tokens_equal_the_tokenizers(clip_folder, encoder):
    tokenizer = AutoTokenizer.from_pretrained(clip_folder)
    expected = tokenizer(parity.prompts(), padding="max_length", truncation=True, max_length=77, return_tensors="np")
    ids, mask = encoder.tokenize(parity.prompts())
    assert np.array_equal(ids, expected["input_ids"]) and np.array_equal(mask, expected["attention_mask"])
    assert len({tuple(row) for row in ids}) > len(parity.prompts()) - 3


def test_the_encoder_equals_the_reference(clip_folder, encoder, reference):
    torch = parity.torch()
    frames = parity.frames(11)
    with torch.no_grad():
        each = parity.normalized(reference.get_image_features(pixel_values=pictures(clip_folder, frames)).pooler_output)
    expected = parity.normalized(each.unfold(0, 8, 1).mean(-1))
    rows, full = encoder.embed_windows(frames)
    assert isinstance(encoder, Encoder) and full.tolist() == [False] * 7 + [True] * 4
    parity.close(rows[7:], expected)
    parity.close(encoder.embed_video(np.stack([frames[:8], frames[3:]])), expected[[0, 3]])


@pytest.mark.parametrize("end", [2, None])
def test_sentences_equal_the_reference(clip_folder, end):
    """Also for configs that say that the end of text is token 2, as OpenAI's do."""
    torch = parity.torch()
    from transformers import CLIPModel

    tokenizer = AutoTokenizer.from_pretrained(clip_folder)
    model = parity.randomize(CLIPModel(parity.clip_config(end or tokenizer.eos_token_id)))
    inputs = tokenizer(parity.prompts(), padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        expected = parity.normalized(model.get_text_features(**inputs).pooler_output)
    ours = parity.ported(clip.TABLE, lambda rngs: clip.Clip(model.config, rngs=rngs), model)
    ids, mask = clip.tokens.padded(tokenizer, 77)(parity.prompts())
    parity.close(parity.exact(ours.text, ids, mask), expected)


@pytest.mark.parametrize(
    ("vision", "text", "width", "millions"),
    [({}, {}, 512, 151.3), ({"patch_size": 16}, {}, 512, 149.6)]
    + [
        (
            dict(patch_size=14, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096),
            dict(hidden_size=768, num_attention_heads=12, intermediate_size=3072),
            768,
            427.6,
        )
    ],
    ids=["B/32", "B/16", "L/14"],
)
def test_parameters_at_full_size(vision, text, width, millions):
    full = CLIPConfig(vision_config=vision, text_config=text, projection_dim=width)
    assert parity.full_size(lambda rngs: clip.Clip(full, rngs=rngs)) / 1e6 == pytest.approx(millions, abs=0.05)
