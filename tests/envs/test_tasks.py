"""The task table and its score scale."""

import numpy as np
import pytest

from bitagent_jax.envs.tasks import BODIES, TASKS, get_body, get_task, normalised_score, shared_body, tasks_of


def test_the_table_holds_the_benchmarks_tasks():
    counts = {body: len(tasks_of(body)) for body in BODIES}
    assert counts == {"walker": 9, "quadruped": 6, "stickman": 13, "cheetah": 3, "kitchen": 4}
    assert tasks_of("cheetah") == ("cheetah_run", "cheetah_standing", "cheetah_lying_down")
    assert all(name == task.name == f"{task.body}_{task.goal}" for name, task in TASKS.items())
    assert sum(counts.values()) == len(TASKS)


@pytest.mark.parametrize("body", BODIES)
def test_a_bodys_prompts_are_distinct_and_its_experts_better_than_chance(body):
    tasks = [TASKS[name] for name in tasks_of(body)]
    assert len({task.prompt for task in tasks}) == len(tasks)
    assert all(0 <= task.random_score < task.expert_score <= BODIES[body].control_steps for task in tasks)


def test_normalised_score_by_hand():
    assert normalised_score("walker_run", 30) == 0
    assert normalised_score("walker_run", 770) == 1
    # (400 - 30) / 740 = .5 and (-7 - 30) / 740 = -.05
    np.testing.assert_allclose(normalised_score("walker_run", np.array([[400.0, -7.0]])), [[0.5, -0.05]])


def test_unknown_names_are_met_with_the_nearest():
    with pytest.raises(ValueError, match="unknown task 'walker_runn'. Did you mean 'walker_run'"):
        get_task("walker_runn")
    with pytest.raises(ValueError, match="unknown body 'cheeta'. Did you mean 'cheetah'"):
        get_body("cheeta")


def test_shared_body():
    assert shared_body(["walker_run", "walker_stand"]).name == "walker"
    with pytest.raises(ValueError, match=r"one body.*\['cheetah', 'walker'\]"):
        shared_body(["walker_run", "cheetah_run"])
    with pytest.raises(ValueError, match="one body"):
        shared_body([])
