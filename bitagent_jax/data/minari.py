"""Minari data sets, both ways (needs the extra ``bitagent_jax[minari]``)."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bitagent_jax.data.episodes import list_episodes, open_episodes
from bitagent_jax.data.imports import UNREADABLE, Foreign, Imported, import_all
from bitagent_jax.data.records import MAX_BYTES, Records

_META = "bitagent"  # the attribute of an exported episode that holds its meta


def import_minari(source: str | Path, folder: str | Path, meta: Mapping[str, Any] | None = None) -> Imported:
    """Import a data set whose observations are, or hold one, RGB picture; called again, it continues.

    Bounded actions are scaled to [-1, 1]. No environment is made, even if the data set names one.

    Args:
        source: the data set's folder, or the id of one in Minari's own folder.
        folder: of episodes, where to; episode 3 of ``d`` becomes ``d-000003.ep``.
        meta: added to what an export of this package kept, and to ``source``, ``file`` and ``terminated``.

    Returns:
        The counts, and the episodes that were skipped.

    Raises:
        ValueError: no data set, one without pictures or with actions that are no vectors, or no valid episode.
    """
    storage, name = _open(source)
    image_key = _image_key(storage.observation_space)
    low, high = _bounds(storage.action_space)

    def read(label: str) -> Foreign:
        index = int(label.rpartition("/")[2])
        _check_size(storage, index)
        (episode,), (attributes,) = storage.get_episodes([index]), storage.get_episode_metadata([index])
        arrays = _arrays(episode, image_key, low, high)
        kept = json.loads(attributes.get(_META, "{}"))
        own = dict(source="minari", file=label, terminated=bool(np.any(episode["terminations"])))
        return Foreign(arrays, own | (kept if isinstance(kept, dict) and isinstance(kept.get("label"), str) else {}))

    labels = {f"{name}-{i:06d}": f"{name}/{i}" for i in range(storage.total_episodes)}
    return import_all(labels, read, folder, meta or {})


def export_minari(folder: str | Path, destination: str | Path) -> int:
    """Export a folder's episodes as a Minari data set (HDF5, pictures lossless).

    Args:
        folder: of episodes of one picture size and action width; corrupt ones are skipped with a warning.
        destination: a new folder, named like a data set (``name-v0``): below Minari's own folder, the data set's id
            is its path from there. It appears when it is complete.

    Returns:
        The number of episodes.

    Raises:
        ValueError: no episode, episodes that differ in shape, or a destination that exists or has another name.
    """
    minari, storages = _minari()
    destination = Path(destination)
    minari.dataset.minari_dataset.parse_dataset_id(destination.name)
    if destination.exists():
        raise ValueError(f"{destination} exists already")
    episodes, _ = open_episodes(list_episodes(folder))
    shapes = {str(episode.fields) for episode in episodes}
    if len(shapes) != 1:
        raise ValueError(f"expected episodes of one shape in {folder}, found {' and '.join(sorted(shapes)) or 'none'}")
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=destination.parent) as stage:
        draft = Path(stage) / "set"
        draft.mkdir()
        storage = storages.MinariStorage.new(draft / "data", *_spaces(episodes[0]), jpeg_encoding=False)
        storage.update_metadata({"dataset_id": destination.name, "minari_version": minari.__version__})
        storage.update_episodes(_buffers(minari, episodes))
        storage.update_episode_metadata({_META: json.dumps(episode.meta)} for episode in episodes)
        draft.rename(destination)
    return len(episodes)


def _minari():
    try:
        import minari
        from minari.dataset import minari_storage
    except ImportError as error:
        raise ValueError(f"Minari is not installed ({error}): pip install 'bitagent_jax[minari]'") from error
    return minari, minari_storage


def _open(source: str | Path):
    """Return the storage of a data set and its name, trusting neither: a file's environment is never made."""
    minari, storages = _minari()
    root = Path(source) if Path(source).is_dir() else minari.storage.get_dataset_path(str(source))
    path = root / "data" if (root / "data").is_dir() else root
    try:
        metadata = storages.MinariStorage.read_raw_metadata(path)
        if not all(isinstance(metadata.get(key), str) for key in ("observation_space", "action_space")):
            raise ValueError("its metadata do not describe its spaces")  # Minari would make the environment to ask it
        return storages.MinariStorage.read(path), root.resolve().name
    except UNREADABLE as error:
        raise ValueError(f"no Minari data set at {source}: {type(error).__name__}: {error}") from error


