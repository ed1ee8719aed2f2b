"""Every task on real MuJoCo."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from bitagent_jax.envs.dmc import make_env
from bitagent_jax.envs.tasks import BODIES, TASKS

SIMULATED = sorted(name for name, task in TASKS.items() if not BODIES[task.body].factory)


def act(env, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, env.action_space.shape).astype(np.float32)


def place(env, height: float) -> None:
    """Put a body of three root joints at rest, upright, at a height above its model's zero pose."""
    with env.physics.reset_context():
        env.physics.data.qpos[:], env.physics.data.qvel[:] = 0, 0
        env.physics.named.data.qpos["rootz"] = height


@pytest.mark.parametrize("task", SIMULATED)
def test_every_task_keeps_its_promises(task):
    """Spec, episodes fixed by the seed, rewards in range and of the state alone, from two starts at random."""
    env, twin = (make_env(task, seed=11, slot=1, render=False) for _ in range(2))
    assert env.action_space.shape == (BODIES[TASKS[task].body].action_dim,)
    assert env.action_space.dtype == np.float32 and env.episode_steps == 500
    assert (env.action_space.low == -1).all() and (env.action_space.high == 1).all()
    starts = []
    for _ in range(2):
        env.reset(), twin.reset()
        starts.append(env.state())
        for step in range(40):
            _, reward, terminated, truncated, info = env.step(act(env, step))
            assert reward == twin.step(act(env, step))[1] and 0 <= reward <= 2
            assert not (terminated or truncated or info)
        np.testing.assert_array_equal(env.state(), twin.state())
        once = env._env.task.get_reward(env.physics)
        assert once == env._env.task.get_reward(env.physics) and 0 <= once <= 1
    assert not np.array_equal(*starts)


@pytest.mark.parametrize("task", ["walker_walk", "cheetah_run", "quadruped_run", "stickman_walk"])
def test_a_whole_episode_of_every_body(task):
    env = make_env(task, render=False)
    env.reset()
    rewards, ends = [], []
    for step in range(500):
        _, reward, terminated, truncated, _ = env.step(act(env, step))
        rewards.append(reward), ends.append(truncated)
        assert not terminated
    assert ends == [False] * 499 + [True]
    assert 0 <= min(rewards) and max(rewards) <= 2 and sum(rewards) > 0
    assert env.physics.time() == pytest.approx(1000 * env._env.control_timestep())
    with pytest.raises(RuntimeError, match="reset"):
        env.step(act(env))


@pytest.mark.parametrize("task", ["walker_walk", "cheetah_run", "quadruped_run", "stickman_boxing"])
def test_pictures_and_states_depend_on_seed_slot_and_episode_only(task):
    def start(seed, slot, episode):
        env = make_env(task, seed=seed, slot=slot)
        for _ in range(episode + 1):
            image, _ = env.reset()
        after = env.step(act(env))[0]
        assert image.dtype == np.uint8 and image.shape == (64, 64, 3) and image.std() > 5
        state = env.state()
        env.close()
        return image.tobytes(), after.tobytes(), state.tobytes()

    assert start(5, 0, 1) == start(5, 0, 1)
    assert len({start(*case) for case in [(5, 0, 0), (5, 0, 1), (5, 1, 0), (6, 0, 0)]}) == 4


@pytest.mark.parametrize("task", sorted(task.name for task in TASKS.values() if not BODIES[task.body].factory))
def test_measurements_are_dm_controls_own_observation(task):
    """Not repeated, so that the flattened observation is that of dm_control's last control step."""
    env, body = make_env(task, action_repeat=1, render=False), BODIES[TASKS[task].body]
    with pytest.raises(RuntimeError, match="reset"):
        env.measurements()
    env.reset()
    assert env.measurements().dtype == np.float32 and env.measurements().shape == (body.state_dim,)
    env.step(act(env))
    observation = env._env.task.get_observation(env.physics)
    np.testing.assert_array_equal(env.measurements(), np.float32(np.hstack([*observation.values()])))


def test_walker_measures_orientations_height_and_velocities():
    env = make_env("walker_walk", render=False)
    env.reset()
    place(env, 0.0)
    env.physics.named.data.qvel["rootx"] = 2
    env.step(np.zeros(6, np.float32))
    measured = env.measurements()
    assert measured[14] == pytest.approx(env.physics.torso_height()) and measured[15:] == pytest.approx(env.state()[9:])


def test_reset_with_a_seed_begins_its_first_episode_again():
    env, other = make_env("walker_run", seed=1, render=False), make_env("walker_run", seed=9, render=False)
    env.reset(), env.reset()
    other.reset(seed=1), env.reset(seed=1)
    np.testing.assert_array_equal(env.state(), other.state())
    env.step(act(env)), other.step(act(other))
    env.reset(), other.reset()
    np.testing.assert_array_equal(env.state(), other.state())


