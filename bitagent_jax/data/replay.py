"""A replay of whole episodes in memory, from which sequences are drawn."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from bitagent_jax.data.embeddings import read_embedding
from bitagent_jax.data.episodes import Arrays, CorruptEpisode, list_episodes, read_episode

_LOG = logging.getLogger(__name__)
_ROWS = ("image", "action", "is_first", "reward", "embedding", "has_embedding")


class _Episode(NamedTuple):
    """An episode's rows and its label."""

    rows: dict[str, np.ndarray]
    label: str

    @property
    def frames(self) -> int:
        return len(self.rows["reward"])


class Replay:
    """The latest episodes, at most ``capacity`` frames of them; whole oldest episodes leave first.

    All episodes have the same picture size, action width and embedding width. Sampling reads one consistent
    state even while another thread adds episodes.
    """

    def __init__(self, capacity: int):
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1 frame, got {capacity}")
        self.capacity = capacity
        self._episodes: tuple[_Episode, ...] = ()
        self._texts: dict[str, np.ndarray] = {}
        self._embed_dim = 0

    @property
    def frames(self) -> int:
        """The number of rows held."""
        return sum(episode.frames for episode in self._episodes)

    @property
    def episodes(self) -> int:
        """The number of episodes held."""
        return len(self._episodes)

    @property
    def labels(self) -> set[str]:
        """The sentences of the episodes held, without the empty one."""
        return {episode.label for episode in self._episodes} - {""}

    def set_texts(self, texts: Mapping[str, np.ndarray]) -> None:
        """Give the embedding, float32 [D], of each sentence that labels episodes; replaces earlier ones."""
        vectors = {label: np.asarray(vector, np.float32) for label, vector in texts.items()}
        for vector in vectors.values():
            self._check_width(vector, 1)
        self._texts = vectors

    def add(
        self,
        arrays: Arrays,
        label: str = "",
        embedding: np.ndarray | None = None,
        has_embedding: np.ndarray | None = None,
    ) -> None:
        """Add an episode, and drop the oldest ones that no longer fit.

        Args:
            arrays: as read by ``read_episode``; kept, not copied.
            label: the sentence it shows, or "".
            embedding: float32 [L,D], or None if none of its rows has one.
            has_embedding: bool [L], which rows have one; all by default.

        Raises:
            ValueError: more frames than the capacity, or shapes unlike the other episodes'.
        """
        frames = len(arrays["reward"])
        if frames > self.capacity:
            raise ValueError(f"an episode of {frames} frames exceeds the replay's capacity of {self.capacity}")
        rows = {key: arrays[key] for key in _ROWS if key in arrays}
        if embedding is not None:
            self._check_width(embedding, 2)
            rows["embedding"] = np.asarray(embedding, np.float32)
            rows["has_embedding"] = np.ones(frames, bool) if has_embedding is None else has_embedding
        self._check_like_others(rows, frames)
        kept = (*self._episodes, _Episode(rows, label))
        surplus = sum(episode.frames for episode in kept) - self.capacity
        while surplus > 0:
            surplus -= kept[0].frames
            kept = kept[1:]
        self._episodes = kept

    def sample(self, batch: int, length: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw sequences uniformly from all (episode, start) pairs; none crosses an episode's end.

        Args:
            batch: number of sequences B.
            length: rows T of each.
            rng: the only source of chance: equal contents and generators give equal batches.

        Returns:
            Fresh arrays: image uint8 [B,T,H,W,3], action float32 [B,T,A], is_first bool [B,T] (true only at true
            episode starts), reward float32 [B,T], embedding float32 [B,T,D] with has_embedding bool [B,T], and
            text float32 [B,D], the label's embedding, with has_text bool [B]. What is absent is zero and False.

        Raises:
            ValueError: no episode is long enough.
        """
        episodes, texts = self._episodes, self._texts
        ends = np.cumsum([max(0, episode.frames - length + 1) for episode in episodes], dtype=np.int64)
        if batch < 1 or length < 1:
            raise ValueError(f"batch and length must be at least 1, got {batch} and {length}")
        if not len(ends) or not ends[-1]:
            longest = max((episode.frames for episode in episodes), default=0)
            raise ValueError(
                f"replay too short: sequences of {length} rows wanted, but the longest of its {len(episodes)} "
                f"episodes has {longest}"
            )
        draws = rng.integers(ends[-1], size=batch)
        picks = np.searchsorted(ends, draws, side="right")
        starts = draws - np.concatenate([[0], ends])[picks]
        chosen = [episodes[pick] for pick in picks]
        return self._gather(chosen, starts, length) | self._text_of(chosen, texts)

    def _gather(self, chosen: list[_Episode], starts: np.ndarray, length: int) -> dict[str, np.ndarray]:
        like = chosen[0].rows
        shapes = {key: (like[key].shape[1:], like[key].dtype) for key in ("image", "action", "is_first", "reward")}
        shapes |= {"embedding": ((self._embed_dim,), np.float32), "has_embedding": ((), bool)}
        out = {key: np.zeros((len(chosen), length, *shape), kind) for key, (shape, kind) in shapes.items()}
        for index, (episode, start) in enumerate(zip(chosen, starts, strict=True)):
            for key, rows in episode.rows.items():
                out[key][index] = rows[start : start + length]
        return out

    def _text_of(self, chosen: list[_Episode], texts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        has_text = np.array([episode.label in texts for episode in chosen])
        text = np.zeros((len(chosen), self._embed_dim), np.float32)
        for index in np.flatnonzero(has_text):
            text[index] = texts[chosen[index].label]
        return {"text": text, "has_text": has_text}

    def _check_width(self, embedding: np.ndarray, rank: int) -> None:
        width = embedding.shape[-1] if embedding.ndim == rank else None
        if not width or (self._embed_dim and width != self._embed_dim):
            raise ValueError(f"expected embeddings of width {self._embed_dim or 'D'}, got shape {embedding.shape}")
        self._embed_dim = width

    def _check_like_others(self, rows: dict[str, np.ndarray], frames: int) -> None:
        like = self._episodes[0].rows if self._episodes else rows
        for key, array in rows.items():
            if len(array) != frames or (key in like and array.shape[1:] != like[key].shape[1:]):
                raise ValueError(f"{key} of shape {array.shape} does not fit {frames} rows like the other episodes'")


def load_folder(
    folder: str | Path, replay: Replay, *, fingerprint: str | None = None, start: int = 0, limit: int | None = None
) -> list[Path]:
    """Add a folder's episodes to a replay in order of their names, skipping corrupt ones with a warning.

    Args:
        folder: of episodes.
        replay: to be filled.
        fingerprint: of the encoder whose cached embeddings are added too, where there are any.
        start, limit: only the files from number ``start`` up to, not including, number ``limit``.

    Returns:
        The corrupt files that were skipped.

    Raises:
        ValueError: no valid episode, or stale embeddings.
    """
    paths, corrupt, bare = list_episodes(folder)[start:limit], [], 0
    for path in tqdm(paths, desc="loading episodes", unit="episode", delay=2):
        try:
            arrays, meta = read_episode(path)
        except CorruptEpisode as error:
            _LOG.warning("skipped %s", error)
            corrupt.append(path)
            continue
        cached = read_embedding(path, fingerprint) if fingerprint else None
        bare += cached is None
        replay.add(arrays, meta["label"], *(cached or (None, None)))
    if corrupt:
        _LOG.warning("skipped %d corrupt of %d episodes in %s", len(corrupt), len(paths), folder)
    if fingerprint and bare:
        _LOG.warning("%d of %d episodes in %s have no embeddings yet", bare, len(paths), folder)
    if len(corrupt) == len(paths):
        raise ValueError(f"no valid episode in {folder}: {len(paths)} files, {len(corrupt)} corrupt")
    return corrupt
