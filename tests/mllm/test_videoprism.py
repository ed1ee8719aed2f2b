"""VideoPrism LvT against ``transformers.VideoPrismClipModel`` with random weights, and its two forms of weights."""

import jax.numpy as jnp
import numpy as np
import parity
import pytest
from transformers import AutoTokenizer, VideoPrismConfig

from bitagent_jax.mllm import videoprism
from bitagent_jax.mllm.encoder import load_encoder

SMALL = dict(hidden_size=32, num_attention_heads=4, intermediate_size=64)
LAYERS = dict(num_spatial_layers=2, num_temporal_layers=2, num_auxiliary_layers=1)
VISION = SMALL | LAYERS | dict(image_size=36, tubelet_size=[1, 18, 18], num_frames=8)


def config(vocabulary):
    text = SMALL | dict(num_hidden_layers=2, intermediate_size=128, vocab_size=vocabulary)
    return VideoPrismConfig(vision_config=VISION | dict(intermediate_size=128), text_config=text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder like a downloaded one, of a tiny random model."""
    parity.torch()
    from transformers import VideoPrismClipModel

    folder = tmp_path_factory.mktemp("videoprism")
    model = parity.randomize(VideoPrismClipModel(config(parity.videoprism_tokenizer(folder))))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reference(folder):
    """The model, with the sinusoids of the original: those of ``transformers`` end at another wavelength."""
    from transformers import VideoPrismClipModel

    model = VideoPrismClipModel.from_pretrained(folder, attn_implementation="eager").eval()
    model.text_model.embeddings.position_embedding = parity.torch().tensor(np.array(videoprism.sinusoids(64, 32)))
    return model


@pytest.fixture(scope="module")
def encoder(folder):
    return load_encoder("videoprism", str(folder))


def original(model) -> dict[str, np.ndarray]:
    """Write a model's weights in the layout of the original npz."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    out = {}

    def place(theirs, ours, change=lambda x: x):
        out[f"params/{ours}"] = change(state[theirs])

    def stack(theirs, ours, layers):
        def put(name, below, change=lambda x: x):
            out[f"params/{ours}/x_layers/{below}"] = np.stack(
                [change(state[f"{theirs}.{i}.{name}"]) for i in range(layers)]
            )

        for letter, role in (("q", "query"), ("k", "key"), ("v", "value")):
            put(f"attention.{letter}_proj.weight", f"self_attention/{role}/w", lambda x: x.T.reshape(32, 4, 8))
            put(f"attention.{letter}_proj.bias", f"self_attention/{role}/b", lambda x: x.reshape(4, 8))
        put("attention.o_proj.weight", "self_attention/post/w", lambda x: x.reshape(32, 4, 8))
        put("attention.o_proj.bias", "self_attention/post/b")
        for norm, below in (("layernorm_before", "layer_norm"), ("layernorm_after", "ff_layer/layer_norm")):
            put(f"{norm}.weight", f"{below}/scale")
            put(f"{norm}.bias", f"{below}/bias")
        for number in (1, 2):
            put(f"mlp.fc{number}.weight", f"ff_layer/ffn_layer{number}/linear/kernel", np.transpose)
            put(f"mlp.fc{number}.bias", f"ff_layer/ffn_layer{number}/linear/bias")

    vision, pool = "video_model.vision_model", "contrastive_vision_pooler"
    stack(f"{vision}.spatial_layers", "vision_encoder/spatial_encoder/transformers_stack", 2)
    stack(f"{vision}.temporal_layers", "vision_encoder/temporal_encoder/transformers_stack", 2)
    stack("video_model.auxiliary_layers", "auxiliary_encoder/transformers_stack", 1)
    stack("text_model.layers", "text_encoder/unimodal_transformer", 2)
    conv = f"{vision}.spatial_embeddings.patch_embeddings.projection"
    place(f"{conv}.weight", "vision_encoder/patch_projection/linear/kernel",
          lambda x: x[:, :, 0].transpose(2, 3, 1, 0).reshape(-1, 32))  # fmt: skip
    place(f"{conv}.bias", "vision_encoder/patch_projection/linear/bias")
    place(f"{vision}.spatial_embeddings.position_embeddings", "vision_encoder/spatial_pos_emb/emb_var", lambda x: x[0])
    place(
        f"{vision}.temporal_embeddings.position_embeddings", "vision_encoder/temporal_pos_emb/emb_var", lambda x: x[0]
    )
    norms = {f"{vision}.layernorm1": "vision_encoder/spatial_ln", f"{vision}.layernorm2": "vision_encoder/temporal_ln"}
    norms |= {"video_model.head_layernorm": f"{pool}/pooling_attention_layer_norm"}
    for theirs, ours in (norms | {"text_model.layernorm": "text_encoder/unimodal_ln"}).items():
        place(f"{theirs}.weight", f"{ours}/scale")
        place(f"{theirs}.bias", f"{ours}/bias")
    for letter, role in (("q", "query"), ("k", "key"), ("v", "value")):
        linear = f"video_model.head.{letter}_proj"
        place(f"{linear}.weight", f"{pool}/pooling_attention/{role}/w", lambda x: x.T.reshape(32, 4, -1))
        place(f"{linear}.bias", f"{pool}/pooling_attention/{role}/b", lambda x: x.reshape(4, -1))
    place("video_model.head.o_proj.weight", f"{pool}/pooling_attention/post/w", lambda x: x.reshape(32, 4, -1))
    place("video_model.head.o_proj.bias", f"{pool}/pooling_attention/post/b")
    place("video_model.head.per_dim_scale", f"{pool}/pooling_attention/per_dim_scale/per_dim_scale")
    place("video_model.head.pooling_attention_query", f"{pool}/pooling_attention_query", lambda x: x[0])
    place("text_model.embeddings.token_embedding.weight", "text_encoder/token_emb/emb_var")
    place("text_model.embeddings.cls_emb", "text_encoder/cls_emb")
    return out


def test_every_layer_of_both_towers(encoder, reference):
    torch = parity.torch()
    ours = videoprism.nnx.merge(encoder.graph, encoder.params)
    pixels = np.random.default_rng(0).uniform(size=(2, 8, 36, 36, 3)).astype(np.float32)
    ids, mask = encoder.tokenize(parity.prompts())
    each = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, out: each.append(out))
        for module in reference.modules()
        if type(module).__name__ == "VideoPrismLayer"
    ]
    with torch.no_grad():
        reference.get_video_features(torch.tensor(pixels).permute(0, 1, 4, 2, 3))
        reference.get_text_features(torch.tensor(ids).long(), attention_mask=torch.tensor(mask).long())
    for hook in hooks:
        hook.remove()
    tower = ours.video
    x, last = tower.spatial.run(tower.patches(jnp.asarray(pixels).reshape(-1, 36, 36, 3)), every=True)
    parity.close(x, torch.stack(each[:2]))
    features = tower.norm_space(last).reshape(2, 8, 4, 32)
    x, _ = tower.temporal.run(jnp.swapaxes(features, 1, 2) + tower.time[...], every=True)
    parity.close(x.reshape(2, 8, 8, 32), torch.stack(each[2:4]))
    parity.close(tower.auxiliary(tower.through_time(features)), each[4])
    seen = jnp.pad(jnp.asarray(mask), ((0, 0), (0, 1)), constant_values=True)
    both = seen[:, None, None, :] & videoprism.causal(65)
    x, _ = ours.words.stack.run(ours.words.tokens(jnp.asarray(ids)), both, every=True)
    kept = np.asarray(seen)[..., None]
    parity.close(np.asarray(x) * kept, torch.stack(each[5:]) * torch.tensor(kept))


