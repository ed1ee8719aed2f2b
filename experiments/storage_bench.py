"""How to store episodes: bytes a frame, writing speed and random-sequence reading of several candidates.

    pip install lz4 && python -m experiments.storage_bench --data data-cache/storage [--episodes 12] [--repeats 5]

Hardware: two CPU threads, about fifteen minutes, most of which go into rendering random walker and quadruped episodes
(kept in ``--data``). Expected: a table, and ``results.json`` in ``--data``. Every candidate is lossless (checked) and
read by one thread, as sequences of 32 frames at random places, 64 of which make a batch. Candidates are read in turn,
in rounds, and medians taken; "CPU ms" and frames written count processor time, which other jobs disturb least. "Cold"
asks the kernel to forget the files before the batch; a hypervisor's or a disk's own cache may still hold them. Video is
decoded by one ffmpeg process a sequence, the only way that needs no further package: most of its time is starting
processes. The last lines time the chosen format as the replay uses it, with its checks and threads, and a train step.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import imageio_ffmpeg
import jax
import lz4.frame
import numpy as np
import zstandard
from tqdm import tqdm

from bitagent_jax.agent.joint import make_train_step
from bitagent_jax.agent.state import build, init_state
from bitagent_jax.config import make_config
from bitagent_jax.data.collect import RandomPolicy, collect
from bitagent_jax.data.episodes import list_episodes, read_episode
from bitagent_jax.data.replay import Replay, load_folder
from bitagent_jax.envs.pool import EnvPool

TASKS, BATCH, LENGTH, FPS = ("walker_walk", "quadruped_walk"), 64, 32, 25


class Codec(NamedTuple):
    """Bytes of a chunk to fewer bytes, and back."""

    encode: Callable[[bytes], bytes]
    decode: Callable[[bytes], bytes]


CODECS = {
    "zlib 1": Codec(lambda data: zlib.compress(data, 1), zlib.decompress),
    "lz4": Codec(lz4.frame.compress, lz4.frame.decompress),
    "zstd -3": Codec(zstandard.ZstdCompressor(-3).compress, zstandard.ZstdDecompressor().decompress),
    "zstd 3": Codec(zstandard.ZstdCompressor(3).compress, zstandard.ZstdDecompressor().decompress),
}


class Raw:
    """Frames as they are; a memory map reads the rows of a sequence."""

    def write(self, path: Path, frames: np.ndarray) -> None:
        np.save(path, frames)

    def read(self, path: Path, start: int) -> np.ndarray:
        return np.array(np.load(path, mmap_mode="r")[start : start + LENGTH])


class Chunks:
    """Compressed chunks of frames, each optionally as differences to the frame before."""

    def __init__(self, codec: Codec, chunk: int, delta: bool):
        self.codec, self.chunk, self.delta, self.offsets = codec, chunk, delta, {}

    def write(self, path: Path, frames: np.ndarray) -> None:
        parts = [frames[at : at + self.chunk] for at in range(0, len(frames), self.chunk)]
        if self.delta:
            parts = [np.concatenate([part[:1], part[1:] - part[:-1]]) for part in parts]
        coded = [self.codec.encode(part.tobytes()) for part in parts]
        self.offsets[path] = np.cumsum([0] + [len(part) for part in coded])
        path.with_suffix(".npy").write_bytes(b"".join(coded))

    def read(self, path: Path, start: int) -> np.ndarray:
        first, last = start // self.chunk, (start + LENGTH - 1) // self.chunk + 1
        offsets, parts = self.offsets[path.with_suffix("")], []
        with open(path, "rb", buffering=0) as file:
            file.seek(offsets[first])
            data = file.read(offsets[last] - offsets[first])
        for at, end in zip(offsets[first:last], offsets[first + 1 : last + 1], strict=True):
            part = np.frombuffer(self.codec.decode(data[at - offsets[first] : end - offsets[first]]), np.uint8)
            parts.append(self._undo(part.reshape(-1, 64, 64, 3)))
        return np.concatenate(parts)[start - first * self.chunk :][:LENGTH]

    def _undo(self, part: np.ndarray) -> np.ndarray:
        if self.delta:
            part = part.copy()
            for row in range(1, len(part)):
                part[row] += part[row - 1]
        return part


class Video:
    """A lossless video codec."""

    def __init__(self, options: str):
        self.options = options.split()

    def write(self, path: Path, frames: np.ndarray) -> None:
        pipe = f"-f rawvideo -pix_fmt rgb24 -s 64x64 -r {FPS} -i -".split()
        _ffmpeg(*pipe, *self.options, "-f", "matroska", str(path.with_suffix(".npy")), data=frames.tobytes())

    def read(self, path: Path, start: int) -> np.ndarray:
        seek = ["-ss", f"{max(0, start - 0.5) / FPS:.4f}", "-i", str(path), "-frames:v", str(LENGTH)]
        data = _ffmpeg(*seek, *"-f rawvideo -pix_fmt rgb24 -".split())
        return np.frombuffer(data, np.uint8).reshape(-1, 64, 64, 3)


def _ffmpeg(*options: str, data: bytes = b"") -> bytes:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *options]
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout


def candidates() -> dict[str, Raw | Chunks | Video]:
    """Return what is compared, by name."""
    chunks = {
        f"{name}, chunks of {chunk}{', delta' * delta}": Chunks(codec, chunk, delta)
        for name, codec in CODECS.items()
        for chunk in (16, 32, 64)
        for delta in (False, True)
    }
    videos = {
        "video x264rgb, keyframe each 16": Video("-c:v libx264rgb -preset veryfast -qp 0 -g 16 -bf 0"),
        "video ffv1": Video("-c:v ffv1 -pix_fmt bgr0 -g 1"),
    }
    return {"raw memory map": Raw()} | chunks | videos


def episodes_of(data: Path, count: int) -> Path:
    """Collect what random episodes are missing; returns their folder."""
    folder = data / "episodes"
    for task in TASKS:
        with EnvPool([task] * 4) as pool:
            behave = lambda _, seed: RandomPolicy(pool.action_dim, seed)  # noqa: B023, E731
            collect(pool, behave, episodes=count, folder=folder, seed=0, metas=[{"policy": "random"}] * 4, tag=task)
    return folder


def cpu_seconds() -> float:
    """Return the processor time of this process and of those it waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def write_all(store: Raw | Chunks | Video, folder: Path, frames: list[np.ndarray]) -> dict[str, float]:
    """Write every episode as ``{folder}/{number}.npy``; returns the size and the speed."""
    folder.mkdir(parents=True, exist_ok=True)
    began = cpu_seconds()
    for number, images in enumerate(frames):
        store.write(folder / f"{number}", images)
    rows, wrote = sum(map(len, frames)), cpu_seconds() - began
    return {"bytes": sum(path.stat().st_size for path in folder.iterdir()) / rows, "written": rows / wrote}


