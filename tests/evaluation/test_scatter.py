import os

import numpy as np
import pytest
from PIL import Image

from bitagent_jax.evaluation import scatter as module
from bitagent_jax.evaluation.scatter import Panel, scatter, ticks


def panel(x, y, group):
    return Panel("true reward", "cosine", "a note", np.array(x), np.array(y), np.array(group))


def read(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


@pytest.mark.parametrize(
    "low, high, expected",
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-3, 41, [0, 10, 20, 30, 40]), (0.13, 0.88, [0.2, 0.4, 0.6, 0.8])],
)
def test_ticks_are_round_and_inside(low, high, expected):
    np.testing.assert_allclose(ticks(low, high), expected, atol=1e-12)


@pytest.mark.parametrize("low, high", [(0.0, 0.001), (-1e6, 2e6), (5.0, 5.0001)])
def test_there_are_some_ticks_in_any_range(low, high):
    assert 1 <= len(ticks(low, high)) <= 6


def test_dots_stand_where_they_should_in_their_groups_colour(tmp_path):
    path = scatter(tmp_path / "new" / "a.png", [[panel([0.0, 1.0], [0.0, 1.0], ["low", "top"])]])
    assert os.listdir(path.parent) == ["a.png"]
    pixels = read(path)
    plot = pixels[-module.HEIGHT + module.TOP + 2 : -module.BOTTOM - 2, module.LEFT + 2 : -module.RIGHT - 2]
    high, wide = plot.shape[:2]
    coloured = np.ptp(plot, axis=2) > 30
    assert coloured[: high // 2, wide // 2 :].any() and coloured[high // 2 :, : wide // 2].any()
    assert not coloured[: high // 2, : wide // 2].any() and not coloured[high // 2 :, wide // 2 :].any()
    blue = plot[..., 2] - plot[..., 0] > 30
    assert blue[high // 2 :].any() and not blue[: high // 2].any()  # the first name's colour is blue


def test_a_grid_of_panels_and_many_names_fit(tmp_path):
    names = [f"a rather long policy {i}" for i in range(9)]
    one = panel(np.zeros(9), np.full(9, 2.0), names)  # all values equal
    height, width, _ = read(scatter(tmp_path / "a.png", [[one, one], [one]])).shape
    assert width == 2 * module.WIDTH and height > 2 * module.HEIGHT + 2 * module.LINE
    narrow = read(scatter(tmp_path / "b.png", [[one]])).shape
    assert narrow[0] - module.HEIGHT > height - 2 * module.HEIGHT  # the legend takes more lines


def test_nothing_to_draw_is_refused(tmp_path):
    for lines in ([], [[panel([], [], [])]]):
        with pytest.raises(ValueError, match="each of them a dot"):
            scatter(tmp_path / "a.png", lines)
    with pytest.raises(ValueError, match="ends in .png"):
        scatter(tmp_path / "a.jpg", [[panel([0.0], [0.0], ["a"])]])
