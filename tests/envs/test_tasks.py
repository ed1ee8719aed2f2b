"""The task table and its score scale."""

import numpy as np
import pytest

from bitagent_jax.envs.tasks import BODIES, TASKS, get_body, get_task, normalised_score, shared_body


def test_the_table_holds_the_seven_tasks_with_distinct_prompts():
    assert set(TASKS) == {
        *("walker_stand", "walker_walk", "walker_run", "cheetah_run"),
        *("quadruped_stand", "quadruped_walk", "quadruped_run"),
    }
    assert len({task.prompt for task in TASKS.values()}) == len(TASKS)
    assert all(name == task.name == f"{task.body}_{task.goal}" for name, task in TASKS.items())
    assert {task.body for task in TASKS.values()} == set(BODIES)


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
