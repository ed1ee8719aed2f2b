"""Hand-made episodes whose every row tells where it comes from."""

import numpy as np
import pytest

from bitagent_jax.data.episodes import write_episode
from bitagent_jax.data.records import Records, open_records


@pytest.fixture
def make_arrays():
    """Return a maker of episodes: row t of episode k has reward 1000 k + t, and its pixels say t."""

    def make(rows: int = 12, number: int = 0, actions: int = 2) -> dict[str, np.ndarray]:
        at = np.arange(rows)
        return {
            "image": np.broadcast_to(at[:, None, None, None], (rows, 8, 8, 3)).astype(np.uint8),
            "action": np.tanh(np.arange(rows * actions, dtype=np.float32).reshape(rows, actions)),
            "reward": (1000 * number + at).astype(np.float32),
            "is_first": at == 0,
            "is_last": at == rows - 1,
        }

    return make


@pytest.fixture
def make_episode(tmp_path, make_arrays):
    """Return a maker of open episodes of such rows."""

    def make(rows: int = 12, number: int = 0, label: str = "", **shape) -> Records:
        arrays = make_arrays(rows, number, **shape)
        return open_records(write_episode(tmp_path / "made", arrays, {"label": label}, name=f"{number}-{rows}"))

    return make
