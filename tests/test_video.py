import os
import subprocess

import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image

from bitagent_jax import video


def gradient(count=8, height=64, width=64, blue=0):
    y, x = np.mgrid[:height, :width]
    red = [(x + 8 * index) % width * 255 / width for index in range(count)]
    return np.stack([np.stack([r, y * 255 / height, np.full_like(r, blue)], -1) for r in red]).astype(np.uint8)


def decode(path, height, width):
    command = [get_ffmpeg_exe(), "-loglevel", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(data, np.uint8).reshape(-1, height, width, 3)


@pytest.mark.parametrize("height, width, even", [(64, 64, (64, 64)), (65, 63, (66, 64))])
def test_an_mp4_holds_the_frames(tmp_path, height, width, even):
    frames = gradient(12, height, width)
    path = video.write_mp4(tmp_path / "new" / "walk.mp4", frames, fps=20)
    decoded = decode(path, *even)
    assert decoded.shape == (12, *even, 3)
    assert np.abs(decoded[:, :height, :width].astype(int) - frames).mean() < 12
    assert os.listdir(path.parent) == ["walk.mp4"]


def test_a_failed_mp4_leaves_nothing_and_keeps_the_old_one(tmp_path):
    path = video.write_mp4(tmp_path / "a.mp4", gradient())
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="ffmpeg could not write"):
        video.write_mp4(path, gradient(), fps="a lot")
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize(
    "frames", [np.zeros((4, 8, 8), np.uint8), np.zeros((4, 8, 8, 3)), np.zeros((0, 8, 8, 3), np.uint8)]
)
def test_what_is_no_video_is_refused(tmp_path, frames):
    with pytest.raises(ValueError, match="a video is uint8"):
        video.write_mp4(tmp_path / "a.mp4", frames)
    with pytest.raises(ValueError, match="a video is uint8"):
        video.contact_sheet(tmp_path / "a.png", {"x": frames})
    assert not os.listdir(tmp_path)


def test_other_endings_and_empty_sheets_are_refused(tmp_path):
    with pytest.raises(ValueError, match="ends in .mp4"):
        video.write_mp4(tmp_path / "a.avi", gradient())
    with pytest.raises(ValueError, match="ends in .png"):
        video.contact_sheet(tmp_path / "a.jpg", {"x": gradient()})
    with pytest.raises(ValueError, match="at least one row"):
        video.contact_sheet(tmp_path / "a.png", {})


def test_tiles_stand_side_by_side_under_labels_and_hold_their_last_frame():
    tiled = video.tile({"left": gradient(8), "right": gradient(3, 32, 64, blue=200)}, height=64)
    assert len(tiled) == 8 and tiled.dtype == np.uint8
    label = tiled.shape[1] - 64
    assert tiled[0, :label].min() < 100  # ink
    assert (tiled[0, label:] != tiled[3, label:]).any()
    right = tiled[:, label:, 70 + 10 :]
    np.testing.assert_array_equal(right[2], right[7])


def test_a_contact_sheet_has_a_labelled_row_for_each_video(tmp_path):
    rows = {"imagined task": gradient(16), "policy": gradient(9, blue=255)}
    path = video.contact_sheet(tmp_path / "sheet.png", rows, every=4, height=64)
    sheet = np.asarray(Image.open(path))
    cells = [x for x in range(sheet.shape[1]) if sheet[-40, x, 2] == 255 and sheet[-40, x, 1] < 200]
    assert 3 * 60 <= len(cells) <= 3 * 64  # frames 0, 4 and 8 of the second video; the fourth cell is empty
    left = cells[0]
    for top in (-64 - 6, -64 - 6 - 70):
        assert sheet[top : top + 64, :left].min() < 60  # both rows' labels are drawn
    assert os.listdir(tmp_path) == ["sheet.png"]


@pytest.mark.parametrize(
    "length, count, picks", [(40, 5, [0, 10, 20, 29, 39]), (3, 4, [0, 1, 1, 2]), (1, 2, [0, 0]), (9, 1, [0])]
)
def test_frames_are_read_from_the_first_to_the_last(tmp_path, length, count, picks):
    """Frame t is grey of level 20 + 5 t; H.264 keeps that to within a few levels."""
    grey = np.broadcast_to((20 + 5 * np.arange(length))[:, None, None, None], (length, 32, 48, 3)).astype(np.uint8)
    path = video.write_mp4(tmp_path / "a [clip], 100%.mp4", grey)
    frames = video.read_video(path, count)
    assert frames.shape == (count, 32, 48, 3) and frames.dtype == np.uint8
    assert video.spread(length, count).tolist() == picks
    np.testing.assert_allclose(frames, grey[picks], atol=4)


def test_a_file_without_frames_is_named(tmp_path):
    whole = video.write_mp4(tmp_path / "whole.mp4", np.zeros((20, 32, 32, 3), np.uint8)).read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="half.mp4 is no video that can be read: "):
        video.read_video(tmp_path / "half.mp4", 2)
    with pytest.raises(ValueError, match="none.mp4 is no video that can be read: .*No such file"):
        video.read_video(tmp_path / "none.mp4", 2)
