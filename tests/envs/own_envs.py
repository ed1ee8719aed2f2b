"""Environments of a user's own, as test_register.py registers them; workers import this file by its path."""

import gymnasium
import numpy as np


class Dot(gymnasium.Env):
    """A dot on a line is pushed; its colour tells its place. Rewards the push. Ends at the right edge.

    Its picture is wider than high; depending on ``mode`` it is the observation (seen), or what is rendered (shown).
    """

    action_space = gymnasium.spaces.Box(np.float32([-2, 0]), np.float32([2, 10]))

    def __init__(self, mode: str):
        self.render_mode = "rgb_array" if mode == "shown" else None
        picture = gymnasium.spaces.Box(0, 255, (32, 96, 3), np.uint8)
        self.observation_space = picture if mode == "seen" else gymnasium.spaces.Box(-1, 1, (1,))
        self.mode = mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(0, 0.5)
        return self._observe(), {}

    def step(self, action):
        assert action.dtype == np.float32 and self.action_space.contains(action)
        self.place += 0.01 * action[0]
        return self._observe(), float(action[1]), bool(self.place > 1), False, {}

    def render(self):
        picture = np.zeros((32, 96, 3), np.uint8)
        picture[:, :48] = int(255 * np.clip(self.place, 0, 1))
        return picture

    def _observe(self):
        return self.render() if self.mode == "seen" else np.float32([0])


def dot(goal):
    return Dot(goal)


def pendulum(goal):
    return gymnasium.make("InvertedPendulum-v5", render_mode="rgb_array", width=80, height=80)


def blind(goal):
    return Dot("blind")


def switch(goal):
    return gymnasium.make("CartPole-v1")
