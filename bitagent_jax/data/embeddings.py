"""Embeddings of episodes, computed once by a frozen encoder and cached beside them."""

import logging
import re
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from bitagent_jax.data.episodes import list_episodes, open_episodes
from bitagent_jax.data.records import CorruptFile, Records, open_records, write_records

_LOG = logging.getLogger(__name__)
_KINDS = {"embedding": ("float32", 1), "has_embedding": ("bool", 0)}


class WindowEncoder(Protocol):
    """The part of an encoder that is needed here."""

    fingerprint: str

    def embed_windows(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map frames uint8 [L,H,W,3] to (float32 [L,D], bool [L]); rows without a full window are False."""
        ...


def embed_folder(folder: str | Path, encoder: WindowEncoder, progress: bool = True) -> int:
    """Embed every episode of a folder whose embeddings are not there yet.

    The cache of ``x.ep`` is ``x.{fingerprint}.emb``. One that is damaged, or whose episode has changed since, is
    computed again. Corrupt episodes are skipped with a warning.

    Args:
        folder: of episodes.
        encoder: its ``fingerprint`` is the key of the cache.
        progress: show a bar after two seconds.

    Returns:
        How many episodes were embedded now.

    Raises:
        ValueError: the encoder's answer does not fit the episode.
    """
    episodes, _ = open_episodes(list_episodes(folder))
    missing = [episode for episode in episodes if not _is_cached(episode, encoder.fingerprint)]
    for episode in tqdm(missing, desc="embedding", unit="episode", delay=2, disable=not progress):
        write_embedding(episode, encoder.fingerprint, *encoder.embed_windows(episode.read()["image"]))
    return len(missing)


def write_embedding(episode: Records, fingerprint: str, embedding: np.ndarray, has_embedding: np.ndarray) -> Path:
    """Cache the embeddings, float32 [L,D], and which rows have one, bool [L], of an episode.

    Rows without one are stored as zeros. Raises ValueError for what does not fit the episode or is not finite.
    """
    embedding, has_embedding = np.asarray(embedding, np.float32), np.asarray(has_embedding, bool)
    why = embedding_problem(embedding, has_embedding, episode.rows)
    if why:
        raise ValueError(f"embeddings do not fit {episode.path}: {why}")
    path = cache_path(episode.path, fingerprint)
    arrays = dict(embedding=np.where(has_embedding[:, None], embedding, np.float32(0)), has_embedding=has_embedding)
    write_records(path, arrays, {"episode": episode.header["crc"]})
    return path


def open_embedding(episode: Records, fingerprint: str) -> Records | None:
    """Open the cached embeddings of an episode.

    Returns:
        Rows of embedding float32 [L,D] and has_embedding bool [L]; None if there is no cache.

    Raises:
        ValueError: the cache is damaged, or was made from other frames: run ``embed_folder`` again.
    """
    path = cache_path(episode.path, fingerprint)
    if not path.exists():
        return None
    try:
        cached = open_records(path)
    except CorruptFile as error:
        raise ValueError(f"damaged embeddings: {error}") from error
    if cached.meta.get("episode") != episode.header["crc"]:
        raise ValueError(f"stale embeddings {path}: the episode has other frames")
    kinds = {name: (kind, len(shape)) for name, (kind, shape) in cached.fields.items()}
    if kinds != _KINDS or cached.rows != episode.rows:
        raise ValueError(f"stale embeddings {path}: {cached.fields} in {cached.rows} of {episode.rows} rows")
    return cached


def cache_path(episode: Path, fingerprint: str) -> Path:
    """Name the cache of an episode; ValueError if the fingerprint cannot be part of a file name."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", fingerprint):
        raise ValueError(f"a fingerprint consists of letters, digits, - and _, got {fingerprint!r}")
    return episode.with_name(f"{episode.stem}.{fingerprint}.emb")


def embedding_problem(embedding: np.ndarray, has_embedding: np.ndarray, rows: int) -> str:
    """Say why embeddings cannot be those of an episode of so many rows; "" if they can."""
    if embedding.dtype != np.float32 or embedding.ndim != 2 or len(embedding) != rows or not embedding.shape[1]:
        return f"expected float32 [{rows}, D], got {embedding.dtype} {list(embedding.shape)}"
    if has_embedding.dtype != bool or has_embedding.shape != (rows,):
        return f"expected bool flags [{rows}], got {has_embedding.dtype} {list(has_embedding.shape)}"
    if not np.isfinite(embedding[has_embedding]).all():
        return "some are not finite"
    return ""


def _is_cached(episode: Records, fingerprint: str) -> bool:
    try:
        return open_embedding(episode, fingerprint) is not None
    except ValueError as error:
        _LOG.warning("%s; computing them again", error)
        return False
