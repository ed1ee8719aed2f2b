"""The cache of embeddings beside episodes."""

import logging

import numpy as np
import pytest

from bitagent_jax.data.embeddings import (
    cache_path,
    embed_folder,
    list_embeddings,
    open_embedding,
    require_embeddings,
    stride_of,
    without_embeddings,
    write_embedding,
)
from bitagent_jax.data.episodes import write_episode
from bitagent_jax.data.records import open_records, write_records


class MeanEncoder:
    """Embeds a window of 3 frames as (mean, 1), and counts its calls."""

    fingerprint = "mean-3"
    num_frames = 3

    def __init__(self, stride=1):
        self.calls, self.clips, self.stride = 0, 0, stride

    def embed_video(self, clips):
        self.clips += len(clips)
        return np.stack([clips.mean((1, 2, 3, 4), dtype=np.float32), np.ones(len(clips), np.float32)], 1)

    def embed_windows(self, frames):
        self.calls += 1
        means = frames.mean((1, 2, 3), dtype=np.float32)
        embedding = np.stack([np.convolve(means, np.ones(3) / 3)[: len(frames)], np.ones(len(frames))], 1)
        has = np.arange(len(frames)) >= 2
        return np.where(has[:, None], embedding, 0).astype(np.float32), has


@pytest.fixture
def folder(tmp_path, make_arrays):
    for number in range(3):
        write_episode(tmp_path, make_arrays(6, number), {}, name=f"{number}")
    return tmp_path


def read(path, fingerprint):
    """Return (embedding, has_embedding) of an episode file, or None."""
    cached = open_embedding(open_records(path), fingerprint)
    return None if cached is None else tuple(cached.read().values())


def test_every_episode_is_embedded_once(folder):
    encoder = MeanEncoder()
    assert read(folder / "0.ep", "mean-3") is None
    assert embed_folder(folder, encoder) == 3 == encoder.calls
    assert embed_folder(folder, encoder) == 0 and encoder.calls == 3
    embedding, has = read(folder / "0.ep", "mean-3")
    np.testing.assert_array_equal(has, [False, False, True, True, True, True])
    np.testing.assert_allclose(embedding, [[0, 0], [0, 0], [1, 1], [2, 1], [3, 1], [4, 1]], rtol=1e-6)
    assert embedding.dtype == np.float32
    assert sorted(path.name for path in folder.glob("*.emb")) == [f"{n}.mean-3.emb" for n in range(3)]


def test_another_fingerprint_has_its_own_cache(folder):
    encoder = MeanEncoder()
    embed_folder(folder, encoder)
    encoder.fingerprint = "other"
    assert embed_folder(folder, encoder) == 3
    assert len(list(folder.glob("*.emb"))) == 6
    with pytest.raises(ValueError, match="a fingerprint consists of"):
        cache_path(folder / "0.ep", "../up")


def test_damaged_and_stale_caches_are_errors_to_readers_and_computed_again(folder, make_arrays, caplog):
    encoder = MeanEncoder()
    embed_folder(folder, encoder)
    (folder / "0.mean-3.emb").write_bytes(b"half")
    changed = make_arrays(7)
    changed["image"] = 255 - changed["image"]
    write_episode(folder, changed, {}, name="1")
    cached = open_records(folder / "2.mean-3.emb")
    write_records(cached.path, {name: rows[:-1] for name, rows in cached.read().items()}, cached.meta)
    for name, message in [("0", "damaged embeddings"), ("1", "other frames"), ("2", "in 5 of 6 rows")]:
        with pytest.raises(ValueError, match=message):
            read(folder / f"{name}.ep", "mean-3")
    with caplog.at_level(logging.WARNING):
        assert embed_folder(folder, encoder) == 3
    assert caplog.text.count("computing them again") == 3
    assert read(folder / "1.ep", "mean-3")[0].shape == (7, 2)
    assert embed_folder(folder, encoder) == 0


def test_a_stride_embeds_the_rows_that_end_a_clip_and_no_others(folder, make_arrays):
    """Of 21 rows, those of stride 8 are 7 and 15; of 6 rows, none."""
    write_episode(folder, make_arrays(21), {}, name="long")
    encoder = MeanEncoder(stride=8)
    assert embed_folder(folder, encoder) == 4 and encoder.clips == 2 and not encoder.calls
    embedding, has = read(folder / "long.ep", "mean-3")
    assert np.flatnonzero(has).tolist() == [7, 15]
    np.testing.assert_allclose(embedding[[7, 15]], [[6, 1], [14, 1]])
    assert not embedding[~has].any() and not read(folder / "0.ep", "mean-3")[1].any()


