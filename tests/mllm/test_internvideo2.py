"""InternVideo2 against the same layers of ``transformers`` (InternVL's vision layer, BERT) with random weights."""

import jax.numpy as jnp
import numpy as np
import parity
import pytest
from safetensors.numpy import save_file

from bitagent_jax.mllm import internvideo2
from bitagent_jax.mllm.blocks import BlockConfig
from bitagent_jax.mllm.encoder import load_encoder

VISION = BlockConfig(32, 4, 64, rms=True, qkv_bias=False, qk_norm=True, layer_scale=True)
TEXT = BlockConfig(24, 3, 48, eps=1e-12, post_norm=True)
PATCHES, TRAINED = 4, 4


def sizes(vocabulary=300):
    return internvideo2.Sizes(
        embed=16, image=28, vision=VISION, vision_layers=3, pooled=20, text=TEXT, text_layers=2,
        vocabulary=vocabulary, positions=64,
    )  # fmt: skip


class Reference:
    """Torch layers of the architecture, and their weights under the published checkpoint's keys."""

    def __init__(self, vocabulary, layers=5):
        torch = parity.torch()
        from transformers import BertConfig, BertModel
        from transformers.models.internvl.configuration_internvl import InternVLVisionConfig
        from transformers.models.internvl.modeling_internvl import InternVLVisionLayer

        config = InternVLVisionConfig(
            hidden_size=32, num_attention_heads=4, intermediate_size=64, norm_type="rms_norm", use_qk_norm=True,
            attn_implementation="eager",
        )  # fmt: skip
        bert = BertConfig(
            vocab_size=vocabulary, hidden_size=24, num_hidden_layers=layers, num_attention_heads=3,
            intermediate_size=48, max_position_embeddings=64,
        )  # fmt: skip
        nn = torch.nn
        self.parts = nn.ModuleDict(
            {
                "patch": nn.Conv3d(3, 32, (1, 14, 14), (1, 14, 14)),
                "blocks": nn.ModuleList([InternVLVisionLayer(config) for _ in range(3)]),
                "norms": nn.ModuleList([nn.LayerNorm(32) for _ in "qkv"]),
                "pool": nn.MultiheadAttention(32, 4, batch_first=True),
                "pool_out": nn.Linear(32, 20),
                "vision_proj": nn.Linear(20, 16),
                "bert": BertModel(bert, add_pooling_layer=False),
                "text_proj": nn.Linear(24, 16),
            }
        )
        self.parts["token"] = nn.ParameterList([torch.zeros(1, 1, 32)])
        self.parts["pos"] = nn.ParameterList([torch.zeros(1, 1 + TRAINED * PATCHES, 32)])
        parity.randomize(self.parts)
        self.parts["pool"].out_proj.weight.data = torch.eye(32)
        self.parts["pool"].out_proj.bias.data.zero_()
        self.bert = BertModel(bert, add_pooling_layer=False).eval()
        self.bert.load_state_dict(self.parts["bert"].state_dict())
        self.bert.encoder.layer = self.bert.encoder.layer[:2]

    def positions(self, frames=8):
        torch = parity.torch()
        first, rest = self.parts["pos"][0].split([1, TRAINED * PATCHES], 1)
        rest = rest.reshape(TRAINED, PATCHES * 32).T[None]
        rest = torch.nn.functional.interpolate(rest, size=frames, mode="linear", align_corners=False)
        return torch.cat([first, rest[0].T.reshape(1, frames * PATCHES, 32)], 1)

    def video(self, pixels):
        """Map pixels [B, T, S, S, 3] to every block's input or output and the embedding."""
        torch = parity.torch()
        x = self.parts["patch"](torch.tensor(np.array(pixels)).permute(0, 4, 1, 2, 3)).flatten(2).mT
        x = torch.cat([self.parts["token"][0].expand(len(x), -1, -1), x], 1) + self.positions()
        each = [x]
        for layer in self.parts["blocks"]:
            each.append(layer(each[-1]))
        inputs = (each[-1].mean(1, keepdim=True), each[-1], each[-1])
        query, key, value = (norm(y) for norm, y in zip(self.parts["norms"], inputs, strict=True))
        pooled = self.parts["pool_out"](self.parts["pool"](query, key, value)[0][:, 0])
        return each, parity.normalized(self.parts["vision_proj"](pooled))

    def text(self, ids, mask):
        torch = parity.torch()
        out = self.bert(torch.tensor(ids), torch.tensor(mask).long(), output_hidden_states=True).hidden_states
        return out, parity.normalized(self.parts["text_proj"](out[-1][:, 0]))

    def checkpoint(self, bert="bert."):
        """Return the weights as the published file holds them, with some of what is in it but not used."""
        state, out = {name: value.numpy() for name, value in self.parts.state_dict().items()}, {}
        head = "vision_encoder."
        for name, value in state.items():
            part, _, rest = name.partition(".")
            if part == "blocks":
                out[f"{head}blocks.{rest}".replace("lambda_1", "ls1.gamma").replace("lambda_2", "ls2.gamma")] = value
            elif part == "bert":
                out[f"text_encoder.{bert}{rest}"] = value
            elif part in ("vision_proj", "text_proj"):
                out[name] = value
        renames = {
            "attention.q_norm": "attn.q_norm", "attention.k_norm": "attn.k_norm", "projection_layer": "proj",
            "attention.proj": "attn.proj", "layernorm_before": "norm1", "layernorm_after": "norm2",
        }  # fmt: skip
        for old, new in renames.items():
            out = {name.replace(old, new) if "blocks" in name else name: value for name, value in out.items()}
        for i in range(3):
            parts = [out.pop(f"{head}blocks.{i}.attention.{letter}_proj.weight") for letter in "qkv"]
            out[f"{head}blocks.{i}.attn.qkv.weight"] = np.concatenate(parts)
        pool = head + "clip_projector."
        for i, letter in enumerate("qkv"):
            out[f"{pool}norm1_{letter}.weight"] = state[f"norms.{i}.weight"]
            out[f"{pool}norm1_{letter}.bias"] = state[f"norms.{i}.bias"]
            out[f"{pool}cross_attn.{letter}.weight"] = np.split(state["pool.in_proj_weight"], 3)[i].copy()
            out[f"{pool}cross_attn.{letter}_bias"] = np.split(state["pool.in_proj_bias"], 3)[i].copy()
        return out | {
            f"{pool}cross_attn.proj.weight": state["pool_out.weight"],
            f"{pool}cross_attn.proj.bias": state["pool_out.bias"],
            f"{head}patch_embed.proj.weight": state["patch.weight"],
            f"{head}patch_embed.proj.bias": state["patch.bias"],
            f"{head}cls_token": state["token.0"],
            f"{head}pos_embed": state["pos.0"],
            f"{head}img_pos_embed": np.zeros((1, 1 + PATCHES, 32), np.float32),
            f"{head}clip_pos_embed": np.zeros((1, 1 + TRAINED * PATCHES, 32), np.float32),
            f"{head}clip_decoder.0.head.weight": np.zeros((4, 32), np.float32),
            "text_encoder.cls.predictions.bias": np.zeros(9, np.float32),
            f"text_encoder.{bert}encoder.layer.4.crossattention.self.query.weight": np.zeros((24, 24), np.float32),
            "itm_head.weight": np.zeros((2, 24), np.float32),
            "temp": np.zeros((), np.float32),
        }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    parity.torch()
    return tmp_path_factory.mktemp("internvideo2")


