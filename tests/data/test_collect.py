"""Collecting from a real pool."""

import os
import signal

import numpy as np
import pytest

from bitagent_jax.data.collect import RandomPolicy, ZooPolicy, collect
from bitagent_jax.data.episodes import list_episodes, read_episode
from bitagent_jax.envs.dmc import make_env
from bitagent_jax.envs.pool import EnvPool, Timestep
from bitagent_jax.zoo import Actor

TASKS = ["cheetah_run", "cheetah_run"]
NO_METAS = [{}, {}]


@pytest.fixture(scope="module")
def pool():
    """Episodes of a reset row and 10 steps: 100 control steps each."""
    with EnvPool(TASKS, seed=99, action_repeat=100) as pool:
        yield pool


def test_collected_episodes_replay_in_the_simulator(pool, tmp_path):
    metas = [{"policy": "random", "label": label} for label in "ab"]
    paths = collect(pool, RandomPolicy(6, 1), episodes=3, folder=tmp_path, seed=4, metas=metas)
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
        policy = RandomPolicy(6, policy_seed)
        paths = collect(pool, policy, episodes=2, folder=tmp_path, seed=seed, metas=NO_METAS, start=start)
        return [path.name[:6] for path in paths], [read_episode(path)[0]["image"].tobytes() for path in paths]

    names, first = run(1, 1)
    more, second = run(1, 1)
    assert (names, more) == (["000000", "000001"], ["000002", "000003"]) and first == second
    assert run(1, 1, start=7) == run(1, 1, start=7) == (["000007", "000008"], first)
    assert len(list_episodes(tmp_path)) == 6
    assert run(2, 1)[1] != first and run(1, 2)[1] != first


def test_an_episode_that_was_lost_with_its_worker_is_not_written(tmp_path, caplog):
    class Killer(RandomPolicy):
        calls = 0

        def __call__(self, timestep):
            self.calls += 1
            if self.calls == 5:
                os.kill(pool._workers[1].process.pid, signal.SIGKILL)
            return super().__call__(timestep)

    with EnvPool(TASKS, workers=2, action_repeat=100, size=8, look="fast") as pool:
        paths = collect(pool, Killer(6, 1), episodes=2, folder=tmp_path, seed=4, metas=NO_METAS)
    assert "environments 1: cheetah_run" in caplog.text
    assert [path.name[:22] for path in paths] == ["000000-cheetah_run-11-", "000001-cheetah_run-11-"]
    for path, slot, episode in zip(paths, (0, 1), (0, 1), strict=True):
        arrays, meta = read_episode(path)
        assert meta["slot"] == slot and arrays["is_first"].tolist() == [True] + [False] * 10
        env = make_env("cheetah_run", seed=4, slot=slot, action_repeat=100, render=False)
        for _ in range(episode + 1):
            env.reset()
        rewards = [np.float32(env.step(action)[1]) for action in arrays["action"][1:]]
        np.testing.assert_array_equal(arrays["reward"][1:], rewards)


def test_collectors_that_start_at_the_same_number_lose_nothing(pool, tmp_path, monkeypatch):
    monkeypatch.setattr("bitagent_jax.data.collect._next_number", lambda folder: 5)
    settings = dict(episodes=2, folder=tmp_path, metas=NO_METAS)
    paths = [path for k in range(2) for path in collect(pool, RandomPolicy(6, k), seed=k, **settings)]
    assert len(set(paths)) == 4 and sorted(paths) == list_episodes(tmp_path)
    assert [path.name[:6] for path in list_episodes(tmp_path)] == ["000005", "000005", "000006", "000006"]


def test_random_actions_fill_the_range():
    class Rows:
        reward = np.zeros(500)

    actions = RandomPolicy(6, 0)(Rows)
    assert actions.shape == (500, 6) and actions.dtype == np.float32
    assert -1 <= actions.min() < -0.99 and 0.99 < actions.max() <= 1 and abs(actions.mean()) < 0.05


def states(values) -> Timestep:
    """Rows of which only actions and states, of one number each, are filled in."""
    column = np.float32(values)[:, None]
    return Timestep(None, np.zeros_like(column), None, None, None, state=column)


def test_zoo_policy_lets_each_environments_actor_act():
    """tanh(2 s) and tanh(-s) of states 1, 2 and 3, with noise that a seed fixes and limits that clip it."""
    double, minus = (Actor([(np.array([[gain]]), np.zeros(1))]) for gain in (2.0, -1.0))
    actors, rows = [double, minus, double], states([1, 2, 3])
    expected = np.tanh([[2.0], [-2.0], [6.0]])
    np.testing.assert_allclose(ZooPolicy(actors)(rows), expected, rtol=1e-6)
    noisy = [ZooPolicy(actors, noise=0.5, seed=seed)(rows) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert noisy[0].dtype == np.float32 and (noisy[0] != noisy[2]).any() and np.abs(noisy).max() <= 1
    still = ZooPolicy([Actor([(np.zeros((1, 1)), np.zeros(1))])] * 4000, noise=0.2)(states(np.ones(4000)))
    assert still.std() == pytest.approx(0.2, rel=0.05)
    loud = ZooPolicy([minus, minus], noise=[0.0, 0.3])(states([1, 1]))
    assert loud[0] == pytest.approx(np.tanh(-1)) and loud[1] != loud[0]


def test_without_an_actor_an_environment_acts_at_random_and_needs_no_state():
    rows = Timestep(None, np.zeros((500, 6), np.float32), None, None, None, state=np.zeros((500, 0), np.float32))
    actions = ZooPolicy([None] * 500)(rows)
    assert actions.shape == (500, 6) and actions.dtype == np.float32
    assert -1 <= actions.min() < -0.99 and 0.99 < actions.max() <= 1 and abs(actions.mean()) < 0.05


def test_zoo_policy_needs_a_state_for_each_actor():
    actor = Actor([(np.zeros((1, 1)), np.zeros(1))])
    for count, rows in ((1, states([1, 2])), (2, states([1, 2])._replace(state=np.zeros((2, 0), np.float32)))):
        with pytest.raises(ValueError, match="made with state=True"):
            ZooPolicy([actor] * count)(rows)


def test_bad_calls_are_named(pool, tmp_path):
    with pytest.raises(ValueError, match="metadata of each of 2 environments, got 1"):
        collect(pool, RandomPolicy(6, 0), episodes=1, folder=tmp_path, seed=0, metas=[{}])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        collect(pool, RandomPolicy(6, 0), episodes=0, folder=tmp_path, seed=0, metas=NO_METAS)
