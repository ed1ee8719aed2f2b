"""The programs that training runs, compiled from shapes alone, and what is known about them before they run."""

import resource
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bitagent_jax.agent.imitation import FIELDS
from bitagent_jax.agent.joint import make_train_step
from bitagent_jax.agent.state import TrainState, build, init_state
from bitagent_jax.bench import hlo, report
from bitagent_jax.envs.tasks import get_body
from bitagent_jax.mllm.encoder import EMBEDDED
from bitagent_jax.mllm.towers import EMBED_DIM
from bitagent_jax.training import sharding

NAMED = ("body", "train.batch", "train.length", "compute.dtype", "compute.fsdp")
EMBED = 512  # width assumed of an encoder whose weights are not at hand
GIB = 2**30
MEASURED = "step (ms)", "min", "max", "in a row (ms)", "frames/s", "GFLOP/s", "of peak"


class Program(NamedTuple):
    """A jitted ``call(state, batch)`` with the shapes of its arguments, and ``init()`` that makes the state."""

    name: str
    call: Callable
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    init: Callable[[], TrainState]
    mesh: Mesh
    frames: int


class Compiled(NamedTuple):
    """A compiled program and how long tracing and compiling it took, in seconds."""

    program: Program
    executable: Any
    seconds: float


def train_step(config: ConfigDict, stage: int, name: str, mesh: Mesh | None = None) -> Program:
    """Build the train step of a stage as training does.

    Raises:
        ValueError: a batch that the devices do not divide.
    """
    latent = stage == 2 and not config.joint.world_model_in_stage2
    make = lambda graph, prompts: make_train_step(graph, config, prompts, stage)  # noqa: E731
    return build_program(config, name, mesh, make, latent)


def build_program(
    config: ConfigDict, name: str, mesh: Mesh | None, make: Callable, latent: bool = False
) -> Program:  # fmt: skip
    """Build a program of ``make(graph, prompts) -> call(state, batch) -> (state, metrics)``, for all devices.

    Its batches hold pictures, or if ``latent`` what ``training.latents`` keeps of them.
    """
    mesh = mesh or sharding.make_mesh(config.compute.fsdp)
    sharding.check_batch(mesh, config.train.batch)
    embed, actions = embed_dim(config), get_body(config.body).action_dim
    graph, init = build(config, embed, actions)
    state = jax.eval_shape(lambda: init_state(config, init))
    shardings = sharding.state_shardings(mesh, state)
    prompts = np.eye(max(1, len(config.prompts or config.tasks)), embed, dtype=np.float32)
    return Program(
        name=name,
        call=sharding.jit_step(make(graph, prompts), mesh, shardings),
        state=state,
        batch=batch_shapes(config, embed, actions, latent),
        init=jax.jit(lambda: init_state(config, init), out_shardings=shardings),
        mesh=mesh,
        frames=config.train.batch * config.train.length,
    )


def embed_dim(config: ConfigDict) -> int:
    """Return the width of the config's embeddings; of encoders that need weights, the paper's."""
    return EMBED_DIM if config.mllm.encoder == EMBEDDED else EMBED


def batch_shapes(
    config: ConfigDict, embed: int, actions: int, latent: bool = False
) -> dict[str, jax.ShapeDtypeStruct]:  # fmt: skip
    """Return the shapes of a training batch."""
    count, rows, size = config.train.batch, (config.train.batch, config.train.length), config.env.size
    shapes = {
        "image": ((*rows, size, size, 3), jnp.uint8),
        "action": ((*rows, actions), jnp.float32),
        "is_first": (rows, bool),
        "embedding": ((*rows, embed), jnp.float32),
        "has_embedding": (rows, bool),
        "text": ((count, embed), jnp.float32),
        "has_text": ((count,), bool),
    }
    if latent:
        del shapes["image"], shapes["is_first"]
        shapes["deter"] = (*rows, config.world_model.deter), jnp.float16
        shapes["post"] = (*rows, config.world_model.stoch, config.world_model.classes), jnp.float16
        if config.behavior.regression:
            shapes |= {f"shown/{name}": shapes[name] for name in FIELDS if name != "task"}
            shapes["shown/task"] = rows, jnp.int32
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def random_batch(program: Program) -> dict[str, jax.Array]:
    """Draw and place a batch: noise, embeddings of unit length, every row with an embedding, no episode's start."""
    rng = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        if np.issubdtype(dtype, np.integer):
            return rng.integers(0, 256 if name == "image" else 1, shape, dtype)
        if np.issubdtype(dtype, np.bool_):
            return np.full(shape, "has" in name)
        values = rng.uniform(-1, 1, shape).astype(dtype)
        return values if name.endswith("action") else values / np.linalg.norm(values, axis=-1, keepdims=True)

    drawn = {name: draw(name, leaf.shape, leaf.dtype) for name, leaf in program.batch.items()}
    return sharding.place(program.mesh, drawn)


