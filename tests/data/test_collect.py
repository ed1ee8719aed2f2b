"""Collecting from a real pool."""

import os
import signal

import numpy as np
import pytest

from bitagent_jax.data.collect import RandomPolicy, ZooPolicy, collect, numbered, round_seed
from bitagent_jax.data.episodes import list_episodes, read_episode
from bitagent_jax.envs.dmc import make_env
from bitagent_jax.envs.pool import EnvPool, Timestep
from bitagent_jax.zoo import Actor

TASKS = ["cheetah_run", "cheetah_run"]
NO_METAS = [{}, {}]


def flail(_, seed):
    return RandomPolicy(6, seed)


def contents(folder):
    return {path.name: path.read_bytes() for path in list_episodes(folder)}


@pytest.fixture(scope="module")
def pool():
    """Episodes of a reset row and 10 steps: 100 control steps each."""
    with EnvPool(TASKS, seed=99, action_repeat=100) as pool:
        yield pool


def test_collected_episodes_replay_in_the_simulator(pool, tmp_path):
    metas = [{"policy": "random", "label": label} for label in "ab"]
    paths = collect(pool, flail, episodes=3, folder=tmp_path, seed=4, metas=metas)
    assert paths == list_episodes(tmp_path)
    assert [path.name for path in paths] == [f"{n:06d}-cheetah_run-11.ep" for n in range(3)]
    for path, (slot, index) in zip(paths, [(0, 0), (1, 0), (0, 1)], strict=True):
        arrays, meta = read_episode(path)
        assert meta["label"] == "ab"[slot] and meta["policy"] == "random"
        assert (meta["slot"], meta["round"], meta["seed"]) == (slot, index, round_seed(4, index))
        assert meta["terminated"] is False and meta["look"] == pool.look in ("fast", "stock")
        assert meta["body"] == "cheetah" and meta["versions"].keys() == {"dm_control", "mujoco"}
        assert arrays["is_first"].tolist() == [True] + [False] * 10
        assert arrays["is_last"].tolist() == [False] * 10 + [True]
        env = make_env("cheetah_run", seed=meta["seed"], slot=slot, action_repeat=100)
        image, _ = env.reset()
        np.testing.assert_array_equal(arrays["image"][0], image)
        assert not arrays["action"][0].any() and arrays["reward"][0] == 0
        for row in range(1, 11):
            image, reward, *_ = env.step(arrays["action"][row])
            np.testing.assert_array_equal(arrays["image"][row], image)
            assert arrays["reward"][row] == np.float32(reward)
        env.close()


def test_a_collection_continues_as_if_it_had_never_been_stopped(pool, tmp_path):
    """One is whole; one is stopped after 1 of 5 episodes, loses a file, and its policy fails in the last round."""
    rounds = []

    def behave(index, seed):
        rounds.append(index)
        if rounds.count(2) == 1 and index == 2:
            raise KeyboardInterrupt
        return flail(index, seed)

    settings = dict(seed=4, metas=NO_METAS, tag="ab12")
    whole = collect(pool, flail, episodes=5, folder=tmp_path / "whole", **settings)
    collect(pool, behave, episodes=1, folder=tmp_path / "parts", **settings)
    with pytest.raises(KeyboardInterrupt):
        collect(pool, behave, episodes=5, folder=tmp_path / "parts", **settings)
    assert list(numbered(tmp_path / "parts", "ab12")) == [0, 1, 2, 3] and rounds == [0, 0, 1, 2]
    list_episodes(tmp_path / "parts")[2].unlink()
    paths = collect(pool, behave, episodes=5, folder=tmp_path / "parts", **settings)
    assert rounds == [0, 0, 1, 2, 1, 2] and [path.name for path in paths] == [path.name for path in whole]
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    collect(pool, behave, episodes=4, folder=tmp_path / "parts", **settings)
    assert len(rounds) == 6 and len(contents(tmp_path / "parts")) == 5


def test_seeds_tags_and_numbers_tell_collections_apart(pool, tmp_path):
    def run(seed, **names):
        paths = collect(pool, flail, episodes=2, folder=tmp_path, seed=seed, metas=NO_METAS, **names)
        return [path.name[:6] for path in paths], [read_episode(path)[0]["image"].tobytes() for path in paths]

    names, first = run(1, tag="a")
    assert names == ["000000", "000001"] and run(1, tag="b") == (names, first)
    assert run(1, tag="c", start=7) == (["000007", "000008"], first)
    assert run(2, tag="d")[1] != first
    assert len(list_episodes(tmp_path)) == 8 and len(numbered(tmp_path, "c")) == 2
    assert len({round_seed(seed, index) for seed in range(20) for index in range(20)}) == 400


