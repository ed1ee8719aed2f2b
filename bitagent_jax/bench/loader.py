"""``bitagent bench loader``: how fast batches come from an episode folder, beside the step that uses them up.

Where the devices have room for the data set (``compute.data_share``), also from their own memory.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jax
from ml_collections import ConfigDict

from bitagent_jax.bench import measure, program
from bitagent_jax.data.loader import Loader
from bitagent_jax.data.replay import THREADS, Replay, load_folder
from bitagent_jax.training import sharding
from bitagent_jax.training.resident import Resident, fits

WANTED = 5  # times as fast as the step


def bench(
    config: ConfigDict, preset: str, folder: str | Path, *, threads: Sequence[int] = (), seconds: float = 2.0,
    repeats: int = 5, with_step: bool = True,
) -> str:  # fmt: skip
    """Draw and place batches for some seconds with each number of decoding threads, in turn, ``repeats`` times.

    Args:
        config: batch size, length, and the train step of stage 1 to compare with.
        preset: its name.
        folder: of episodes; embeddings are read where they are cached.
        threads: that decode; by default 1, 2, 4 ... up to what training uses.
        seconds, repeats: of each measurement.
        with_step: also time the train step, before the loaders.

    Returns:
        A table and its JSON lines.

    Raises:
        ValueError: an impossible setting, or a folder without valid episodes.
    """
    if repeats < 1 or seconds <= 0:
        raise ValueError(f"repeats must be at least 1 and seconds positive, got {repeats} and {seconds:g}")
    threads = tuple(threads) or tuple(sorted({2**i for i in range(THREADS.bit_length()) if 2**i < THREADS} | {THREADS}))
    replays = {count: _open(folder, config, count) for count in threads}
    mesh = sharding.make_mesh(config.compute.fsdp)
    step = _step_seconds(config, repeats) if with_step else None
    place = lambda batch: sharding.place(mesh, {k: v for k, v in batch.items() if k != "reward"})  # noqa: E731
    sources: dict[int | None, tuple] = {count: (replay, place) for count, replay in replays.items()}
    first = next(iter(replays.values()))
    if fits(first, config.compute.data_share):
        sources[None] = Resident(replays[max(replays)], mesh), lambda batch: batch
    speeds: dict[int | None, list[float]] = {name: [] for name in sources}
    for _ in range(repeats):
        for name, (source, put) in sources.items():
            speeds[name].append(_speed(source, put, config, seconds))
    rows = [_row(name, speeds[name], config, step) for name in sources]
    told = dict(folder=str(folder), episodes=first.episodes, frames=first.frames, repeats=repeats, seconds=seconds)
    return measure.show("loader", rows, program.facts(config, preset, **told))


def _open(folder: str | Path, config: ConfigDict, threads: int) -> Replay:
    from bitagent_jax.mllm.encoder import load_encoder

    replay = Replay(config.data.capacity, threads)
    load_folder(folder, replay, fingerprint=load_encoder(config.mllm.encoder, config.mllm.weights).fingerprint)
    return replay


def _speed(source: Replay | Resident, place: Callable, config: ConfigDict, seconds: float) -> float:
    """Return batches a second, each placed on the devices and waited for."""
    with Loader(source, config.train.batch, config.train.length, seed=0, place=place) as batches:
        jax.block_until_ready(next(batches))
        done, begun = 0, time.perf_counter()
        while not done or time.perf_counter() < begun + seconds:
            jax.block_until_ready(next(batches))
            done += 1
        return done / (time.perf_counter() - begun)


def _step_seconds(config: ConfigDict, repeats: int) -> float:
    done = program.compiled(program.train_step(config, 1, "stage 1"))
    return program.time_steps([done], repeats)[0][1]


def _row(threads: int | None, speeds: list[float], config: ConfigDict, step: float | None) -> dict[str, Any]:
    speed, frames = median(speeds), config.train.batch * config.train.length
    return {
        "from": "disk" if threads else "devices",
        "threads": threads,
        "batch x length": f"{config.train.batch} x {config.train.length}",
        "batches/s": speed,
        "min": min(speeds),
        "max": max(speeds),
        "frames/s": speed * frames,
        "MB/s of pixels": speed * frames * config.env.size**2 * 3 / 1e6,
        "step of stage 1 (ms)": step and step * 1e3,
        f"x the step (at least {WANTED} wanted)": step and step * speed,
    }
