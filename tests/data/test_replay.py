"""Sampling sequences: uniform, within episodes, masked, repeatable."""

import logging
import tracemalloc

import numpy as np
import pytest

from bitagent_jax.data.embeddings import open_embedding, write_embedding
from bitagent_jax.data.episodes import list_episodes, write_episode
from bitagent_jax.data.records import CorruptFile, open_records
from bitagent_jax.data.replay import Replay, load_folder


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_sequences_are_consecutive_rows_of_one_episode(make_episode):
    replay = Replay(1000)
    for number, rows in enumerate((12, 5, 30)):
        replay.add(make_episode(rows, number))
    assert (replay.frames, replay.episodes) == (47, 3)
    batch = replay.sample(200, 5, rng())
    assert batch["image"].shape == (200, 5, 8, 8, 3) and batch["image"].dtype == np.uint8
    assert batch["action"].shape == (200, 5, 2) and batch["is_first"].shape == (200, 5)
    np.testing.assert_array_equal(np.diff(batch["reward"], axis=1), 1)
    number, row = np.divmod(batch["reward"].astype(int), 1000)
    assert (number == number[:, :1]).all() and set(number[:, 0]) == {0, 1, 2}
    np.testing.assert_array_equal(batch["image"][..., 0, 0, 0], row)
    np.testing.assert_array_equal(batch["is_first"], row == 0)
    np.testing.assert_allclose(batch["action"][..., 1], np.tanh(2 * row + 1, dtype=np.float32), rtol=1e-6)


def test_last_rows_are_uniform_and_the_first_rows_of_episodes_are_not_rare(make_episode):
    """Rows 3, 4 and 6 with length 3 hold 13 last rows; the first three of an episode all end its first sequence."""
    replay = Replay(100)
    for number, rows in enumerate((3, 4, 2, 6)):
        replay.add(make_episode(rows, number))
    starts, counts = np.unique(replay.sample(2600, 3, rng())["reward"][:, 0], return_counts=True)
    assert starts.tolist() == [0, 1000, 1001, 3000, 3001, 3002, 3003]
    assert np.abs(counts - 200 * np.array([3, 3, 1, 3, 1, 1, 1])).max() < 5 * np.sqrt(2600 * 3 * 10 / 169)


def test_a_whole_episode_can_be_drawn_and_more_cannot(make_episode):
    replay = Replay(100)
    replay.add(make_episode(7))
    np.testing.assert_array_equal(replay.sample(3, 7, rng())["reward"], [range(7)] * 3)
    with pytest.raises(ValueError, match="replay too short: sequences of 8 rows wanted.* 1 episodes has 7"):
        replay.sample(3, 8, rng())
    with pytest.raises(ValueError, match="replay too short.* 0 episodes has 0"):
        Replay(10).sample(1, 1, rng())
    with pytest.raises(ValueError, match="at least 1, got 0 and 2"):
        replay.sample(0, 2, rng())


def test_sampling_is_a_function_of_contents_and_generator(make_episode):
    batches = []
    for _ in range(2):
        replay = Replay(1000)
        for number in range(3):
            replay.add(make_episode(40, number))
        batches.append(replay.sample(16, 8, rng(5)))
    for key in batches[0]:
        np.testing.assert_array_equal(batches[0][key], batches[1][key])
    assert not np.array_equal(batches[0]["reward"], replay.sample(16, 8, rng(6))["reward"])


def test_batches_are_fresh(make_episode):
    replay = Replay(100)
    replay.add(make_episode(9))
    batch = replay.sample(4, 9, rng())
    for array in batch.values():
        array[...] = 1
    assert replay.sample(1, 9, rng())["reward"].tolist() == [list(range(9))]


def test_the_oldest_whole_episodes_leave_first(make_episode):
    replay = Replay(25)
    for number in range(4):
        replay.add(make_episode(10, number))
    assert (replay.frames, replay.episodes) == (20, 2)
    assert set(replay.sample(100, 10, rng())["reward"][:, 0]) == {2000, 3000}
    replay.add(make_episode(25, 9))
    assert (replay.frames, replay.episodes) == (25, 1)
    with pytest.raises(ValueError, match="26 frames exceeds the replay's capacity of 25"):
        replay.add(make_episode(26))
    with pytest.raises(ValueError, match="at least 1 frame"):
        Replay(0)


