"""Behaviour learning from stored latents: the same sequences as of the replay, filtered as in acting."""

import jax
import numpy as np
import pytest
from flax import nnx

from bitagent_jax.agent.joint import as_observed
from bitagent_jax.agent.state import build, init_state
from bitagent_jax.config import make_config, validate
from bitagent_jax.data.episodes import list_episodes
from bitagent_jax.data.replay import Replay, load_folder
from bitagent_jax.training.latents import Latents

EMBED, ACTIONS, FINGERPRINT = 16, 2, "0123456789abcdef"


@pytest.fixture(scope="module")
def made(tmp_path_factory, write_rows):
    """Two episodes of different lengths in a replay, an agent, and their latents."""
    folder = tmp_path_factory.mktemp("episodes")
    for number, rows in enumerate((30, 150)):
        write_rows(folder, rows, number)
    config = make_config("walker", "debug,frozen_world_model")
    config.train.batch, config.train.stage1_steps = 4, 0
    validate(config)
    graph, init = build(config, EMBED, ACTIONS)
    state = jax.jit(lambda: init_state(config, init))()
    replay = Replay(1000, embed_dim=EMBED)
    load_folder(folder, replay, fingerprint=FINGERPRINT)
    replay.set_texts({"walk": np.ones(EMBED) / EMBED**0.5})
    latents = Latents(replay, graph, config)
    latents.update(state.params)
    return config, graph, state, replay, latents, folder


def test_they_are_the_sequences_that_the_replay_draws(made):
    config, _, _, replay, latents, _ = made
    pictures = replay.sample(6, 16, np.random.default_rng(5))
    got = latents.sample(6, 16, np.random.default_rng(5))
    assert "image" not in got and "reward" not in got
    for name in ("action", "embedding", "has_embedding", "text", "has_text"):
        np.testing.assert_array_equal(got[name], pictures[name])
    model = config.world_model
    assert got["deter"].shape == (6, 16, model.deter) and got["deter"].dtype == np.float16
    assert got["stoch"].shape == (6, 16, model.stoch) and got["stoch"].dtype == np.uint8
    some = latents.sample(6, 16, np.random.default_rng(5), only=np.array([4, 1]))
    np.testing.assert_array_equal(some["stoch"], got["stoch"][[4, 1]])


def test_each_row_remembers_its_episode_from_the_first(made):
    config, graph, state, replay, latents, folder = made
    module = nnx.merge(graph, state.params).world_model
    for path, rows in replay.whole():
        kept = latents._rows[path]
        classes = np.eye(config.world_model.classes, dtype=np.float32)[kept["stoch"]]
        assert classes.shape[0] == len(rows["action"])  # padding is cut off
        action = np.where(rows["is_first"][:, None], 0, rows["action"])
        deter = module._observe_frames(classes.reshape(1, len(classes), -1), action[None], rows["is_first"][None])
        np.testing.assert_allclose(kept["deter"], deter[0], atol=2e-3)


def test_new_episodes_are_added_and_others_stay_bit_for_bit(made, write_rows, tmp_path):
    config, graph, state, _, latents, folder = made
    replay = Replay(200, embed_dim=EMBED)
    load_folder(folder, replay, fingerprint=FINGERPRINT)
    other = Latents(replay, graph, config)
    other.update(state.params)
    for path, rows in latents._rows.items():
        for name in ("deter", "stoch"):
            np.testing.assert_array_equal(other._rows[path][name], rows[name])
    write_rows(tmp_path, 40, 7)  # beyond the capacity: the oldest leaves
    load_folder(tmp_path, replay, fingerprint=FINGERPRINT)
    other.update(state.params)
    assert list(other._rows) == [list_episodes(folder)[1], *list_episodes(tmp_path)]


def test_stored_latents_look_like_filtered_ones(made):
    config, _, _, _, latents, _ = made
    batch = latents.sample(2, 16, np.random.default_rng(0))
    seen = as_observed(batch, config.world_model.classes)
    assert seen["stoch"].shape == (2, 16, config.world_model.stoch * config.world_model.classes)
    assert np.array_equal(np.asarray(seen["post"]).argmax(-1), batch["stoch"])
    np.testing.assert_allclose(np.exp(seen["post"]).sum(-1), 1, atol=1e-5)
