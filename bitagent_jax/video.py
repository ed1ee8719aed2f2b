"""Videos to look at: mp4 files, videos side by side with labels, contact sheets. A video is uint8 [T,H,W,3].

And clips to show: the pictures of a video file.
"""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bitagent_jax.files import write_atomically

MARGIN = 6  # pixels around labels and between cells
PAPER, INK = (255, 255, 255), (20, 20, 20)
VIDEOS = (".mp4", ".gif", ".webm", ".mov", ".avi", ".mkv")  # that are read


def check_frames(frames: np.ndarray) -> None:
    """Check that a video is uint8 ``[T, H, W, 3]`` with at least one frame.

    Raises:
        ValueError: naming the shape and type given.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"a video is uint8 [T, H, W, 3] with T > 0, not {frames.dtype} {list(frames.shape)}")


def write_mp4(path: str | Path, frames: np.ndarray, fps: float = 15) -> Path:
    """Write a video as H.264; the file appears only when complete.

    Args:
        path: the target, ending in ``.mp4``; its folder is created.
        frames: uint8 ``[T, H, W, 3]``; odd heights and widths repeat their last line (H.264 wants even ones).
        fps: frames per second.

    Returns:
        The path.

    Raises:
        ValueError: if the frames have another shape or type, or the path does not end in ``.mp4``.
        RuntimeError: with ffmpeg's words, if it fails.
    """
    from imageio_ffmpeg import get_ffmpeg_exe

    path = Path(path)
    check_frames(frames)
    if path.suffix != ".mp4":
        raise ValueError(f"a video file ends in .mp4, not {path.name!r}")
    even = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    height, width = even.shape[1:3]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.mp4")
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    target = ["-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p", "-movflags", "+faststart", f"file:{temporary}"]
    try:  # called directly: imageio's own writer forks, which JAX's threads do not survive safely
        command = [get_ffmpeg_exe(), "-loglevel", "error", "-y", *source, *target]
        done = subprocess.run(command, input=even.tobytes(), capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"ffmpeg could not write {path}: {done.stderr.decode().strip()}")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def spread(length: int, count: int) -> np.ndarray:
    """Return ``count`` frame numbers, evenly from the first of ``length`` frames to the last; int ``[count]``."""
    return np.linspace(0, length - 1, count).round().astype(int)


def read_video(path: str | Path, count: int) -> np.ndarray:
    """Read frames that are spread over a whole video; no more than these are held in memory.

    Args:
        path: a file of a kind out of ``VIDEOS``.
        count: how many, see ``spread``; a shorter video repeats frames.

    Returns:
        uint8 ``[count, H, W, 3]``.

    Raises:
        ValueError: with ffmpeg's words, if the file is no video or is damaged.
    """
    said = _ffmpeg(path, ["-f", "null", "-progress", "pipe:1", "-"]).decode().split()
    length = max((int(word[6:]) for word in said if word.startswith("frame=")), default=0)
    picks = spread(length, count)
    wanted = np.unique(picks)
    chosen = "+".join(f"eq(n,{number})" for number in wanted)
    data = _ffmpeg(path, ["-vf", f"select='{chosen}'", "-f", "image2pipe", "-c:v", "ppm", "-"]) if length else b""
    frames = _split_ppm(data)
    if not length or len(frames) != len(wanted):
        raise ValueError(f"{path} is no video that can be read: {len(frames)} of {len(wanted)} frames found")
    return np.stack(frames)[np.searchsorted(wanted, picks)]


def _ffmpeg(path: str | Path, target: list[str]) -> bytes:
    from imageio_ffmpeg import get_ffmpeg_exe

    source = ["-nostdin", "-i", f"file:{path}", "-map", "0:v:0", "-fps_mode", "passthrough"]
    done = subprocess.run([get_ffmpeg_exe(), "-loglevel", "error", *source, *target], capture_output=True, check=False)
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(f"{path} is no video that can be read: {why[-1] if why else done.returncode}")
    return done.stdout


def _split_ppm(data: bytes) -> list[np.ndarray]:
    """Read the pictures of a stream of binary PPM as ffmpeg writes it: ``P6``, width, height, ``255``, the pixels."""
    frames, at = [], 0
    while header := re.compile(rb"P6\s(\d+)\s(\d+)\s255\s").match(data, at):
        width, height = int(header[1]), int(header[2])
        frames.append(np.frombuffer(data, np.uint8, height * width * 3, header.end()).reshape(height, width, 3))
        at = header.end() + height * width * 3
    return frames


def tile(videos: Mapping[str, np.ndarray], height: int = 128) -> np.ndarray:
    """Put videos side by side, each scaled to ``height`` under its label; a shorter one holds its last frame.

    Args:
        videos: label -> uint8 ``[T_i, H_i, W_i, 3]``.

    Returns:
        uint8 ``[max T_i, height + label, W, 3]``.
    """
    length = max(len(frames) for frames in videos.values())
    columns = []
    for label, frames in videos.items():
        check_frames(frames)
        scaled = np.stack([np.asarray(_scale(frame, height)) for frame in frames])
        held = np.concatenate([scaled, np.repeat(scaled[-1:], length - len(scaled), axis=0)])
        font = label_font(height // 9)
        band = _band(label, font, max(held.shape[2] + MARGIN, _text_width(label, font) + 2 * MARGIN))
        held = _pad_width(held, band.shape[1])
        columns.append(np.concatenate([np.broadcast_to(band, (length, *band.shape)), held], axis=1))
    return np.concatenate(columns, axis=2)


def contact_sheet(path: str | Path, rows: Mapping[str, np.ndarray], every: int = 4, height: int = 96) -> Path:
    """Write a PNG with one labelled row of frames for each video, every ``every``-th frame from the first.

    Args:
        path: the target, ending in ``.png``; its folder is created.
        rows: label -> uint8 ``[T_i, H_i, W_i, 3]``.
        every: stride in frames; the columns' frame numbers stand above them.
        height: of one cell in pixels.

    Returns:
        The path.
    """
    path = Path(path)
    if not rows or every < 1:
        raise ValueError(f"a contact sheet needs at least one row and every >= 1, not {len(rows)} and {every}")
    cells = {label: _pick(frames, every, height) for label, frames in rows.items()}
    font = label_font(max(13, height // 6))
    line = _line_height(font)
    label_width = max(_text_width(label, font) for label in cells) + 2 * MARGIN
    cell_width = max(cell.width for row in cells.values() for cell in row)
    columns = max(len(row) for row in cells.values())
    size = (
        label_width + columns * (cell_width + MARGIN),
        line + MARGIN + len(cells) * (height + MARGIN),
    )
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for column in range(columns):
        x = label_width + column * (cell_width + MARGIN)
        draw.text((x + cell_width / 2, line / 2 + 2), str(column * every), INK, font, anchor="mm")
    for index, (label, row) in enumerate(cells.items()):
        y = line + MARGIN + index * (height + MARGIN)
        draw.text((MARGIN, y + height / 2), label, INK, font, anchor="lm")
        for column, cell in enumerate(row):
            sheet.paste(cell, (label_width + column * (cell_width + MARGIN), y))
    return save_png(sheet, path)


def _pick(frames: np.ndarray, every: int, height: int) -> list[Image.Image]:
    check_frames(frames)
    return [_scale(frame, height) for frame in frames[::every]]


def _scale(frame: np.ndarray, height: int) -> Image.Image:
    width = round(frame.shape[1] * height / frame.shape[0])
    return Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)


def _band(label: str, font: ImageFont.FreeTypeFont, width: int) -> np.ndarray:
    band = Image.new("RGB", (width, _line_height(font)), PAPER)
    ImageDraw.Draw(band).text((width / 2, band.height / 2), label, INK, font, anchor="mm")
    return np.asarray(band)


def _pad_width(frames: np.ndarray, width: int) -> np.ndarray:
    missing = width - frames.shape[2]
    sides = (missing // 2, missing - missing // 2)
    return np.pad(frames, ((0, 0), (0, 0), sides, (0, 0)), constant_values=255)


def label_font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font of labels, at least 12 pixels high."""
    return ImageFont.load_default(size=max(12, size))


def _text_width(text: str, font: ImageFont.FreeTypeFont) -> int:
    return round(font.getlength(text)) + 1


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    return round(font.size * 1.6)


def save_png(image: Image.Image, path: Path) -> Path:
    """Write a PNG, which appears only when complete; its folder is created. ValueError for another ending."""
    if path.suffix != ".png":
        raise ValueError(f"a picture file ends in .png, not {path.name!r}")
    write_atomically(path, lambda file: image.save(file, "PNG"))
    return path
