"""Where arrays live: the mesh, the table from parameter path to partition, and placing batches.

The same ``jit`` program runs on one CPU, eight fake ones, one GPU or many hosts: batches are split over
``('data', 'fsdp')``, big matrices over ``'fsdp'``, everything else is replicated (``fsdp=1`` replicates all).
"""

import hashlib
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

BIG = 2**14  # elements; smaller matrices cost less replicated than gathered

# (regex searched in a leaf path such as "params/world_model/from_stoch/kernel", smallest rank it accepts,
# "fsdp" = split the largest divisible axis | "replicate"); the first rule that matches wins.
RULES: tuple[tuple[str, int, str], ...] = (
    (r"(^|/)(params|slow|opt)/.*(kernel|embedding|table|weight)\b", 2, "fsdp"),
    (r"(^|/)(params|slow|opt)/", 0, "replicate"),
    (r"(^|/)(step|key|norms|count)\b", 0, "replicate"),
)


def make_mesh(fsdp: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """Build the mesh ``('data', 'fsdp')`` of shape ``[devices / fsdp, fsdp]`` with automatic sharding.

    Raises:
        ValueError: if ``fsdp`` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        raise ValueError(f"config.compute.fsdp={fsdp} does not divide the {len(devices)} devices")
    grid = np.array(devices).reshape(len(devices) // fsdp, fsdp)
    return Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def partition(path: str, shape: tuple[int, ...], fsdp: int) -> P:
    """Look up the partition of one leaf: a matrix of at least ``BIG`` elements splits its largest axis that
    ``fsdp`` divides.

    Raises:
        ValueError: if the path matches no rule.
    """
    for pattern, rank, kind in RULES:
        if len(shape) >= rank and re.search(pattern, path):
            return _split(shape, fsdp) if kind == "fsdp" else P()
    raise ValueError(f"state leaf {path!r} of shape {shape} matches no rule of training/sharding.py RULES")


def state_shardings(mesh: Mesh, abstract_state: Any) -> Any:
    """Map a pytree of shapes to the same pytree of ``NamedSharding`` by the table ``RULES``."""
    fsdp = mesh.shape["fsdp"]

    def sharding(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, partition(name, leaf.shape, fsdp))

    return jax.tree_util.tree_map_with_path(sharding, abstract_state)


def with_shardings(abstract_state: Any, shardings: Any) -> Any:
    """Attach shardings to a pytree of ``ShapeDtypeStruct``: what restoring a checkpoint wants."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_state,
        shardings,
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: axis 0 over all devices."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, P())


def jit_step(step: Callable, mesh: Mesh, shardings: Any) -> Callable:
    """Jit ``step(state, batch) -> (state, metrics)`` for a mesh; the state, placed by ``shardings``, is donated.

    Parameters that ``fsdp`` splits are gathered once, before the step: otherwise the partitioner would split the
    activations too, and exchange them in every iteration of every loop. Moments stay split.
    """

    def gathered(state, batch):
        whole = jax.lax.with_sharding_constraint((state.params, state.slow), replicated(mesh))
        return step(state._replace(params=whole[0], slow=whole[1]), batch)

    return jax.jit(
        gathered if mesh.shape["fsdp"] > 1 else step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def check_batch(mesh: Mesh, batch: int) -> None:
    """Check that the global batch divides over the devices.

    Raises:
        ValueError: naming the batch, the number of devices and the nearest batches that would do.
    """
    if batch % mesh.size or batch < 1:
        below = batch // mesh.size * mesh.size
        near = f"{below} or {below + mesh.size}" if below else str(mesh.size)
        raise ValueError(f"config.train.batch={batch} is not divisible by the {mesh.size} devices; use {near}")


def local_rows(mesh: Mesh, batch: int) -> np.ndarray:
    """Return which rows of a global batch the devices of this process hold, ascending: int ``[B / processes]``."""
    held = batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    return np.unique(np.concatenate([np.arange(batch)[index] for index in held]))


def place(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Put this process's rows (``local_rows``) of a batch on the devices, axis 0 split over all.

    The arrays must be fresh: on a CPU ``device_put`` may keep the NumPy buffer instead of a copy, so that a
    writer who reuses it would change the batch.
    """
    sharding = batch_sharding(mesh)
    if jax.process_count() > 1:
        return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
    return {name: jax.device_put(rows, sharding) for name, rows in batch.items()}


def initialize_distributed() -> bool:
    """Join the other processes of a multi-host run if the environment names them; return whether it did.

    Reads ``JAX_COORDINATOR_ADDRESS`` with ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``. In a SLURM job of more than
    one task, and wherever ``BITAGENT_DISTRIBUTED=1`` says so (TPU slices), JAX finds the others by itself. Call before
    the first use of a device.

    Raises:
        ValueError: an address without number and index of the processes.
    """
    if address := os.environ.get("JAX_COORDINATOR_ADDRESS"):
        numbers = [os.environ.get(name, "") for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")]
        if not all(number.isdigit() for number in numbers):
            raise ValueError(
                f"JAX_COORDINATOR_ADDRESS={address} needs JAX_NUM_PROCESSES and JAX_PROCESS_ID, two whole numbers; "
                f"got {numbers[0]!r} and {numbers[1]!r}"
            )
        count, index = map(int, numbers)
        jax.distributed.initialize(coordinator_address=address, num_processes=count, process_id=index)
        return True
    slurm = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ
    if slurm or os.environ.get("BITAGENT_DISTRIBUTED") == "1":
        jax.distributed.initialize()
        return True
    return False


def wait_for_all(name: str) -> None:
    """Wait until every process of the run has come to this point; the name tells the points apart."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def check_same(name: str, *values: Any) -> None:
    """Wait until every process has come here, and see that all found the same.

    Raises:
        RuntimeError: in all of them, if not: a shared folder may show them different states, or copies differ.
    """
    if jax.process_count() > 1:
        digest = np.frombuffer(hashlib.sha256(repr(values).encode()).digest(), np.uint8)
        every = multihost_utils.process_allgather(digest)
        if differing := [index for index, one in enumerate(every) if (one != every[0]).any()]:
            raise RuntimeError(f"processes {differing} found other {name} in the folders of the run than process 0")


def on_host(tree: Any) -> Any:
    """Return arrays that this process can use alone; with several processes, all have to call it."""
    return multihost_utils.process_allgather(tree, tiled=True) if jax.process_count() > 1 else tree


def enable_compilation_cache(folder: Path) -> None:
    """Keep compiled programs in the folder, so that a resumed run starts without compiling again.

    ``JAX_COMPILATION_CACHE_DIR`` names another folder, for example one that several runs share.
    """
    jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _split(shape: tuple[int, ...], fsdp: int) -> P:
    divisible = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if fsdp == 1 or not divisible or math.prod(shape) < BIG:
        return P()
    axis = max(divisible, key=lambda axis: (shape[axis], axis))
    return P(*("fsdp" if index == axis else None for index in range(len(shape))))
