"""Resizing equals Pillow's to the last bit; preprocessor files are read, and refused where they ask for more."""

import numpy as np
import pytest
from PIL import Image

from bitagent_jax.mllm import pixels

SIZES = [((64, 64), (224, 224)), ((64, 64), (288, 288)), ((90, 130), (56, 40)), ((7, 9), (7, 20)), ((99, 99), (31, 31))]


@pytest.mark.parametrize("resample", pixels.FILTERS)
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_resizing_equals_pillows_to_the_last_bit(resample, old, new):
    frames = np.random.default_rng(0).integers(0, 256, (2, *old, 3), np.uint8)
    frames[1] = frames[1] // 128 * 255  # the hardest edges
    method = Image.Resampling[resample.upper()]
    expected = [np.asarray(Image.fromarray(frame).resize(new[::-1], method)) for frame in frames]
    assert np.array_equal(pixels.resize(frames, new, resample), expected)


def test_cropping_keeps_proportions_and_the_middle():
    frames = np.zeros((1, 8, 16, 3), np.uint8)
    frames[:, :, 4:12] = 255
    out = pixels.Pixels((8, 8), crop=True)(frames)
    assert out.shape == (1, 8, 8, 3) and np.all(np.asarray(out) == 1)


def test_a_preprocessor_file_overrides_the_defaults():
    config = {"size": {"shortest_edge": 32}, "do_center_crop": False, "resample": 2, "image_mean": [0, 0, 1]}
    read = pixels.from_config(config, 32, std=(2.0, 2.0, 2.0), crop=True)
    assert read == pixels.Pixels((32, 32), "bilinear", (0.0, 0.0, 1.0), (2.0, 2.0, 2.0))
    assert pixels.from_config({}, 16, resample="lanczos") == pixels.Pixels((16, 16), "lanczos")
    assert pixels.from_config({"do_normalize": False, "image_mean": [1, 1, 1]}, 16).mean == (0.0, 0.0, 0.0)


def test_what_a_preprocessor_file_cannot_ask_for():
    with pytest.raises(ValueError, match=r"makes pictures of \(384, 384\), but the model's are 224 a side"):
        pixels.from_config({"size": 384}, 224)
    with pytest.raises(ValueError, match=r"cuts 224 a side out of pictures resized to \(256, 256\)"):
        pixels.from_config({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224}, 224)
    with pytest.raises(ValueError, match="resample=0 is none of"):
        pixels.from_config({"resample": 0}, 224)
    with pytest.raises(ValueError, match="unknown resampling filter 'cubic'. Did you mean 'bicubic'"):
        pixels.Pixels(resample="cubic")
    with pytest.raises(ValueError, match="in floating point is bilinear, not bicubic"):
        pixels.Pixels((8, 8), whole=False)(np.zeros((1, 4, 4, 3), np.uint8))
