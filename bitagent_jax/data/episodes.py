"""Episodes on disk: one file each, checked when written and when first opened, and an index of those checked."""

import json
import logging
import secrets
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bitagent_jax.data.records import CorruptFile, Records, from_header, open_records, write_records
from bitagent_jax.files import write_atomically

_LOG = logging.getLogger(__name__)
Arrays = dict[str, np.ndarray]
"""image uint8 [L,H,W,3], action float32 [L,A], reward float32 [L], is_first bool [L], is_last bool [L]."""

INDEX = ".index.json"
_KINDS = {"image": ("uint8", 4), "action": ("float32", 2), "reward": ("float32", 1), "is_first": ("bool", 1)}
_KINDS["is_last"] = ("bool", 1)


def write_episode(folder: str | Path, arrays: Arrays, meta: Mapping[str, Any], name: str | None = None) -> Path:
    """Write one episode, so that a reader finds all of it or nothing.

    Args:
        folder: where; made if missing.
        arrays: see ``Arrays``; row 0 is the reset, and ``action[t]`` led to ``image[t]``. Others are left out.
        meta: anything JSON holds; ``label`` is the sentence that the episode shows, or "" (the default).
        name: file name without its ending; by default the time, a random number, the task and the rows. A file
            of this name is replaced.

    Returns:
        The path of the file.

    Raises:
        ValueError: arrays or a label that no reader would accept.
    """
    why = episode_problem(arrays)
    if why:
        raise ValueError(f"not an episode: {why}")
    meta = {"label": "", **meta}
    if not isinstance(meta["label"], str):
        raise ValueError(f"not an episode: its label is {meta['label']!r}, no sentence")
    if name is None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        name = f"{stamp}-{secrets.token_hex(4)}-{meta.get('task', 'episode')}-{len(arrays['reward'])}"
    path = Path(folder) / f"{name}.ep"
    write_records(path, {key: arrays[key] for key in _KINDS}, meta)
    return path


def read_episode(path: str | Path) -> tuple[Arrays, dict[str, Any]]:
    """Read and check one whole episode; returns (arrays, meta) as given to ``write_episode``.

    Raises:
        CorruptFile: the file is missing, truncated, damaged, or does not hold what it should.
    """
    return _read_checked(open_records(path))


def list_episodes(folder: str | Path) -> list[Path]:
    """List the episode files of a folder in order of their names; temporaries and other files are left out."""
    return sorted(path for path in Path(folder).glob("*.ep") if not path.name.startswith("."))


def require_fitting(folder: str | Path, body: str, size: int, action_dim: int, length: int, capacity: int) -> None:
    """Check by their headers that a folder's episodes can be learned from; corrupt files are left to those who read.

    Args:
        folder: of episodes.
        body: that those which tell theirs must be of.
        size: of their square pictures.
        action_dim: the width of their actions.
        length: that at least one must have.
        capacity: that none may exceed, in frames.

    Raises:
        ValueError: naming the first that does not fit, or if there is none.
    """
    paths, longest = list_episodes(folder), 0
    for path in paths:
        with suppress(CorruptFile):
            episode = open_records(path)
            if episode.meta.get("body") not in (None, "", body):
                raise ValueError(f"{path} is of body {episode.meta['body']}, not {body}")
            for name, wanted in (("image", ("uint8", (size, size, 3))), ("action", ("float32", (action_dim,)))):
                if episode.fields.get(name) != wanted:
                    raise ValueError(f"{path} has {name} {episode.fields.get(name)}, but {body} needs {wanted}")
            if episode.rows > capacity:
                raise ValueError(f"{path} has {episode.rows} frames, more than config.data.capacity={capacity}")
            longest = max(longest, episode.rows)
    if longest < length:
        raise ValueError(
            f"{folder} holds {len(paths)} episode files, the longest valid one of {longest} rows, but "
            f"config.train.length={length}"
        )


def open_episodes(paths: list[Path]) -> tuple[list[Records], list[Path]]:
    """Open episode files of one folder, reading whole those alone that were never found valid before.

    What was valid is remembered in the folder's ``.index.json`` (a cache: safe to delete, and made anew when files
    change), so that opening thousands of episodes again takes no longer than listing them.

    Returns:
        The valid episodes in the given order, and the corrupt files, each of which is named in a warning.
    """
    if not paths:
        return [], []
    index = _read_index(paths[0].parent)
    found, corrupt, fresh = [], [], {}
    for path in tqdm(paths, desc="opening episodes", unit="episode", delay=2):
        try:
            episode, fresh[path.name] = _open_known(path, index.get(path.name))
            found.append(episode)
        except CorruptFile as error:
            _LOG.warning("skipped %s", error)
            corrupt.append(path)
    if any(index.get(name) != entry for name, entry in fresh.items()):
        _write_index(paths[0].parent, index | fresh)
    return found, corrupt


def _open_known(path: Path, entry: Any) -> tuple[Records, list]:
    """Open an episode by its index entry [bytes, mtime in ns, first byte of the rows, header] if that still holds."""
    try:
        status = path.stat()
    except OSError as error:
        raise CorruptFile(path, str(error)) from error
    if isinstance(entry, list) and len(entry) == 4 and entry[:2] == [status.st_size, status.st_mtime_ns]:
        with suppress(CorruptFile):  # then the index is damaged, not the episode
            return from_header(path, entry[3], entry[2], status.st_size), entry
    episode = open_records(path)
    _read_checked(episode)
    return episode, [status.st_size, status.st_mtime_ns, episode.offsets[0], json.loads(json.dumps(episode.header))]


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        index = json.loads((folder / INDEX).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return index if isinstance(index, dict) else {}


def _write_index(folder: Path, index: dict[str, Any]) -> None:
    try:
        kept = {name: entry for name, entry in index.items() if (folder / name).exists()}
        write_atomically(folder / INDEX, lambda file: file.write(json.dumps(kept).encode()))
    except OSError as error:
        _LOG.warning("no index in %s, so every start checks each episode: %s", folder, error)


def _read_checked(episode: Records) -> tuple[Arrays, dict[str, Any]]:
    if set(episode.fields) != set(_KINDS) or not isinstance(episode.meta.get("label"), str):
        why = f"it holds {', '.join(episode.fields)} and the label {episode.meta.get('label')!r}"
        raise CorruptFile(episode.path, f"not an episode: {why}")
    arrays = episode.read() if episode.rows else {}
    why = episode_problem(arrays)
    if why:
        raise CorruptFile(episode.path, why)
    return arrays, episode.meta


def episode_problem(arrays: Mapping[str, np.ndarray]) -> str:
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
