"""Our environments as the training library wants them: states instead of pictures, several in one process."""

import gymnasium
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv

from bitagent_jax.envs.dmc import make_env
from bitagent_jax.envs.tasks import get_body, get_task
from bitagent_jax.zoo.actor import Actor
from experiments.zoo.measure import spread


class StateEnv(gymnasium.ObservationWrapper):
    """A task without pictures, observed as float32 [S] measurements; action repeat 2.

    Normal noise of the standard deviations ``blur`` [S] is added to them, drawn anew in every step.
    """

    def __init__(self, task: str, seed: int, slot: int, blur: np.ndarray | float = 0.0):
        super().__init__(make_env(task, seed=seed, slot=slot, render=False))
        states = (get_body(get_task(task).body).state_dim,)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, states, np.float32)
        self._blur, self._rng = blur, np.random.default_rng((seed, slot))

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Replace the empty picture by the measurements, float32 [S]."""
        noise = self._rng.normal(size=self.observation_space.shape)
        return (self.unwrapped.measurements() + self._blur * noise).astype(np.float32)


def make_envs(task: str, count: int, seed: int, blur: float = 0.0) -> DummyVecEnv:
    """Make ``count`` environments of a task that differ in their slot; they reset themselves.

    ``blur`` is the noise on each measurement, as a part of its ``measure.spread``.
    """
    noise = blur * spread(task) if blur else 0.0
    return DummyVecEnv([lambda slot=slot: StateEnv(task, seed, slot, noise) for slot in range(count)])


def episode_returns(actor: Actor, envs: DummyVecEnv) -> np.ndarray:
    """Run one whole episode in every environment from a reset; returns the summed rewards, float64 [N]."""
    states, totals = envs.reset(), np.zeros(envs.num_envs)
    running = np.ones(envs.num_envs, bool)
    while running.any():
        states, rewards, dones, _ = envs.step(actor(states))
        totals += rewards * running
        running &= ~dones
    return totals