def test_the_sinusoids_of_transformers_differ_and_can_be_had(encoder, folder):
    torch = parity.torch()
    from transformers import VideoPrismClipModel

    model = VideoPrismClipModel.from_pretrained(folder, attn_implementation="eager").eval()
    ids, mask = encoder.tokenize(parity.prompts())
    with torch.no_grad():
        expected = model.get_text_features(torch.tensor(ids).long(), attention_mask=torch.tensor(mask).long())
    ours = videoprism.nnx.merge(encoder.graph, encoder.params)
    table = jnp.asarray(model.text_model.embeddings.position_embedding.numpy())
    parity.close(videoprism.unit(ours.words(jnp.asarray(ids), jnp.asarray(mask), table)), expected.pooler_output)
    assert np.abs(np.asarray(table) - np.asarray(videoprism.sinusoids(64, 32))).max() > 0.1


def test_the_encoder_equals_the_reference(encoder, reference):
    torch = parity.torch()
    frames = parity.frames(10)
    windows = np.stack([frames[i : i + 8] for i in range(3)])
    pixels = np.array(encoder.pixels(jnp.asarray(windows)))
    ids, mask = encoder.tokenize(parity.prompts())
    with torch.no_grad():
        seen = reference.get_video_features(torch.tensor(pixels).permute(0, 1, 4, 2, 3)).pooler_output[:, 0]
        read = reference.get_text_features(torch.tensor(ids).long(), attention_mask=torch.tensor(mask).long())
    assert 0 <= pixels.min() and pixels.max() <= 1
    parity.close(encoder.embed_windows(frames)[0][7:], seen)
    parity.close(encoder.embed_video(windows), seen)
    parity.close(encoder.embed_text(parity.prompts()), read.pooler_output)


