"""What every import shares: one foreign episode at a time, resumable, the damaged ones named and left out."""

import logging
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from bitagent_jax.data.embeddings import embedding_problem, write_embedding
from bitagent_jax.data.episodes import Arrays, episode_problem, list_episodes, write_episode
from bitagent_jax.data.records import open_records

_LOG = logging.getLogger(__name__)
# What NumPy, zipfile and HDF5 raise on damaged files, depending on which byte is wrong.
UNREADABLE = (OSError, ValueError, LookupError, EOFError, MemoryError, TypeError, RuntimeError, AttributeError)
UNREADABLE += (zipfile.BadZipFile, zlib.error, struct.error, AssertionError)
Source = TypeVar("Source")


class Foreign(NamedTuple):
    """One episode read from elsewhere, not yet checked."""

    arrays: Arrays
    meta: dict[str, Any]
    embedding: np.ndarray | None = None
    """float32 [L,D]; a row of zeros has none."""


class Imported(NamedTuple):
    """How many episodes were written now and how many were there before, and the names of what was skipped."""

    written: int
    present: int
    skipped: list[str]


def import_all(
    sources: Mapping[str, Source],
    read: Callable[[Source], Foreign],
    folder: str | Path,
    meta: Mapping[str, Any],
    fingerprint: str = "",
) -> Imported:
    """Write each source as the episode ``{name}.ep`` of a folder, unless it is there.

    An episode appears after its embeddings, so that one that is there is complete: an import that was stopped
    continues when called again.

    Args:
        sources: name -> what ``read`` takes.
        read: called for one source at a time; raises one of ``UNREADABLE`` for what is no episode.
        folder: where to; made if missing.
        meta: added to each episode's.
        fingerprint: the key of the embeddings' cache.

    Returns:
        The counts; each source that was skipped is also named in a warning.

    Raises:
        ValueError: nothing valid among the sources.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    present = sources.keys() & {path.stem for path in list_episodes(folder)}
    missing, skipped = [name for name in sources if name not in present], []
    with tempfile.TemporaryDirectory(prefix=".import-", dir=folder) as stage:
        for name in tqdm(missing, desc="importing", unit="episode", delay=2):
            try:
                foreign = _checked(read(sources[name]))
            except UNREADABLE as error:
                _LOG.warning("skipped %s: %s: %s", sources[name], type(error).__name__, error)
                skipped.append(str(sources[name]))
                continue
            _store(foreign._replace(meta={**foreign.meta, **meta}), Path(stage), name, fingerprint)
    if len(skipped) == len(sources):
        raise ValueError(
            f"nothing to import into {folder}: {len(sources)} episodes found, {len(skipped)} of them corrupt"
        )
    return Imported(len(missing) - len(skipped), len(present), skipped)


def _checked(foreign: Foreign) -> Foreign:
    why = episode_problem(foreign.arrays)
    if not why and foreign.embedding is not None:
        why = embedding_problem(foreign.embedding, np.ones(len(foreign.embedding), bool), len(foreign.arrays["image"]))
    if why:
        raise ValueError(why)
    return foreign


def _store(foreign: Foreign, stage: Path, name: str, fingerprint: str) -> None:
    episode = write_episode(stage, foreign.arrays, foreign.meta, name)
    if foreign.embedding is not None:
        has = foreign.embedding.any(1)
        cache = write_embedding(open_records(episode), fingerprint, foreign.embedding, has)
        cache.replace(stage.parent / cache.name)
    episode.replace(stage.parent / episode.name)