def read_batch(store: Raw | Chunks | Video, folder: Path, frames: list[np.ndarray], seed: int) -> tuple[float, float]:
    """Read a batch and check it; returns the milliseconds of processor and of wall clock."""
    size = 2 if isinstance(store, Video) else BATCH  # a video's batch is extrapolated from two sequences
    rng = np.random.default_rng(seed)
    draws = [(int(rng.integers(len(frames))), int(rng.integers(len(frames[0]) - LENGTH + 1))) for _ in range(size)]
    cpu, wall = cpu_seconds(), time.perf_counter()
    got = [store.read(folder / f"{episode}.npy", start) for episode, start in draws]
    cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
    for (episode, start), sequence in zip(draws, got, strict=True):
        np.testing.assert_array_equal(sequence, frames[episode][start : start + LENGTH])
    return cpu * BATCH / size * 1e3, wall * BATCH / size * 1e3


def compare(data: Path, frames: list[np.ndarray], repeats: int) -> dict[str, dict[str, float]]:
    """Write all candidates, then read batches of one after the other, in rounds; returns the table."""
    stores, scratch = candidates(), {name: data / f"scratch/{k}" for k, name in enumerate(candidates())}
    table = {name: write_all(store, scratch[name], frames) for name, store in stores.items()}
    times = {name: [] for name in stores}
    for seed in tqdm(range(repeats), desc="rounds"):
        for name, store in stores.items():
            warm = read_batch(store, scratch[name], frames, seed)
            forget(list(scratch[name].iterdir()))
            times[name].append((*warm, *read_batch(store, scratch[name], frames, seed + repeats)))
    keys = ("warm CPU ms", "warm ms", "cold CPU ms", "cold ms")
    for name, rows in times.items():
        table[name] |= dict(zip(keys, np.median(rows, axis=0).tolist(), strict=True))
    return table


