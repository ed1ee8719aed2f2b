"""The quadruped's tasks: dm_control's walk and run, and a stand that it lacks."""

from dm_control.rl import control
from dm_control.suite import common, quadruped
from dm_control.utils import rewards

_CONTROL_TIMESTEP = 0.02
_SPEEDS = {"walk": 0.5, "run": 5.0}
_FLOORS = {"stand": 1000, "walk": 1000, "run": 100}


class Stand(quadruped.Move):
    """Keep the torso upright, whatever its speed; starts as the other tasks do, in a random orientation."""

    def __init__(self, random: int):
        super().__init__(desired_speed=0, random=random)

    def get_reward(self, physics) -> float:
        """Return (1 + u) / 2, where u is the cosine between the torso's z-axis and the world's."""
        return rewards.tolerance(
            physics.torso_upright(), bounds=(1, float("inf")), sigmoid="linear", margin=2, value_at_margin=0
        )


def build(goal: str) -> control.Environment:
    """Make the environment of ``stand``, ``walk`` or ``run``, without a time limit."""
    xml = quadruped.make_model(floor_size=_FLOORS[goal])
    physics = quadruped.Physics.from_xml_string(xml, common.ASSETS)
    task = Stand(random=0) if goal == "stand" else quadruped.Move(_SPEEDS[goal], random=0)
    return control.Environment(physics, task, control_timestep=_CONTROL_TIMESTEP)
