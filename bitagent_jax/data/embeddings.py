"""Embeddings of episodes, computed once by a frozen encoder and cached beside them."""

import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from bitagent_jax.data.episodes import list_episodes, open_episodes
from bitagent_jax.data.records import CorruptFile, Records, open_records, write_records
from bitagent_jax.errors import unknown
from bitagent_jax.mllm.encoder import CLIP

_LOG = logging.getLogger(__name__)
STRIDES = tuple(k for k in range(1, CLIP + 1) if CLIP % k == 0)
"""Rows from one embedding to the next that let every clip of an aligned sequence end at one."""
_KINDS = {"embedding": ("float32", 1), "has_embedding": ("bool", 0)}


class WindowEncoder(Protocol):
    """The part of an encoder that is needed here."""

    fingerprint: str
    num_frames: int
    stride: int

    def embed_video(self, clips: np.ndarray) -> np.ndarray:
        """Map clips uint8 [B,N,H,W,3] to float32 [B,D]."""
        ...

    def embed_windows(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map frames uint8 [L,H,W,3] to (float32 [L,D], bool [L]); rows without a full window are False."""
        ...


def embed_folder(folder: str | Path, encoder: WindowEncoder, progress: bool = True, *, stride: int = 0,
                 share: tuple[int, int] = (0, 1)) -> int:  # fmt: skip
    """Embed every episode of a folder whose embeddings are not there yet.

    The cache of ``x.ep`` is ``x.{fingerprint}.emb``. One that is damaged, whose episode has changed since, or which
    lacks rows that are wanted is computed again. Corrupt episodes are skipped with a warning.

    Args:
        folder: of episodes.
        encoder: its ``fingerprint`` is the key of the cache.
        progress: show a bar after two seconds.
        stride: out of ``STRIDES``: the rows k-1, 2k-1, ... are embedded, those with a full window behind them. A
            replay then draws sequences that start at multiples of k, so that every clip that the task imagination
            is matched to ends at such a row. 0: the encoder's own.
        share: (i, n) embeds only every n-th episode from the i-th, for n processes with one folder.

    Returns:
        How many episodes were embedded now.

    Raises:
        ValueError: another stride, or the encoder's answer does not fit the episode.
    """
    if stride not in (0, *STRIDES):
        raise ValueError(f"embeddings of every {stride}th row: the stride must be one of {STRIDES}")
    stride = stride or encoder.stride
    episodes, _ = open_episodes(list_episodes(folder))
    mine = episodes[share[0] :: share[1]]
    missing = [episode for episode in mine if not _is_cached(episode, encoder.fingerprint, stride)]
    for episode in tqdm(missing, desc="embedding", unit="episode", delay=2, disable=not progress):
        rows = embed_rows(encoder, episode.read()["image"], stride)
        write_embedding(episode, encoder.fingerprint, *rows, stride=stride)
    return len(missing)


def embed_rows(encoder: WindowEncoder, frames: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Embed the windows that end at rows k-1, 2k-1, ... of frames uint8 [L,H,W,3]; see ``embed_folder``.

    Returns:
        float32 [L,D], zero in all other rows, and bool [L], which rows have an embedding.
    """
    if stride == 1:
        return encoder.embed_windows(frames)
    rows = np.arange(stride - 1, len(frames), stride)
    rows = rows[rows >= encoder.num_frames - 1]
    seen = encoder.embed_video(frames[rows[:, None] + np.arange(1 - encoder.num_frames, 1)])
    embedding, has = np.zeros((len(frames), seen.shape[1]), np.float32), np.zeros(len(frames), bool)
    embedding[rows], has[rows] = seen, True
    return embedding, has


def list_embeddings(folder: str | Path) -> dict[str, int]:
    """Return the keys of a folder's caches, each with the width of its embeddings; damaged files are passed over."""
    found: dict[str, int] = {}
    for path in sorted(Path(folder).glob("*.*.emb")):
        if (key := path.name.split(".")[-2]) not in found:
            with suppress(CorruptFile, LookupError, ValueError):
                (found[key],) = open_records(path).fields["embedding"][1]
    return found


def require_embeddings(folder: str | Path, fingerprint: str, width: int) -> None:
    """Raise ValueError, naming what is there, if no episode of a folder has embeddings of this key and width."""
    wanted, found = f"{fingerprint}:{width}", [f"{key}:{D}" for key, D in list_embeddings(folder).items()]
    if wanted not in found:
        raise unknown(f"embeddings in {folder}:", wanted, found)


def without_embeddings(episodes: list[Records], fingerprint: str, width: int) -> list[Records]:
    """Return the episodes that have no embeddings of this key and width; ValueError for damaged or stale ones."""
    caches = [open_embedding(episode, fingerprint) for episode in episodes]
    fits = [cached is not None and cached.fields["embedding"][1] == (width,) for cached in caches]
    return [episode for episode, fit in zip(episodes, fits, strict=True) if not fit]


def write_embedding(
    episode: Records, fingerprint: str, embedding: np.ndarray, has_embedding: np.ndarray, stride: int = 1
) -> Path:
    """Cache the embeddings, float32 [L,D], and which rows have one, bool [L], of an episode.

    Rows without one are stored as zeros, and ``stride``, see ``embed_folder``, beside them. Raises ValueError for
    what does not fit the episode or is not finite.
    """
    embedding, has_embedding = np.asarray(embedding, np.float32), np.asarray(has_embedding, bool)
    why = embedding_problem(embedding, has_embedding, episode.rows)
    if why:
        raise ValueError(f"embeddings do not fit {episode.path}: {why}")
    path = cache_path(episode.path, fingerprint)
    arrays = dict(embedding=np.where(has_embedding[:, None], embedding, np.float32(0)), has_embedding=has_embedding)
    write_records(path, arrays, {"episode": episode.header["crc"], "stride": stride})
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
    if kinds != _KINDS or cached.rows != episode.rows or stride_of(cached) not in STRIDES:
        raise ValueError(f"stale embeddings {path}: {cached.fields} in {cached.rows} of {episode.rows} rows")
    return cached


def stride_of(embedding: Records) -> int:
    """Return the stride that embeddings were made with; those of earlier versions have every row."""
    return embedding.meta.get("stride", 1)


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


def _is_cached(episode: Records, fingerprint: str, stride: int) -> bool:
    try:
        cached = open_embedding(episode, fingerprint)
        return cached is not None and stride % stride_of(cached) == 0
    except ValueError as error:
        _LOG.warning("%s; computing them again", error)
        return False