def embedded(episode, embedding, has, stride=1):
    write_embedding(episode, "abc", embedding, has, stride)
    return open_embedding(episode, "abc")


def test_sequences_are_aligned_to_embeddings_that_have_a_stride(make_episode):
    """Of rows 9, 6, 21 with length 6 and a stride of 4, 1, 1 and 4 are starts; rows 3, 7, ... end a clip."""
    replay, strides = Replay(100), {9: 4, 6: 1, 21: 2}
    for number, (rows, stride) in enumerate(strides.items()):
        has = np.arange(rows) % stride == stride - 1
        replay.add(make_episode(rows, number), embedded(make_episode(rows, number), np.ones((rows, 2)), has, stride))
    batch = replay.sample(1200, 6, rng())
    starts, counts = np.unique(batch["reward"][:, 0], return_counts=True)
    assert starts.tolist() == [0, 1000, 2000, 2004, 2008, 2012]
    assert np.abs(counts - 1200 / 36 * np.array([9, 6, 9, 4, 4, 4])).max() < 5 * np.sqrt(1200 * 3 / 16)
    assert batch["has_embedding"][:, 3].all() and not batch["has_embedding"][batch["reward"][:, 0] == 0][:, :3].any()


def test_once_the_embeddings_with_a_stride_have_left_every_start_is_drawn_again(make_episode):
    replay = Replay(20)
    replay.add(make_episode(8, 0), embedded(make_episode(8, 0), np.ones((8, 2)), np.arange(8) == 7, 8))
    assert set(replay.sample(50, 6, rng())["reward"][:, 0]) == {0}
    replay.add(make_episode(20, 1))
    assert len(set(replay.sample(500, 6, rng())["reward"][:, 0])) == 15


def test_a_width_can_be_demanded(make_episode):
    replay, episode = Replay(100, embed_dim=3), make_episode(6)
    with pytest.raises(ValueError, match=r"expected embeddings of width 3, got shape \(2,\)"):
        replay.add(episode, embedded(episode, np.ones((6, 2)), np.ones(6, bool)))
    replay.add(episode)
    assert replay.sample(1, 2, rng())["embedding"].shape == (1, 2, 3)


