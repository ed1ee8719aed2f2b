"""Kinematic puppeteering: joint positions drawn frame by frame, so that no policy is needed to show a run.

A motion is float64 ``qpos`` [T, nq] with neighbouring frames one agent step apart, plus the clearance [T] of
the body's lowest point above the floor. Pose, pitch, pitch rate, speed and gait are drawn apart from each
other, so that no one of them gives the others away.
"""

from typing import NamedTuple

import mujoco
import numpy as np


class Motion(NamedTuple):
    """``qpos`` [T, nq] and the height [T] at which its lowest point shall float above the floor."""

    qpos: np.ndarray
    clearance: np.ndarray


_WALKER_RANGE = np.deg2rad([-20, -150, -45] * 2), np.deg2rad([100, 0, 45] * 2)


def walker(rng: np.random.Generator, steps: int, dt: float) -> Motion:
    """Draw a walker's motion: qpos = (z, x, pitch, right hip, knee, ankle, left hip, knee, ankle)."""
    time = np.arange(steps) * dt
    style = rng.choice(["upright", "posture", "flip", "any"], p=[0.42, 0.28, 0.12, 0.18])
    speed = _speed(rng, walk=(0.3, 3), run=(3, 9.5), idle=0.75 if style == "posture" else 0.25)
    pitch, rate = rng.normal(0, 0.18), rng.normal(0, 0.25)
    legs = _walker_stance(rng)
    if style == "posture":
        legs = [_walker_stance, _walker_kneel, _walker_one_leg, _walker_sit, _walker_lunge][rng.integers(5)](rng)
        pitch = rng.choice([pitch, rng.normal(0, 0.5), rng.choice([-1, 1]) * rng.normal(1.5, 0.2)])
    elif style == "flip":
        pitch, rate = rng.uniform(-np.pi, np.pi), rng.choice([-1, 1]) * rng.uniform(2, 12)
        legs = _walker_any(rng) if rng.random() < 0.7 else legs
    elif style == "any":
        pitch, rate = rng.uniform(-np.pi, np.pi), rng.normal(0, 1.5)
        legs = _walker_any(rng) if rng.random() < 0.6 else legs
    joints = np.tile(legs, (steps, 1))
    if style in ("upright", "any") and rng.random() < 0.85:
        joints += _walker_gait(rng, time, speed if rng.random() < 0.8 else rng.uniform(-4, 9))
    joints += _wobble(rng, time, 6, rng.choice([0.02, 0.1, 0.3]))
    lean = pitch + rate * time
    if style in ("upright", "posture") and rng.random() < 0.7:
        flat = lean[:, None] - joints[:, [0, 3]] - joints[:, [1, 4]]
        joints[:, [2, 5]] = flat + rng.normal(0, 0.1, (1, 2))
    travel = somewhere(rng, 1) + speed * time
    qpos = np.column_stack([0 * time, travel, lean, np.clip(joints, *_WALKER_RANGE)])
    return Motion(qpos, _hop(rng, time, 0.35 if speed > 3 or style == "flip" else 0.12))


def stickman(rng: np.random.Generator, steps: int, dt: float) -> Motion:
    """Draw a stickman's motion: a walker's, or one of the stickman's own poses, and arms.

    qpos = (z, x, pitch, right hip, knee, ankle, left hip, knee, ankle, left shoulder, elbow, right shoulder, elbow).
    """
    time = np.arange(steps) * dt
    qpos, clearance = walker(rng, steps, dt)
    pose = rng.choice(["", *_STICKMAN_POSES], p=[0.45, 0.15, 0.1, 0.08, 0.07, 0.08, 0.07])
    if pose:
        pitch, legs = _STICKMAN_POSES[pose](rng)
        speed = rng.normal(0, 0.1)
        qpos[:, 1] = qpos[0, 1] + speed * time
        qpos[:, 2] = pitch + rng.normal(0, 0.25) * time
        qpos[:, 3:] = np.clip(legs + _wobble(rng, time, 6, rng.choice([0.02, 0.1])), *_WALKER_RANGE)
        clearance = 0 * clearance
    return Motion(np.column_stack([qpos, _arms(rng, time, busy=pose == "stand")]), clearance)


