"""A published architecture at its full width, through every command: embed, train, evaluate (weights are random)."""

import json

import parity
import pytest

from bitagent_jax.data.embeddings import open_embedding
from bitagent_jax.data.episodes import list_episodes, open_episodes
from bitagent_jax.mllm.encoder import load_encoder


@pytest.fixture(scope="module")
def clip_b32(tmp_path_factory):
    """A local Hugging Face folder of CLIP ViT-B/32 as the reference class initialises it."""
    parity.torch()
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

    folder = tmp_path_factory.mktemp("clip-b32")
    parity.clip_tokenizer(folder)
    config = CLIPConfig()  # of ViT-B/32
    config.text_config.eos_token_id = AutoTokenizer.from_pretrained(folder).eos_token_id
    model = CLIPModel(config)
    assert sum(p.numel() for p in model.parameters()) == 151_277_313
    model.save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_clip_b32_embeds_trains_and_is_evaluated(command, clip_b32, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    command.run("collect", data, "--tasks", "walker_walk", "--episodes", 1, "--num-envs", 1)
    command.run("embed", data, "--encoder", "clip", "--weights", clip_b32)
    encoder = load_encoder("clip", str(clip_b32))
    (episode,), _ = open_episodes(list_episodes(data))
    rows = open_embedding(episode, encoder.fingerprint).read()
    assert rows["embedding"].shape == (501, 512) and rows["has_embedding"].sum() == 494
    fields = dict(train__stage1_steps=6, train__stage2_steps=4, train__checkpoint_every=5, data__online_every=0)
    options = command.settings("debug", data__folder=str(data), **fields)
    command.run("train", run, *options, "--config.mllm.encoder=clip", f"--config.mllm.weights={clip_b32}")
    _, err = command.run("evaluate", run, "--tasks", "walker_walk", "--episodes", 1)
    assert (run / "scores.json").exists() and "Traceback" not in err
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 10 and last["loss/semantic"] > 0
