import json

import numpy as np
import pytest

from bitagent_jax.data.collect import RandomPolicy
from bitagent_jax.envs.pool import Timestep
from bitagent_jax.envs.tasks import TASKS
from bitagent_jax.evaluation import rollouts
from bitagent_jax.inference import load


@pytest.fixture(scope="module")
def agent(trained):
    return load(trained[0])


def test_random_returns_repeat_and_episodes_differ():
    first = rollouts.random_returns(["walker_stand"], 2, action_repeat=2, seed=3)
    assert first == rollouts.random_returns(["walker_stand"], 2, action_repeat=2, seed=3)
    assert len(set(first["walker_stand"])) == 2  # two episodes, not one twice
    assert all(0 < total < 1000 for total in first["walker_stand"])


def test_more_episodes_than_slots_go_in_rounds(monkeypatch):
    pools = []

    def policy(pool, slots):
        pools.append(slots)
        return RandomPolicy(pool.action_dim, 0)

    monkeypatch.setattr(rollouts, "SLOTS", 2)
    returns = rollouts.episode_returns(policy, ["walker_stand", "walker_run"], 2, render=False)
    assert pools == [["walker_stand"] * 2, ["walker_run"] * 2]
    assert {task: len(values) for task, values in returns.items()} == {"walker_stand": 2, "walker_run": 2}
    assert np.mean(returns["walker_stand"]) > np.mean(returns["walker_run"])


def test_an_episode_lost_with_its_worker_does_not_count():
    """Rewards 1, 2, then a new first row, 4, 8 and the end: 12, not 15."""

    class Pool:
        num_envs, rows = 1, iter([(1, 0, 0), (2, 0, 0), (0, 1, 0), (4, 0, 0), (8, 0, 1)])

        def reset(self):
            return None

        def step(self, actions):
            reward, first, last = next(self.rows)
            return Timestep(
                None, None, np.float32([reward]), np.array([first], bool), np.array([last], bool), None, None
            )

    assert rollouts._run_once(Pool(), lambda timestep: None, "").tolist() == [12]


def test_scores_are_normalised_per_task_and_over_all(agent, tmp_path):
    rows = rollouts.evaluate(agent, ["walker_stand", "walker_run"], 1, seed=1)
    assert [row.task for row in rows[:2]] == ["walker_stand", "walker_run"] and len(rows) == 3
    stored = json.loads(rollouts.write_scores(rows, tmp_path / "deep" / "scores.json").read_text())
    text = json.dumps(stored)
    assert TASKS["walker_stand"].prompt in text and "walker_run" in text


def test_the_runs_own_sentences_are_told(agent):
    assert rollouts.task_prompts(agent, ["walker_run"]) == {"walker_run": "run fast clean"}
    agent.config.prompts = ("stand on tiptoe", "stroll", "race")
    try:
        told = rollouts.task_prompts(agent, ["walker_run", "walker_stand"])
    finally:
        agent.config.prompts = ()
    assert told == {"walker_stand": "stand on tiptoe", "walker_run": "race"}


def test_a_task_of_another_body_is_refused(agent):
    with pytest.raises(ValueError, match="cheetah_run is not of the run's body walker"):
        rollouts.evaluate(agent, ["walker_run", "cheetah_run"], 1)