def compiled(program: Program) -> Compiled:
    """Trace and compile."""
    begun = time.perf_counter()
    executable = program.call.lower(program.state, program.batch).compile()
    return Compiled(program, executable, time.perf_counter() - begun)


def memory(executable: Any) -> int:
    """Return the bytes that one device needs for a program: arguments, results and what lies between."""
    told = executable.memory_analysis()
    ends = told.argument_size_in_bytes + told.output_size_in_bytes - told.alias_size_in_bytes
    return ends + told.temp_size_in_bytes


def peak_memory() -> int:
    """Return the most bytes in use so far: on the first device where it tells, else of this process."""
    told = jax.local_devices()[0].memory_stats() or {}
    return told.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def static_row(done: Compiled, config: ConfigDict) -> dict[str, Any]:
    """Describe a compiled program; what is to be measured is None."""
    program = done.program
    flops = hlo.matmul_flops(done.executable.as_text()) * program.mesh.size
    return {
        "what": program.name,
        "batch x length": f"{config.train.batch} x {config.train.length}",
        "dtype": config.compute.dtype,
        "devices": program.mesh.size,
        "parameters (M)": sum(leaf.size for leaf in jax.tree.leaves(program.state.params)) / 1e6,
        "compile (s)": done.seconds,
        "memory (GiB)": memory(done.executable) / GIB,
        "GFLOP": flops / 1e9,
        **dict.fromkeys(MEASURED),
    }


def time_steps(all_done: list[Compiled], repeats: int) -> list[tuple[list[float], float]]:
    """Run the programs in turn, ``repeats`` times after two for warming up, then each as often without waiting.

    Returns:
        of each program the seconds of its single runs, and of one of those in a row, as in training.
    """
    running = [[done, done.program.init(), random_batch(done.program)] for done in all_done]
    times: list[list[float]] = [[] for _ in running]
    for round_ in range(repeats + 2):
        for place, (done, state, batch) in enumerate(running):
            begun = time.perf_counter()
            running[place][1], metrics = done.executable(state, batch)
            jax.block_until_ready((running[place][1], metrics))
            if round_ > 1:
                times[place].append(time.perf_counter() - begun)
    in_a_row = []
    for done, state, batch in running:
        begun = time.perf_counter()
        for _ in range(repeats):
            state, metrics = done.executable(state, batch)
        jax.block_until_ready((state, metrics))
        in_a_row.append((time.perf_counter() - begun) / repeats)
    return list(zip(times, in_a_row, strict=True))


def measured_row(row: dict[str, Any], times: tuple[list[float], float], frames: int, peak: float) -> dict[str, Any]:
    """Complete a static row; ``peak`` is FLOP/s of one device."""
    single, step = times
    rate = row["GFLOP"] * 1e9 / step
    return row | {
        "step (ms)": median(single) * 1e3, "min": min(single) * 1e3, "max": max(single) * 1e3,
        "in a row (ms)": step * 1e3, "frames/s": frames / step,
        "GFLOP/s": rate / 1e9, "of peak": rate / (peak * row["devices"]),
    }  # fmt: skip


def matmul_peak(dtype: str, repeats: int = 5) -> float:
    """Measure the FLOP/s of one device at square matrix products, the best of some sizes (medians of runs)."""
    sizes, best = ((1024, 2048) if jax.default_backend() == "cpu" else (4096, 8192)), 0.0
    product = jax.jit(jnp.matmul)
    for size in sizes:
        square = jnp.ones((size, size), dtype)
        product(square, square).block_until_ready()
        times = []
        for _ in range(repeats):
            begun = time.perf_counter()
            product(square, square).block_until_ready()
            times.append(time.perf_counter() - begun)
        best = max(best, 2 * size**3 / median(times))
    return best


def facts(config: ConfigDict, preset: str, **more: Any) -> dict[str, Any]:
    """Describe machine, versions and setting of a benchmark of programs."""
    from bitagent_jax.config import flatten

    device, flat = jax.devices()[0], flatten(config)
    told = report.facts(("bitagent_jax", "jax", "jaxlib", "flax", "optax", "numpy"))
    setting = dict(preset=preset, **{name: flat[name] for name in NAMED})
    return dict(**setting, device=device.device_kind, platform=device.platform, **told, **more)
