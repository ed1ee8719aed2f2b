"""What all environments do alike: seeding episodes and checking actions."""

import numpy as np


def episode_seeds(seed: int, slot: int, episode: int) -> np.ndarray:
    """Return the uint32 [8] seeds of an episode: other for every seed, slot and episode, the same in every process."""
    return np.random.SeedSequence(seed, spawn_key=(slot, episode)).generate_state(8)


def checked_action(action: np.ndarray, action_dim: int) -> np.ndarray:
    """Return the action as float32 [A] clipped to [-1, 1]; ValueError on a wrong shape or values not finite."""
    action = np.asarray(action, np.float32)
    if action.shape != (action_dim,) or not np.isfinite(action).all():
        raise ValueError(f"expected a finite action of shape {(action_dim,)}, got shape {action.shape}: {action}")
    return np.clip(action, -1, 1)
