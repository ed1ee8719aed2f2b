"""The walker's tasks: dm_control's stand, walk and run, and poses and flips that it lacks."""

import functools

from dm_control import suite
from dm_control.rl import control
from dm_control.suite import walker

from bitagent_jax.envs import planar

_STAND_HEIGHT = 1.2

REWARDS = {
    "one_foot": planar.one_foot,
    "high_kick": functools.partial(planar.high_kick, height=_STAND_HEIGHT),
    "lying_down": planar.lying_down,
    "sit_knees": planar.sit_knees,
    "lunge_pose": planar.lunge_pose,
    "flipping": planar.flipping,
}


def build(goal: str) -> control.Environment:
    """Make the environment of ``stand``, ``walk``, ``run`` or a goal in ``REWARDS``, without a time limit."""
    if goal not in REWARDS:
        return suite.load("walker", goal, task_kwargs={"random": 0, "time_limit": float("inf")})
    physics = planar.Physics.from_xml_string(*walker.get_model_and_assets())
    return control.Environment(physics, planar.Pose(REWARDS[goal], random=0), control_timestep=planar.CONTROL_TIMESTEP)
