"""The stickman, a planar walker with a head and arms, and its tasks."""

import functools
from pathlib import Path

from dm_control.rl import control
from dm_control.suite import common

from bitagent_jax.envs import planar

_STAND_HEIGHT = 1.15
_SPEEDS = {"walk": 1.0, "run": 8.0}
_HANDS_HEIGHT = 1.75
_PUNCH_SPEED = 5.0


class Physics(planar.Physics):
    """The measurements of a planar two-legged body, and those of its arms."""

    def hand_speeds(self):
        """Return the horizontal speeds of the right and the left hand in m/s, forward or backward; [2]."""
        return abs(self.named.data.subtree_linvel[["right_hand", "left_hand"], 0])


def stand(physics: Physics) -> float:
    """Torso high and upright, whatever its speed."""
    return planar.raised(physics, _STAND_HEIGHT)


def move(physics: Physics, speed: float) -> float:
    """Stand, and go forward at ``speed`` m/s or faster."""
    return stand(physics) * (5 * planar.fast(physics.horizontal_velocity(), speed) + 1) / 6


def hands_up(physics: Physics) -> float:
    """Stand with both hands above the head."""
    return stand(physics) * planar.above(physics.heights("hand").mean(), _HANDS_HEIGHT)


def boxing(physics: Physics) -> float:
    """Stand while one hand goes fast, forward or back."""
    return stand(physics) * planar.fast(physics.hand_speeds().max(), _PUNCH_SPEED)


REWARDS = {
    "stand": stand,
    **{goal: functools.partial(move, speed=speed) for goal, speed in _SPEEDS.items()},
    "flipping": planar.flipping,
    "one_foot": planar.one_foot,
    "high_kick": functools.partial(planar.high_kick, height=_STAND_HEIGHT),
    "lying_down": planar.lying_down,
    "legs_up": planar.legs_up,
    "sit_knees": planar.sit_knees,
    "lunge_pose": planar.lunge_pose,
    "headstand": planar.headstand,
    "boxing": boxing,
    "hands_up": hands_up,
}


def build(goal: str) -> control.Environment:
    """Make the environment of a goal in ``REWARDS``, without a time limit."""
    xml = Path(__file__).with_suffix(".xml").read_text()
    physics = Physics.from_xml_string(xml, common.ASSETS)
    return control.Environment(physics, planar.Pose(REWARDS[goal], random=0), control_timestep=planar.CONTROL_TIMESTEP)
