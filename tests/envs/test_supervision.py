"""Workers that are killed, stopped or leak: real processes, real MuJoCo."""

import logging
import os
import signal

import numpy as np
import pytest

from bitagent_jax.envs.dmc import make_env
from bitagent_jax.envs.pool import EnvPool

TASKS = ["walker_run", "walker_stand", "walker_walk"]
SETTINGS = dict(action_repeat=100, render=False)
ONES = np.ones((3, 6), np.float32)


@pytest.fixture(scope="module")
def pool():
    """Environments 0 and 1 in one worker, 2 in another; episodes of a reset row and 10 steps."""
    with EnvPool(TASKS, seed=7, workers=2, state=True, **SETTINGS) as pool:
        yield pool


def expected(slot: int, seed: int, episode: int, steps: int) -> np.ndarray:
    """Return the state of an environment by itself, some steps of ONES into an episode."""
    env = make_env(TASKS[slot], seed=seed, slot=slot, **SETTINGS)
    for _ in range(episode + 1):
        env.reset()
    for _ in range(steps):
        env.step(ONES[0])
    return env.measurements()


def end(pool: EnvPool, worker: int, sign: int) -> int:
    pid = pool._workers[worker].process.pid
    os.kill(pid, sign)
    return pid


def warnings_of(caplog) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


def test_a_killed_worker_is_replaced_and_its_environments_go_on_with_their_next_episodes(pool, caplog):
    pool.reset(seed=7)
    pool.step(ONES)
    pid = end(pool, 0, signal.SIGKILL)
    row = pool.step(ONES)
    assert f"process id {pid} (environments 0: walker_run, 1: walker_stand) failed (exit code -9)" in caplog.text
    assert "starting it anew; its unfinished episodes are lost" in warnings_of(caplog)
    assert row.is_first.tolist() == [True, True, False] and not row.is_last.any()
    assert not row.action[:2].any() and not row.reward[:2].any() and row.action[2].all()
    np.testing.assert_array_equal(row.state, [expected(0, 7, 1, 0), expected(1, 7, 1, 0), expected(2, 7, 0, 2)])
    row = pool.step(ONES)
    np.testing.assert_array_equal(row.state, [expected(0, 7, 1, 1), expected(1, 7, 1, 1), expected(2, 7, 0, 3)])
    assert pool._workers[0].failures == 0 and not row.is_first.any()


def test_a_worker_that_dies_before_a_reset_begins_the_episodes_asked_for(pool, caplog):
    pool.reset(seed=3)
    end(pool, 1, signal.SIGKILL)
    row = pool.reset()
    np.testing.assert_array_equal(row.state, [expected(slot, 3, 1, 0) for slot in range(3)])
    end(pool, 1, signal.SIGKILL)
    row = pool.reset(seed=4)
    np.testing.assert_array_equal(row.state, [expected(slot, 4, 0, 0) for slot in range(3)])
    assert warnings_of(caplog).count("exit code -9") == 2
    pool.step(ONES)


def test_a_hung_worker_is_killed_and_replaced(pool, caplog, monkeypatch):
    pool.reset(seed=7)
    monkeypatch.setattr(pool, "_timeout", 2.0)
    pid = end(pool, 1, signal.SIGSTOP)
    row = pool.step(ONES)
    assert "(environments 2: walker_walk) gave no answer within 2 s" in warnings_of(caplog)
    assert row.is_first.tolist() == [False, False, True]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    np.testing.assert_array_equal(pool.step(ONES).state[2], expected(2, 7, 1, 1))


def test_three_losses_of_a_worker_without_a_good_step_are_an_error(caplog):
    pool = EnvPool(["walker_run"], **SETTINGS)
    pool.reset()
    for _ in range(2):
        end(pool, 0, signal.SIGKILL)
        assert pool.step(ONES[:1]).is_first.all()
    end(pool, 0, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"(?s)walker_run.*exit code -9.*3 failures .* without a good step"):
        pool.step(ONES[:1])
    with pytest.raises(RuntimeError, match="closed"):
        pool.reset()
    assert warnings_of(caplog).count("anew") == 2


def resident(pid: int) -> float:
    """Return the MiB of memory that a process holds."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.parametrize("render, resets, limit", [(False, 1000, 3.0), (True, 60, 6.0)])
def test_resets_leak_neither_memory_nor_files(render, resets, limit):
    with EnvPool(["walker_run"], render=render, size=32, look="fast") as pool:
        held = []
        pid = pool._workers[0].process.pid
        for count in range(resets):
            pool.reset()
            if count in (resets // 4, resets - 1):
                held.append((resident(pid), resident(os.getpid()), len(os.listdir(f"/proc/{pid}/fd"))))
    (worker, parent, files), (worker_after, parent_after, files_after) = held
    assert files_after == files
    assert worker_after - worker < limit and parent_after - parent < limit
