"""The stickman's model: golden facts."""

import numpy as np
import pytest

from bitagent_jax.envs.dmc import make_env

LEG, ARM = ("hip", "knee", "ankle"), ("shoulder", "elbow")
JOINTS = [
    f"{side}_{name}" for side, names in (("right", LEG), ("left", LEG), ("left", ARM), ("right", ARM)) for name in names
]


@pytest.fixture(scope="module")
def env():
    env = make_env("stickman_stand", render=False)
    env.reset()
    return env


def test_numbers_of_the_whole(env):
    model = env.physics.model
    assert model.nbody == 1 + 15 and model.nu == 10 and model.nq == model.nv == 13
    assert model.body_mass.sum() == pytest.approx(34.9, abs=0.05)
    assert model.opt.timestep == 0.0025 and env._env.control_timestep() == pytest.approx(0.025)


def test_joints_and_motors_in_order(env):
    """The order of right leg, left leg, left arm, right arm is that of actions in GenRL's episodes."""
    model = env.physics.model
    names = [model.id2name(index, "joint") for index in range(model.njnt)]
    assert names == ["rootz", "rootx", "rooty", *JOINTS]
    assert [model.id2name(index, "actuator") for index in range(model.nu)] == JOINTS
    assert model.actuator_gear[:, 0].tolist() == [100, 50, 20, 100, 50, 20, 100, 50, 100, 50]
    leg, arm = [(-20, 100), (-150, 0), (-45, 45)], [(-20, 100), (0, 150)]
    np.testing.assert_allclose(np.rad2deg(model.jnt_range[3:]), [*leg, *leg, *arm, *arm])
    assert not model.jnt_limited[:3].any() and model.jnt_limited[3:].all()


def test_shapes(env):
    sizes, model = env.physics.named.model.geom_size, env.physics.named.model
    np.testing.assert_allclose(sizes["torso", :2], [0.06, 0.25])
    np.testing.assert_allclose([sizes[name, 0] for name in ("head", "left_hand", "right_foot")], [0.1, 0.05, 0.04])
    assert model.body_pos["torso", "z"] == 1.25
    np.testing.assert_array_equal(model.cam_pos["side"], [0, -2.25, 1.0])
    quaternion = [np.cos(np.pi / 6), np.sin(np.pi / 6), 0, 0]  # 60 degrees about x
    np.testing.assert_allclose(model.cam_quat["side"], quaternion)
    assert env.physics.model.name2id("side", "camera") == 0


def test_legs_floor_and_contacts_are_the_walkers(env):
    mine, walkers = env.physics.named.model, make_env("walker_stand", render=False).physics.named.model
    for part in ("thigh", "leg"):
        np.testing.assert_allclose(mine.geom_size[f"left_{part}"], walkers.geom_size[f"left_{part}"])
        np.testing.assert_allclose(mine.geom_pos[f"left_{part}"], walkers.geom_pos[f"left_{part}"])
    for joint in ("rootz", "rootx", "rooty", "right_hip", "left_knee", "left_ankle"):
        for field in ("jnt_axis", "jnt_pos", "jnt_range", "dof_damping", "dof_armature", "jnt_solimp"):
            np.testing.assert_allclose(getattr(mine, field)[joint], getattr(walkers, field)[joint])
    for field in ("geom_size", "geom_pos", "geom_friction", "geom_conaffinity", "geom_matid"):
        np.testing.assert_allclose(getattr(mine, field)["floor"], getattr(walkers, field)["floor"])
    for field in ("geom_contype", "geom_conaffinity", "geom_friction"):
        np.testing.assert_allclose(getattr(mine, field)["head"], getattr(walkers, field)["torso"])


def test_joints_and_pitch_are_random_at_reset(env):
    poses = []
    for _ in range(20):
        env.reset()
        poses.append(env.physics.data.qpos.copy())
    spread = np.ptp(poses, 0)
    assert not spread[:2].any()  # it starts at the model's height and place
    assert spread[2] > np.pi and (spread[3:] > 0.6 * np.ptp(env.physics.model.jnt_range[3:], 1)).all()
