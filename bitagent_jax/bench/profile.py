"""Where the time of a compiled program goes: a trace of some steps, summed over the functions of this package."""

import re
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.profiler import ProfileData

from bitagent_jax.bench import hlo, program

ROWS = 12
PRODUCTS = re.compile("gemm|nvjet|cutlass|xmma|conv(?!ert)|cudnn", re.IGNORECASE)  # kernels of libraries
AROUND = ("while", "call", "conditional")  # what runs inside them is recorded too


def profile(done: program.Compiled, steps: int = 3) -> list[dict[str, Any]]:
    """Trace some steps of a program, after two for warming up.

    An instruction's time belongs to the function of this package in which it was traced; of what the compiler has
    fused, to that of the last instruction. On CPU instructions run in several threads, whose times add up.

    Returns:
        a row for each of the functions that took most, one for the others, and one for the time in which nothing ran:
        milliseconds a step, how many of them in matrix products and in loops, and the share of the step.

    Raises:
        RuntimeError: the profiler recorded nothing of the program.
    """
    if jax.default_backend() == "gpu":  # kernels of captured graphs do not tell which instruction they are
        lowered = done.program.call.lower(done.program.state, done.program.batch)
        done = done._replace(executable=lowered.compile({"xla_gpu_enable_command_buffer": ""}))
    units = {key: unit for name, unit in hlo.units(done.executable.as_text()).items() for key in (name, _kernel(name))}
    events = [
        (units.get(name) or hlo.Unit("", bool(PRODUCTS.search(name)), False, _other(name)), begun, ended)
        for name, begun, ended in _traced(done, steps)
    ]
    events = [event for event in events if event[0].opcode not in AROUND]
    if not events:
        raise RuntimeError("the profiler recorded nothing of the program on this device")
    spent = defaultdict(lambda: np.zeros(3))
    for unit, begun, ended in events:
        spent[unit.function or "parameters, copies"] += (ended - begun) * np.array([1, unit.product, unit.looped])
    order = sorted(spent, key=lambda where: -spent[where][0])
    rows = {where: spent[where] for where in order[:ROWS]}
    if order[ROWS:]:
        rows["other"] = sum(spent[where] for where in order[ROWS:])
    whole, idle = _idle([event[1:] for event in events])
    rows["nothing ran"] = np.array([idle, 0, 0])
    table = []
    for where, times in rows.items():
        ms, products, loops = (float(value) for value in times / 1e6 / steps)
        place = {"what": done.program.name, "in": where, "ms": ms, "in products": products, "in loops": loops}
        table.append(place | {"share": float(times[0] / whole)})
    return table


def _other(kernel: str) -> str:
    return "" if kernel.startswith(("Mem", "mem")) else "kernels of libraries"


def _kernel(name: str) -> str:
    """Return what a GPU calls the kernel of an instruction."""
    return re.sub(r"\W", "_", name)


def _traced(done: program.Compiled, steps: int) -> list[tuple[str, float, float]]:
    """Return name, begin and end, in nanoseconds, of everything that ran on the device."""
    state, batch = done.program.init(), program.random_batch(done.program)
    for _ in range(2):
        state, _ = done.executable(state, batch)
    jax.block_until_ready(state)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                state, _ = done.executable(state, batch)
            jax.block_until_ready(state)
        files = list(Path(folder).rglob("*.xplane.pb"))
        if len(files) != 1:
            raise RuntimeError("the profiler wrote no trace")
        planes = list(ProfileData.from_file(str(files[0])).planes)
        device = [plane for plane in planes if plane.name.startswith("/device:")][:1]
        found = []
        for line in (line for plane in device or planes for line in plane.lines):
            if device and "Stream" not in line.name:
                continue
            for event in line.events:
                name = dict(event.stats).get("hlo_op", event.name if device else None)
                if name is not None:
                    found.append((name.rpartition("/")[2], event.start_ns, event.end_ns))
    return found


def _idle(spans: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the time from the first begin to the last end, and how much of it no span covers."""
    begun, free = min(spans)[0], 0.0
    reached = begun
    for start, end in sorted(spans):
        free += max(0.0, start - reached)
        reached = max(reached, end)
    return reached - begun, free
