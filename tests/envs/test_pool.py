"""The pool: real processes, real MuJoCo."""

import gc
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bitagent_jax.envs.dmc import make_env
from bitagent_jax.envs.pool import EnvPool

TASKS = ["walker_run", "walker_stand", "walker_walk"]


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids(pool: EnvPool) -> list[int]:
    return [worker.process.pid for worker in pool._workers]


def await_death(processes: list[int], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(alive, processes)) and time.monotonic() < deadline:
        os.sched_yield()
    return not any(map(alive, processes))


@pytest.fixture(scope="module")
def pool():
    with EnvPool(TASKS, seed=7, workers=2, state=True) as pool:
        yield pool


def test_a_pool_equals_single_environments_bit_for_bit(pool):
    envs = [make_env(task, seed=7, slot=slot) for slot, task in enumerate(TASKS)]
    rng = np.random.default_rng(0)
    for _ in range(2):
        row = pool.reset()
        images = [env.reset()[0] for env in envs]
        np.testing.assert_array_equal(row.image, images)
        np.testing.assert_array_equal(row.state, [env.measurements() for env in envs])
        assert row.is_first.all() and not row.is_last.any() and not row.action.any() and not row.reward.any()
        for _ in range(4):
            actions = rng.uniform(-2, 2, (3, 6)).astype(np.float32)
            row = pool.step(actions)
            rows = [env.step(action) for env, action in zip(envs, actions, strict=True)]
            np.testing.assert_array_equal(row.image, [r[0] for r in rows])
            np.testing.assert_array_equal(row.reward, np.float32([r[1] for r in rows]))
            np.testing.assert_array_equal(row.action, np.clip(actions, -1, 1))
            np.testing.assert_array_equal(row.state, [env.measurements() for env in envs])
            assert not row.is_first.any() and not row.is_last.any()


def test_rows_are_fresh_and_typed(pool):
    first = pool.reset(seed=1)
    kept = first.image.copy()
    second = pool.step(np.ones((3, 6), np.float32))
    np.testing.assert_array_equal(first.image, kept)
    assert not np.array_equal(first.image, second.image)
    kinds = [array.dtype.name for array in second]
    assert kinds == ["uint8", "float32", "float32", "bool", "bool", "bool", "float32"]
    assert (pool.num_envs, pool.action_dim, second.image.shape) == (3, 6, (3, 64, 64, 3))
    again = pool.reset(seed=1)
    np.testing.assert_array_equal(again.image, kept)


def test_actions_are_checked_before_they_are_sent(pool):
    pool.reset()
    with pytest.raises(ValueError, match=r"\(3, 6\), got \(2, 6\)"):
        pool.step(np.zeros((2, 6)))
    with pytest.raises(ValueError, match="finite"):
        pool.step(np.full((3, 6), np.inf))
    pool.step(np.zeros((3, 6)))


def test_workers_hold_neither_jax_nor_an_end_of_their_siblings_pipes(pool):
    for pid in pids(pool):
        with open(f"/proc/{pid}/maps") as file:
            assert "jaxlib" not in file.read()
        pipes = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        mine = {os.readlink(f"/proc/self/fd/{w.process.stdin.fileno()}") for w in pool._workers}
        assert len(mine.intersection(pipes)) == 1


def test_an_episode_ends_and_the_next_begins_by_itself():
    """With 100 control steps a step the episode is a reset row and 10 steps."""
    with EnvPool(["quadruped_run"] * 2, seed=3, workers=1, action_repeat=100, render=False) as pool:
        rows = [pool.reset()] + [pool.step(np.ones((2, 12), np.float32)) for _ in range(12)]
    assert [row.is_last[0] for row in rows] == [False] * 10 + [True, False, False]
    assert [row.is_first[1] for row in rows] == [True] + [False] * 10 + [True, False]
    assert not rows[11].action.any() and not rows[11].reward.any() and rows[12].action.all()
    assert rows[0].image.shape == (2, 0, 0, 3) and rows[0].state.shape == (2, 0)


def test_a_worker_that_is_lost_at_the_start_is_an_error_and_leaves_no_orphans(monkeypatch):
    started = []

    def kill(command, **options):
        started.append(popen(command, **options))
        if len(started) == 2:
            started[1].kill()
        return started[-1]

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", kill)
    with pytest.raises(RuntimeError, match=r"(?s)1: walker_run.*exit code -9"):
        EnvPool(["walker_run"] * 2, workers=2, render=False)
    assert await_death([process.pid for process in started])


def test_an_exception_in_a_worker_arrives_with_its_traceback():
    pool = EnvPool(["walker_run"], render=False)
    pool.reset()
    pool._arrays["action"][:] = np.nan
    with pytest.raises(RuntimeError, match=r"(?s)exit code 1.*Traceback.*ValueError: expected a finite action"):
        pool._run(b"s")


def test_workers_die_when_the_pool_is_forgotten():
    pool = EnvPool(["walker_run"], render=False)
    processes = pids(pool)
    del pool
    gc.collect()
    assert await_death(processes)


PARENT = """
import signal
import numpy as np
from bitagent_jax.envs.pool import EnvPool
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
pool = EnvPool(["walker_run"] * 2, workers=2, render=False)
pool.reset()
print(*[worker.process.pid for worker in pool._workers], flush=True)
while True:
    pool.step(np.zeros((2, 6), np.float32))
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_die_with_their_parent(sign):
    """The script has no main guard: workers do not run it again."""
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        processes = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(processes) == 2 and all(map(alive, processes))
        parent.send_signal(sign)
        try:
            parent.wait(10)
        finally:
            parent.kill()
        assert await_death(processes)
        complaints = parent.stderr.read()
    assert "KeyboardInterrupt" in complaints if sign == signal.SIGINT else not complaints


@pytest.mark.parametrize(
    "tasks, change, message",
    [
        (["walker_rum"], {}, "Did you mean 'walker_run'"),
        (["walker_run", "cheetah_run"], {}, "one body"),
        (["walker_run"], {"workers": 0}, "at least 1, got 0"),
        (["walker_run"], {"look": "fine"}, "unknown look"),
        (["kitchen_light"], {"state": True, "action_repeat": 1}, "body kitchen has none"),
    ],
)
def test_bad_settings_are_named_before_any_worker_starts(tasks, change, message):
    with pytest.raises(ValueError, match=message):
        EnvPool(tasks, **change)


def test_a_pool_must_be_reset_first_and_can_be_closed_twice():
    with EnvPool(["walker_run"], render=False) as pool:
        with pytest.raises(RuntimeError, match="reset"):
            pool.step(np.zeros((1, 6), np.float32))
        with pytest.raises(ValueError, match="negative"):
            pool.reset(seed=-4)
        pool.close()
        with pytest.raises(RuntimeError, match="closed"):
            pool.reset()
