"""The prefetching loader."""

import gc
import threading

import jax
import numpy as np
import pytest

from bitagent_jax.data.loader import Loader
from bitagent_jax.data.replay import Replay


@pytest.fixture
def replay(make_episode):
    replay = Replay(1000)
    for number in range(4):
        replay.add(make_episode(30, number))
    return replay


def loaders() -> int:
    return sum("_fill" in thread.name for thread in threading.enumerate())


def rewards(replay, steps, start_step=0, seed=7):
    with Loader(replay, 3, 5, seed=seed, start_step=start_step) as loader:
        return [next(loader)["reward"] for _ in range(steps)]


def test_the_batch_of_a_step_is_fixed_by_seed_and_step(replay):
    whole = rewards(replay, 6)
    np.testing.assert_array_equal(whole, rewards(replay, 2) + rewards(replay, 4, start_step=2))
    np.testing.assert_array_equal(whole[4], replay.sample(3, 5, np.random.default_rng((7, 4)))["reward"])
    assert not np.array_equal(whole, rewards(replay, 6, seed=8))
    assert loaders() == 0


def test_several_readers_share_a_batch(replay):
    whole = replay.sample(5, 3, np.random.default_rng((7, 2)))
    for mine in ([0, 2], [1, 3, 4]):
        with Loader(replay, 5, 3, seed=7, start_step=2, only=np.array(mine)) as loader:
            part = next(loader)
        assert part.keys() == whole.keys()
        for name, array in whole.items():
            np.testing.assert_array_equal(part[name], array[mine])


def test_batches_on_the_device_stay_as_they_were(replay):
    with Loader(replay, 4, 8, seed=0, place=jax.device_put) as loader:
        batches = [next(loader) for _ in range(20)]
    for step, batch in enumerate(batches):
        wanted = replay.sample(4, 8, np.random.default_rng((0, step)))
        assert isinstance(batch["image"], jax.Array)
        for key, array in wanted.items():
            np.testing.assert_array_equal(np.asarray(batch[key]), array)


def test_only_a_few_batches_are_drawn_ahead(replay):
    drawn = []
    with Loader(replay, 2, 3, seed=0, place=lambda batch: drawn.append(batch), ahead=2) as loader:
        for _ in range(5):
            next(loader)
        assert 5 <= len(drawn) <= 5 + 2 + 1


def test_an_error_in_the_thread_reaches_the_consumer_after_the_good_batches(replay):
    calls = []

    def place(batch):
        calls.append(batch)
        if len(calls) == 3:
            raise OSError("device lost")
        return batch

    with Loader(replay, 2, 3, seed=0, place=place) as loader:
        next(loader), next(loader)
        for _ in range(2):
            with pytest.raises(OSError, match="device lost"):
                next(loader)
    with Loader(replay, 2, 31, seed=0) as loader, pytest.raises(ValueError, match="replay too short"):
        next(loader)
    assert loaders() == 0


def test_closing_joins_and_ends_the_iteration(replay):
    loader = Loader(replay, 2, 3, seed=0)
    next(loader)
    loader.close(), loader.close()
    assert loaders() == 0
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)


def test_a_forgotten_loader_ends_its_thread(replay):
    loader = Loader(replay, 2, 3, seed=0)
    next(loader)
    del loader
    gc.collect()
    assert loaders() == 0
