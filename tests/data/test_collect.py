"""Collecting from a real pool."""

import numpy as np
import pytest

from bitagent_jax.data.collect import RandomPolicy, collect
from bitagent_jax.data.episodes import list_episodes, read_episode
from bitagent_jax.envs.dmc import make_env
from bitagent_jax.envs.pool import EnvPool

TASKS = ["cheetah_run", "cheetah_run"]


@pytest.fixture(scope="module")
def pool():
    """Episodes of a reset row and 10 steps: 100 control steps each."""
    with EnvPool(TASKS, seed=99, action_repeat=100) as pool:
        yield pool


def test_collected_episodes_replay_in_the_simulator(pool, tmp_path):
    paths = collect(
        pool, RandomPolicy(6, 1), episodes=3, folder=tmp_path, seed=4, meta={"policy": "random"}, labels=["a", "b"]
    )
    assert paths == list_episodes(tmp_path)
    assert [path.name[:22] for path in paths] == [f"{n:06d}-cheetah_run-11-" for n in range(3)]
    for path, (slot, episode) in zip(paths, [(0, 0), (1, 0), (0, 1)], strict=True):
        arrays, meta = read_episode(path)
        assert meta["label"] == "ab"[slot] and (meta["slot"], meta["seed"], meta["policy"]) == (slot, 4, "random")
        assert meta["body"] == "cheetah" and meta["versions"].keys() == {"dm_control", "mujoco"}
        assert arrays["is_first"].tolist() == [True] + [False] * 10
        assert arrays["is_last"].tolist() == [False] * 10 + [True]
        env = make_env("cheetah_run", seed=4, slot=slot, action_repeat=100)
        for _ in range(episode + 1):
            image, _ = env.reset()
        np.testing.assert_array_equal(arrays["image"][0], image)
        assert not arrays["action"][0].any() and arrays["reward"][0] == 0
        for row in range(1, 11):
            image, reward, *_ = env.step(arrays["action"][row])
            np.testing.assert_array_equal(arrays["image"][row], image)
            assert arrays["reward"][row] == np.float32(reward)
        env.close()


def test_collecting_is_fixed_by_the_two_seeds_and_appends(pool, tmp_path):
    def run(seed, policy_seed, start=None):
        paths = collect(pool, RandomPolicy(6, policy_seed), episodes=2, folder=tmp_path, seed=seed, start=start)
        return [path.name[:6] for path in paths], [read_episode(path)[0]["image"].tobytes() for path in paths]

    names, first = run(1, 1)
    more, second = run(1, 1)
    assert (names, more) == (["000000", "000001"], ["000002", "000003"]) and first == second
    assert run(1, 1, start=7) == run(1, 1, start=7) == (["000007", "000008"], first)
    assert len(list_episodes(tmp_path)) == 6
    assert run(2, 1)[1] != first and run(1, 2)[1] != first


def test_collectors_that_start_at_the_same_number_lose_nothing(pool, tmp_path, monkeypatch):
    monkeypatch.setattr("bitagent_jax.data.collect._next_number", lambda folder: 5)
    paths = [path for k in range(2) for path in collect(pool, RandomPolicy(6, k), episodes=2, folder=tmp_path, seed=k)]
    assert len(set(paths)) == 4 and sorted(paths) == list_episodes(tmp_path)
    assert [path.name[:6] for path in list_episodes(tmp_path)] == ["000005", "000005", "000006", "000006"]


def test_random_actions_fill_the_range():
    class Rows:
        reward = np.zeros(500)

    actions = RandomPolicy(6, 0)(Rows)
    assert actions.shape == (500, 6) and actions.dtype == np.float32
    assert -1 <= actions.min() < -0.99 and 0.99 < actions.max() <= 1 and abs(actions.mean()) < 0.05


def test_bad_calls_are_named(pool, tmp_path):
    with pytest.raises(ValueError, match="label for each of 2 environments, got 1"):
        collect(pool, RandomPolicy(6, 0), episodes=1, folder=tmp_path, seed=0, labels=["a"])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        collect(pool, RandomPolicy(6, 0), episodes=0, folder=tmp_path, seed=0)
