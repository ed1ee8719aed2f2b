"""What the pool is measured against: gymnasium's vector environment over a plain wrapper of dm_control."""

import functools

import gymnasium
import numpy as np

from bitagent_jax.envs import rendering
from bitagent_jax.envs.dmc import build_control, make_env
from bitagent_jax.envs.tasks import get_body, get_task


class PlainDmc(gymnasium.Env):
    """A dm_control task as most projects wrap it: ``Environment.step`` and ``physics.render``, action repeat."""

    def __init__(self, task: str, look: str, size: int, repeat: int):
        self._control, self._size, self._repeat = build_control(get_task(task)), size, repeat
        self._camera = get_body(get_task(task).body).camera
        rendering.set_quality(self._control.physics.model.vis, size, look)
        limits = self._control.action_spec()
        self.action_space = gymnasium.spaces.Box(limits.minimum, limits.maximum, limits.shape, np.float64)
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        """Begin an episode; returns (image, {})."""
        super().reset(seed=seed)
        self._control.reset()
        return self._picture(), {}

    def step(self, action):
        """Apply an action ``repeat`` times; returns (image, summed reward, False, False, {})."""
        reward = sum(self._control.step(action).reward for _ in range(self._repeat))
        return self._picture(), reward, False, False, {}

    def _picture(self) -> np.ndarray:
        return self._control.physics.render(self._size, self._size, camera_id=self._camera)


def async_plain(task: str, look: str, size: int, repeat: int, num_envs: int) -> gymnasium.vector.AsyncVectorEnv:
    """One spawned process for each plain environment, with gymnasium's shared memory."""
    return _vector(functools.partial(PlainDmc, task, look, size, repeat), num_envs)


def async_own(task: str, look: str, size: int, repeat: int, num_envs: int) -> gymnasium.vector.AsyncVectorEnv:
    """The same over this package's environment: what the pool adds to it, and nothing else, is different."""
    return _vector(functools.partial(make_env, task, look=look, size=size, action_repeat=repeat), num_envs)


def _vector(make, num_envs: int) -> gymnasium.vector.AsyncVectorEnv:
    return gymnasium.vector.AsyncVectorEnv([make] * num_envs, context="spawn", shared_memory=True)
