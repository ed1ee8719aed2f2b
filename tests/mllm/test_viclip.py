"""ViCLIP against torch layers of its architecture with random weights."""

import shutil

import jax.numpy as jnp
import numpy as np
import parity
import pytest
from safetensors.numpy import save_file

from bitagent_jax.mllm import viclip
from bitagent_jax.mllm.encoder import load_encoder

WIDTH, TEXT, HEAD = 32, 24, 8


class Reference:
    """Torch layers, named as in the published checkpoint."""

    def __init__(self, vocabulary):
        torch = parity.torch()
        nn = torch.nn

        def tower(width, layers):
            blocks = []
            for _ in range(layers):
                mlp = {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
                parts = {
                    "attn": nn.MultiheadAttention(width, width // HEAD, batch_first=True),
                    "mlp": nn.ModuleDict(mlp),
                }
                blocks.append(nn.ModuleDict(parts | {"ln_1": nn.LayerNorm(width), "ln_2": nn.LayerNorm(width)}))
            return nn.ModuleDict({"resblocks": nn.ModuleList(blocks)})

        video, words = nn.Module(), nn.Module()
        video.class_embedding = nn.Parameter(torch.zeros(WIDTH))
        video.positional_embedding = nn.Parameter(torch.zeros(5, WIDTH))
        video.temporal_positional_embedding = nn.Parameter(torch.zeros(1, 8, WIDTH))
        video.conv1 = nn.Conv3d(3, WIDTH, (1, 8, 8), (1, 8, 8), bias=False)
        video.ln_pre, video.ln_post, video.transformer = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), tower(WIDTH, 3)
        video.proj = nn.Parameter(torch.zeros(WIDTH, 16))
        words.token_embedding, words.transformer = nn.Embedding(vocabulary, TEXT), tower(TEXT, 2)
        words.positional_embedding = nn.Parameter(torch.zeros(32, TEXT))
        words.ln_final, words.text_projection = nn.LayerNorm(TEXT), nn.Parameter(torch.zeros(TEXT, 16))
        self.model = nn.ModuleDict({"vision_encoder": video, "text_encoder": words})
        self.model.temp = nn.Parameter(torch.zeros(()))
        parity.randomize(self.model)

    def run(self, blocks, x, mask=None):
        each = []
        for block in blocks["resblocks"]:
            y = block["ln_1"](x)
            x = x + block["attn"](y, y, y, attn_mask=mask, need_weights=False)[0]
            y = block["mlp"]["c_fc"](block["ln_2"](x))
            x = x + block["mlp"]["c_proj"](y * (1.702 * y).sigmoid())
            each.append(x)
        return each

    def video(self, pixels):
        torch, tower = parity.torch(), self.model["vision_encoder"]
        x = tower.conv1(torch.tensor(np.array(pixels)).permute(0, 4, 1, 2, 3)).flatten(3).permute(0, 2, 3, 1)
        x = x + tower.positional_embedding[1:] + tower.temporal_positional_embedding[0][:, None]
        first = (tower.class_embedding + tower.positional_embedding[0]).expand(len(x), 1, -1)
        each = self.run(tower.transformer, tower.ln_pre(torch.cat([first, x.flatten(1, 2)], 1)))
        return each, parity.normalized(tower.ln_post(each[-1][:, 0]) @ tower.proj)

    def text(self, ids):
        torch, tower = parity.torch(), self.model["text_encoder"]
        ids = torch.tensor(ids).long()
        mask = torch.full((32, 32), -torch.inf).triu(1)
        x = self.run(tower.transformer, tower.token_embedding(ids) + tower.positional_embedding, mask)[-1]
        return parity.normalized(tower.ln_final(x)[torch.arange(len(ids)), ids.argmax(-1)] @ tower.text_projection)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    parity.torch()
    folder = tmp_path_factory.mktemp("viclip")
    parity.clip_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def reference(folder):
    reference = Reference(1100)
    save_file(
        {name: value.numpy() for name, value in reference.model.state_dict().items()}, folder / "model.safetensors"
    )
    return reference


@pytest.fixture(scope="module")
def encoder(folder, reference):
    return viclip.load(str(folder), head=HEAD)


def test_every_layer_of_the_video_tower(encoder, reference):
    torch = parity.torch()
    ours = viclip.nnx.merge(encoder.graph, encoder.params)
    pixels = np.random.default_rng(0).normal(size=(2, 8, 16, 16, 3)).astype(np.float32)
    with torch.no_grad():
        each, _ = reference.video(pixels)
    features = ours.frame(jnp.asarray(pixels).reshape(-1, 16, 16, 3)).reshape(2, 8, 4, WIDTH)
    parity.close(ours.video.stack.run(ours.video.tokens(features), every=True)[0], torch.stack(each))


def test_the_encoder_equals_the_reference(encoder, reference):
    torch = parity.torch()
    frames = parity.frames(10)
    windows = np.stack([frames[i : i + 8] for i in range(3)])
    ids, _ = encoder.tokenize(parity.prompts())
    with torch.no_grad():
        _, seen = reference.video(encoder.pixels(jnp.asarray(windows)))
        read = reference.text(ids)
    assert (encoder.num_frames, encoder.embed_dim, ids.shape[1]) == (8, 16, 32)
    parity.close(encoder.embed_windows(frames)[0][7:], seen)
    parity.close(encoder.embed_text(parity.prompts()), read)


def test_weights_of_another_model_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="do not fit the model: no tensor 'vision_encoder.conv1.weight'"):
        load_encoder("viclip", str(tmp_path))


def test_parameters_at_full_size():
    """The L/14 of the published checkpoint: CLIP's towers, 7 more position embeddings in time, 45 fewer in text."""
    millions = parity.full_size(lambda rngs: viclip.ViClip(viclip.Sizes(), rngs=rngs)) / 1e6
    assert millions == pytest.approx(427.6, abs=0.1)