def forget(paths: list[Path]) -> None:
    """Ask the kernel to drop files from its page cache."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def replay_rows(folder: Path, repeats: int) -> dict[str, float]:
    """Time the replay itself (milliseconds a batch), opening the folder, and the memory it holds (MB)."""
    out, replays, before = {}, {threads: Replay(10_000_000, threads) for threads in (1, 2, 4)}, _resident()
    for replay in replays.values():
        began = time.perf_counter()
        load_folder(folder, replay)
        out["opening again ms"] = (time.perf_counter() - began) * 1e3
    times = {threads: [] for threads in replays}
    for step in range(4 * repeats):
        for threads, replay in replays.items():
            began = time.perf_counter()
            replay.sample(BATCH, LENGTH, np.random.default_rng(step))
            times[threads].append(time.perf_counter() - began)
    out |= {f"ms with {threads} threads": statistics.median(each) * 1e3 for threads, each in times.items()}
    return out | {"memory MB": (_resident() - before) / 1e6}


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def train_rows(folder: Path, repeats: int) -> dict[str, float]:
    """Time a step of stage 2 of the ``cpu`` preset on walker, and drawing its batch, in turn."""
    config, replay = make_config("walker", "cpu"), Replay(10_000_000)
    config.joint.world_model_in_stage2, config.behavior.regression = True, 0.0
    load_folder(folder, replay)
    graph, init = build(config, 256, 6)
    state = jax.jit(lambda: init_state(config, init))()
    step = jax.jit(make_train_step(graph, config, np.eye(3, 256, dtype=np.float32), 2), donate_argnums=0)
    sizes, times = (config.train.batch, config.train.length), []
    empty = np.zeros((*sizes, 256), np.float32)
    for number in range(repeats + 1):
        began = time.perf_counter()
        batch = replay.sample(*sizes, np.random.default_rng(number))
        drawn = time.perf_counter()
        batch = batch | {"embedding": empty, "text": empty[:, 0]}
        state, _ = step(state, {name: rows for name, rows in batch.items() if name != "reward"})
        jax.block_until_ready(state)
        times.append((drawn - began, time.perf_counter() - drawn))
    draw, train = (statistics.median(column) * 1e3 for column in zip(*times[1:], strict=True))
    return {f"{list(sizes)} batch ms": draw, f"{list(sizes)} train step ms": train, "ratio": train / draw}


def main() -> None:
    """Print the table and write it with the machine and versions as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=12, help="of each body")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    folder = episodes_of(args.data, args.episodes)
    frames = [read_episode(path)[0]["image"] for path in list_episodes(folder)]
    print(f"{len(frames)} episodes, {sum(map(len, frames))} frames; ms are those of a [{BATCH},{LENGTH}] batch")
    table = compare(args.data, frames, args.repeats)
    for name, row in table.items():
        print(f"{name:34s}", *(f"{key} {value:8.0f}" for key, value in row.items()), sep="  ")
    walkers = args.data / "walker"
    walkers.mkdir(exist_ok=True)
    for path in list_episodes(folder):
        if "walker" in path.name and not (walkers / path.name).exists():
            os.link(path, walkers / path.name)
    table["replay"], table["training"] = replay_rows(walkers, args.repeats), train_rows(walkers, args.repeats)
    print(json.dumps({name: table[name] for name in ("replay", "training")}, indent=1))
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "zstandard", "lz4", "jax", "mujoco")}
    about = dict(date=str(datetime.date.today()), machine=platform.processor(), threads=os.cpu_count(), **versions)
    (args.data / "results.json").write_text(json.dumps({"about": about, "table": table}, indent=1))


if __name__ == "__main__":
    main()
