"""What a collection is: settings that name it, a file that tells them, and the right to write it."""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class CollectionInUse(RuntimeError):
    """Another process is writing the same collection."""


def tag_of(settings: Mapping[str, Any]) -> str:
    """Return the name of the collection of these settings: 8 hexadecimal digits of their hash."""
    return hashlib.sha256(_text(settings).encode()).hexdigest()[:8]


def plan_path(folder: str | Path, settings: Mapping[str, Any]) -> Path:
    """Return where a folder tells the settings of a collection: ``collect-{tag}.json``."""
    return Path(folder) / f"collect-{tag_of(settings)}.json"


@contextmanager
def claim(folder: str | Path, settings: Mapping[str, Any]) -> Iterator[str]:
    """Hold a collection for writing, alone until left or until the process dies in any way; yields its tag.

    Collections of other settings in the same folder are free. The file that tells the settings is also the lock.

    Args:
        folder: of episodes; made if missing.
        settings: all that fixes the episodes, but not how many; anything JSON holds.

    Raises:
        CollectionInUse: another process holds it.
        ValueError: the folder is a file.
    """
    path = plan_path(folder, settings)
    if path.parent.exists() and not path.parent.is_dir():
        raise ValueError(f"{folder} is a file, not a folder of episodes")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CollectionInUse(
                f"another process is collecting these episodes ({path}); for further ones beside them give another seed"
            ) from None
        file.seek(0)
        if file.read() != _text(settings):
            file.truncate(0)
            file.write(_text(settings))
            file.flush()
        yield tag_of(settings)


def _text(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, indent=1, sort_keys=True) + "\n"
