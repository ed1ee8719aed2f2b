"""Importing files in GenRL's exact format, made from real renders, and files that only look like it."""

import io
import logging
import os
import zipfile

import numpy as np
import pytest

from bitagent_jax.data import genrl
from bitagent_jax.data.embeddings import open_embedding
from bitagent_jax.data.episodes import list_episodes, open_episodes, read_episode
from bitagent_jax.data.genrl import FINGERPRINT, import_genrl
from bitagent_jax.data.replay import Replay, load_folder
from bitagent_jax.envs.dmc import make_env

ROWS = 11


@pytest.fixture(scope="module")
def rendered():
    """Return the rows of a real walker episode, as GenRL stores them."""
    rng, env = np.random.default_rng(0), make_env("walker_walk", seed=0, action_repeat=100)
    image, _ = env.reset(seed=0)
    rows = [(image, np.zeros(6, np.float32), 0.0)]
    for _ in range(ROWS - 1):
        action = rng.uniform(-1, 1, 6).astype(np.float32)
        image, reward, *_ = env.step(action)
        rows.append((image, action, reward))
    env.close()
    images, actions, rewards = (np.stack(column) for column in zip(*rows, strict=True))
    clip = rng.standard_normal((ROWS, 512)).astype(np.float32)
    clip /= np.linalg.norm(clip, axis=1, keepdims=True)
    clip[:7] = 0
    at = np.arange(ROWS)
    return {
        "observation": np.ascontiguousarray(np.moveaxis(images, 3, 1)),
        "is_first": at == 0, "is_last": at == ROWS - 1, "is_terminal": np.zeros(ROWS, bool),
        "action": actions, "reward": rewards[:, None].astype(np.float32), "discount": np.ones((ROWS, 1), np.float32),
        "clip_video": clip, "clip_img": np.ones((ROWS, 768), np.float32), "state": np.ones((ROWS, 24)),
    }  # fmt: skip


def name(number):
    return f"{number}-20231101T120000-{number:032x}-{ROWS}.npz"


@pytest.fixture
def source(tmp_path, rendered):
    """Return nested folders with three files, the last without embeddings."""
    for number, part in enumerate(("", "expert/stand", "expert/run")):
        (tmp_path / "genrl" / part).mkdir(parents=True, exist_ok=True)
        members = {key: array for key, array in rendered.items() if number < 2 or not key.startswith("clip")}
        np.savez_compressed(tmp_path / "genrl" / part / name(number), **members)
    return tmp_path / "genrl"


def test_rows_meta_and_embeddings_arrive(source, rendered, tmp_path):
    done = import_genrl(source, tmp_path / "out", {"body": "walker"})
    assert done == (3, 0, [])
    paths = list_episodes(tmp_path / "out")
    stems = [name(0)[:-4], f"expert+run+{name(2)[:-4]}", f"expert+stand+{name(1)[:-4]}"]
    assert [path.stem for path in paths] == stems and len(list((tmp_path / "out").iterdir())) == 5
    arrays, meta = read_episode(paths[2])
    file = f"expert/stand/{name(1)}"
    assert meta == {"body": "walker", "file": file, "label": "", "source": "genrl", "terminated": False}
    np.testing.assert_array_equal(np.moveaxis(arrays["image"], 3, 1), rendered["observation"])
    np.testing.assert_array_equal(arrays["reward"], rendered["reward"][:, 0])
    for key in ("action", "is_first", "is_last"):
        np.testing.assert_array_equal(arrays[key], rendered[key])
    cached = [open_embedding(episode, FINGERPRINT) for episode in open_episodes(paths)[0]]
    assert cached[1] is None
    rows = cached[2].read()
    np.testing.assert_array_equal(rows["embedding"], rendered["clip_video"])
    np.testing.assert_array_equal(rows["has_embedding"], np.arange(ROWS) >= 7)


def test_imported_episodes_train_without_an_encoder(source, tmp_path):
    import_genrl(source, tmp_path / "out")
    replay = Replay(1000)
    load_folder(tmp_path / "out", replay, fingerprint=FINGERPRINT)
    batch = replay.sample(30, ROWS, np.random.default_rng(0))
    assert batch["embedding"].shape == (30, ROWS, 512) and 0 < batch["has_embedding"][:, -1].mean() < 1
    assert not batch["has_embedding"][:, :7].any()


def test_a_second_import_continues(source, rendered, tmp_path):
    out = tmp_path / "out"
    import_genrl(source, out)
    (out / f"{name(0)[:-4]}.ep").unlink()  # as if stopped between its embeddings and itself
    np.savez(source / name(3), **rendered)
    assert import_genrl(source, out) == (2, 2, [])
    assert import_genrl(source, out) == (0, 4, [])
    episodes, corrupt = open_episodes(list_episodes(out))
    assert not corrupt and sum(open_embedding(episode, FINGERPRINT) is not None for episode in episodes) == 3