def test_embeddings_and_texts_are_masked_where_absent(make_episode):
    """Three episodes: embedded with a label, embedded without one, labelled only."""
    replay, has, every = Replay(100), np.arange(6) >= 2, np.ones(6, bool)
    embedding = np.arange(12, dtype=np.float32).reshape(6, 2)
    first, second = make_episode(6, 0, "run"), make_episode(6, 1)
    replay.add(first, embedded(first, embedding, has))
    replay.add(second, embedded(second, embedding, every))
    replay.add(make_episode(6, 2, "walk"))
    replay.set_texts({"run": np.array([0.6, 0.8])})
    assert replay.labels == {"run", "walk"}
    batch = replay.sample(60, 6, rng())
    number = (batch["reward"][:, 0] // 1000).astype(int)
    wanted = np.where(has[:, None], embedding, 0)
    np.testing.assert_array_equal(batch["has_embedding"], np.array([has, every, ~every])[number])
    np.testing.assert_array_equal(batch["embedding"], np.array([wanted, embedding, 0 * embedding])[number])
    np.testing.assert_array_equal(batch["has_text"], number == 0)
    np.testing.assert_array_equal(batch["text"], np.float32([[0.6, 0.8], [0, 0], [0, 0]])[number])
    assert [batch[key].dtype for key in ("embedding", "has_embedding", "text", "has_text")] == ["f4", "?", "f4", "?"]


def test_without_any_embedding_the_width_is_zero(make_episode):
    replay = Replay(100)
    replay.add(make_episode(6))
    batch = replay.sample(2, 3, rng())
    assert batch["embedding"].shape == (2, 3, 0) and batch["text"].shape == (2, 0)
    assert not batch["has_embedding"].any() and not batch["has_text"].any()


def test_episodes_that_do_not_fit_the_others_are_refused(make_episode):
    replay, episode, every = Replay(100), make_episode(6), np.ones(6, bool)
    replay.add(episode, embedded(episode, np.ones((6, 4)), every))
    with pytest.raises(ValueError, match="'action': .*unlike the other episodes'"):
        replay.add(make_episode(7, actions=3))
    with pytest.raises(ValueError, match="width 4, got shape"):
        replay.add(episode, embedded(episode, np.ones((6, 5)), every))
    with pytest.raises(ValueError, match="width 4, got shape"):
        replay.set_texts({"run": np.ones(3)})
    assert replay.episodes == 1


def test_the_number_of_threads_changes_nothing(make_episode):
    episodes, batches = [make_episode(40, number) for number in range(3)], []
    for threads in (1, 5):
        replay = Replay(1000, threads)
        for episode in episodes:
            replay.add(episode)
        batches.append(replay.sample(16, 20, rng(5)))
    for key in batches[0]:
        np.testing.assert_array_equal(batches[0][key], batches[1][key])


def test_the_set_is_not_held_in_memory(tmp_path):
    """Of 600 MB of frames, batches need a few megabytes and the headers a few kilobytes."""
    flags = np.arange(200)
    frames = np.zeros((200, 100, 100, 3), np.uint8)
    arrays = dict(image=frames, action=np.zeros((200, 1), np.float32), reward=np.zeros(200, np.float32))
    path = write_episode(tmp_path, arrays | dict(is_first=flags == 0, is_last=flags == 199), {}, name="x")
    tracemalloc.start()
    replay = Replay(100 * 200)
    for _ in range(100):
        replay.add(open_records(path))
    for step in range(4):
        replay.sample(4, 8, rng(step))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert replay.frames * frames[0].nbytes == 600_000_000 and peak < 8_000_000


def test_a_file_damaged_under_way_is_named(make_episode):
    replay, episode = Replay(100), make_episode(40)
    replay.add(episode)
    data = episode.path.read_bytes()
    episode.path.write_bytes(data[:-9] + bytes(9))
    with pytest.raises(CorruptFile, match=str(episode.path)):
        replay.sample(1, 40, rng())
    episode.path.unlink()
    with pytest.raises(CorruptFile, match="FileNotFound"):
        replay.sample(1, 40, rng())


def test_a_folder_is_loaded_in_order_without_its_corrupt_files(tmp_path, make_arrays, caplog):
    for number in range(4):
        path = write_episode(tmp_path, make_arrays(8, number), {"label": f"task {number}"}, name=f"{number}")
        write_embedding(open_records(path), "abc", np.full((8, 3), number, np.float32), np.arange(8) > 0)
    (tmp_path / "1.ep").write_bytes((tmp_path / "1.ep").read_bytes()[:300])
    (tmp_path / "2.abc.emb").unlink()
    replay = Replay(100)
    with caplog.at_level(logging.WARNING):
        assert load_folder(tmp_path, replay, fingerprint="abc") == [tmp_path / "1.ep"]
    assert "1.ep" in caplog.text and "skipped 1 corrupt of 4" in caplog.text and "1 of 4 episodes" in caplog.text
    assert replay.labels == {"task 0", "task 2", "task 3"} and replay.frames == 24
    batch = replay.sample(50, 8, rng())
    number = (batch["reward"][:, 0] // 1000).astype(int)
    np.testing.assert_array_equal(batch["has_embedding"][:, 3], number != 2)
    np.testing.assert_array_equal(batch["embedding"][:, 3, 0], np.where(number == 2, 0, number))
    fewer = Replay(100)
    load_folder(tmp_path, fewer, paths=list_episodes(tmp_path)[:1])
    assert fewer.labels == {"task 0"}


def test_rows_beyond_the_capacity_are_named(tmp_path, make_arrays, caplog):
    for number in range(4):
        write_episode(tmp_path, make_arrays(8, number), {}, name=f"{number}")
    replay = Replay(20)
    load_folder(tmp_path, replay)
    assert replay.episodes == 2
    assert "2 of 4 episodes are not drawn from, the first by name: they exceed config.data.capacity=20" in caplog.text
    caplog.clear()
    load_folder(tmp_path, replay, paths=list_episodes(tmp_path)[:1])  # as of a round of online collection
    assert replay.episodes == 2 and not caplog.text


def test_a_folder_without_a_valid_episode_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no valid episode in .*: 0 files, 0 corrupt"):
        load_folder(tmp_path, Replay(10))
    (tmp_path / "a.ep").write_bytes(b"x")
    with pytest.raises(ValueError, match="1 files, 1 corrupt"):
        load_folder(tmp_path, Replay(10))
