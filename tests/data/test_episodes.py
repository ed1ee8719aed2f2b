"""Episode files: whole or not at all, and checked."""

import json
import logging
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from bitagent_jax.data import episodes as module
from bitagent_jax.data import records
from bitagent_jax.data.episodes import list_episodes, open_episodes, read_episode, write_episode
from bitagent_jax.data.records import CorruptFile, write_records


def test_an_episode_comes_back_as_it_went(tmp_path, make_arrays):
    arrays, meta = make_arrays(), {"task": "walker_run", "label": "run fast", "seed": 3, "versions": {"mujoco": "3"}}
    path = write_episode(tmp_path / "new", arrays, meta)
    assert re.fullmatch(r"\d{8}T\d{6}-[0-9a-f]{8}-walker_run-12\.ep", path.name)
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
    (tmp_path / ".c.ep.1-0.tmp").write_bytes(b"half")
    (tmp_path / ".d.ep").write_bytes(b"hidden")
    (tmp_path / "a.0f.emb").write_bytes(b"")
    assert list_episodes(tmp_path) == sorted(paths)
    assert list_episodes(tmp_path / "missing") == []


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
    path = tmp_path / "bad.ep"
    write_records(path, arrays, {"label": ""})
    with pytest.raises(CorruptFile, match="bad.ep") as caught:
        read_episode(path)
    assert caught.value.path == path and caught.value.why


def test_what_no_reader_would_take_is_not_written(tmp_path, make_arrays, monkeypatch):
    with pytest.raises(ValueError, match="its label is None, no sentence"):
        write_episode(tmp_path, make_arrays(), {"label": None})
    monkeypatch.setattr(records, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="rows of .* bytes are more than"):
        write_episode(tmp_path, make_arrays(), {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("meta", [{}, {"label": 3}])
def test_an_episode_has_a_label(tmp_path, make_arrays, meta):
    write_records(tmp_path / "x.ep", make_arrays(), meta)
    with pytest.raises(CorruptFile, match="x.ep.*not an episode.*the label"):
        read_episode(tmp_path / "x.ep")


@pytest.fixture
def folder(tmp_path, make_arrays):
    for number in range(3):
        write_episode(tmp_path, make_arrays(20, number), {"label": str(number)}, name=f"{number}")
    return tmp_path


def opened(folder, monkeypatch):
    """Open a folder; returns the labels, the corrupt files and how many episodes were read whole."""
    reads, check = [], module._read_checked
    monkeypatch.setattr(module, "_read_checked", lambda episode: reads.append(episode) or check(episode))
    episodes, corrupt = open_episodes(list_episodes(folder))
    monkeypatch.undo()
    return "".join(episode.meta["label"] for episode in episodes), [path.name for path in corrupt], len(reads)


def test_what_was_valid_is_not_read_again_until_it_changes(folder, make_arrays, monkeypatch):
    assert opened(folder, monkeypatch) == ("012", [], 3)
    assert opened(folder, monkeypatch) == ("012", [], 0)
    write_episode(folder, make_arrays(20, 9), {"label": "9"}, name="1")
    write_episode(folder, make_arrays(20, 3), {"label": "3"}, name="3")
    assert opened(folder, monkeypatch) == ("0923", [], 2)
    (folder / "0.ep").unlink()
    write_episode(folder, make_arrays(20, 4), {"label": "4"}, name="4")
    assert opened(folder, monkeypatch) == ("9234", [], 1)
    assert json.loads((folder / module.INDEX).read_bytes()).keys() == {"1.ep", "2.ep", "3.ep", "4.ep"}
    np.testing.assert_array_equal(open_episodes([folder / "4.ep"])[0][0].read()["reward"], 4000 + np.arange(20))


def test_corrupt_files_are_named_every_time(folder, monkeypatch, caplog):
    (folder / "1.ep").write_bytes((folder / "1.ep").read_bytes()[:-1])
    (folder / "gone.ep").symlink_to(folder / "nowhere")
    for reads in (2, 0):
        with caplog.at_level(logging.WARNING):
            assert opened(folder, monkeypatch) == ("02", ["1.ep", "gone.ep"], reads)
        assert "1.ep" in caplog.text and "gone.ep" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("damage", ["text", "list", "entries", "headers"])
def test_a_damaged_index_is_made_anew(folder, monkeypatch, damage):
    opened(folder, monkeypatch)
    index = json.loads((folder / module.INDEX).read_bytes())
    wrong = {
        "text": "{", "list": "[]", "entries": json.dumps({name: 3 for name in index}),
        "headers": json.dumps({name: [*entry[:3], entry[3] | {"rows": "20"}] for name, entry in index.items()}),
    }  # fmt: skip
    (folder / module.INDEX).write_text(wrong[damage])
    assert opened(folder, monkeypatch) == ("012", [], 3)
    assert opened(folder, monkeypatch) == ("012", [], 0)
