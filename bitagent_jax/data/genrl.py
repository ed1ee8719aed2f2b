"""Reading GenRL's episode files: nested folders of ``.npz``, pictures channels first, some with embeddings."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bitagent_jax.data.imports import Foreign, Imported, import_all
from bitagent_jax.data.records import MAX_BYTES

FINGERPRINT = "genrl-clip_video"
"""Key of the precomputed embeddings, ``clip_video``: InternVideo2 of the eight frames that end at a row."""


def import_genrl(source: str | Path, folder: str | Path, meta: Mapping[str, Any] | None = None) -> Imported:
    """Import every ``.npz`` at or below a folder; called again, it continues.

    ``clip_video`` goes into the embedding cache under ``FINGERPRINT``; its rows of zeros are rows without an
    embedding. ``clip_img``, ``discount`` and ``state`` are left out.

    Args:
        source: of GenRL's files.
        folder: of episodes, where to; a file ``a/b.npz`` becomes ``a+b.ep``.
        meta: added to each episode's ``source``, ``file`` and ``terminated``.

    Returns:
        The counts, and the files that were skipped: truncated, foreign, or holding anything else than they should.

    Raises:
        ValueError: no such folder, or no valid file in it.
    """
    source = Path(source)
    if not source.is_dir():
        raise ValueError(f"there is no folder {source} to import from")
    paths = {"+".join(path.relative_to(source).with_suffix("").parts): path for path in sorted(source.rglob("*.npz"))}

    def read(path: Path) -> Foreign:
        return read_genrl(path, str(path.relative_to(source)))

    return import_all(paths, read, folder, meta or {}, FINGERPRINT)


def read_genrl(path: Path, name: str) -> Foreign:
    """Read one file; raises one of ``imports.UNREADABLE``. Pickled objects are refused by NumPy, never loaded."""
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > MAX_BYTES:
        raise ValueError(f"it would unpack to {size} bytes, more than {MAX_BYTES >> 30} GiB")
    with np.load(path, allow_pickle=False) as archive:
        image, reward = archive["observation"], archive["reward"]
        arrays = {key: archive[key] for key in ("action", "is_first", "is_last")}
        terminated = archive["is_terminal"]
        embedding = archive["clip_video"] if "clip_video" in archive else None
    if image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(f"observation must be [L, 3, H, W], got {image.shape}")
    if reward.shape != (len(image), 1) or terminated.shape != (len(image),):
        raise ValueError(f"reward is {reward.shape} and is_terminal {terminated.shape} for {len(image)} rows")
    arrays |= {"image": np.ascontiguousarray(np.moveaxis(image, 1, 3)), "reward": reward[:, 0]}
    return Foreign(arrays, dict(source="genrl", file=name, terminated=bool(terminated.any())), embedding)
