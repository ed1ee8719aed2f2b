"""The quadruped's tasks: dm_control's walk and run, and others that it lacks."""

from collections.abc import Callable

import numpy as np
from dm_control.rl import control
from dm_control.suite import common, quadruped
from dm_control.utils import rewards

_CONTROL_TIMESTEP = 0.02
_SPEEDS = {"walk": 0.5, "run": 5.0}
_TOES = [f"toe_{end}_{side}" for end in ("front", "back") for side in ("left", "right")]


class Physics(quadruped.Physics):
    """The quadruped's measurements, and heights."""

    def torso_height(self) -> float:
        """Return the height of the torso in metres."""
        return self.named.data.xpos["torso", "z"]

    def com_height(self) -> float:
        """Return the height of the centre of mass in metres."""
        return self.named.data.sensordata["center_of_mass"][2]

    def toe_heights(self) -> np.ndarray:
        """Return the heights of the toes in metres, the lowest first; [4]."""
        return np.sort(self.named.data.xpos[_TOES, "z"])


class Goal(quadruped.Move):
    """A task without a speed; starts as the others do, in a random orientation."""

    def __init__(self, reward: Callable[[Physics], float], random: int):
        super().__init__(desired_speed=0, random=random)
        self._reward = reward

    def get_reward(self, physics: Physics) -> float:
        """Return the reward of the present state, in [0, 1]."""
        return float(self._reward(physics))


def stand(physics: Physics) -> float:
    """Return (1 + u) / 2, where u is the cosine between the torso's z-axis and the world's; at any speed."""
    return rewards.tolerance(
        float(physics.torso_upright()), bounds=(1, np.inf), sigmoid="linear", margin=2, value_at_margin=0
    )


def jump(physics: Physics) -> float:
    """Upright, the centre of mass a metre up: .5 of it on the ground, linearly."""
    return stand(physics) * rewards.tolerance(
        float(physics.com_height()), bounds=(1, np.inf), sigmoid="linear", margin=1, value_at_margin=0.5
    )


def two_legs(physics: Physics) -> float:
    """Two toes on the ground, the other two .8 m up."""
    low, high = physics.toe_heights().reshape(2, 2).mean(1)
    down = rewards.tolerance(float(low), bounds=(-np.inf, 0.2), margin=0.3)
    return down * rewards.tolerance(float(high), bounds=(0.8, np.inf), margin=0.4)


def lie_down(physics: Physics) -> float:
    """The torso on the ground, either way up."""
    return rewards.tolerance(float(physics.torso_height()), bounds=(-np.inf, 0.2), margin=0.3)


REWARDS = {"stand": stand, "jump": jump, "two_legs": two_legs, "lie_down": lie_down}


def build(goal: str) -> control.Environment:
    """Make the environment of ``walk``, ``run`` or a goal in ``REWARDS``, without a time limit."""
    xml = quadruped.make_model(floor_size=100 if goal == "run" else 1000)
    physics = Physics.from_xml_string(xml, common.ASSETS)
    task = Goal(REWARDS[goal], random=0) if goal in REWARDS else quadruped.Move(_SPEEDS[goal], random=0)
    return control.Environment(physics, task, control_timestep=_CONTROL_TIMESTEP)