@pytest.fixture(scope="module")
def vocabulary(folder):
    return parity.bert_vocabulary(folder)


@pytest.fixture(scope="module")
def reference(folder, vocabulary):
    reference = Reference(vocabulary)
    save_file(reference.checkpoint(), folder / "model.safetensors")
    return reference


@pytest.fixture(scope="module")
def encoder(folder, vocabulary, reference):
    return internvideo2.load(str(folder), sizes(vocabulary))


def test_every_layer_of_both_towers(encoder, reference):
    torch = parity.torch()
    ours = internvideo2.nnx.merge(encoder.graph, encoder.params)
    pixels = np.random.default_rng(0).normal(size=(2, 8, 28, 28, 3)).astype(np.float32)
    ids, mask = encoder.tokenize(parity.prompts())
    with torch.no_grad():
        seen, _ = reference.video(pixels)
        read, _ = reference.text(ids, mask)
    features = ours.frame(jnp.asarray(pixels).reshape(-1, 28, 28, 3)).reshape(2, 8, PATCHES, 32)
    x = ours.video.tokens(features)
    parity.close(x, seen[0])
    parity.close(ours.video.stack.run(x, every=True)[0], torch.stack(seen[1:]))
    x = ours.words.tokens(jnp.asarray(ids))
    parity.close(x, read[0])
    each = np.asarray(ours.words.stack.run(x, jnp.asarray(mask)[:, None, None, :], every=True)[0])
    parity.close(each * mask[..., None], torch.stack(read[1:]) * torch.tensor(mask)[..., None])


