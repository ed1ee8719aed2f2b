"""Asynchronous checkpoints of the one training state, through Orbax, with a digest that finds damage.

RUN/checkpoints/<step>/               one finished checkpoint (renamed into place by Orbax when complete)
                      /digest.json    size and CRC-32 of its files, written when the save has finished
                <step>.set-aside      a checkpoint that a resumed run went back behind; kept, not read
"""

import json
import logging
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import jax
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from bitagent_jax.files import write_atomically
from bitagent_jax.training.sharding import wait_for_all

logger = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint is missing, damaged, could not be written, or belongs to another model."""


class Checkpoints:
    """The checkpoints of one folder: written by one training process, read by any."""

    def __init__(self, folder: str | Path, keep: int = 3):
        """Look at ``folder``; nothing is created before the first :meth:`save`, which then keeps ``keep``."""
        if keep < 1:
            raise ValueError(f"config.train.keep={keep} must be at least 1")
        self.folder = Path(folder).absolute()
        self._keep = keep
        self._writer: ocp.training.Checkpointer | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future | None = None
        self._current: int | None = None  # the step saved or restored last

    def steps(self) -> list[int]:
        """Return the steps of the finished checkpoints, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.folder.iterdir() if entry.name.isdigit())

    def latest_step(self) -> int | None:
        """Return the newest finished step, or None."""
        return max(self.steps(), default=None)

    def save(self, step: int, state: Any) -> None:
        """Copy ``state`` to the host and write it in the background; ``state`` may be donated right after.

        Waits for the save before. A step that was just saved or restored is not written again. Steps newer than
        the first one saved (left by a history that a restore went back behind) are set aside, not deleted.

        Raises:
            CheckpointError: if the save before, or the start of this one, failed.
        """
        self.wait()
        if step == self._current:
            return
        try:
            writer = self._open_writer(step)
            response = writer.save_async(step, state, force=True)
        except Exception as error:
            raise CheckpointError(f"saving {self.folder / str(step)} failed: {error}") from error
        self._current = step
        self._pending = self._thread.submit(_finish, response, self.folder / str(step))

    def wait(self) -> None:
        """Block until the save in progress is on disk.

        Raises:
            CheckpointError: if it failed.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def restore(self, abstract_state: Any, step: int | None = None) -> Any:
        """Read a whole state.

        Args:
            abstract_state: pytree of ``ShapeDtypeStruct`` like the saved state; each leaf lands on its sharding
                (on the first device where it has none), whatever devices it was saved from.
            step: which checkpoint; None for the newest readable one: damaged newer ones are named in a warning.

        Raises:
            CheckpointError: if there is none, if ``step`` is damaged (the error names the path and the newest
                usable step), or if names, shapes or types differ from the saved ones.
        """
        return self._restore(abstract_state, step, partial=False)

    def restore_part(self, abstract_part: Any, step: int | None = None) -> Any:
        """Read a part of the state, such as ``{"params": ...}``, for acting; otherwise like :meth:`restore`."""
        return self._restore(abstract_part, step, partial=True)

    def close(self) -> None:
        """Finish the save in progress and release the threads."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._thread.shutdown()
                self._writer.close()
                self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _open_writer(self, step: int) -> ocp.training.Checkpointer:
        self.folder.mkdir(parents=True, exist_ok=True)  # else Orbax waits minutes before it reports
        if self._writer is None:
            if jax.process_index() == 0:
                for later in (found for found in self.steps() if found >= step):
                    _set_aside(self.folder / str(later))
            wait_for_all("checkpoints set aside")
            self._writer = ocp.training.Checkpointer(
                self.folder,
                preservation_policy=ocp.training.preservation_policies.LatestN(self._keep),
                cleanup_tmp_directories=True,
            )
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        return self._writer

    def _restore(self, abstract: Any, step: int | None, partial: bool) -> Any:
        self.wait()
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"no checkpoint in {self.folder}")
        if step is not None and step not in steps:
            raise CheckpointError(f"no checkpoint of step {step} in {self.folder}; it holds {steps}")
        abstract = jax.tree.map(_with_sharding, abstract)
        for candidate in [step] if step is not None else reversed(steps):
            path = self.folder / str(candidate)
            try:
                _verify(path)
                stored = _read_shapes(path)
            except _Damaged as damage:
                logger.warning("checkpoint %s is damaged (%s)", path, damage)
                continue
            _check_fits(path, stored, abstract, partial)
            try:
                state = _load(path, abstract, partial)
            except Exception as error:
                logger.warning("checkpoint %s cannot be read (%s)", path, _first_line(error))
                continue
            self._current = candidate
            return state
        raise self._damaged_error(steps if step is None else [step])

    def _damaged_error(self, tried: list[int]) -> CheckpointError:
        usable = next((step for step in reversed(self.steps()) if step not in tried and self._sound(step)), None)
        hint = f"the newest usable one is step {usable}" if usable is not None else "no other one is usable"
        names = ", ".join(str(self.folder / str(step)) for step in tried)
        return CheckpointError(f"checkpoint damaged or unreadable: {names}; {hint}")

    def _sound(self, step: int) -> bool:
        try:
            _verify(self.folder / str(step))
            _read_shapes(self.folder / str(step))
        except _Damaged:
            return False
        return True