def cheetah(rng: np.random.Generator, steps: int, dt: float) -> Motion:
    """Draw a cheetah's motion: qpos = (x, z, pitch, back thigh, shin, foot, front thigh, shin, foot)."""
    time = np.arange(steps) * dt
    style = rng.choice(["upright", "rear", "flip", "any"], p=[0.5, 0.14, 0.12, 0.24])
    speed = _speed(rng, walk=(0.3, 3), run=(3, 11), idle=0.25)
    pitch, rate = rng.normal(0, 0.2), rng.normal(0, 0.8)
    if style == "rear":
        pitch = rng.choice([-1.5, 1.5], p=[0.7, 0.3]) + rng.normal(0, 0.35)
    elif style != "upright":
        pitch = rng.uniform(-np.pi, np.pi)
        rate = rng.choice([-1, 1]) * rng.uniform(2, 12) if style == "flip" else rng.normal(0, 2)
    low = np.deg2rad([-30, -50, -100, -57, -70, -28])
    high = np.deg2rad([60, 50, 50, 0.4, 50, 28])
    pose = rng.normal(0, 0.12, 6) if rng.random() < 0.6 else rng.uniform(low, high)
    beat = 2 * np.pi * rng.uniform(1.0, 5.5) * time[:, None] + rng.uniform(0, 2 * np.pi, 6)
    swing = rng.choice([0.05, 0.3, 0.6]) * rng.random(6) * (high - low) / 2
    joints = pose + swing * np.sin(beat) + _wobble(rng, time, 6, rng.choice([0.02, 0.15]))
    bob = rng.choice([0.0, 0.25]) * np.sin(beat[:, 0])
    qpos = np.column_stack(
        [somewhere(rng, 1) + speed * time, 0 * time, pitch + rate * time + bob, np.clip(joints, low, high)]
    )
    return Motion(qpos, _hop(rng, time, 0.3 if speed > 3 or style == "flip" else 0.1))


def quadruped(rng: np.random.Generator, steps: int, dt: float) -> Motion:
    """Draw a quadruped's motion: qpos = (position, quaternion, four times (yaw, pitch, knee, ankle))."""
    time = np.arange(steps) * dt
    style = rng.choice(["upright", "tilted", "rear", "tumble"], p=[0.6, 0.18, 0.08, 0.14])
    speed = _speed(rng, walk=(0.2, 1.5), run=(1.5, 6), idle=0.9 if style == "rear" else 0.3)
    heading, turn = rng.uniform(-np.pi, np.pi), rng.normal(0, 0.5) * (rng.random() < 0.5)
    scale = {"upright": 0.12, "tilted": 0.7, "rear": 0.12, "tumble": 2.0}[style]
    tilt = rng.normal(0, scale, 2) if rng.random() < 0.7 else rng.choice([0, np.pi], 2) + rng.normal(0, 0.2, 2)
    tilt = np.clip(tilt, -0.3, 0.3) if style == "upright" else tilt
    tilt[0] += rng.choice([-1, 1]) * rng.normal(1.2, 0.25) * (style == "rear")
    spin = rng.normal(0, 4, 2) if style == "tumble" else rng.normal(0, 0.2, 2)
    legs = _spider_legs(rng, time, speed if rng.random() < 0.8 else rng.uniform(-2, 6))
    side = rng.normal(0, 0.3) * (rng.random() < 0.3)
    course = heading + turn * time
    velocity = speed * np.array([np.cos(course), np.sin(course)]) + side * np.array([-np.sin(course), np.cos(course)])
    place = somewhere(rng, 2)[:, None] + np.cumsum(velocity, axis=1) * dt
    angles = np.stack([course, tilt[0] + spin[0] * time, tilt[1] + spin[1] * time], -1)
    turns = np.array([_quaternion(*angle) for angle in angles])
    qpos = np.column_stack([place.T, 0 * time, turns, legs])
    return Motion(qpos, _hop(rng, time, 0.3 if style == "tumble" else 0.12))


PUPPETS = {"walker": walker, "cheetah": cheetah, "quadruped": quadruped, "stickman": stickman}
PLACE = {"walker": slice(1, 2), "cheetah": slice(0, 1), "quadruped": slice(0, 2), "stickman": slice(1, 2)}
_HEIGHT = {"walker": 0, "cheetah": 1, "quadruped": 2, "stickman": 0}


def somewhere(rng: np.random.Generator, axes: int) -> np.ndarray:
    """Draw a place on the floor: near the origin or up to 12 m away, where the floor may be lit differently."""
    return rng.normal(0, 1, axes) if rng.random() < 0.5 else rng.uniform(-1 if axes == 1 else -12, 12, axes)


def ground(physics, body: str, motion: Motion) -> np.ndarray:
    """Set each frame's height so that the lowest point floats at the wanted clearance; returns qpos [T, nq]."""
    qpos = motion.qpos.copy()
    for row, clearance in zip(qpos, motion.clearance, strict=True):
        physics.data.qpos[:] = row
        mujoco.mj_kinematics(physics.model.ptr, physics.data.ptr)
        row[_HEIGHT[body]] += clearance - lowest_point(physics)
    return qpos