def test_pixels_equal_torchs_bilinear_resize(encoder):
    torch = parity.torch()
    frames = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    x = torch.tensor(frames).permute(0, 3, 1, 2).float() / 255
    x = torch.nn.functional.interpolate(x, (28, 28), mode="bilinear", align_corners=False, antialias=True)
    expected = (x.permute(0, 2, 3, 1) - torch.tensor(internvideo2.MEAN)) / torch.tensor(internvideo2.STD)
    parity.close(encoder.pixels(jnp.asarray(frames)), expected)


def test_tokens_are_berts_without_the_separator(folder, encoder):
    from transformers import BertTokenizer

    ids, mask = encoder.tokenize(parity.prompts())
    bert = BertTokenizer.from_pretrained(folder)
    for row, seen, sentence in zip(ids, mask, parity.prompts(), strict=True):
        whole = bert(sentence)["input_ids"]
        assert whole[-1] == bert.sep_token_id and bert.sep_token_id not in row
        kept = whole[:-1][:40]
        assert row.tolist() == kept + [bert.pad_token_id] * (40 - len(kept)) and seen.sum() == len(kept)


def test_the_encoder_equals_the_reference(encoder, reference):
    torch = parity.torch()
    frames = parity.frames(10)
    windows = np.stack([frames[i : i + 8] for i in range(3)])
    with torch.no_grad():
        _, seen = reference.video(np.asarray(encoder.pixels(jnp.asarray(windows))))
        _, read = reference.text(*encoder.tokenize(parity.prompts()))
    parity.close(encoder.embed_windows(frames)[0][7:], seen)
    parity.close(encoder.embed_video(windows), seen)
    parity.close(encoder.embed_text(parity.prompts()), read)


def test_a_checkpoint_with_the_other_prefix_of_the_text_tower(folder, vocabulary, reference, encoder, tmp_path):
    (tmp_path / "vocab.txt").write_text((folder / "vocab.txt").read_text())
    save_file(reference.checkpoint(bert=""), tmp_path / "model.safetensors")
    other = internvideo2.load(str(tmp_path), sizes(vocabulary))
    sentences = ["run fast clean"]
    assert np.array_equal(other.embed_text(sentences), encoder.embed_text(sentences))
    assert other.fingerprint != encoder.fingerprint


def test_other_weights_do_not_fit_the_published_sizes(folder, reference):
    with pytest.raises(ValueError, match="weights in .* do not fit the model: .*no tensors for video.stack"):
        load_encoder("internvideo2", str(folder))


def test_parameters_at_full_size():
    graph, state = internvideo2.tables.template(lambda rngs: internvideo2.InternVideo2(internvideo2.Sizes(), rngs=rngs))
    video, words, projection = (
        internvideo2.tables.count(part) / 1e6 for part in (state["video"], state["words"], state["words"]["out"])
    )
    assert video == pytest.approx(1021.1, abs=0.05) and words - projection == pytest.approx(271.1, abs=0.05)
