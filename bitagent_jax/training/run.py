"""The run folder: one place for a run's config, episodes, checkpoints, metrics and videos.

RUN/config.json      the resolved config: all that loading needs
    lock             held by the training process, its pid inside
    prompts.npz      what it was told, embedded
    returns.npz      how well rows of the episodes follow that, where it imitates those that do
    episodes/        of config.data.mix (config.data.folder may name another place); online/ of the agent
    checkpoints/  metrics.jsonl  tensorboard/  videos/
    cache/           compiled programs
"""

import fcntl
import os
from pathlib import Path
from typing import IO, Self

from ml_collections import ConfigDict

from bitagent_jax import config as config_lib

RESUMABLE = (  # fields that a later run of the same folder may change: none alters what was learned so far
    "train.stage1_steps",
    "train.stage2_steps",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep",
    "train.video_every",
    "eval.episodes",
    "env.workers",
    "compute.fsdp",
    "compute.data_share",
    "explore.heads",
    "explore.layers",
    "explore.units",
    "explore.updates",
)

LAYOUT = (
    "config.json",
    "lock",
    "prompts.npz",
    "returns.npz",
    "episodes",
    "online",
    "checkpoints",
    "metrics.jsonl",
    "tensorboard",
    "videos",
    "cache",
)


class RunError(RuntimeError):
    """A run folder is in use, is not one, or belongs to another config."""


class RunFolder:
    """A run's paths and config; a context manager that holds the training lock when made by :meth:`open`."""

    def __init__(self, path: Path, config: ConfigDict, lock: IO[str] | None = None):
        self.path = path
        self.config = config
        self.prompts = path / "prompts.npz"
        self.returns = path / "returns.npz"
        self.checkpoints = path / "checkpoints"
        self.episodes = Path(config.data.folder) if config.data.folder else path / "episodes"
        self.tensorboard = path / "tensorboard"
        self.videos = path / "videos"
        self.cache = path / "cache"
        self._lock = lock

    @classmethod
    def open(cls, path: str | Path, config: ConfigDict, primary: bool = True) -> Self:
        """Create the folder, or resume it, for training: exclusive until closed or until the process dies.

        Args:
            path: the run folder; new, empty or made by an earlier call.
            config: the resolved config. On a resume only the fields in ``RESUMABLE`` may differ from the
                stored ones; the stored config is then updated. A run that failed before it had an episode or a
                checkpoint has nothing to resume: any config may take the place of its own.
            primary: whether this process writes; of several processes in one run only the first does, the
                others take no lock and create nothing.

        Raises:
            RunError: if another process trains in the folder (its pid is named), if the folder holds
                something else than a run, or if any other field differs (with its stored and given values).
            ValueError: if the config is not valid, or the stored one is from another version.
        """
        path = Path(path)
        config = config_lib.validate(config)
        if not primary:
            return cls(path, config)
        _check_vacant(path)
        path.mkdir(parents=True, exist_ok=True)
        lock = _acquire(path / "lock")
        try:
            if (path / "config.json").exists():
                try:
                    _check_same(path, config_lib.read(path / "config.json"), config)
                except (RunError, ValueError):
                    if any(any((path / name).glob("*")) for name in ("episodes", "online", "checkpoints")):
                        raise
                    (path / "prompts.npz").unlink(missing_ok=True)
            config_lib.save(config, path / "config.json")
            run = cls(path, config, lock)
            for folder in (run.checkpoints, run.episodes, run.tensorboard, run.videos, run.cache):
                folder.mkdir(parents=True, exist_ok=True)
            return run
        except BaseException:
            lock.close()
            raise

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read an existing run for evaluation: takes no lock, creates nothing.

        Raises:
            RunError: if there is no ``config.json``; runs that lie beside or below are named.
        """
        path = Path(path)
        if not (path / "config.json").is_file():
            near = {file.parent for root in (path, path.parent) for file in root.glob("*/config.json")}
            hint = f" Runs found near it: {', '.join(sorted(map(str, near)))}." if near else ""
            raise RunError(f"{path} is not a run folder: looked for {path / 'config.json'}.{hint}")
        return cls(path, config_lib.read(path / "config.json"))

    def close(self) -> None:
        """Release the training lock; the paths stay usable."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def _check_vacant(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file, not a run folder")
    if path.is_dir() and not (path / "config.json").exists():
        names = (entry.name for entry in path.iterdir() if entry.suffix != ".tmp")
        if foreign := sorted(name for name in names if name not in LAYOUT):
            raise RunError(f"{path} is not a run folder: it has no config.json but holds {foreign[0]!r}")


def _acquire(path: Path) -> IO[str]:
    """Take the kernel's lock on the file (released on any death of the process) and write the pid into it."""
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise RunError(f"run folder {path.parent} is in use by another process (pid {holder})") from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _check_same(path: Path, stored: ConfigDict, given: ConfigDict) -> None:
    old, new = config_lib.flatten(stored), config_lib.flatten(given)
    different = [field for field in new if new[field] != old[field] and field not in RESUMABLE]
    if different:
        lines = [f"  config.{field}: stored {old[field]!r}, given {new[field]!r}" for field in different]
        advice = f"{path} was started with another config; use a new folder or the stored values:"
        raise RunError("\n".join([advice, *lines]))
