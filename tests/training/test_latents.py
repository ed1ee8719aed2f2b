"""Behaviour learning from stored latents: the same sequences as of the replay, filtered as in acting."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bitagent_jax.agent.joint import as_observed
from bitagent_jax.agent.state import build, init_state
from bitagent_jax.config import make_config, validate
from bitagent_jax.data.episodes import list_episodes
from bitagent_jax.data.replay import Replay, load_folder
from bitagent_jax.training.latents import ROUND, Latents

EMBED, ACTIONS, FINGERPRINT = 16, 2, "0123456789abcdef"


@pytest.fixture(scope="module")
def made(two_episodes):
    """Two episodes of different lengths in a replay, an agent, and their latents."""
    folder, replay = two_episodes
    config = make_config("walker", "debug,frozen_world_model")
    config.train.batch, config.train.stage1_steps = 4, 0
    validate(config)
    graph, init = build(config, EMBED, ACTIONS)
    state = jax.jit(lambda: init_state(config, init))()
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
    assert got["post"].shape == (6, 16, model.stoch, model.classes) and got["post"].dtype == np.float16
    some = latents.sample(6, 16, np.random.default_rng(5), only=np.array([4, 1]))
    np.testing.assert_array_equal(some["post"], got["post"][[4, 1]])


def test_each_row_is_filtered_from_its_episode_s_first(made):
    _, graph, state, replay, latents, _ = made
    model = nnx.merge(graph, state.params).world_model
    for path, rows in replay.whole():
        kept, count = latents._rows[path], len(rows["action"])
        assert len(kept["deter"]) == len(kept["post"]) == count  # padding is cut off
        np.testing.assert_allclose(kept["post"], model.posterior(model.encode(rows["image"])), atol=5e-3)
        seen = [np.pad(rows[name], [(0, -count % ROUND)] + [(0, 0)] * (rows[name].ndim - 1))[None]
                for name in ("image", "action", "is_first")]  # fmt: skip
        key = jax.random.fold_in(jax.random.key(0), zlib.crc32(path.name.encode()))
        np.testing.assert_allclose(kept["deter"], model.observe(*seen, key)["deter"][0, :count], atol=2e-3)


def test_new_episodes_are_added_and_others_stay_bit_for_bit(made, write_rows, tmp_path):
    config, graph, state, _, latents, folder = made
    replay = Replay(200, embed_dim=EMBED)
    load_folder(folder, replay, fingerprint=FINGERPRINT)
    other = Latents(replay, graph, config)
    other.update(state.params)
    for path, rows in latents._rows.items():
        for name in ("deter", "post"):
            np.testing.assert_array_equal(other._rows[path][name], rows[name])
    write_rows(tmp_path, 40, 7)  # beyond the capacity: the oldest leaves
    load_folder(tmp_path, replay, fingerprint=FINGERPRINT)
    other.update(state.params)
    assert list(other._rows) == [list_episodes(folder)[1], *list_episodes(tmp_path)]


def test_stored_latents_are_drawn_anew_each_time(made):
    config, _, _, _, latents, _ = made
    batch = jax.tree.map(jnp.asarray, latents.sample(2, 16, np.random.default_rng(0)))
    model = config.world_model
    draws = []
    for seed in range(400):
        seen = as_observed(batch, jax.random.key(seed))
        assert seen["stoch"].shape == (2, 16, model.stoch * model.classes)
        draws.append(np.asarray(seen["stoch"]).reshape(2, 16, model.stoch, model.classes))
    np.testing.assert_allclose(draws, np.round(draws), atol=1e-6)
    np.testing.assert_allclose(np.mean(draws, 0), np.exp(seen["post"]), atol=0.15)
