"""Environments that show one square picture a step: the door to all of them, and those of dm_control."""

import importlib
import logging
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from bitagent_jax.envs import rendering
from bitagent_jax.envs.adapter import GymEnv
from bitagent_jax.envs.stepping import checked_action, episode_seeds
from bitagent_jax.envs.tasks import Body, Task, get_body, get_task

_LOG = logging.getLogger(__name__)


def make_env(
    task: str,
    *,
    seed: int = 0,
    slot: int = 0,
    size: int = 64,
    action_repeat: int = 2,
    look: str = "auto",
    render: bool = True,
) -> "DmcEnv | GymEnv":
    """Make the environment of a task.

    Args:
        task: a name in ``tasks.TASKS``.
        seed: with ``slot`` and the number of the episode, fixes every initial state.
        slot: tells apart environments of the same seed (a pool's i-th environment has slot i).
        size: side of the picture in pixels.
        action_repeat: control steps per agent step, whose rewards are summed; must divide those of an episode.
        look: of dm_control's bodies: ``stock``, ``fast``, or ``auto`` (fast on software OpenGL).
        render: when false OpenGL is never touched and observations are zeros of shape [0, 0, 3].

    Returns:
        A gymnasium environment: observation uint8 [size, size, 3]; action float32 [A] in [-1, 1], clipped, then
        scaled to the limits of each actuator; reward in [0, action_repeat] (of bodies in ``register_env``: their
        own); truncated after ``1000 / action_repeat`` agent steps (280 in the kitchen).

    Raises:
        ValueError: unknown task or look, or an impossible size or action repeat.
        RuntimeError: ``render`` is true and there is no OpenGL, or the kitchen is not installed.
    """
    check_settings([task], seed=seed, size=size, action_repeat=action_repeat, look=look)
    body = get_body(get_task(task).body)
    if not body.factory and render:
        look = rendering.resolve_look(look, rendering.configure_gl())
    elif not body.factory:
        rendering.import_without_gl()
    return open_env(get_task(task), body, (seed, slot, 0), size if render else 0, action_repeat, look)


def open_env(
    task: Task, body: Body, seed: tuple[int, int, int], size: int, action_repeat: int, look: str
) -> "DmcEnv | GymEnv":
    """Make an environment after its settings were checked and OpenGL was chosen.

    ``seed`` is (seed, slot, number of the episode that the first reset begins).
    """
    if body.factory:
        return GymEnv(task, body, seed, size, action_repeat)
    return DmcEnv(task, body, seed, size, action_repeat, look)


def check_settings(tasks, *, seed: int, size: int, action_repeat: int, look: str) -> None:
    """Raise a ValueError that names the first impossible setting of an environment."""
    for task in tasks:
        get_task(task)
    rendering.check_look(look)
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    for steps in {get_body(get_task(task).body).control_steps for task in tasks}:
        if action_repeat < 1 or steps % action_repeat:
            raise ValueError(f"action_repeat must divide the {steps} control steps, got {action_repeat}")


class DmcEnv(gymnasium.Env):
    """One dm_control task; ``make_env`` makes it after checking the settings. A size of 0 means no pictures."""

    metadata = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"

    def __init__(self, task: Task, body: Body, seed: tuple[int, int, int], size: int, action_repeat: int, look: str):
        self.task = task
        self.episode_steps = body.control_steps // action_repeat
        self._repeat, self._look = action_repeat, look
        self._seed, self._slot, self._episode = seed
        self._steps = None
        self._measured: Mapping[str, np.ndarray] | None = None
        self._views: dict[int, rendering.SideView] = {}
        self._env = build_control(task)
        self._camera_id = body.camera
        self._camera = rendering.Camera(self.physics, size, body.camera, look) if size else None
        self._substeps = round(self._env.control_timestep() / self.physics.timestep())
        limits = self._env.action_spec()
        self._centre, self._reach = (limits.maximum + limits.minimum) / 2, (limits.maximum - limits.minimum) / 2
        self.action_space = gymnasium.spaces.Box(-1, 1, limits.shape, np.float32)
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)

    @property
    def physics(self):
        """The dm_control physics being simulated."""
        return self._env.physics

    def state(self) -> np.ndarray:
        """Return the physics state as one float64 vector: positions, velocities, activations."""
        return self.physics.get_state()

    def measurements(self) -> np.ndarray:
        """Flatten dm_control's own observation of the latest row, in its order; float32 [body.state_dim].

        RuntimeError before the first ``reset``. A diverged simulation keeps the observation before it.
        """
        if self._measured is None:
            raise RuntimeError("call reset() first: nothing was measured yet")
        return np.concatenate([np.ravel(part) for part in self._measured.values()], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Start the next episode, or the first one of another seed; returns (image, {})."""
        super().reset(seed=seed)
        if seed is not None:
            self._seed, self._episode = seed, 0
        self._env.task.random.seed(episode_seeds(self._seed, self._slot, self._episode))
        self._measured = self._env.reset().observation
        self._episode, self._steps = self._episode + 1, 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Apply a float32 [A] action for ``action_repeat`` control steps.

        Returns:
            (image, summed reward, terminated, truncated, {}). ``terminated`` only if the simulation diverged.

        Raises:
            ValueError: wrong shape, or values that are not finite.
            RuntimeError: the episode is over, or none was begun.
        """
        if self._steps is None or self._steps >= self.episode_steps:
            raise RuntimeError("call reset() first: there is no episode to step")
        reward, diverged = self._advance(checked_action(action, self.action_space.shape[0]))
        self._steps = self.episode_steps if diverged else self._steps + 1
        over = self._steps >= self.episode_steps
        return self._observe(), reward, diverged, over and not diverged, {}

    def render(self, size: int = 256) -> np.ndarray:
        """Draw the present state at another size, for videos; uint8 [size, size, 3]."""
        if self._camera is None:
            raise RuntimeError("this environment was made with render=False: it has no picture to show")
        if size not in self._views:
            self._views[size] = rendering.SideView(self.physics, size, self._camera_id, self._look)
        return self._views[size].render()

    def close(self) -> None:
        """Free the simulation and its OpenGL contexts."""
        for view in self._views.values():
            view.close()
        self._views.clear()
        self._camera = None
        self._env.close()

    def _advance(self, action: np.ndarray) -> tuple[float, bool]:
        from dm_control.rl.control import PhysicsError

        control, reward, task = self._centre + self._reach * action, 0.0, self._env.task
        for _ in range(self._repeat):
            # As control.Environment.step, but for observations that no one asks for.
            task.before_step(control, self.physics)
            try:
                self.physics.step(self._substeps)
            except PhysicsError as error:
                _LOG.warning("%s ended early: the simulation diverged (%s)", self.task.name, error)
                return reward, True
            task.after_step(self.physics)
            reward += task.get_reward(self.physics)
        self._measured = task.get_observation(self.physics)
        return float(reward), False

    def _observe(self) -> np.ndarray:
        return self._camera.render() if self._camera else np.zeros((0, 0, 3), np.uint8)


def build_control(task: Task):
    """Make dm_control's own environment of a task, by its body's module; it has no time limit."""
    module = importlib.import_module(f"bitagent_jax.envs.{task.body}")
    absl = logging.getLogger("absl")
    absl.addFilter(_not_about_total_mass)
    try:
        return module.build(task.goal)
    finally:
        absl.removeFilter(_not_about_total_mass)


def _not_about_total_mass(record: logging.LogRecord) -> bool:
    """Drop MuJoCo's notice that the cheetah's model uses an attribute of an older release."""
    return "settotalmass" not in record.getMessage()
