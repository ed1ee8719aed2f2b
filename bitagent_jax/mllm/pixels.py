"""From uint8 frames to what a vision tower was trained on: resize, crop, scale to [0, 1], normalise."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bitagent_jax.errors import unknown

_BITS = 22  # of fixed-point weights in Pillow's resampling of 8-bit pictures


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(0.0, 1.0 - np.abs(x))


def _cubic(x: np.ndarray, a: float = -0.5) -> np.ndarray:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


FILTERS = {"bilinear": (_triangle, 1.0), "bicubic": (_cubic, 2.0), "lanczos": (_lanczos, 3.0)}
"""Resampling filters and their radius in pixels."""
_PILLOW = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers, as preprocessor_config.json gives them


@dataclass(frozen=True)
class Pixels:
    """How frames become a tower's input.

    Attributes:
        size: height and width of the result.
        resample: a name out of ``FILTERS``.
        mean, std: per channel, of values in [0, 1].
        crop: keep proportions and cut out the middle; otherwise both sides are stretched to ``size``.
        whole: round to whole grey levels after resizing, as Pillow does; otherwise resize in floating point.
    """

    size: tuple[int, int] = (224, 224)
    resample: str = "bicubic"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    crop: bool = False
    whole: bool = True

    def __post_init__(self):
        if self.resample not in FILTERS:
            raise unknown("resampling filter", self.resample, FILTERS)

    def __call__(self, frames: jax.Array) -> jax.Array:
        """Map uint8 frames [..., H, W, 3] to float32 [..., *size, 3]."""
        height, width = self._resized(*frames.shape[-3:-1])
        if self.whole:
            x = resize(frames, (height, width), self.resample)
        elif self.resample == "bilinear":
            x = jax.image.resize(frames.astype(jnp.float32), (*frames.shape[:-3], height, width, 3), "bilinear")
        else:
            raise ValueError(f"resizing in floating point is bilinear, not {self.resample}")
        top, left = (height - self.size[0]) // 2, (width - self.size[1]) // 2
        x = x[..., top : top + self.size[0], left : left + self.size[1], :].astype(jnp.float32) / 255.0
        return (x - jnp.asarray(self.mean)) / jnp.asarray(self.std)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width before the middle is cut out."""
        if not self.crop:
            return self.size
        short, edge = min(height, width), max(self.size)
        return (edge, int(edge * width / short)) if height == short else (int(edge * height / short), edge)


def from_config(config: Mapping[str, Any], side: int, **defaults: Any) -> Pixels:
    """Read a ``preprocessor_config.json``; what it does not say is taken from ``defaults``.

    Args:
        config: the file's content.
        side: height and width of the model's pictures.
        defaults: fields of ``Pixels``.

    Raises:
        ValueError: the file asks for another size, or for a filter that is not supported here.
    """
    size = config.get("crop_size") if config.get("do_center_crop") else config.get("size")
    fields: dict[str, Any] = defaults | {"size": (side, side)}
    if size is not None and _size(size) != (side, side):
        raise ValueError(f"preprocessor_config.json makes pictures of {_size(size)}, but the model's are {side} a side")
    whole = config.get("size")
    if config.get("do_center_crop") and config.get("do_resize", True) and whole and _size(whole) != (side, side):
        raise ValueError(
            f"preprocessor_config.json cuts {side} a side out of pictures resized to {_size(whole)}: only pictures "
            f"resized to {side} are supported"
        )
    if "do_center_crop" in config:
        fields["crop"] = bool(config["do_center_crop"])
    if config.get("resample") is not None:
        if config["resample"] not in _PILLOW:
            raise ValueError(f"preprocessor_config.json: resample={config['resample']} is none of {_PILLOW}")
        fields["resample"] = _PILLOW[config["resample"]]
    if config.get("do_normalize") is False:
        fields |= {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    else:
        given = {"mean": config.get("image_mean"), "std": config.get("image_std")}
        fields |= {name: tuple(map(float, value)) for name, value in given.items() if value}
    return Pixels(**fields)


def _size(size: Any) -> tuple[int, int]:
    if isinstance(size, Mapping):
        size = (size["shortest_edge"],) * 2 if "shortest_edge" in size else (size["height"], size["width"])
    return tuple(size) if isinstance(size, list | tuple) else (int(size), int(size))


def resize(frames: jax.Array, size: tuple[int, int], resample: str) -> jax.Array:
    """Resize 8-bit frames with the arithmetic of Pillow's ``Image.resize``, to the last bit.

    Pillow widens or shrinks the rows first, rounds to 8 bits, and then does the columns; its weights are
    fixed-point numbers. (Where the height shrinks and the width does not shrink as much, recent versions of Pillow
    begin with the columns. That is not followed here; it does not concern square frames.)

    Args:
        frames: uint8 [..., H, W, C].
        size: height and width wanted.
        resample: a name out of ``FILTERS``.

    Returns:
        uint8 [..., *size, C].
    """
    for axis, length in ((-2, size[1]), (-3, size[0])):
        if frames.shape[axis] != length:
            frames = _resize_axis(frames, axis, length, resample)
    return frames


def _resize_axis(frames: jax.Array, axis: int, length: int, resample: str) -> jax.Array:
    taps, weights = _taps(frames.shape[axis], length, resample)
    shape = [1] * frames.ndim
    shape[axis] = length
    total = jnp.int32(1 << (_BITS - 1))
    for tap, weight in zip(taps, weights, strict=True):
        total = total + jnp.take(frames, tap, axis=axis).astype(jnp.int32) * weight.reshape(shape)
    return jnp.clip(total >> _BITS, 0, 255).astype(jnp.uint8)


def _taps(old: int, new: int, resample: str) -> tuple[np.ndarray, np.ndarray]:
    """Source pixels and their integer weights: both int32 [taps, new]."""
    function, radius = FILTERS[resample]
    scale = old / new
    stretch = max(scale, 1.0)
    count = math.ceil(radius * stretch) * 2 + 1
    centre = (np.arange(new) + 0.5) * scale
    first = np.maximum((centre - radius * stretch + 0.5).astype(int), 0)
    last = np.minimum((centre + radius * stretch + 0.5).astype(int), old)
    pixel = first + np.arange(count)[:, None]
    weight = np.where(pixel < last, function((pixel - centre + 0.5) / stretch), 0.0)
    weight = weight / weight.sum(0)
    whole = np.trunc(weight * (1 << _BITS) + np.copysign(0.5, weight))
    return np.minimum(pixel, old - 1).astype(np.int32), whole.astype(np.int32)
