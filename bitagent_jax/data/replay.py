"""A replay of whole episodes on disk, from which sequences are drawn."""

import logging
import os
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bitagent_jax.data.embeddings import open_embedding, stride_of
from bitagent_jax.data.episodes import list_episodes, open_episodes
from bitagent_jax.data.records import Records

_LOG = logging.getLogger(__name__)
_ROWS = ("image", "action", "is_first", "reward")
THREADS = min(16, os.cpu_count() or 1)  # that decode the sequences of a batch


class _Episode(NamedTuple):
    """An open episode and, where there are any, its embeddings."""

    records: Records
    embedding: Records | None

    @property
    def label(self) -> str:
        return self.records.meta["label"]


class Replay:
    """The latest episodes, at most ``capacity`` frames of them; whole oldest episodes leave first.

    Only headers are held in memory; each batch is read and decoded anew, by several threads. All episodes have the
    same picture size, action width and embedding width (``embed_dim``, or the first's). Sampling sees one consistent
    state even while another thread adds episodes.
    """

    def __init__(self, capacity: int, threads: int = THREADS, embed_dim: int = 0):
        if capacity < 1 or threads < 1:
            raise ValueError(f"capacity must be at least 1 frame and threads at least 1, got {capacity} and {threads}")
        self.capacity = capacity
        none = np.zeros(0, np.int64)
        self._held: tuple[tuple[_Episode, ...], np.ndarray, np.ndarray] = (), none, none  # the rows and stride of each
        self._texts: dict[str, np.ndarray] = {}
        self._embed_dim = embed_dim
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="replay")

    @property
    def frames(self) -> int:
        """The number of rows held."""
        return int(self._held[1].sum())

    @property
    def episodes(self) -> int:
        """The number of episodes held."""
        return len(self._held[0])

    @property
    def paths(self) -> list[Path]:
        """The files of the episodes held, oldest first."""
        return [episode.records.path for episode in self._held[0]]

    @property
    def labels(self) -> set[str]:
        """The sentences of the episodes held, without the empty one."""
        return {episode.label for episode in self._held[0]} - {""}

    def set_texts(self, texts: Mapping[str, np.ndarray]) -> None:
        """Give the embedding, float32 [D], of each sentence that labels episodes; replaces earlier ones."""
        vectors = {label: np.asarray(vector, np.float32) for label, vector in texts.items()}
        for vector in vectors.values():
            self._check_width(vector.shape)
        self._texts = vectors

    def add(self, episode: Records, embedding: Records | None = None) -> None:
        """Add an open episode, and drop the oldest ones that no longer fit.

        Args:
            episode: from ``open_episodes``; its file must stay as it is.
            embedding: from ``open_embedding``, or None if none of its rows has one.

        Raises:
            ValueError: more frames than the capacity, or shapes unlike the other episodes'.
        """
        if episode.rows > self.capacity:
            raise ValueError(
                f"{episode.path} of {episode.rows} frames exceeds the replay's capacity of {self.capacity}"
            )
        episodes, rows, strides = self._held
        like = episodes[0].records.fields if episodes else episode.fields
        if episode.fields != like:
            raise ValueError(f"{episode.path} holds {episode.fields}, unlike the other episodes' {like}")
        if embedding:
            self._check_width(embedding.fields["embedding"][1])
        rows = np.append(rows, episode.rows)
        strides = np.append(strides, stride_of(embedding) if embedding else 1)
        gone = int(np.argmax(rows.sum() - np.concatenate([[0], np.cumsum(rows)]) <= self.capacity))
        self._held = (*episodes, _Episode(episode, embedding))[gone:], rows[gone:], strides[gone:]

    def sample(
        self, batch: int, length: int, rng: np.random.Generator, only: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Draw sequences that end in uniformly drawn rows; none crosses an episode's end.

        What would begin before an episode does begins with it, so that its first rows, where bodies fall and rise,
        are seen as often as others; of episodes shorter than ``length`` nothing is drawn.

        Where the embeddings of some episode have a stride k, sequences begin earlier, at a multiple of the largest such
        k, so that rows k-1, 2k-1, ... of every sequence are rows with an embedding. Up to k-1 last rows of an episode
        are then never drawn, and a row is drawn at every k-th place of a sequence only.

        Args:
            batch: number of sequences B.
            length: rows T of each.
            rng: the only source of chance: equal contents and generators give equal batches.
            only: which of the B sequences to read and return, int [b]; None for all. The others cost nothing, so that
                several processes read one batch together.

        Returns:
            Fresh arrays: image uint8 [B,T,H,W,3], action float32 [B,T,A], is_first bool [B,T] (true only at true
            episode starts), reward float32 [B,T], embedding float32 [B,T,D] with has_embedding bool [B,T], and
            text float32 [B,D], the label's embedding, with has_text bool [B]. What is absent is zero and False.

        Raises:
            ValueError: no episode is long enough; CorruptFile, if a file was damaged since it was opened.
        """
        texts = self._texts
        chosen, starts = self._draw(batch, length, rng, only)
        return self._gather(chosen, starts, length) | self._text_of(chosen, texts)

    def draw(
        self, batch: int, length: int, rng: np.random.Generator, only: np.ndarray | None = None
    ) -> tuple[list[Path], np.ndarray, dict[str, np.ndarray]]:
        """Draw the same sequences as ``sample`` without reading them, for those who hold the rows in another form.

        Args:
            batch, length, rng, only: see ``sample``.

        Returns:
            the episode's path and the first row, int [B], of each sequence, and ``text`` with ``has_text``.
        """
        texts = self._texts
        chosen, starts = self._draw(batch, length, rng, only)
        return [episode.records.path for episode in chosen], starts, self._text_of(chosen, texts)

    def whole(self, known: Collection[Path] = ()) -> Iterator[tuple[Path, dict[str, np.ndarray]]]:
        """Read every episode whose path is not ``known``: the path, and its rows with the fields of ``sample``."""
        wanted = [episode for episode in self._held[0] if episode.records.path not in known]

        def read(episode: _Episode) -> dict[str, np.ndarray]:
            rows = self._empty(episode, episode.records.rows)
            _fill(episode, 0, rows)
            return rows

        for at in range(0, len(wanted), THREADS):  # a few at a time, decoded side by side
            some = wanted[at : at + THREADS]
            for episode, rows in zip(some, self._threads.map(read, some), strict=True):
                yield episode.records.path, rows

    def _draw(
        self, batch: int, length: int, rng: np.random.Generator, only: np.ndarray | None
    ) -> tuple[list[_Episode], np.ndarray]:
        """Draw the episode and the first row of each sequence."""
        episodes, rows, strides = self._held
        stride = strides.max(initial=1)
        ends = np.cumsum(np.where(rows >= length, rows, 0))
        if batch < 1 or length < 1:
            raise ValueError(f"batch and length must be at least 1, got {batch} and {length}")
        if not len(ends) or not ends[-1]:
            longest = rows.max(initial=0)
            raise ValueError(
                f"replay too short: sequences of {length} rows wanted, but the longest of its {len(episodes)} "
                f"episodes has {longest}"
            )
        draws = rng.integers(ends[-1], size=batch)
        draws = draws if only is None else draws[only]
        picks = np.searchsorted(ends, draws, side="right")
        within = draws - np.concatenate([[0], ends])[picks]
        starts = np.clip(within - (length - 1), 0, rows[picks] - length) // stride * stride
        return [episodes[pick] for pick in picks], starts

    def _gather(self, chosen: list[_Episode], starts: np.ndarray, length: int) -> dict[str, np.ndarray]:
        out = self._empty(chosen[0], len(chosen), length)

        def fill(index: int) -> None:
            _fill(chosen[index], int(starts[index]), {key: field[index] for key, field in out.items()})

        list(self._threads.map(fill, range(len(chosen))))
        return out

    def _empty(self, like: _Episode, *shape: int) -> dict[str, np.ndarray]:
        fields = {key: like.records.fields[key] for key in _ROWS}
        fields |= {"embedding": ("float32", (self._embed_dim,)), "has_embedding": ("bool", ())}
        return {key: np.zeros((*shape, *row), kind) for key, (kind, row) in fields.items()}

    def _text_of(self, chosen: list[_Episode], texts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        has_text = np.array([episode.label in texts for episode in chosen])
        text = np.zeros((len(chosen), self._embed_dim), np.float32)
        for index in np.flatnonzero(has_text):
            text[index] = texts[chosen[index].label]
        return {"text": text, "has_text": has_text}

    def _check_width(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 1 or not shape[0] or (self._embed_dim and shape[0] != self._embed_dim):
            raise ValueError(f"expected embeddings of width {self._embed_dim or 'D'}, got shape {shape}")
        self._embed_dim = shape[0]


def _fill(episode: _Episode, start: int, out: Mapping[str, np.ndarray]) -> None:
    """Read rows into arrays ``[T, ...]``, from ``start`` on."""
    for table in filter(None, episode):
        table.read_into({key: field for key, field in out.items() if key in table.fields}, start)


def load_folder(
    folder: str | Path, replay: Replay, *, fingerprint: str | None = None, paths: list[Path] | None = None
) -> list[Path]:
    """Add a folder's episodes to a replay in order of their names, skipping corrupt ones with a warning.

    Args:
        folder: of episodes.
        replay: to be filled.
        fingerprint: of the encoder whose cached embeddings are added too, where there are any.
        paths: only these of its files.

    Returns:
        The corrupt files that were skipped.

    Raises:
        ValueError: no valid episode, or stale embeddings.
    """
    paths, bare, held = list_episodes(folder) if paths is None else paths, 0, replay.episodes
    episodes, corrupt = open_episodes(paths)
    for episode in episodes:
        cached = open_embedding(episode, fingerprint) if fingerprint else None
        bare += cached is None
        replay.add(episode, cached)
    if not held and (left := len(episodes) - replay.episodes):  # of a fuller one, that the oldest leave is as it should
        _LOG.warning(
            "%d of %d episodes are not drawn from, the first by name: they exceed config.data.capacity=%d rows",
            left, len(episodes), replay.capacity,
        )  # fmt: skip
    if corrupt:
        _LOG.warning("skipped %d corrupt of %d episodes in %s", len(corrupt), len(paths), folder)
    if fingerprint and bare:
        _LOG.warning("%d of %d episodes in %s have no embeddings yet", bare, len(paths), folder)
    if not episodes:
        raise ValueError(f"no valid episode in {folder}: {len(paths)} files, {len(corrupt)} corrupt")
    return corrupt
