"""What a run reports: JSON lines and TensorBoard, a progress bar, and the stop at a non-finite loss."""

import io
import json
import logging
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TextIO

import jax
import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from bitagent_jax.files import write_atomically
from bitagent_jax.video import check_frames

logger = logging.getLogger(__name__)


class NonFiniteLoss(FloatingPointError):
    """A loss became NaN or infinite; ``step`` and ``names`` say where."""

    def __init__(self, step: int, names: list[str]):
        super().__init__(f"step {step}: not finite: {', '.join(names)}")
        self.step = step
        self.names = names


def check_finite(step: int, metrics: Mapping[str, Any]) -> dict[str, float]:
    """Fetch scalars from the device and return them as floats.

    Raises:
        NonFiniteLoss: naming the step and every metric that is NaN or infinite.
        ValueError: if a metric is not a scalar.
    """
    values = _floats(metrics)
    if names := [name for name, value in values.items() if not math.isfinite(value)]:
        raise NonFiniteLoss(step, names)
    return values


class Metrics:
    """Writer of a run's ``metrics.jsonl`` and ``tensorboard/``; a context manager."""

    def __init__(self, folder: str | Path, start_step: int = 0):
        """Continue after ``start_step``: rows of later steps, left by a killed run, are dropped in both.

        Of several processes in one run only the first writes.
        """
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        _drop_rows(self.path, start_step)
        self._file = self.path.open("a")
        self._board = SummaryWriter(
            str(folder / "tensorboard"),
            purge_step=start_step + 1,
            filename_suffix=f".{start_step}.{os.getpid()}",  # a restart within a second must not overwrite
        )

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one row ``{"step": step, name: value, ...}`` at once; a value that is not finite becomes null.

        Raises:
            ValueError: if a value is not a scalar.
        """
        floats = _floats(values)
        if not self._writes:
            return
        row = {name: value if math.isfinite(value) else None for name, value in floats.items()}
        self._file.write(json.dumps({"step": int(step), **row}) + "\n")
        self._file.flush()
        for name, value in row.items():
            if value is not None:
                self._board.add_scalar(name, value, int(step))

    def video(self, step: int, name: str, frames: np.ndarray, fps: float = 15) -> None:
        """Write a video, uint8 ``[T, H, W, 3]``, to TensorBoard as an animated GIF."""
        check_frames(frames)
        if not self._writes:
            return
        height, width = frames.shape[1:3]
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=_encode_gif(frames, fps))
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self._board.file_writer.add_summary(summary, int(step))

    def close(self) -> None:
        """Write what is still queued and close the files."""
        if self._writes:
            self._file.close()
            self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


class Progress:
    """A progress bar with rate and time left; on a stream that is no terminal, a line about every 30 s."""

    def __init__(self, total: int, initial: int = 0, desc: str = "", stream: TextIO | None = None):
        stream = stream or sys.stderr
        if stream.isatty():
            look = {
                "file": stream,
                "dynamic_ncols": True,
                "bar_format": "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]",
            }
        else:  # work of less than 30 s prints nothing
            look = {
                "file": _Lines(stream),
                "mininterval": 30,
                "miniters": 1,
                "delay": 30,
                "bar_format": "{desc}: {n_fmt}/{total_fmt}, {rate_noinv_fmt}, {remaining} left{postfix}",
            }
        self._bar = tqdm(total=total, initial=initial, desc=desc, unit=" steps", **look)

    def update(self, steps: int = 1, note: str | None = None) -> None:
        """Advance; ``note`` (for example the loss) replaces the text behind the rate."""
        if note is not None:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(steps)

    @property
    def rate(self) -> float:
        """Steps per second since the start; 0 before the first."""
        done = self._bar.n - self._bar.initial
        return done / self._bar.format_dict["elapsed"] if done else 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()


def progress(total: int, initial: int = 0, desc: str = "") -> Progress:
    """Open a progress bar on stderr: ``with progress(800, desc="stage 1") as bar: bar.update()``."""
    return Progress(total, initial, desc)


class _Lines:
    """A stream that turns the bar's carriage returns into lines."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> None:
        if line := " ".join(text.split()):
            self._stream.write(line + "\n")

    def flush(self) -> None:
        self._stream.flush()


def _floats(values: Mapping[str, Any]) -> dict[str, float]:
    arrays = {name: np.asarray(value) for name, value in jax.device_get(dict(values)).items()}
    for name, array in arrays.items():
        if array.size != 1:
            raise ValueError(f"metric {name!r} has shape {list(array.shape)}, not a scalar")
    return {name: float(array.reshape(())) for name, array in arrays.items()}


def _drop_rows(path: Path, start_step: int) -> None:
    """Rewrite the file atomically without the rows after ``start_step`` and without a half-written last row."""
    if not path.exists():
        return
    kept, broken = [], 0
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= start_step:
                kept.append(line + "\n")
        except ValueError:
            broken += 1
    if broken:
        logger.warning("%s: dropped %d unreadable rows", path, broken)
    write_atomically(path, lambda file: file.write("".join(kept).encode()))


def _encode_gif(frames: np.ndarray, fps: float) -> bytes:
    images = [Image.fromarray(frame) for frame in frames]
    output = io.BytesIO()
    images[0].save(output, format="GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
    return output.getvalue()
