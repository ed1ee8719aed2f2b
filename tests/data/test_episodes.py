"""Episode files: whole or not at all, and checked."""

import re
import subprocess
import sys
import time

import numpy as np
import pytest

from bitagent_jax.data.episodes import CorruptEpisode, list_episodes, read_episode, write_atomically, write_episode


def test_an_episode_comes_back_as_it_went(tmp_path, make_arrays):
    arrays, meta = make_arrays(), {"task": "walker_run", "label": "run fast", "seed": 3, "versions": {"mujoco": "3"}}
    path = write_episode(tmp_path / "new", arrays, meta)
    assert re.fullmatch(r"\d{8}T\d{6}-[0-9a-f]{8}-walker_run-12\.npz", path.name)
    assert list_episodes(tmp_path / "new") == [path]
    back, back_meta = read_episode(path)
    assert back_meta == meta and back.keys() == arrays.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(back[key], array, strict=True)


def test_a_given_name_replaces_and_the_label_is_empty_by_default(tmp_path, make_arrays):
    for number in range(2):
        path = write_episode(tmp_path, make_arrays(number=number), {}, name="000000-walker_run-12")
    arrays, meta = read_episode(path)
    assert list_episodes(tmp_path) == [path] and meta == {"label": ""} and arrays["reward"][0] == 1000


def test_only_finished_files_are_listed_in_order(tmp_path, make_arrays):
    paths = [write_episode(tmp_path, make_arrays(), {}, name=name) for name in ("b", "a")]
    (tmp_path / ".c.npz.1-0.tmp").write_bytes(b"half")
    (tmp_path / ".d.npz").write_bytes(b"hidden")
    (tmp_path / "a.0f.emb").write_bytes(b"")
    assert list_episodes(tmp_path) == sorted(paths)
    assert list_episodes(tmp_path / "missing") == []


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


WRITER = """
import sys, numpy as np
from bitagent_jax.data.episodes import write_episode
rows = 400
noise = np.random.default_rng(0).integers(0, 256, (rows, 64, 64, 3), np.uint8)
flags = np.arange(rows)
arrays = dict(image=noise, action=np.zeros((rows, 6), np.float32), reward=np.zeros(rows, np.float32),
              is_first=flags == 0, is_last=flags == rows - 1)
print("ready", flush=True)
for number in range(1000):
    write_episode(sys.argv[1], arrays, {}, name=f"{number:03d}")
"""


def test_a_writer_killed_at_any_moment_leaves_only_whole_episodes(tmp_path):
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        deadline = time.monotonic() + 30
        while not (list_episodes(tmp_path) and list(tmp_path.glob(".*.tmp"))) and time.monotonic() < deadline:
            pass
        writer.kill()
    assert list(tmp_path.glob(".*.tmp")), "the writer was not in the middle of a file"
    assert list_episodes(tmp_path)
    for path in list_episodes(tmp_path):
        assert len(read_episode(path)[0]["reward"]) == 400


def spoil(arrays, change):
    return {key: value for key, value in (arrays | change(arrays)).items() if value is not None}


SPOILT = {
    "missing reward": lambda a: {"reward": None},
    "image must be uint8": lambda a: {"image": a["image"].astype(np.float32)},
    "action must be float32 with 2 axes": lambda a: {"action": a["action"].astype(np.float64)},
    "reward has shape": lambda a: {"reward": a["reward"][:-1]},
    "image must end in 3 colours": lambda a: {"image": np.moveaxis(a["image"], 3, 1)},
    "action has values that are not finite": lambda a: {"action": np.full_like(a["action"], np.nan)},
    "reward has values that are not finite": lambda a: {"reward": np.full_like(a["reward"], np.inf)},
    "is_first must be true in row 0 alone": lambda a: {"is_first": ~a["is_first"]},
    "is_last is true before the last row": lambda a: {"is_last": a["is_first"]},
    "image has shape": lambda a: {key: value[:0] for key, value in a.items()},
}


@pytest.mark.parametrize("why", SPOILT)
def test_wrong_arrays_are_refused_by_writer_and_reader(tmp_path, make_arrays, why):
    arrays = spoil(make_arrays(), SPOILT[why])
    with pytest.raises(ValueError, match=why):
        write_episode(tmp_path, arrays, {})
    path = tmp_path / "bad.npz"
    np.savez(path, meta=np.array('{"label": ""}'), **arrays)
    with pytest.raises(CorruptEpisode, match="bad.npz") as caught:
        read_episode(path)
    assert caught.value.path == path and caught.value.why


def damage(path, kind, arrays):
    data = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "flipped":
        middle = len(data) // 8
        path.write_bytes(data[:middle] + bytes(255 - byte for byte in data[middle : middle + 40]) + data[middle + 40 :])
    elif kind == "text":
        path.write_text("not an archive")
    elif kind == "gone":
        path.unlink()
    elif kind == "array":
        with open(path, "wb") as file:
            np.save(file, arrays["image"])
    elif kind == "objects":
        np.savez(path, meta=np.array("{}"), **arrays | {"reward": np.array([{}] * len(arrays["reward"]))})
    elif kind == "meta":
        np.savez(path, meta=np.array("{no json"), **arrays)
    elif kind == "label":
        np.savez(path, meta=np.array('{"label": 3}'), **arrays)


@pytest.mark.parametrize("kind", ["truncated", "empty", "flipped", "text", "gone", "array", "objects", "meta", "label"])
def test_damaged_files_are_corrupt_episodes(tmp_path, make_arrays, kind):
    path = write_episode(tmp_path, make_arrays(200), {}, name="x")
    damage(path, kind, make_arrays())
    with pytest.raises(CorruptEpisode, match="x.npz"):
        read_episode(path)


def test_no_wrong_byte_is_read_as_data_or_as_another_error(tmp_path, make_arrays):
    """A changed byte is either noticed or lies where nothing is stored."""
    path = write_episode(tmp_path, make_arrays(), {}, name="x")
    good, _ = read_episode(path)
    data, rng, noticed = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(300):
        at = rng.integers(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << rng.integers(8))]) + data[at + 1 :])
        try:
            arrays, _ = read_episode(path)
        except CorruptEpisode:
            noticed += 1
            continue
        for key, array in good.items():
            np.testing.assert_array_equal(arrays[key], array)
    assert noticed > 150
