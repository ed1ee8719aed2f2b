"""``bitagent bench scaling``: what crosses devices in a train step, counted in the compiled programs."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from bitagent_jax.agent.joint import loss_table
from bitagent_jax.bench import hlo, measure, program
from bitagent_jax.training import sharding

SCALARS = 64  # elements of a tensor that counts as scalars: losses, norms, one number a task
MIB = 2**20


def bench(
    config: ConfigDict, preset: str, *, devices: int = 8, fsdp: Sequence[int] = (1, 8), stages: Sequence[int] = (1, 2)
) -> str:
    """Compile the steps of both stages for meshes of fake CPU devices and count; nothing is run.

    Args:
        config: its batch is raised to the number of devices if it is smaller.
        preset: its name.
        devices: how many to fake; where a device has been used before, that many must be there.
        fsdp: sizes of that axis; the data axis takes the rest.

    Returns:
        A table and its JSON lines.

    Raises:
        ValueError: sizes that do not divide each other.
    """
    fake_devices(devices)
    rows = []
    for size in fsdp:
        mesh = sharding.make_mesh(size, jax.devices()[:devices])
        sized = measure.with_batch(config, max(config.train.batch, devices))
        sized.compute.fsdp = size
        for stage in stages:
            rows += stage_rows(sized, stage, mesh)
    return measure.show("scaling", rows, program.facts(config, preset))


def fake_devices(count: int) -> None:
    """Have this process use ``count`` CPU devices.

    Raises:
        ValueError: if it uses devices already, and fewer; or a count below 2.
    """
    if count < 2:
        raise ValueError(f"devices={count}: nothing crosses devices where there are fewer than 2")
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        pass  # in use already: counted below
    if len(jax.devices()) < count:
        raise ValueError(f"{count} devices wanted, but this process already uses {len(jax.devices())}")


def stage_rows(config: ConfigDict, stage: int, mesh) -> list[dict[str, Any]]:
    """Compile one stage for a mesh; returns a row for each kind of collective and of what it carries."""
    done = program.compiled(program.train_step(config, stage, f"stage {stage}", mesh))
    params = done.program.state.params
    trained = {module for row in loss_table(config, stage).values() for module in row.modules}
    gradients = sum(leaf.size * leaf.dtype.itemsize for name in trained for leaf in jax.tree.leaves(params[name]))
    shapes = parameter_shapes(params, mesh.shape["fsdp"])
    sums: dict[tuple[str, str, bool], list[float]] = {}
    for found in hlo.collectives(done.executable.as_text()):
        for shape, size in found.tensors:
            key = found.kind, carried(shape, shapes), found.times > 1
            count, once, looped = sums.get(key, (0, 0, 0))
            sums[key] = [count + found.times, once + size, looped + size * found.times]
    return [
        {
            "stage": stage,
            "mesh": f"{mesh.shape['data']} x {mesh.shape['fsdp']}",
            "collective": kind,
            "carries": what,
            "in loops": "yes" if looped else "no",
            "tensors a step": count,
            "MiB a step": size / MIB,
            "MiB, each loop once": once / MIB,
            "x gradients, each loop once": once / gradients,
            "gradients (MiB)": gradients / MIB,
        }
        for (kind, what, looped), (count, once, size) in sorted(sums.items())
    ]


def parameter_shapes(params: Any, fsdp: int) -> set[tuple[int, ...]]:
    """Return the shapes, sorted and without ones, that parameters and their parts on one of ``fsdp`` devices have."""
    shapes = set()
    for leaf in jax.tree.leaves(params):
        shapes.add(_bare(leaf.shape))
        for axis, size in enumerate(leaf.shape):
            if size % fsdp == 0:
                shapes.add(_bare((*leaf.shape[:axis], size // fsdp, *leaf.shape[axis + 1 :])))
    return shapes


def carried(shape: tuple[int, ...], parameters: set[tuple[int, ...]]) -> str:
    """Tell by its shape what a tensor between devices is: ``parameters`` (so are gradients), ``scalars``, ``other``."""
    if math.prod(shape) > 1 and _bare(shape) in parameters:
        return "parameters"
    return "scalars" if math.prod(shape) <= SCALARS else "other"


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(size for size in shape if size != 1))
