"""The cheetah's tasks: dm_control's run, and two poses that it lacks."""

from collections.abc import Callable

import numpy as np
from dm_control import suite
from dm_control.rl import control
from dm_control.suite import cheetah
from dm_control.utils import rewards

_DOWN = 0.15


class Physics(cheetah.Physics):
    """The cheetah's measurements, and heights."""

    def torso_height(self) -> float:
        """Return the height of the torso in metres."""
        return self.named.data.xpos["torso", "z"]

    def foot_heights(self) -> np.ndarray:
        """Return the heights in metres of the hind and the fore ankle; [2]."""
        return self.named.data.xpos[["bfoot", "ffoot"], "z"]


class Pose(cheetah.Cheetah):
    """Strike and hold a pose; starts as the run does, settled on the floor with random joints."""

    def __init__(self, reward: Callable[[Physics], float], random: int):
        super().__init__(random=random)
        self._reward = reward

    def get_reward(self, physics: Physics) -> float:
        """Return the reward of the present state, in [0, 1]."""
        return float(self._reward(physics))


def standing(physics: Physics) -> float:
    """On one foot, the other a metre up."""
    low, high = np.sort(physics.foot_heights())
    up = rewards.tolerance(float(high), bounds=(1, np.inf), margin=0.5)
    return up * rewards.tolerance(float(low), bounds=(-np.inf, _DOWN), margin=1.5 * _DOWN)


def lying_down(physics: Physics) -> float:
    """Torso on the ground, feet off it."""
    torso = rewards.tolerance(physics.torso_height(), bounds=(-np.inf, _DOWN), margin=1.5 * _DOWN)
    feet = rewards.tolerance(float(physics.foot_heights().sum()), bounds=(3 * _DOWN, np.inf), margin=1.5 * _DOWN)
    return (torso + feet) / 2


REWARDS = {"standing": standing, "lying_down": lying_down}


def build(goal: str) -> control.Environment:
    """Make the environment of ``run`` or a goal in ``REWARDS``, without a time limit."""
    if goal not in REWARDS:
        return suite.load("cheetah", goal, task_kwargs={"random": 0, "time_limit": float("inf")})
    physics = Physics.from_xml_string(*cheetah.get_model_and_assets())
    return control.Environment(physics, Pose(REWARDS[goal], random=0))
