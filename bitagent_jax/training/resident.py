"""A data set that lies in the devices' memory, so that the host neither decodes nor sends pictures."""

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bitagent_jax.data.replay import Replay
from bitagent_jax.training import sharding

logger = logging.getLogger(__name__)

BLOCK = 4096  # rows sent to the devices at once
FIELDS = ("image", "action", "is_first", "embedding", "has_embedding")


def fits(replay: Replay, share: float) -> bool:
    """Return whether the replay's rows take no more than a share of what is free on each device.

    Never where devices do not tell, as CPUs, nor in a run of several processes: these launch programs in one order,
    which a thread that gathers batches would break.
    """
    if jax.process_count() > 1:
        return False
    told = [device.memory_stats() or {} for device in jax.local_devices()]
    free = min(one.get("bytes_limit", 0) - one.get("bytes_in_use", 0) for one in told)
    need = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in _shapes(replay).values())
    return need <= share * free


class Resident:
    """The rows of a replay on every device of a mesh; the host draws which sequences, the devices gather them.

    Batches are those of ``Replay.sample``, bit for bit, without the reward.
    """

    def __init__(self, replay: Replay, mesh: Mesh):
        """Decode and send every episode that the replay holds; it does not follow later ones.

        Raises:
            CorruptFile: an episode was damaged since it was opened.
        """
        self._replay, self._mesh = replay, mesh
        self._first: dict[Path, int] = {}
        shapes = _shapes(replay)
        self._rows = self._send(shapes)
        size = sum(field.nbytes for field in self._rows.values()) / 2**30
        logger.info("%.1f GiB of episodes lie in the memory of each device (compute.data_share)", size)
        picture = shapes["image"].shape[1:]

        def gather(rows, batch, length):
            at = batch.pop("row")[:, None] + jnp.arange(length)
            fields = {name: field[at] for name, field in rows.items()}
            return fields | {"image": fields["image"].reshape(*at.shape, *picture)} | batch

        replicated, by_batch = sharding.replicated(mesh), sharding.batch_sharding(mesh)
        self._gather = jax.jit(gather, in_shardings=(replicated, by_batch), out_shardings=by_batch, static_argnums=2)

    def sample(self, batch: int, length: int, rng: np.random.Generator, only: np.ndarray | None = None) -> dict:
        """Draw the sequences of ``Replay.sample``, as arrays of the mesh."""
        paths, starts, texts = self._replay.draw(batch, length, rng, only)
        row = np.array([self._first[path] for path in paths]) + starts
        return self._gather(self._rows, sharding.place(self._mesh, {"row": row.astype(np.int32)} | texts), length)

    def _send(self, shapes: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Fill arrays of all rows; pictures are flat, since devices may pad small last axes."""
        replicated = sharding.replicated(self._mesh)
        count, *picture = shapes["image"].shape
        flat = shapes | {"image": jax.ShapeDtypeStruct((count, math.prod(picture)), np.uint8)}
        rows = jax.jit(
            lambda: {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in flat.items()}, out_shardings=replicated
        )()
        put = jax.jit(
            lambda rows, block, at: jax.tree.map(
                lambda field, new: jax.lax.dynamic_update_slice_in_dim(field, new, at, 0), rows, block
            ),
            in_shardings=replicated, out_shardings=replicated, donate_argnums=0,
        )  # fmt: skip
        for number, block in enumerate(self._blocks()):
            rows = put(rows, block, np.int32(number * BLOCK))
        return rows

    def _blocks(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield ``BLOCK`` rows at a time, the last ones padded, and note where each episode begins."""
        held, done = None, 0
        for path, rows in self._replay.whole():
            self._first[path] = done
            done += len(rows["action"])
            rows = {name: rows[name] for name in FIELDS} | {"image": rows["image"].reshape(len(rows["image"]), -1)}
            held = rows if held is None else {name: np.concatenate([held[name], rows[name]]) for name in FIELDS}
            while len(held["action"]) >= BLOCK:
                yield {name: field[:BLOCK] for name, field in held.items()}
                held = {name: field[BLOCK:] for name, field in held.items()}
        if rest := len(held["action"]):
            yield {
                name: np.pad(field, [(0, BLOCK - rest)] + [(0, 0)] * (field.ndim - 1)) for name, field in held.items()
            }


def _shapes(replay: Replay) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of all rows, padded to whole blocks."""
    one = replay.sample(1, 1, np.random.default_rng(0))
    count = -(-replay.frames // BLOCK) * BLOCK
    return {name: jax.ShapeDtypeStruct((count, *one[name].shape[2:]), one[name].dtype) for name in FIELDS}
