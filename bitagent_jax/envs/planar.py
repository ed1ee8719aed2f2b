"""What the two-legged planar bodies share: measurements, and the rewards of their poses and flips.

Every reward is a product or a weighted mean of soft conditions, each 1 where it holds and falling off as a
gaussian beyond, so that all lie in [0, 1]. A pose may be struck with either leg and facing either way.
"""

from collections.abc import Callable

import numpy as np
from dm_control.suite import walker
from dm_control.utils import rewards

CONTROL_TIMESTEP = 0.025
_GROUND = 0.1
_HIGH_TORSO = 1.0
_SPIN = 16.0


class Physics(walker.Physics):
    """The walker's measurements, and those of its legs."""

    def heights(self, part: str) -> np.ndarray:
        """Return the heights in metres of the right and the left ``part``; [2]."""
        return self.named.data.xpos[[f"right_{part}", f"left_{part}"], "z"]

    def level(self, part: str) -> np.ndarray:
        """Return 1 for each ``part``, right and left, that lies level and 0 for one that is vertical; [2]."""
        return 1 - np.abs(self.named.data.xmat[[f"right_{part}", f"left_{part}"], "zz"])

    def torso_level(self) -> float:
        """Return 1 if the torso lies level, 0 if it is vertical either way up."""
        return 1 - abs(self.torso_upright())

    def heel_to_hip(self) -> np.ndarray:
        """Return the horizontal distances in metres between each foot and its hip; [2]."""
        xpos = self.named.data.xpos
        return np.abs(xpos[["right_foot", "left_foot"], "x"] - xpos[["right_thigh", "left_thigh"], "x"])

    def spin(self) -> float:
        """Return the body's angular momentum about its centre of mass, kg m^2/s; positive falls forward."""
        return self.named.data.subtree_angmom["torso", 1]


class Pose(walker.PlanarWalker):
    """Strike and hold a pose, or keep flipping; starts as the walker does, with random joints and pitch."""

    def __init__(self, reward: Callable[[Physics], float], random: int):
        super().__init__(move_speed=0, random=random)
        self._reward = reward

    def get_reward(self, physics: Physics) -> float:
        """Return the reward of the present state, in [0, 1]."""
        return float(self._reward(physics))


def above(value: float, bound: float) -> float:
    """Return 1 where ``value`` reaches ``bound``, .1 at half of it."""
    return rewards.tolerance(float(value), bounds=(bound, np.inf), margin=bound / 2)


def below(value: float, bound: float) -> float:
    """Return 1 where ``value`` is at most ``bound``, .1 at 2.5 times it."""
    return rewards.tolerance(float(value), bounds=(-np.inf, bound), margin=1.5 * bound)


def fast(speed: float, bound: float) -> float:
    """Return 1 where ``speed`` reaches ``bound``, .5 at half of it, and 0, linearly, at none."""
    return rewards.tolerance(
        float(speed), bounds=(bound, np.inf), margin=bound / 2, value_at_margin=0.5, sigmoid="linear"
    )


def raised(physics: Physics, height: float) -> float:
    """Return how far the torso is upright and ``height`` metres high; (3 high + upright) / 4."""
    return (3 * above(physics.torso_height(), height) + (1 + physics.torso_upright()) / 2) / 4


def one_foot(physics: Physics) -> float:
    """High on one foot, the other at least half a metre up."""
    low, high = np.sort(physics.heights("foot"))
    return above(physics.torso_height(), _HIGH_TORSO) * above(high, 0.5) * below(low, _GROUND)


def high_kick(physics: Physics, height: float) -> float:
    """High on one foot, the other as high as the torso of this body stands, ``height``."""
    low, high = np.sort(physics.heights("foot"))
    return above(physics.torso_height(), _HIGH_TORSO) * (3 * above(high, height) + below(low, _GROUND)) / 4


def lying_down(physics: Physics) -> float:
    """Torso level and, like hips, shins and feet, on the ground."""
    legs = sum(below(physics.heights(part).mean(), _GROUND) for part in ("thigh", "leg", "foot"))
    return (3 * below(physics.torso_height(), _GROUND) + physics.torso_level() + legs) / 7


def legs_up(physics: Physics) -> float:
    """Torso level on the ground, feet in the air."""
    torso = (3 * below(physics.torso_height(), _GROUND) + physics.torso_level()) / 4
    return torso * above(physics.heights("foot").mean(), 0.35)


def sit_knees(physics: Physics) -> float:
    """Torso upright, shins on the ground, sitting on the heels."""
    shins, feet = below(physics.heights("leg").mean(), 0.15), below(physics.heights("foot").mean(), _GROUND)
    apart = np.maximum(physics.heel_to_hip() - 0.1, 0).mean()
    return raised(physics, 0.55) * (3 * shins + feet) / 4 * np.exp(-apart)


def lunge_pose(physics: Physics) -> float:
    """Torso upright, one shin level on the ground, the other off it under a level thigh."""
    shins = physics.heights("leg")
    back, front = np.argsort(shins)
    legs = below(shins[back], _GROUND) + above(shins[front], 0.25)
    legs += physics.level("leg")[back] + physics.level("thigh")[front]
    return raised(physics, 0.75) * legs / 4


def headstand(physics: Physics) -> float:
    """Upside down: feet, and hips below them, in the air."""
    feet, hips = physics.heights("foot").mean(), physics.heights("thigh").mean()
    return (3 * above(feet, 1.1) + 2 * above(hips, 1.0)) / 5


def flipping(physics: Physics) -> float:
    """Upside down while turning fast, forward or backward."""
    return headstand(physics) * (5 * fast(abs(physics.spin()), _SPIN) + 1) / 6