class _Damaged(Exception):
    pass


def _finish(response: Any, path: Path) -> None:
    try:
        response.result()
        if jax.process_index() == 0:
            digest = {name: _digest(path / name) for name in _files(path)}
            text = json.dumps(digest, indent=1) + "\n"
            write_atomically(path / "digest.json", lambda file: file.write(text.encode()))
    except Exception as error:
        raise CheckpointError(f"saving {path} failed: {error}") from error


def _files(path: Path) -> list[str]:
    files = (file for file in path.rglob("*") if file.is_file())
    return sorted(str(file.relative_to(path)) for file in files if file.name != "digest.json")


def _digest(path: Path) -> list[int]:
    size, crc = 0, 0
    with path.open("rb") as file:
        while block := file.read(2**22):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]


def _verify(path: Path) -> None:
    """Compare the files with the digest; a checkpoint whose process died before writing one passes."""
    if not (path / "digest.json").exists():
        return
    try:
        stored = json.loads((path / "digest.json").read_text())
    except ValueError:
        raise _Damaged("digest.json is not JSON") from None
    for name, digest in stored.items():
        if not (path / name).is_file():
            raise _Damaged(f"{name} is missing")
        if _digest(path / name) != digest:
            raise _Damaged(f"{name} differs from its digest")


def _read_shapes(path: Path) -> dict[str, tuple]:
    try:
        shapes = _shapes(ocp.metadata(path).metadata)
    except Exception as error:
        raise _Damaged(_first_line(error)) from error
    if not shapes:
        raise _Damaged("its metadata cannot be read")
    return shapes


def _shapes(tree: Any) -> dict[str, tuple]:
    def shape(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
        return tuple(leaf.shape), str(leaf.dtype)

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): shape(leaf) for path, leaf in leaves}


def _check_fits(path: Path, stored: dict[str, tuple], abstract: Any, partial: bool) -> None:
    wanted = _shapes(abstract)
    names = sorted(wanted if partial else wanted.keys() | stored.keys())
    wrong = [name for name in names if stored.get(name) != wanted.get(name)]
    if wrong:
        show = [f"  {name}: stored {stored.get(name)}, wanted {wanted.get(name)}" for name in wrong[:5]]
        more = f"\n  and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise CheckpointError(f"{path} does not fit this model:\n" + "\n".join(show) + more)


def _load(path: Path, abstract: Any, partial: bool) -> Any:
    context = ocp.Context()
    context.pytree.loading.partial_load = partial
    with context:
        state = ocp.load(path, abstract)
    # Orbax gives keys an equivalent but unequal sharding, for which jit would compile again.
    return jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, abstract))


def _with_sharding(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _set_aside(path: Path) -> None:
    target, count = path.with_name(f"{path.name}.set-aside"), 1
    while target.exists():
        count += 1
        target = path.with_name(f"{path.name}.set-aside-{count}")
    path.rename(target)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