def lowest_point(physics) -> float:
    """Height in metres of the lowest point of all geoms but the floor (geom 0)."""
    model, data = physics.model, physics.data
    kind, size = model.geom_type[1:], model.geom_size[1:]
    axes = data.geom_xmat[1:].reshape(-1, 3, 3)[:, 2]
    long = kind == mujoco.mjtGeom.mjGEOM_CAPSULE
    reach = np.where(long, size[:, 0] + np.abs(axes[:, 2]) * size[:, 1], np.linalg.norm(axes * size, axis=1))
    ball = kind == mujoco.mjtGeom.mjGEOM_SPHERE
    return float((data.geom_xpos[1:, 2] - np.where(ball, size[:, 0], reach)).min())


def _speed(rng, *, walk, run, idle) -> float:
    """Draw a speed in m/s: idle with the given probability, else walking, running or backwards."""
    if rng.random() < idle:
        return rng.normal(0, 0.08)
    low, high = [walk, run, (-run[0] * 1.3, -walk[0])][rng.choice(3, p=[0.36, 0.44, 0.2])]
    return rng.uniform(low, high)


def _hop(rng, time, probability) -> np.ndarray:
    """A clearance that is nought, or a stretch of a ballistic jump."""
    if rng.random() > probability:
        return 0 * time
    top, when = rng.uniform(0.03, 0.7), rng.uniform(time[0] - 0.1, time[-1] + 0.1)
    return np.maximum(top - 4.9 * np.square(time - when), 0)


def _wobble(rng, time, joints, scale) -> np.ndarray:
    phase = 2 * np.pi * (rng.uniform(0.2, 2.5, joints) * time[:, None] + rng.random(joints))
    return scale * rng.normal(0, 1, joints) * np.sin(phase)


def _walker_stance(rng):
    bend = abs(rng.normal(0, 0.25))
    hips = bend / 2 + rng.normal(0, 0.15, 2)
    return np.array([hips[0], -bend, bend / 2, hips[1], -bend * rng.uniform(0.6, 1.4), bend / 2])


def _walker_kneel(rng):
    hips, knees = rng.uniform(-0.2, 0.9, 2), rng.uniform(-2.5, -1.1, 2)
    return np.array([hips[0], knees[0], -0.6, hips[1], knees[1], -0.6])


def _walker_one_leg(rng):
    stand = [rng.normal(0, 0.12), -abs(rng.normal(0, 0.15)), 0.0]
    lifted = [rng.uniform(0.5, 1.74), rng.choice([0.0, rng.uniform(-2, 0)]), rng.normal(0, 0.3)]
    return np.array(stand + lifted if rng.random() < 0.5 else lifted + stand)


def _walker_sit(rng):
    hips, knees = rng.uniform(0.9, 1.74, 2), rng.uniform(-2.2, 0, 2)
    return np.array([hips[0], knees[0], 0.0, hips[1], knees[1], 0.0])


def _walker_lunge(rng):
    """One thigh level over its upright shin, the other leg's shin level behind."""
    legs = [[np.pi / 2, -np.pi / 2, 0.0], [0.0, -np.pi / 2, -0.78]]
    return np.concatenate(rng.permutation(legs)) + rng.normal(0, rng.choice([0.08, 0.25]), 6)


def _walker_any(rng):
    return rng.uniform(*_WALKER_RANGE)


def _headstand(rng):
    bend = rng.choice([0.0, rng.uniform(0, 0.8)])
    legs = np.array([rng.normal(0, 0.15), -bend, 0.0, rng.normal(0, 0.15), -bend, 0.0])
    return np.pi + rng.normal(0, 0.2), legs


def _legs_up(rng):
    hips, knees = rng.uniform(1.0, 1.74, 2), -abs(rng.normal(0, 0.3, 2))
    return -np.pi / 2 + rng.normal(0, 0.12), np.array([hips[0], knees[0], 0.0, hips[1], knees[1], 0.0])


def _kneel(rng):
    """Shins level behind, from knees alone to sitting on the heels."""
    hips = rng.uniform(0, 0.95) + rng.normal(0, 0.08, 2)
    pitch = rng.normal(0, 0.15)
    knees = pitch - np.pi / 2 - 0.2 - hips + rng.normal(0, 0.08, 2)
    return pitch, np.array([hips[0], knees[0], -0.78, hips[1], knees[1], -0.78])


def _stand(rng):
    bend = abs(rng.normal(0, 0.12))
    hips = bend / 2 + rng.normal(0, 0.12, 2)
    return rng.normal(0, 0.12), np.array([hips[0], -bend, bend / 2, hips[1], -bend, bend / 2])


def _one_leg(rng):
    """One foot lifted, straight up in a kick or anyhow, the other under the body."""
    if rng.random() < 0.5:
        return rng.normal(0, 0.1), _walker_one_leg(rng)
    legs = [[rng.normal(0, 0.08), -abs(rng.normal(0, 0.08)), 0.0], [rng.uniform(1.35, 1.74), 0.0, 0.0]]
    return rng.normal(-0.12, 0.12), np.concatenate(rng.permutation(legs))


