"""No encoder at all: embeddings that were computed elsewhere lie beside the episodes and in the prompts' files.

``mllm.weights`` is ``KEY:WIDTH``: the key in the caches' file names and the width of the space, for example
``genrl-clip_video:512``, under which ``bitagent import --format genrl`` stores what GenRL's files hold.
"""

import re
from collections.abc import Sequence

import numpy as np

NAME = "precomputed"
_EXAMPLE = "mllm.weights=genrl-clip_video:512"


class Precomputed:
    """An ``Encoder`` that knows its space, but can embed nothing."""

    name = NAME
    num_frames = 8
    stride = 1

    def __init__(self, fingerprint: str, embed_dim: int):
        self.fingerprint, self.embed_dim = fingerprint, embed_dim

    def embed_video(self, clips: np.ndarray) -> np.ndarray:
        """Refuse."""
        raise ValueError(self._refusal("clips and pictures"))

    def embed_text(self, sentences: Sequence[str]) -> np.ndarray:
        """Refuse, naming the first sentence."""
        raise ValueError(self._refusal(f"the sentence {list(sentences)[0]!r}"))

    def embed_windows(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Refuse."""
        raise ValueError(self._refusal("episodes"))

    def _refusal(self, what: str) -> str:
        return (
            f"mllm.encoder={NAME} is no encoder, so {what} cannot be embedded; a prompt must be a file .npy with the "
            f"embedding, floats [{self.embed_dim}], in the space of {self.fingerprint}"
        )


def load(weights: str) -> Precomputed:
    """Return the stand-in for the embeddings ``KEY:WIDTH``; ValueError if it is anything else."""
    match = re.fullmatch(r"([A-Za-z0-9_-]+):([1-9][0-9]*)", weights)
    if not match:
        raise ValueError(f"mllm.encoder={NAME} needs KEY:WIDTH of the embeddings, like {_EXAMPLE}, got {weights!r}")
    return Precomputed(match[1], int(match[2]))
