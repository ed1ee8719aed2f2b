"""Rewards of poses and motions: a hand-set state that should score high does, others do not."""

import numpy as np
import pytest

from bitagent_jax.envs.dmc import make_env

KNEEL = dict(right_hip=60, left_hip=60, right_knee=-150, left_knee=-150, right_ankle=45, left_ankle=45)
POSES = {
    "one_foot": dict(right_hip=90, right_knee=-90),
    "high_kick": dict(right_hip=100, left_hip=-20, rooty=-20),
    "lying_down": dict(rooty=-90),
    "legs_up": dict(rooty=-90, right_hip=90, left_hip=90),
    "sit_knees": KNEEL,
    "lunge_pose": dict(right_hip=90, right_knee=-90, left_knee=-90, left_ankle=-45),
    "headstand": dict(rooty=180, right_hip=5, left_hip=-5),
}
HANDS_UP = dict.fromkeys(("left_shoulder", "right_shoulder"), 100) | dict.fromkeys(("left_elbow", "right_elbow"), 80)
WALKER = ("one_foot", "high_kick", "lying_down", "sit_knees", "lunge_pose")
ENVS = {}


def start(task):
    if task not in ENVS:
        ENVS[task] = make_env(task, render=False)
        ENVS[task].reset()
    return ENVS[task]


def place(task: str, *, lift: float = 0.0, velocity: dict | None = None, **degrees: float) -> float:
    """Put a planar body in a pose, ``lift`` metres above the floor; returns the reward there."""
    env = start(task)
    physics = env.physics
    with physics.reset_context():
        physics.data.qpos[:] = 0
        for joint, angle in degrees.items():
            physics.named.data.qpos[joint] = np.deg2rad(angle)
    radius, half = physics.model.geom_size[1:, :2].T
    physics.named.data.qpos["rootz"] += lift - np.min(
        physics.data.geom_xpos[1:, 2] - radius - half * abs(physics.data.geom_xmat[1:, 8])
    )
    for joint, speed in (velocity or {}).items():
        physics.named.data.qvel[joint] = speed
    physics.forward()
    return env._env.task.get_reward(physics)


def mirrored(pose: dict) -> dict:
    """Exchange left and right."""
    swapped = {"left": "right", "right": "left"}
    return {"_".join(swapped.get(word, word) for word in name.split("_")): angle for name, angle in pose.items()}


@pytest.mark.parametrize("task", [f"walker_{goal}" for goal in WALKER] + [f"stickman_{goal}" for goal in POSES])
def test_a_pose_is_rewarded_on_either_leg_and_other_poses_less(task):
    goal = task.partition("_")[2]
    struck = place(task, **POSES[goal])
    assert struck > 0.85 and place(task, **mirrored(POSES[goal])) == pytest.approx(struck, abs=1e-9)
    others = [place(task, **pose) for name, pose in POSES.items() if name not in (goal, "legs_up", "high_kick")]
    assert struck > place(task) + 0.3 and struck > max(others) + 0.1


def test_rewards_of_a_pose_by_hand():
    """Standing, the torso is 1.24 m up and not level at all, hips .99, shins .29, feet .04 m: only these are down."""
    standing = place("stickman_lying_down")
    gauss = lambda value: 0.1 ** (((value - 0.1) / 0.15) ** 2)  # noqa: E731
    assert standing == pytest.approx((3 * gauss(1.24) + 0 + gauss(0.99) + gauss(0.29) + 1) / 7, abs=1e-6)
    # Torso and one foot as wanted, the kicking foot as low as the other: (3 * .1^(((1.15 - .04) / .575)^2) + 1) / 4.
    assert place("stickman_high_kick") == pytest.approx((3 * 0.1 ** ((1.11 / 0.575) ** 2) + 1) / 4, abs=1e-6)


