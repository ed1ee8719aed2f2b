"""Any gymnasium environment with a picture, made to look like the bodies of the table."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from PIL import Image

from bitagent_jax.envs.stepping import checked_action, episode_seeds
from bitagent_jax.envs.tasks import Body, Task
from bitagent_jax.files import import_file

_imported = functools.cache(import_file)


class GymEnv(gymnasium.Env):
    """One task of a body with a factory; ``make_env`` makes it. A size of 0 means no pictures.

    The picture is the observation where that is one, else what ``render`` returns; both are resized to a square.
    Actions in [-1, 1] are scaled to the limits of the environment's. Rewards are its own, summed over the
    action repeat.
    """

    metadata = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"

    def __init__(self, task: Task, body: Body, seed: tuple[int, int, int], size: int, action_repeat: int):
        self.task = task
        self.episode_steps = body.control_steps // action_repeat
        self._size, self._repeat = size, action_repeat
        self._seed, self._slot, self._episode = seed
        self._steps = None
        self._env = load_factory(body.factory)(task.goal)
        self._low, self._high = _limits(self._env, body)
        self._sees = _is_picture(self._env.observation_space)
        self._latest = None
        if size and not self._sees and self._env.render_mode != "rgb_array":
            raise ValueError(
                f"{body.factory} shows no picture: its observations are {self._env.observation_space} and its "
                f'render_mode is {self._env.render_mode!r}; make it with render_mode="rgb_array"'
            )
        self.action_space = gymnasium.spaces.Box(-1, 1, (body.action_dim,), np.float32)
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Start the next episode, or the first one of another seed; returns (image, {})."""
        super().reset(seed=seed)
        if seed is not None:
            self._seed, self._episode = seed, 0
        seeds = episode_seeds(self._seed, self._slot, self._episode)
        self._latest, _ = self._env.reset(seed=int(seeds[0]))
        self._episode, self._steps = self._episode + 1, 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Apply a float32 [A] action for ``action_repeat`` steps, fewer if the episode ends.

        Returns:
            (image, summed reward, terminated, truncated, {}).

        Raises:
            ValueError: wrong shape, or values that are not finite.
            RuntimeError: the episode is over, or none was begun.
        """
        if self._steps is None or self._steps >= self.episode_steps:
            raise RuntimeError("call reset() first: there is no episode to step")
        action = checked_action(action, len(self._low))
        action = (self._low + (action + 1) / 2 * (self._high - self._low)).astype(self._env.action_space.dtype)
        total = 0.0
        for _ in range(self._repeat):
            self._latest, reward, terminated, truncated, _ = self._env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        self._steps = self.episode_steps if terminated or truncated else self._steps + 1
        over = self._steps >= self.episode_steps
        return self._observe(), total, bool(terminated), bool(over and not terminated), {}

    def render(self, size: int = 256) -> np.ndarray:
        """Draw the present state at another size, for videos; uint8 [size, size, 3]."""
        picture = self._latest if self._sees else self._env.render()
        image = Image.fromarray(np.asarray(picture, np.uint8))
        return np.asarray(image.resize((size, size), Image.Resampling.BOX))

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _observe(self) -> np.ndarray:
        return self.render(self._size) if self._size else np.zeros((0, 0, 3), np.uint8)


def load_factory(name: str) -> Callable[[str], gymnasium.Env]:
    """Import the function named ``module:function`` or ``file.py:function``; ValueError if it is not there."""
    source, _, function = name.rpartition(":")
    try:
        module = _imported(source) if source.endswith(".py") else importlib.import_module(source)
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise ValueError(f"cannot import the environment factory {name!r}: {error}") from error
    if not hasattr(module, function):
        raise ValueError(f"cannot import the environment factory {name!r}: {source} has no {function!r}")
    return getattr(module, function)


def _limits(env: gymnasium.Env, body: Body) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper limits of the actions, float64 [A]; ValueError unless they are a bounded Box."""
    space = env.action_space
    if not isinstance(space, gymnasium.spaces.Box) or space.shape != (body.action_dim,) or not space.is_bounded():
        raise ValueError(
            f"{body.factory} must take a bounded Box of {body.action_dim} actions (action_dim of body {body.name}), "
            f"but takes {space}"
        )
    return space.low.astype(np.float64), space.high.astype(np.float64)


def _is_picture(space: gymnasium.Space) -> bool:
    box = isinstance(space, gymnasium.spaces.Box)
    return box and space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[-1] == 3