def _lunge(rng):
    return rng.normal(0, 0.12), _walker_lunge(rng)


_STICKMAN_POSES = {
    "stand": _stand, "one leg": _one_leg, "kneel": _kneel, "legs up": _legs_up, "headstand": _headstand,
    "lunge": _lunge,
}  # fmt: skip


def _arms(rng, time, busy):
    """Hang, swing, raise, punch with or hold anyhow both arms: (left shoulder, elbow, right shoulder, elbow)."""
    shares = [0.15, 0.1, 0.35, 0.3, 0.1] if busy else [0.3, 0.16, 0.18, 0.16, 0.2]
    style = rng.choice(["hang", "swing", "up", "punch", "any"], p=shares)
    arms = np.tile(rng.normal(0, 0.15, 4) + [0, 0.15, 0, 0.15], (len(time), 1))
    if style == "swing":
        beat = 2 * np.pi * rng.uniform(0.5, 2.5) * time + rng.uniform(0, 2 * np.pi)
        arms += 0.5 * np.stack([np.sin(beat), 0 * beat + 1, -np.sin(beat), 0 * beat + 1], -1)
    elif style == "up":
        arms += np.tile(rng.choice([0.0, 0.25]) * rng.normal(0, 1, 2) + [1.7, rng.uniform(0.9, 1.6)], 2)
    elif style == "punch":
        beat = 2 * np.pi * rng.uniform(1.5, 4.5) * time + rng.uniform(0, 2 * np.pi)
        for first, phase in ((0, 0.0), (2, np.pi)):
            reach = (1 + np.sin(beat + phase)) / 2 if rng.random() < 0.7 else 0 * time
            arms[:, first : first + 2] += np.stack([0.2 + 1.2 * reach, 2.3 * (1 - reach)], -1)
    elif style == "any":
        arms = rng.uniform([-0.35, 0, -0.35, 0], [1.74, 2.6, 1.74, 2.6]) + 0 * arms
    arms += _wobble(rng, time, 4, rng.choice([0.02, 0.1, 0.3]))
    return np.clip(arms, np.deg2rad([-20, 0] * 2), np.deg2rad([100, 150] * 2))


def _walker_gait(rng, time, speed):
    """Hip and knee swings, the two legs half a period apart; longer and quicker with speed."""
    stride = np.clip(0.25 + 0.07 * abs(speed), 0.1, 0.9) * rng.uniform(0.6, 1.3)
    beat = 2 * np.pi * np.sign(speed) * (0.7 + 0.3 * abs(speed) * rng.uniform(0.6, 1.2)) * time
    beat = beat + rng.uniform(0, 2 * np.pi)
    out = np.zeros((len(time), 6))
    for first, offset in ((0, 0.0), (3, np.pi)):
        out[:, first] = 0.2 + stride * np.sin(beat + offset)
        out[:, first + 1] = -1.5 * stride * np.maximum(np.cos(beat + offset), 0)
    return out


def _spider_legs(rng, time, speed):
    """A trot on diagonal legs around a drawn stance, keeping pitch + knee + ankle = 0 as the tendons do."""
    crouch = rng.choice([0.0, rng.uniform(-0.3, 1.0)]) + rng.normal(0, 0.08)
    spread = rng.choice([0.05, 0.35]) * rng.normal(0, 1, (4, 3))
    beat = 2 * np.pi * (0.5 + 0.6 * abs(speed) * rng.uniform(0.6, 1.3)) * time
    lift = rng.choice([0.05, rng.uniform(0.1, 0.5)])
    legs = []
    for index, (reach, yaw_sign) in enumerate(((1, 1), (1, -1), (-1, -1), (-1, 1))):
        phase = beat + np.pi * (index % 2)
        yaw = spread[index, 0] + reach * yaw_sign * np.sign(speed) * lift * np.cos(phase)
        pitch = np.clip(spread[index, 1] + crouch / 2 - lift * np.maximum(np.sin(phase), 0), -0.35, 1.04)
        knee = np.clip(spread[index, 2] - crouch, -1.04, 0.87)
        legs += [np.clip(yaw, -0.87, 0.87), pitch, knee + 0 * time, np.clip(-pitch - knee, -0.78, 0.95)]
    return np.stack(legs, -1)


def _quaternion(yaw, pitch, roll):
    halves = np.array([yaw, pitch, roll]) / 2
    (cy, cp, cr), (sy, sp, sr) = np.cos(halves), np.sin(halves)
    return np.array(
        [
            cr * cp * cy + sr * sp * sy,
            sr * cp * cy - cr * sp * sy,
            cr * sp * cy + sr * cp * sy,
            cr * cp * sy - sr * sp * cy,
        ]
    )