def test_the_first_rows_of_a_stride_may_lack_a_full_window(folder):
    """Rows 1, 3, 5 of stride 2, of which row 1 has two frames behind it, not three."""
    embed_folder(folder, MeanEncoder(), stride=2)
    assert np.flatnonzero(read(folder / "0.ep", "mean-3")[1]).tolist() == [3, 5]


def test_denser_embeddings_serve_for_sparser_ones_but_not_the_other_way(folder):
    encoder = MeanEncoder()
    strides = lambda: [stride_of(open_records(path)) for path in sorted(folder.glob("*.emb"))]  # noqa: E731
    assert embed_folder(folder, encoder, stride=4) == 3 and strides() == [4, 4, 4]
    assert embed_folder(folder, encoder, stride=8) == 0
    assert embed_folder(folder, encoder, stride=2) == 3 and strides() == [2, 2, 2]
    assert embed_folder(folder, encoder) == 3 and strides() == [1, 1, 1]
    assert embed_folder(folder, encoder, stride=4) == 0
    with pytest.raises(ValueError, match=r"every 3th row: the stride must be one of \(1, 2, 4, 8\)"):
        embed_folder(folder, encoder, stride=3)


def test_processes_share_a_folder(folder):
    first, second = MeanEncoder(), MeanEncoder()
    assert embed_folder(folder, first, share=(0, 2)) == 2 and embed_folder(folder, second, share=(1, 2)) == 1
    assert embed_folder(folder, first) == 0


def test_a_run_that_was_killed_goes_on_where_it_was(folder, monkeypatch):
    encoder = MeanEncoder()
    embed = encoder.embed_windows
    monkeypatch.setattr(encoder, "embed_windows", lambda frames: embed(frames) if encoder.calls < 2 else exit())
    with pytest.raises(SystemExit):
        embed_folder(folder, encoder)
    assert len(list(folder.glob("*.emb"))) == 2 and not list(folder.glob("*.tmp"))
    assert embed_folder(folder, MeanEncoder()) == 1


def test_embeddings_are_listed_and_those_that_are_not_there_are_named(folder):
    embed_folder(folder, MeanEncoder())
    write_embedding(open_records(folder / "0.ep"), "genrl-clip_video", np.ones((6, 5)), np.ones(6, bool))
    (folder / "1.broken.emb").write_bytes(b"x")
    assert list_embeddings(folder) == {"mean-3": 2, "genrl-clip_video": 5}
    require_embeddings(folder, "mean-3", 2)
    with pytest.raises(ValueError, match="'genrl-clip_vdeo:5'. Did you mean 'genrl-clip_video:5'.*mean-3:2"):
        require_embeddings(folder, "genrl-clip_vdeo", 5)
    with pytest.raises(ValueError, match="'mean-3:512'. Did you mean 'mean-3:2'"):
        require_embeddings(folder, "mean-3", 512)


def test_episodes_without_embeddings_of_a_key_and_width_are_found(folder):
    episodes = [open_records(folder / f"{number}.ep") for number in range(3)]
    write_embedding(episodes[0], "x", np.ones((6, 5)), np.ones(6, bool))
    write_embedding(episodes[1], "x", np.ones((6, 4)), np.ones(6, bool))
    assert without_embeddings(episodes, "x", 5) == episodes[1:] and without_embeddings(episodes[:1], "x", 5) == []
    (folder / "2.x.emb").write_bytes(b"x")
    with pytest.raises(ValueError, match="damaged embeddings.*2.x.emb"):
        without_embeddings(episodes, "x", 5)


def test_corrupt_episodes_are_skipped(folder, caplog):
    (folder / "1.ep").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        assert embed_folder(folder, MeanEncoder(), progress=False) == 2
    assert "1.ep" in caplog.text


@pytest.mark.parametrize(
    "embedding, has, message",
    [
        (np.zeros((5, 2)), np.ones(6, bool), r"expected float32 \[6, D\]"),
        (np.zeros((6, 2)), np.ones(5, bool), "expected bool flags"),
        (np.full((6, 2), np.nan), np.ones(6, bool), "not finite"),
    ],
)
def test_embeddings_that_do_not_fit_are_not_written(folder, embedding, has, message):
    with pytest.raises(ValueError, match=message):
        write_embedding(open_records(folder / "0.ep"), "f", embedding, has)
    assert not list(folder.glob("*.emb"))


def test_values_in_rows_without_an_embedding_are_never_seen(folder):
    has = np.arange(6) >= 1
    write_embedding(open_records(folder / "0.ep"), "f", np.where(has[:, None], 1, np.nan) * np.ones((6, 2)), has)
    np.testing.assert_array_equal(read(folder / "0.ep", "f")[0][:, 0], [0, 1, 1, 1, 1, 1])
