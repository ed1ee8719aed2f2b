"""``bitagent bench encoder``: how fast a frozen encoder embeds episodes, clips and sentences."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import numpy as np

from bitagent_jax.bench import measure, program, report
from bitagent_jax.mllm.encoder import load_encoder

ROWS, CLIPS, SENTENCES = 256, 32, 32


def bench(name: str, weights: str = "", *, size: int = 64, repeats: int = 5, rows: int = ROWS) -> str:
    """Embed an episode of ``rows`` frames, 32 clips and 32 sentences, in turn, ``repeats`` times after the first.

    Args:
        name, weights: as in ``load_encoder``.
        size: of the square pictures of noise that it is shown.

    Returns:
        A table and its JSON lines; the first call of each kind compiles.

    Raises:
        ValueError: an impossible setting, or an encoder that cannot be loaded.
    """
    if repeats < 1 or size < 8 or rows < 1:
        raise ValueError(f"repeats and rows must be at least 1 and size 8, got {repeats}, {rows} and {size}")
    encoder = load_encoder(name, weights)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (rows, size, size, 3), np.uint8)
    clips = rng.integers(0, 256, (CLIPS, encoder.num_frames, size, size, 3), np.uint8)
    kinds = {
        "every window of an episode": (rows, "frames", lambda: encoder.embed_windows(frames)),
        "clips": (CLIPS, "clips", lambda: encoder.embed_video(clips)),
        "sentences": (SENTENCES, "sentences", lambda: encoder.embed_text(["walk fast clean"] * SENTENCES)),
    }
    first = {kind: _seconds(call) for kind, (_, _, call) in kinds.items()}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind, (_, _, call) in kinds.items():
            times[kind].append(_seconds(call))
    table = [_row(kind, count, unit, first[kind], times[kind]) for kind, (count, unit, _) in kinds.items()]
    device = jax.devices()[0]
    told = dict(encoder=name, weights=weights, frames=encoder.num_frames, width=encoder.embed_dim, size=size)
    told["peak memory (GiB)"] = program.peak_memory() / program.GIB
    told |= dict(repeats=repeats, device=device.device_kind, platform=device.platform)
    return measure.show("encoder", table, told | report.facts(("bitagent_jax", "jax", "jaxlib", "flax", "numpy")))


def _seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _row(kind: str, count: int, unit: str, first: float, times: list[float]) -> dict[str, Any]:
    return {
        "what": kind,
        "of": f"{count} {unit}",
        "first call (s)": first,
        "median (ms)": median(times) * 1e3,
        "min": min(times) * 1e3,
        "max": max(times) * 1e3,
        "a second": count / median(times),
    }