def test_walker_stand_rewards_an_upright_pose():
    """At torso height 1.3 > 1.2 and upright, the reward is 1 a control step; lying it is far less."""
    env = make_env("walker_stand", render=False)
    env.reset()
    place(env, 0.0)
    upright = env.step(np.zeros(6, np.float32))[1]
    place(env, -1.1)
    env.physics.named.data.qpos["rooty"] = np.pi / 2
    lying = env.step(np.zeros(6, np.float32))[1]
    assert upright == pytest.approx(2, abs=1e-3) and lying < 1


@pytest.mark.parametrize("task, speed", [("walker_walk", 1.0), ("walker_run", 8.0), ("cheetah_run", 10.0)])
def test_speed_is_rewarded(task, speed):
    env = make_env(task, render=False)
    env.reset()
    rewards = []
    for factor in (0.0, 0.7, 1.2):
        place(env, 0.05)
        env.physics.named.data.qvel["rootx"] = factor * speed
        env.physics.forward()
        rewards.append(env.step(np.zeros(6, np.float32))[1])
    assert rewards == sorted(rewards) and rewards[2] - rewards[0] > 0.8


@pytest.mark.parametrize("angle, reward", [(0, 1.0), (60, 0.75), (90, 0.5), (180, 0.0)])
def test_quadruped_stand_rewards_uprightness_by_hand(angle, reward):
    """(1 + cos(angle)) / 2, whatever the speed, forwards or backwards."""
    env = make_env("quadruped_stand", render=False)
    env.reset()
    half = np.deg2rad(angle) / 2
    for speed in (-3.0, 0.0, 3.0):
        with env.physics.reset_context():
            env.physics.named.data.qpos["root"][:] = [0, 0, 5, np.cos(half), np.sin(half), 0, 0]
            env.physics.named.data.qvel["root"][:3] = [speed, 0, 0]
        assert env._env.task.get_reward(env.physics) == pytest.approx(reward, abs=1e-6)


def test_quadruped_floors():
    sizes = {
        goal: make_env(f"quadruped_{goal}", render=False).physics.named.model.geom_size["floor"][0]
        for goal in ("stand", "walk", "run")
    }
    assert sizes == {"stand": 1000, "walk": 1000, "run": 100}


def test_action_repeat_sums_rewards_and_divides_the_episode():
    once, twice = (make_env("walker_stand", action_repeat=n, render=False) for n in (1, 2))
    once.reset(), twice.reset()
    action = act(once)
    summed = once.step(action)[1] + once.step(action)[1]
    assert twice.step(action)[1] == pytest.approx(summed, rel=1e-6)
    np.testing.assert_array_equal(once.state(), twice.state())
    assert (once.episode_steps, twice.episode_steps) == (1000, 500)


def test_actions_span_the_limits_of_every_actuator():
    """The quadruped's yaw, lift and extend actuators reach from -1, -1, -.8 to 1, 1.1, .8."""
    env = make_env("quadruped_walk", render=False)
    for action, control in [(-1, [-1, -1, -0.8]), (0, [0, 0.05, 0]), (1, [1, 1.1, 0.8])]:
        env.reset()
        env.step(np.full(12, action))
        np.testing.assert_allclose(env.physics.control(), control * 4, atol=1e-12)


def test_actions_are_clipped_and_checked():
    env, other = (make_env("walker_run", render=False) for _ in range(2))
    env.reset(), other.reset()
    env.step(np.full(6, 7.0)), other.step(np.ones(6))
    np.testing.assert_array_equal(env.state(), other.state())
    for bad in (np.zeros(5), np.full(6, np.nan)):
        with pytest.raises(ValueError, match=r"finite action of shape \(6,\)"):
            env.step(bad)


def test_a_diverged_simulation_ends_the_episode():
    env = make_env("walker_run", render=False)
    env.reset()
    env.physics.data.qvel[:] = 1e12
    _, reward, terminated, truncated, _ = env.step(np.zeros(6))
    assert terminated and not truncated and np.isfinite(reward) and np.isfinite(env.measurements()).all()
    env.reset()
    assert not env.step(np.zeros(6))[2]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"task": "walker_wlak"}, "Did you mean 'walker_walk'"),
        ({"look": "nice"}, "unknown look"),
        ({"action_repeat": 3}, "divide the 1000"),
        ({"action_repeat": 0}, "divide the 1000"),
        ({"size": 0}, "at least 1 pixel"),
        ({"seed": -1}, "negative"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        make_env(**{"task": "walker_walk", "render": False, **change})


def test_gymnasium_finds_no_fault():
    env = make_env("cheetah_run")
    check_env(env, skip_render_check=True)
    env.close(), env.close()


def test_rendering_needs_render():
    with pytest.raises(RuntimeError, match="render=False"):
        make_env("walker_walk", render=False).render()