def _image_key(space) -> str | None:
    """Return the name of the only picture in an observation space; None if the space is a picture itself."""
    pictures = [name for name, inner in getattr(space, "spaces", {"": space}).items() if _is_picture(inner)]
    if len(pictures) != 1:
        raise ValueError(f"expected observations with one picture, uint8 [H, W, 3], got {space}")
    return pictures[0] or None


def _is_picture(space) -> bool:
    return space.dtype == np.uint8 and len(space.shape or ()) == 3 and space.shape[2] == 3


def _bounds(space) -> tuple[np.ndarray, np.ndarray]:
    """Return what the actions -1 and 1 stand for, float64 [A]."""
    if not hasattr(space, "low") or len(space.shape) != 1 or not np.issubdtype(space.dtype, np.floating):
        raise ValueError(f"expected actions that are vectors of real numbers, got {space}")
    bounded = np.isfinite(space.low) & np.isfinite(space.high) & (space.low < space.high)
    return np.where(bounded, space.low, -1.0), np.where(bounded, space.high, 1.0)


def _check_size(storage, index: int) -> None:
    """Refuse an HDF5 episode that declares more than it can hold: reading reserves all of it."""
    if storage.FORMAT != "hdf5":
        return
    import h5py

    sizes = []
    with h5py.File(storage.data_path / "main_data.hdf5", "r") as file:
        file[f"episode_{index}"].visititems(lambda _, item: sizes.append(getattr(item, "nbytes", 0)))
    if sum(sizes) > MAX_BYTES:
        raise ValueError(f"it would take {sum(sizes)} bytes, more than {MAX_BYTES >> 30} GiB")


def _arrays(episode: dict[str, Any], image_key: str | None, low: np.ndarray, high: np.ndarray) -> dict[str, np.ndarray]:
    image = episode["observations"] if image_key is None else episode["observations"][image_key]
    action, reward = np.asarray(episode["actions"], np.float64), np.asarray(episode["rewards"], np.float32)
    if action.shape[1:] != low.shape:
        raise ValueError(f"actions are {action.shape}, the space is {low.shape}")
    unit = (low == -1) & (high == 1)  # left exactly as they are
    action = np.where(unit, action, 2 * (action - low) / (high - low) - 1)
    at = np.arange(len(action) + 1)
    return {
        "image": image,
        "action": np.concatenate([np.zeros((1, len(low))), action]).astype(np.float32),
        "reward": np.concatenate([[0], reward]).astype(np.float32),
        "is_first": at == 0,
        "is_last": at == len(action),
    }


def _spaces(episode: Records):
    from gymnasium.spaces import Box

    image, action = episode.fields["image"][1], episode.fields["action"][1]
    return Box(0, 255, image, np.uint8), Box(-1, 1, action, np.float32)


def _buffers(minari, episodes: list[Records]) -> Iterator[Any]:
    for episode in tqdm(episodes, desc="exporting", unit="episode", delay=2):
        arrays = episode.read()
        ends = arrays["is_last"][1:]
        terminated = ends & bool(episode.meta.get("terminated"))
        yield minari.data_collector.EpisodeBuffer(
            observations=arrays["image"],
            actions=arrays["action"][1:],
            rewards=arrays["reward"][1:],
            terminations=terminated,
            truncations=ends & ~terminated,
        )
