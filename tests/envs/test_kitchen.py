"""The kitchen, where its extra is installed; and what is said where it is not."""

import sys

import numpy as np
import pytest

from bitagent_jax.envs import kitchen
from bitagent_jax.envs.dmc import make_env
from bitagent_jax.envs.tasks import TASKS, tasks_of

WANTED = {"burner": ([11, 12], [-0.88, -0.01]), "light": ([17, 18], [-0.69, -0.05]), "slide": ([19], [0.37])}
WANTED["microwave"] = ([22], [-0.75])


def test_every_task_has_a_goal():
    assert {TASKS[name].goal for name in tasks_of("kitchen")} == set(kitchen.GOALS)


def test_without_the_extra_the_error_holds_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    monkeypatch.setitem(sys.modules, "gymnasium_robotics.envs.franka_kitchen", None)
    with pytest.raises(RuntimeError, match=r"pip install 'bitagent_jax\[kitchen\]'"):
        make_env("kitchen_light", render=False)


@pytest.fixture(scope="module")
def installed():
    pytest.importorskip("gymnasium_robotics")


@pytest.mark.parametrize("goal", kitchen.GOALS)
def test_reaching_the_goal_gives_one_and_ends(installed, goal):
    """A joint just too near its rest gives nothing; just within the wanted distance, 1, and the episode is over."""
    env = make_env(f"kitchen_{goal}", seed=1, render=False)
    places, wanted = WANTED[goal]
    back = -np.sign(wanted[0]) * kitchen.GOALS[goal].near * np.eye(len(places))[0]
    for beyond, success in [(1.15, False), (0.85, True)]:
        env.reset()
        assert env.step(np.zeros(9))[1:4] == (0.0, False, False)
        env._env.unwrapped.data.qpos[places] = wanted + beyond * back
        assert env.step(np.zeros(9))[1:4] == (float(success), success, False)


def test_episodes_last_140_steps_and_depend_on_the_seed(installed):
    env, twin = (make_env("kitchen_microwave", seed=3, render=False) for _ in range(2))
    env.reset(), twin.reset()
    actions = np.random.default_rng(0).uniform(-1, 1, (140, 9))
    ends = [env.step(action)[2:4] for action in actions]
    assert ends == [(False, False)] * 139 + [(False, True)]
    for action in actions:
        twin.step(action)
    np.testing.assert_array_equal(env._env.unwrapped.data.qpos, twin._env.unwrapped.data.qpos)
    assert env._env.unwrapped.robot_env.frame_skip == 40


def test_its_picture(installed):
    env = make_env("kitchen_light")
    image, _ = env.reset()
    assert image.shape == (64, 64, 3) and image.std() > 30 and env.render(256).shape == (256, 256, 3)
    env.close()
