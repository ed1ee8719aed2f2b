"""The frozen video-text encoder behind every sentence: its protocol and the one door to load one."""

import importlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from bitagent_jax.errors import unknown

EMBEDDED = "embedded"
CLIP = 8
"""Rows between the clips of a sequence that the task imagination is matched to: 8 frames, N in the paper."""
ENCODERS = {
    EMBEDDED: "bitagent_jax.mllm.embedded:load",
    "internvideo2": "bitagent_jax.mllm.internvideo2:load",
    "videoprism": "bitagent_jax.mllm.videoprism:load",
    "viclip": "bitagent_jax.mllm.viclip:load",
    "clip": "bitagent_jax.mllm.clip:load",
    "siglip": "bitagent_jax.mllm.siglip:load",
    "siglip2": "bitagent_jax.mllm.siglip:load2",
    "hf_torch": "bitagent_jax.mllm.hf_torch:load",
    "precomputed": "bitagent_jax.mllm.precomputed:load",
}
"""Every encoder's name and the function that loads it, imported only when asked for."""


@runtime_checkable
class Encoder(Protocol):
    """Maps clips and sentences to unit vectors of one space, where a matching pair has a high cosine.

    Attributes:
        name: the name that ``load_encoder`` knows it by.
        embed_dim: width D of the space.
        num_frames: frames N in a clip, one per agent step.
        fingerprint: changes whenever any embedding could change; the key of cached embeddings.
        stride: rows between the windows that are embedded unless asked otherwise: 1 where windows share the work of
            their frames, so that all cost little more than some; else ``CLIP``.
    """

    name: str
    embed_dim: int
    num_frames: int
    fingerprint: str
    stride: int

    def embed_video(self, clips: np.ndarray) -> np.ndarray:
        """Embed clips, uint8 [B, N, H, W, 3]; returns float32 [B, D], unit norm."""
        ...

    def embed_text(self, sentences: Sequence[str]) -> np.ndarray:
        """Embed n sentences; returns float32 [n, D], unit norm. ValueError on a blank sentence."""
        ...

    def embed_windows(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Embed every window of an episode's frames, uint8 [L, H, W, 3].

        Returns:
            float32 [L, D] and bool [L]. Row t embeds frames t-N+1 .. t. The first N-1 rows have no full
            window: there the flag is False and the vector is zero, which is not an embedding.
        """
        ...


def load_encoder(name: str = EMBEDDED, weights: str = "") -> Encoder:
    """Load an encoder with its weights.

    Args:
        name: out of ``ENCODERS``.
        weights: a local folder or the id of a repository of the Hugging Face Hub; "" for the embedded encoder,
            whose weights ship with the package; KEY:WIDTH for ``precomputed``.

    Raises:
        ValueError: there is none of that name (with the nearest match), or its weights cannot be had or do not fit.
    """
    if name not in ENCODERS:
        raise unknown("encoder", name, ENCODERS)
    if name == EMBEDDED and weights:
        raise ValueError(f"the embedded encoder has its own weights: mllm.weights={weights!r} belongs to another")
    module, function = ENCODERS[name].split(":")
    load = getattr(importlib.import_module(module), function)
    return load() if name == EMBEDDED else load(weights)


def check_sentences(sentences: Sequence[str]) -> list[str]:
    """Return the sentences as a list; ValueError on a lone string, an empty list or a blank sentence."""
    if isinstance(sentences, str):
        raise ValueError(f"expected a list of sentences, got one string: write [{sentences!r}]")
    sentences = list(sentences)
    if not sentences:
        raise ValueError("expected at least one sentence, got an empty list")
    for index, sentence in enumerate(sentences):
        if not isinstance(sentence, str) or not sentence.strip():
            raise ValueError(f"a prompt must be a sentence in words, got {sentence!r} at index {index}")
    return sentences


def check_frames(frames: np.ndarray, leading: tuple[int | None, ...], what: str) -> np.ndarray:
    """Return uint8 frames [*leading, H, W, 3] as an array; ValueError if dtype or shape differ.

    Args:
        frames: the array to check.
        leading: the sizes before height and width, None where any will do.
        what: the expected shape in words, for the message.
    """
    frames = np.asarray(frames)
    wanted = (*leading, None, None, 3)
    fits = frames.ndim == len(wanted) and all(
        want is None or want == have for want, have in zip(wanted, frames.shape, strict=True)
    )
    if frames.dtype != np.uint8 or not fits or 0 in frames.shape[len(leading) :]:
        raise ValueError(f"expected uint8 {what}, got {frames.dtype} {list(frames.shape)}")
    return frames