@pytest.mark.parametrize("body", ["walker", "stickman"])
def test_both_directions_of_a_flip_count(body):
    spun = [place(f"{body}_flipping", lift=0.4, rooty=180, velocity={"rooty": speed}) for speed in (-8, 0, 8)]
    assert spun[0] > 0.8 and spun[2] > 0.8 and spun[1] == pytest.approx(spun[2] / 6, rel=0.05)
    assert max(place(f"{body}_flipping", velocity={"rooty": speed}) for speed in (-8, 8)) < 0.5


def test_standing_is_rewarded_at_any_speed():
    """Drifting backward costs nothing; lying costs most of it."""
    rewards = [place("stickman_stand", velocity={"rootx": speed}) for speed in (-3, -0.05, 0, 1)]
    assert rewards == [pytest.approx(1)] * 4
    assert place("stickman_stand", rooty=90) < 0.2


@pytest.mark.parametrize("task, speed", [("stickman_walk", 1.0), ("stickman_run", 8.0)])
def test_speed_forward_is_rewarded(task, speed):
    """S (5 m + 1) / 6 with m = 0, .5, 1 at no, half and full speed."""
    rewards = [place(task, velocity={"rootx": factor * speed}) for factor in (-1, 0, 0.5, 1, 2)]
    np.testing.assert_allclose(rewards, [1 / 6, 1 / 6, 3.5 / 6, 1, 1], atol=1e-6)


def test_raised_hands_are_rewarded():
    assert place("stickman_hands_up", **HANDS_UP) > 0.99
    assert place("stickman_hands_up") < 0.1 and place("stickman_hands_up", rooty=90, **HANDS_UP) < 0.1


@pytest.mark.parametrize("arm", ["left", "right"])
def test_a_punch_counts_with_either_arm_forward_or_back(arm):
    """The hand is .6 m below the shoulder: 10 rad/s move it at 6 m/s, 5 rad/s at 3 (m = .6)."""
    speeds = (-10, -5, 0, 5, 10)
    rewards = [place("stickman_boxing", velocity={f"{arm}_shoulder": speed}) for speed in speeds]
    np.testing.assert_allclose(rewards, [1, 0.6, 0, 0.6, 1], atol=1e-3)


@pytest.mark.parametrize(
    "task, good, bad",
    [
        ("cheetah_standing", dict(rooty=-90), dict(rooty=0)),
        ("cheetah_standing", dict(rooty=60), dict(rooty=180)),
        ("cheetah_lying_down", dict(rooty=190), dict(rooty=90)),
    ],
)
def test_the_cheetahs_poses(task, good, bad):
    assert place(task, **good) > 0.9 > 0.6 > place(task, **bad)


def spider(task: str, *, height: float, pitch: float = 0.0) -> float:
    """Put the quadruped at a height, pitched by degrees; returns the reward there."""
    env, half = start(task), np.deg2rad(pitch) / 2
    with env.physics.reset_context():
        env.physics.named.data.qpos["root"][:] = [0, 0, height, np.cos(half), 0, np.sin(half), 0]
    return env._env.task.get_reward(env.physics)


def test_the_quadrupeds_poses():
    """A jump is (1 + z) / 2 of the centre of mass below a metre, times uprightness."""
    assert spider("quadruped_jump", height=1.5) == pytest.approx(1)
    com = start("quadruped_jump").physics.com_height() - 1.5
    assert spider("quadruped_jump", height=0.6) == pytest.approx((1 + 0.6 + com) / 2, abs=1e-6)
    assert spider("quadruped_jump", height=1.5, pitch=180) == pytest.approx(0, abs=1e-6)
    assert spider("quadruped_lie_down", height=0.2) == 1
    assert spider("quadruped_lie_down", height=0.5) == pytest.approx(0.1)
    heights = np.linspace(0.2, 1.4, 25)
    rearing = [max(spider("quadruped_two_legs", height=h, pitch=pitch) for h in heights) for pitch in (0, 20, 60)]
    assert rearing[0] < 0.1 < 0.5 < rearing[2] == 1
