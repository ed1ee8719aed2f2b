"""Episodes on disk: one compressed ``.npz`` each, written crash-safe and checked when read."""

import json
import os
import secrets
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

Arrays = dict[str, np.ndarray]
"""image uint8 [L,H,W,3], action float32 [L,A], reward float32 [L], is_first bool [L], is_last bool [L]."""

_KINDS = {"image": ("uint8", 4), "action": ("float32", 2), "reward": ("float32", 1), "is_first": ("bool", 1)}
_KINDS["is_last"] = ("bool", 1)
# What NumPy and zipfile raise on damaged archives, depending on which byte is wrong.
UNREADABLE = (OSError, ValueError, LookupError, EOFError, MemoryError, TypeError, RuntimeError, AttributeError)
UNREADABLE += (zipfile.BadZipFile, zlib.error, struct.error)


class CorruptEpisode(ValueError):
    """A file that is not a whole, valid episode; ``path`` names it and ``why`` says what is wrong."""

    def __init__(self, path: Path, why: str):
        super().__init__(f"corrupt episode {path}: {why}")
        self.path, self.why = path, why


def write_episode(folder: str | Path, arrays: Arrays, meta: Mapping[str, Any], name: str | None = None) -> Path:
    """Write one episode, so that a reader finds all of it or nothing.

    Args:
        folder: where; made if missing.
        arrays: see ``Arrays``; row 0 is the reset, and ``action[t]`` led to ``image[t]``.
        meta: anything JSON holds; ``label`` is the sentence that the episode shows, or "" (the default).
        name: file name without its ending; by default the time, a random number, the task and the rows. A file
            of this name is replaced.

    Returns:
        The path of the file.

    Raises:
        ValueError: arrays that no reader would accept.
    """
    why = _problem(arrays)
    if why:
        raise ValueError(f"not an episode: {why}")
    meta = {"label": "", **meta}
    if name is None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        name = f"{stamp}-{secrets.token_hex(4)}-{meta.get('task', 'episode')}-{len(arrays['reward'])}"
    path = Path(folder) / f"{name}.npz"
    members = {key: arrays[key] for key in _KINDS} | {"meta": np.array(json.dumps(meta, sort_keys=True))}
    write_atomically(path, lambda file: np.savez_compressed(file, **members))
    return path


def read_episode(path: str | Path) -> tuple[Arrays, dict[str, Any]]:
    """Read and check one episode; returns (arrays, meta) as given to ``write_episode``.

    Raises:
        CorruptEpisode: the file is missing, truncated, damaged, or does not hold what it should.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in _KINDS}
            meta = json.loads(str(archive["meta"]))
    except UNREADABLE as error:
        raise CorruptEpisode(path, f"{type(error).__name__}: {error}") from error
    why = _problem(arrays)
    if not why and not (isinstance(meta, dict) and isinstance(meta.get("label"), str)):
        why = f"meta is not a dictionary with a label: {meta!r}"
    if why:
        raise CorruptEpisode(path, why)
    return arrays, meta


def list_episodes(folder: str | Path) -> list[Path]:
    """List the episode files of a folder in order of their names; temporaries and other files are left out."""
    return sorted(path for path in Path(folder).glob("*.npz") if not path.name.startswith("."))


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Create or replace a file all at once: under a hidden temporary name first, then renamed.

    Args:
        path: the file; its folder is made if missing.
        write: is given the open temporary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _problem(arrays: Mapping[str, np.ndarray]) -> str:
    """Say what is wrong with an episode's arrays; "" if nothing is."""
    missing = [key for key in _KINDS if key not in arrays]
    if missing:
        return f"missing {', '.join(missing)}"
    for key, (kind, rank) in _KINDS.items():
        array = arrays[key]
        if array.dtype != kind or array.ndim != rank:
            return f"{key} must be {kind} with {rank} axes, got {array.dtype} {array.shape}"
        if len(array) != len(arrays["image"]) or 0 in array.shape:
            return f"{key} has shape {array.shape}, image has {arrays['image'].shape}"
    if arrays["image"].shape[3] != 3:
        return f"image must end in 3 colours, got {arrays['image'].shape}"
    for key in ("action", "reward"):
        if not np.isfinite(arrays[key]).all():
            return f"{key} has values that are not finite"
    if not arrays["is_first"][0] or arrays["is_first"][1:].any():
        return f"is_first must be true in row 0 alone, is in rows {np.flatnonzero(arrays['is_first']).tolist()}"
    if arrays["is_last"][:-1].any():
        return f"is_last is true before the last row, in rows {np.flatnonzero(arrays['is_last']).tolist()}"
    return ""
