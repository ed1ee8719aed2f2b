"""The correlations that measure motion: known shifts are found, brightness does not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bitagent_jax.mllm import towers

_TEXTURE = np.random.default_rng(3).integers(0, 256, (2, 64, 160, 3)).astype(np.float32)


def sliding(across, down=0, frames=6):
    """A texture without time, seen through a window that moves by whole pixels: [frames, 64, 64, 3]."""
    picture = np.concatenate(_TEXTURE[:2])
    corners = [(40 + t * down, 70 + t * across) for t in range(frames)]
    return np.stack([picture[y : y + 64, x : x + 64] for y, x in corners])


def best_shifts(frames, lag):
    """The shift at which each of the 16 horizontal bands correlates best, for each pair of frames."""
    (scores,) = towers.correlate(jnp.asarray(frames), (lag,))
    return np.asarray(scores[:, : 16 * 33]).reshape(-1, 16, 33).argmax(-1) - 16


@pytest.mark.parametrize("across", [-3, 0, 1, 5])
def test_a_moving_picture_correlates_best_at_its_shift(across):
    assert (best_shifts(sliding(across), 1) == -across).all()
    if abs(across) <= 3:
        assert (best_shifts(sliding(across), 4) == -4 * across).all()


def test_vertical_motion_shows_in_the_vertical_bands():
    (scores,) = towers.correlate(jnp.asarray(sliding(0, down=2)), (1,))
    assert (np.asarray(scores[:, 16 * 33 :]).reshape(-1, 16, 17).argmax(-1) - 8 == -2).all()


def test_correlations_match_the_sum_they_stand_for():
    frames = sliding(2)
    bands = frames.mean(-1).reshape(6, 16, 4, 64).mean(2)
    bands -= bands.mean(-1, keepdims=True)
    bands /= np.sqrt(np.square(bands).sum(-1, keepdims=True) + 64)
    now = np.pad(bands[5, 5], 16)
    expected = [(bands[1, 5] * now[16 + d : 80 + d]).sum() for d in range(-16, 17)]
    found = np.asarray(towers.correlate(jnp.asarray(frames), (4,))[0][1])[5 * 33 : 6 * 33]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_correlations_ignore_brightness_and_untextured_bands():
    frames = sliding(1)
    one, two = (towers.correlate(jnp.asarray(x), (1,))[0] for x in (frames, 0.5 * frames + 20))
    np.testing.assert_allclose(one, two, atol=0.02)
    assert not np.asarray(towers.correlate(jnp.full((6, 64, 64, 3), 90.0), (1,))[0]).any()


def test_windows_of_rows_are_the_rows_of_windows():
    slides = jnp.arange(9.0)[:, None], jnp.arange(6.0)[:, None]
    rows = towers.Rows(jnp.arange(9.0)[:, None], slides, jnp.arange(10.0)[:, None])
    windows = rows.windows(3)
    assert windows.pairs[2, :, 0].tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert windows.slides[1][2, :, 0].tolist() == [2, 3, 4, 5]
    assert windows.close[2, :, 0].tolist() == [3, 5, 7, 9]


@pytest.mark.parametrize("stride", [1, 2])
def test_unfolding_and_a_product_convolve(stride):
    rng = np.random.default_rng(0)
    picture, kernel = rng.normal(size=(2, 9, 9, 3)), rng.normal(size=(3, 3, 3, 5))
    expected = jax.lax.conv_general_dilated(
        picture, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    found = towers.unfold(jnp.asarray(picture), 3, stride) @ kernel.reshape(27, 5)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_close_ups_see_the_middle_of_the_picture_alone():
    tower = towers.CloseUp(rngs=nnx.Rngs(0))
    frame = np.zeros((64, 64, 3), np.float32)
    edge, middle = frame.copy(), frame.copy()
    edge[:20], edge[44:], edge[:, :20], edge[:, 44:] = 1, 1, 1, 1
    middle[31, 33] = 1
    np.testing.assert_array_equal(tower(frame), tower(edge))
    assert np.abs(tower(frame) - tower(middle)).max() > 1e-3
