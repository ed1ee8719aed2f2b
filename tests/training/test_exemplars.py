"""Rows to imitate: drawn as often as their returns say, each with the action taken there, and judged once."""

import jax
import numpy as np
import pytest

from bitagent_jax.agent.imitation import FIELDS
from bitagent_jax.agent.state import build, init_state
from bitagent_jax.config import make_config, validate
from bitagent_jax.training import exemplars
from bitagent_jax.training.exemplars import Exemplars
from bitagent_jax.training.latents import Latents
from bitagent_jax.training.run import RunError

EMBED, ACTIONS, TASKS = 16, 2, 3


def test_returns_are_means_of_the_rewards_that_follow():
    reward = np.array([[9.0, 1.0], [1.0, 1.0], [3.0, 1.0], [5.0, 1.0]])
    got = exemplars.returns_to_go(reward, 0.5)
    want = [(1 + 3 / 2 + 5 / 4) / (1 + 1 / 2 + 1 / 4), (3 + 5 / 2) / 1.5, 5.0]
    np.testing.assert_allclose(got[:, 0], want)  # a row's own reward is of the action before
    np.testing.assert_allclose(got[:, 1], 1.0)  # late rows are no worse than early ones


def test_weights_prefer_high_returns_and_cap_them():
    returns = np.array([[-1.0], [0.0], [0.0], [1.0]])
    got = exemplars.weights(returns, 1.0)
    np.testing.assert_allclose(got.sum(0), 1.0)
    np.testing.assert_allclose(got[3] / got[1], np.exp(1 / np.sqrt(0.5)), rtol=1e-6)
    sharp = exemplars.weights(returns, 0.1)
    np.testing.assert_allclose(sharp[3] / sharp[1], np.exp(exemplars.CAP), rtol=1e-6)


def test_of_alike_sentences_each_prefers_the_rows_that_are_its_own():
    rng = np.random.default_rng(0)
    kind = np.arange(300) % 3  # lies, walks, runs
    stand, walk, run = np.array([[0.0, 1.0, 1.0], [0.0, 1.0, 0.9], [0.0, 0.9, 1.0]])[:, kind]
    returns = np.stack([stand, walk, run], 1) + 0.02 * rng.normal(size=(300, 3))
    weights = exemplars.weights(returns, 0.5)
    share = np.stack([weights[kind == k].sum(0) for k in range(3)])
    assert share[1, 1] > 2 * share[2, 1] and share[2, 2] > 2 * share[1, 2]  # by own returns alone: 1.6 times
    assert (share[0] < 0.05).all()
    same = exemplars.weights(returns[:, [1, 1]], 0.5)
    np.testing.assert_allclose(same, exemplars.weights(returns[:, [1]], 0.5).repeat(2, 1), rtol=1e-6)


@pytest.fixture(scope="module")
def parts(two_episodes):
    """Two episodes in a replay, an agent's graph and parameters."""
    config = make_config("walker", "debug,frozen_world_model")
    config.behavior.regression, config.reward.semantic, config.train.batch = 1.0, 0.5, 4
    validate(config)
    graph, init = build(config, EMBED, ACTIONS)
    params = jax.jit(lambda: init_state(config, init))().params
    rng = np.random.default_rng(0)
    prompts = rng.normal(size=(TASKS, EMBED)).astype(np.float32)
    return config, graph, params, two_episodes[1], prompts / np.linalg.norm(prompts, axis=1, keepdims=True)


@pytest.fixture
def made(parts, tmp_path):
    config, graph, params, replay, prompts = parts
    drawer = Exemplars(graph, config, prompts, tmp_path / "returns.npz")
    latents = Latents(replay, graph, config, drawer)
    latents.update(params)
    return drawer, latents


def test_each_row_comes_with_the_action_taken_there(made):
    _, latents = made
    batch = latents.sample(4, 16, np.random.default_rng(2))
    whole = [np.concatenate([rows[name][:-1] for rows in latents._rows.values()]) for name in ("deter", "embedding")]
    after = np.concatenate([rows["action"][1:] for rows in latents._rows.values()])
    assert {name for name in batch if "shown" in name} == {f"shown/{name}" for name in FIELDS}
    for b in range(4):
        for t in range(16):
            (at,) = np.flatnonzero((whole[0] == batch["shown/deter"][b, t]).all(1))
            np.testing.assert_array_equal(batch["shown/action"][b, t], after[at])
            np.testing.assert_array_equal(batch["shown/embedding"][b, t], whole[1][at])
    assert set(np.unique(batch["shown/task"])) == set(range(TASKS))


def test_processes_that_read_a_share_draw_as_one(made):
    _, latents = made
    whole = latents.sample(4, 16, np.random.default_rng(2))
    some = latents.sample(4, 16, np.random.default_rng(2), only=np.array([3, 1]))
    for name in whole:
        np.testing.assert_array_equal(some[name], whole[name][[3, 1]])


def test_rows_are_drawn_as_often_as_their_returns_say(made, parts):
    drawer, _ = made
    with np.load(drawer._path) as file:
        returns = np.concatenate(list(file.values()))
    weights = exemplars.weights(returns, parts[0].behavior.regression_temperature)
    assert returns.shape == (29 + 149, TASKS) and weights.max() > 3 * weights.min()
    episode, row, task = drawer.draw((400, 500), np.random.default_rng(0))
    counts = np.zeros_like(weights)
    np.add.at(counts, (np.where(episode == 1, 29, 0) + row, task), 1)
    assert row[episode == 0].max() == 28 and row[episode == 1].max() == 148
    error = (counts / counts.sum(0) - weights) / np.sqrt(weights / counts.sum(0))
    assert np.abs(error).max() < 5 and 0.9 < error.std() < 1.1


def test_a_run_that_goes_on_does_not_judge_again(made, parts):
    config, graph, params, replay, prompts = parts
    drawer, latents = made
    learned = params | {"fusion": jax.tree.map(lambda x: x + 0.1, params["fusion"])}
    batches = []
    for path in (drawer._path, drawer._path.with_name("other.npz")):
        again = Latents(replay, graph, config, Exemplars(graph, config, prompts, path))
        again.update(learned)
        batches.append(again.sample(4, 16, np.random.default_rng(2)))
    want = latents.sample(4, 16, np.random.default_rng(2))
    same = [all(np.array_equal(batch[name], want[name]) for name in want) for batch in batches]
    assert same == [True, False]


def test_only_the_first_process_writes_and_damage_is_named(made, parts, tmp_path):
    config, graph, params, _, prompts = parts
    drawer, latents = made
    path = tmp_path / "silent.npz"
    Exemplars(graph, config, prompts, path, primary=False).update(params, latents._rows)
    assert not path.exists()
    path.write_bytes(drawer._path.read_bytes()[:200])
    with pytest.raises(RunError, match="silent.npz is damaged .* delete it"):
        Exemplars(graph, config, prompts, path).update(params, latents._rows)
