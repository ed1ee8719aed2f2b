"""Episodes of noise with embeddings, of a width that no encoder has."""

import numpy as np
import pytest

from bitagent_jax.data.embeddings import write_embedding
from bitagent_jax.data.episodes import write_episode
from bitagent_jax.data.records import open_records
from bitagent_jax.data.replay import Replay, load_folder

EMBED, ACTIONS, FINGERPRINT = 16, 2, "0123456789abcdef"


@pytest.fixture(scope="session")
def write_rows():
    """Return a writer of such an episode: ``(folder, rows, number)``."""

    def write(folder, rows, number):
        rng, at = np.random.default_rng(number), np.arange(rows)
        arrays = {
            "image": rng.integers(0, 256, (rows, 64, 64, 3), dtype=np.uint8),
            "action": rng.uniform(-1, 1, (rows, ACTIONS)).astype(np.float32),
            "reward": np.zeros(rows, np.float32),
            "is_first": at == 0,
            "is_last": at == rows - 1,
        }
        path = write_episode(folder, arrays, {"label": "walk"}, name=f"{number}")
        unit = np.eye(EMBED)[rng.integers(EMBED, size=rows)]
        write_embedding(open_records(path), FINGERPRINT, unit, at >= 7)

    return write


@pytest.fixture(scope="module")
def two_episodes(tmp_path_factory, write_rows):
    """Two episodes of 30 and 150 rows: the folder, and a replay that holds them."""
    folder = tmp_path_factory.mktemp("episodes")
    for number, rows in enumerate((30, 150)):
        write_rows(folder, rows, number)
    replay = Replay(1000, embed_dim=EMBED)
    load_folder(folder, replay, fingerprint=FINGERPRINT)
    return folder, replay