@pytest.mark.parametrize("count", [4, 16])
def test_other_numbers_of_frames_stretch_time(folder, reference, count):
    torch = parity.torch()
    encoder = videoprism.load(str(folder), frames=count)
    clips = parity.frames(count)[None]
    pixels = torch.tensor(np.array(encoder.pixels(jnp.asarray(clips)))).permute(0, 1, 4, 2, 3)
    with torch.no_grad():
        expected = reference.get_video_features(pixels, interpolate_pos_encoding=True).pooler_output[:, 0]
    parity.close(encoder.embed_video(clips), expected)


def test_the_original_npz_gives_the_same_embeddings(folder, encoder, reference, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    np.savez(tmp_path / "flax_lvt_tiny_repeated.npz", **original(reference))
    other = load_encoder("videoprism", str(tmp_path))
    clips = np.random.default_rng(0).integers(0, 256, (2, 8, 36, 36, 3), np.uint8)  # of the model's own size
    assert np.array_equal(other.embed_video(clips), encoder.embed_video(clips))
    assert (other.pixels.resample, encoder.pixels.resample) == ("lanczos", "bicubic")
    assert np.array_equal(other.embed_text(parity.prompts()), encoder.embed_text(parity.prompts()))
    assert other.num_frames == 8 and other.fingerprint != encoder.fingerprint


def test_an_npz_of_another_model_is_refused(folder, tmp_path):
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="do not fit the model: no tensor 'params/"):
        load_encoder("videoprism", str(tmp_path))


def test_tokens_are_those_of_the_canonical_sentence(folder, encoder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sentences = [videoprism.canonical(sentence) for sentence in parity.prompts()]
    expected = tokenizer(sentences, padding="max_length", truncation=True, max_length=64, return_tensors="np")
    ids, mask = encoder.tokenize(parity.prompts())
    assert np.array_equal(ids, expected["input_ids"]) and np.array_equal(mask, expected["attention_mask"])
    assert videoprism.canonical("  Hello,World..  ") == "hello world." == videoprism.canonical("hello world")


@pytest.mark.parametrize(
    ("vision", "text", "video", "words"),
    [({}, {}, 138.0, 109.6)]
    + [
        (
            dict(hidden_size=1024, num_attention_heads=16, intermediate_size=4096, num_spatial_layers=24, num_frames=8),
            dict(hidden_size=1024, num_attention_heads=16, intermediate_size=4096),
            396.0,
            183.9,
        )
    ],
    ids=["base", "large"],
)
def test_parameters_at_full_size(vision, text, video, words):
    sizes = videoprism.sizes_of_config(VideoPrismConfig(vision_config=vision, text_config=text))
    graph, state = videoprism.tables.template(lambda rngs: videoprism.VideoPrism(sizes, rngs=rngs))
    counts = {name: videoprism.tables.count(part) / 1e6 for name, part in state.items()}
    assert counts["video"] == pytest.approx(video, abs=0.06) and counts["words"] == pytest.approx(words, abs=0.06)