class Killer(RandomPolicy):
    """Kills the second worker of a pool when it is called for the fifth time in its life."""

    def __init__(self, pool):
        super().__init__(6, 0)
        self.pool, self.calls = pool, 0

    def __call__(self, timestep):
        self.calls += 1
        if self.calls == 5:
            os.kill(self.pool._workers[1].process.pid, signal.SIGKILL)
        return super().__call__(timestep)


def test_a_round_in_which_a_worker_is_lost_begins_anew(tmp_path, caplog):
    policies = []
    settings = dict(episodes=2, seed=4, metas=NO_METAS)
    with EnvPool(TASKS, workers=2, action_repeat=100, size=8, look="fast") as pool:
        collect(pool, flail, folder=tmp_path / "whole", **settings)

        def behave(index, seed):
            policies.append(index)
            return Killer(pool) if len(policies) == 1 else flail(index, seed)

        collect(pool, behave, folder=tmp_path / "lost", **settings)
        assert "environments 1: cheetah_run" in caplog.text and policies == [0, 0]
        assert contents(tmp_path / "lost") == contents(tmp_path / "whole")
        with pytest.raises(RuntimeError, match="round 0 .* lost a worker in each of 3 attempts"):
            collect(pool, lambda *_: Killer(pool), folder=tmp_path / "never", **settings)
    assert not list_episodes(tmp_path / "never")


def test_random_actions_fill_the_range():
    class Rows:
        reward = np.zeros(500)

    actions = RandomPolicy(6, 0)(Rows)
    assert actions.shape == (500, 6) and actions.dtype == np.float32
    assert -1 <= actions.min() < -0.99 and 0.99 < actions.max() <= 1 and abs(actions.mean()) < 0.05


def states(values) -> Timestep:
    """Rows of which only actions and states, of one number each, are filled in."""
    column = np.float32(values)[:, None]
    return Timestep(None, np.zeros_like(column), None, None, None, None, state=column)


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


def test_in_mixed_environments_joints_hold_actions_and_noise_comes_and_goes():
    """An actor that does nothing shows the disturbances alone; 40 mixed environments and one that is not."""
    still = Actor([(np.zeros((1, 6)), np.zeros(6))])
    policy = ZooPolicy([still] * 41, mixed=[True] * 40 + [False], repertoire=[still], seed=3)
    row = states(np.zeros(41))._replace(action=np.zeros((41, 6), np.float32), is_first=np.ones(41, bool))
    steps = [policy(row)]
    steps = np.stack(steps + [policy(row._replace(is_first=np.zeros(41, bool))) for _ in range(199)])
    assert not steps[:, 40].any() and np.abs(steps).max() <= 1
    same = (steps[1:] == steps[:-1]) & (steps[1:] != 0)
    extreme = np.abs(steps[1:]) == 1
    assert same[:, :40].mean() > 0.05 and (same & extreme).any() and (same & ~extreme).any()
    free = steps[:, :40] == 0  # joints that follow the actor
    assert 0.1 < free.mean() < 0.8


def test_noise_comes_in_spells_where_policies_are_calm_between():
    still = Actor([(np.zeros((1, 6)), np.zeros(6))])
    policy = ZooPolicy([still] * 400, noise=0.5, calm=0.7, seed=3)
    row = states(np.zeros(400))._replace(action=np.zeros((400, 6), np.float32), is_first=np.ones(400, bool))
    noisy = [policy(row).any(1)]
    noisy = np.stack(noisy + [policy(row._replace(is_first=np.zeros(400, bool))).any(1) for _ in range(399)])
    assert noisy[0].mean() == pytest.approx(0.3, abs=0.1) and noisy.mean() == pytest.approx(0.3, abs=0.03)
    ends = (noisy[:-1] & ~noisy[1:]).sum() / noisy[:-1].sum()
    assert 1 / ends == pytest.approx(ZooPolicy.SPELL, rel=0.1)


def test_without_an_actor_an_environment_acts_at_random_and_needs_no_state():
    rows = Timestep(None, np.zeros((500, 6), np.float32), None, None, None, None, state=np.zeros((500, 0), np.float32))
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
        collect(pool, flail, episodes=1, folder=tmp_path, seed=0, metas=[{}])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        collect(pool, flail, episodes=0, folder=tmp_path, seed=0, metas=NO_METAS)