class Trap:
    """Pickled, it makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def absurd(path, rendered, shape):
    """Write a file whose ``observation`` claims a shape that its bytes do not fill."""
    np.savez(path, **{key: array for key, array in rendered.items() if key != "observation"})
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("observation.npy", header.getvalue() + bytes(64))


def nan(array):
    return np.where(np.arange(array.size).reshape(array.shape) == 8, np.nan, array).astype(array.dtype)


BAD = {
    "clip_pickle": lambda r, trap: {"clip_video": np.array([Trap(trap)] * ROWS)},
    "pickle": lambda r, trap: {"action": np.array([Trap(trap)] * ROWS)},
    "objects": lambda r, trap: {"reward": np.array([{}] * ROWS)},
    "nan_action": lambda r, trap: {"action": nan(r["action"])},
    "nan_reward": lambda r, trap: {"reward": nan(r["reward"])},
    "nan_clip": lambda r, trap: {"clip_video": nan(r["clip_video"])},
    "short_clip": lambda r, trap: {"clip_video": r["clip_video"][1:]},
    "flat_clip": lambda r, trap: {"clip_video": r["clip_video"][:, 0]},
    "channels_last": lambda r, trap: {"observation": np.moveaxis(r["observation"], 1, 3)},
    "float_image": lambda r, trap: {"observation": r["observation"] / 255},
    "flat_reward": lambda r, trap: {"reward": r["reward"][:, 0]},
    "short_reward": lambda r, trap: {"reward": r["reward"][1:]},
    "short_action": lambda r, trap: {"action": r["action"][1:]},
    "two_firsts": lambda r, trap: {"is_first": r["is_first"] | r["is_last"]},
    "empty": lambda r, trap: {key: array[:0] for key, array in r.items()},
    "missing": lambda r, trap: {"reward": None},
}


@pytest.mark.parametrize("kind", BAD)
def test_files_with_wrong_contents_are_named_and_skipped(tmp_path, rendered, kind, caplog):
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "good.npz", **rendered)
    members = {
        key: array for key, array in (rendered | BAD[kind](rendered, tmp_path / "trap")).items() if array is not None
    }
    np.savez(tmp_path / "in" / f"{kind}.npz", **members)
    check_skipped(tmp_path, f"{kind}.npz", caplog)


@pytest.mark.parametrize("kind", ["truncated", "text", "nothing", "bytes", "shape", "overflow", "bare_pickle"])
def test_damaged_and_malicious_files_are_named_and_skipped(tmp_path, rendered, kind, caplog):
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "good.npz", **rendered)
    path, whole = tmp_path / "in" / f"{kind}.npz", (tmp_path / "in" / "good.npz").read_bytes()
    if kind in ("shape", "overflow"):
        absurd(path, rendered, {"shape": (1 << 38, 3, 64, 64), "overflow": (1 << 62, 3, 1 << 62, 64)}[kind])
    elif kind == "bare_pickle":
        np.save(path.with_suffix(".npy"), np.array([Trap(tmp_path / "trap")]), allow_pickle=True)
        path.with_suffix(".npy").rename(path)
    else:
        middle = len(whole) // 3
        spoilt = whole[:middle] + bytes(200) + whole[middle + 200 :]
        path.write_bytes({"truncated": whole[:middle], "text": b"no archive", "nothing": b"", "bytes": spoilt}[kind])
    check_skipped(tmp_path, f"{kind}.npz", caplog)


def test_a_file_that_would_unpack_to_too_much_is_not_unpacked(tmp_path, rendered, caplog, monkeypatch):
    monkeypatch.setattr(genrl, "MAX_BYTES", 1 << 20)
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "good.npz", **rendered)
    np.savez_compressed(
        tmp_path / "in" / "bomb.npz", **rendered | {"observation": np.zeros((200, 3, 64, 64), np.uint8)}
    )
    assert (tmp_path / "in" / "bomb.npz").stat().st_size < 1 << 18
    check_skipped(tmp_path, "bomb.npz", caplog)
    assert "would unpack to" in caplog.text


def check_skipped(tmp_path, bad, caplog):
    with caplog.at_level(logging.WARNING):
        done = import_genrl(tmp_path / "in", tmp_path / "out")
    assert done == (1, 0, [str(tmp_path / "in" / bad)]) and bad in caplog.text
    assert [path.stem for path in list_episodes(tmp_path / "out")] == ["good"]
    assert not (tmp_path / "trap").exists()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.ep", "good.genrl-clip_video.emb"]


def test_a_folder_without_a_valid_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="there is no folder .*none to import from"):
        import_genrl(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="nothing to import .*: 0 episodes found"):
        import_genrl(tmp_path, tmp_path / "out")
    (tmp_path / "x.npz").write_bytes(b"")
    with pytest.raises(ValueError, match="1 episodes found, 1 of them corrupt"):
        import_genrl(tmp_path, tmp_path / "out")
