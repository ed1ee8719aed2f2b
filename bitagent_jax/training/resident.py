"""A data set that lies in the devices' memory, so that the host neither decodes nor sends pictures."""

import math
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bitagent_jax.data.replay import Replay
from bitagent_jax.training import sharding

BLOCK = 4096  # rows sent to the devices at once
FIELDS = ("image", "action", "is_first", "embedding", "has_embedding")


def fits(replay: Replay, share: float) -> bool:
    """Return whether the replay's rows take no more than a share of each of this process's devices.

    Never where devices do not tell how much memory they have, as CPUs.
    """
    told = [device.memory_stats() or {} for device in jax.local_devices()]
    bytes_ = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in _shapes(replay).values())
    return bytes_ <= share * min(one.get("bytes_limit", 0) for one in told)


class Resident:
    """The rows of a replay on every device of a mesh; the host draws which sequences, the devices gather them.

    Batches are those of ``Replay.sample``, bit for bit, without the reward. Of several processes, each sends all rows
    to its own devices.
    """

    def __init__(self, replay: Replay, mesh: Mesh):
        """Decode and send every episode that the replay holds; it does not follow later ones.

        Raises:
            CorruptFile: an episode was damaged since it was opened.
        """
        self._replay, self._mesh = replay, mesh
        self._first: dict[Path, int] = {}
        self._rows = self._send()

        def gather(rows, batch, length):
            at = batch.pop("row")[:, None] + jnp.arange(length)
            return {name: field[at] for name, field in rows.items()} | batch

        whole, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
        self._gather = jax.jit(gather, in_shardings=(whole, split), out_shardings=split, static_argnums=2)

    def sample(self, batch: int, length: int, rng: np.random.Generator, only: np.ndarray | None = None) -> dict:
        """Draw the sequences of ``Replay.sample``, as arrays of the mesh."""
        paths, starts, texts = self._replay.draw(batch, length, rng, only)
        row = np.array([self._first[path] for path in paths]) + starts
        return self._gather(self._rows, sharding.place(self._mesh, {"row": row.astype(np.int32)} | texts), length)

    def _send(self) -> dict[str, jax.Array]:
        whole = sharding.replicated(self._mesh)
        rows = jax.jit(
            lambda: {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in _shapes(self._replay).items()},
            out_shardings=whole,
        )()
        put = jax.jit(
            lambda rows, block, at: jax.tree.map(
                lambda field, new: jax.lax.dynamic_update_slice_in_dim(field, new, at, 0), rows, block
            ),
            in_shardings=whole, out_shardings=whole, donate_argnums=0,
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
            rows = {name: rows[name] for name in FIELDS}
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
