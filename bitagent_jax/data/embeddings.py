"""Embeddings of episodes, computed once by a frozen encoder and cached beside them."""

import logging
import re
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from bitagent_jax.data.episodes import UNREADABLE, CorruptEpisode, list_episodes, read_episode, write_atomically

_LOG = logging.getLogger(__name__)


class WindowEncoder(Protocol):
    """The part of an encoder that is needed here."""

    fingerprint: str

    def embed_windows(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map frames uint8 [L,H,W,3] to (float32 [L,D], bool [L]); rows without a full window are False."""
        ...


def embed_folder(folder: str | Path, encoder: WindowEncoder, progress: bool = True) -> int:
    """Embed every episode of a folder whose embeddings are not there yet.

    The cache of ``x.npz`` is ``x.{fingerprint}.emb``. One that is damaged, or whose episode has changed since, is
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
    missing = [path for path in list_episodes(folder) if not _is_cached(path, encoder.fingerprint)]
    done = 0
    for path in tqdm(missing, desc="embedding", unit="episode", delay=2, disable=not progress):
        try:
            arrays, _ = read_episode(path)
        except CorruptEpisode as error:
            _LOG.warning("skipped %s", error)
            continue
        write_embedding(path, encoder.fingerprint, *encoder.embed_windows(arrays["image"]))
        done += 1
    return done


def write_embedding(episode: Path, fingerprint: str, embedding: np.ndarray, has_embedding: np.ndarray) -> Path:
    """Cache the embeddings, float32 [L,D], and which rows have one, bool [L], of an episode file."""
    embedding, has_embedding = np.asarray(embedding, np.float32), np.asarray(has_embedding, bool)
    checksum, rows = _identity(episode)
    why = _problem(embedding, has_embedding, rows)
    if why:
        raise ValueError(f"embeddings do not fit {episode}: {why}")
    path = cache_path(episode, fingerprint)
    members = dict(embedding=embedding, has_embedding=has_embedding, image_crc=np.uint32(checksum))
    write_atomically(path, lambda file: np.savez(file, **members))
    return path


def read_embedding(episode: str | Path, fingerprint: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Read the cached embeddings of an episode file.

    Returns:
        (float32 [L,D], bool [L]), rows without an embedding being zero and False; None if there is no cache.

    Raises:
        ValueError: the cache is damaged, or was made from other frames: run ``embed_folder`` again.
    """
    episode = Path(episode)
    path = cache_path(episode, fingerprint)
    if not path.exists():
        return None
    try:
        checksum, rows = _identity(episode)
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            embedding, has_embedding = archive["embedding"], archive["has_embedding"]
            fresh = int(archive["image_crc"]) == checksum
    except UNREADABLE as error:
        raise ValueError(f"damaged embeddings {path}: {type(error).__name__}: {error}") from error
    why = _problem(embedding, has_embedding, rows) if fresh else "the episode has other frames"
    if why:
        raise ValueError(f"stale embeddings {path}: {why}")
    return np.where(has_embedding[:, None], embedding, np.float32(0)), has_embedding


def cache_path(episode: Path, fingerprint: str) -> Path:
    """Name the cache of an episode; ValueError if the fingerprint cannot be part of a file name."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", fingerprint):
        raise ValueError(f"a fingerprint consists of letters, digits, - and _, got {fingerprint!r}")
    return episode.with_name(f"{episode.stem}.{fingerprint}.emb")


def _is_cached(episode: Path, fingerprint: str) -> bool:
    try:
        return read_embedding(episode, fingerprint) is not None
    except ValueError as error:
        _LOG.warning("%s; computing them again", error)
        return False


def _problem(embedding: np.ndarray, has_embedding: np.ndarray, rows: int) -> str:
    if embedding.dtype != np.float32 or embedding.ndim != 2 or len(embedding) != rows:
        return f"expected float32 [{rows}, D], got {embedding.dtype} {list(embedding.shape)}"
    if has_embedding.dtype != bool or has_embedding.shape != (rows,):
        return f"expected bool flags [{rows}], got {has_embedding.dtype} {list(has_embedding.shape)}"
    if not np.isfinite(embedding[has_embedding]).all():
        return "some are not finite"
    return ""


def _identity(episode: Path) -> tuple[int, int]:
    """Return the checksum of an episode's frames, from the archive's directory, and the number of its rows."""
    with open(episode, "rb") as file, np.load(file, allow_pickle=False) as archive:
        return archive.zip.getinfo("image.npy").CRC, len(archive["is_first"])
