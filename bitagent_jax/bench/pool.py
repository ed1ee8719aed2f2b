"""``bitagent bench pool``: the pool against bare MuJoCo and against gymnasium's vector environment, in one run."""

import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from bitagent_jax.bench import breakdown, peers, report
from bitagent_jax.bench.bare import BareProcesses
from bitagent_jax.envs import rendering
from bitagent_jax.envs.pool import EnvPool, usable_cores
from bitagent_jax.envs.supervision import worker_environment
from bitagent_jax.envs.tasks import get_body, get_task

SIZE, REPEAT = 64, 2
ASYNC = "gymnasium AsyncVectorEnv, plain dm_control"


def bench(task: str = "walker_walk", *, num_envs: int = 4, repeats: int = 5, seconds: float = 2.0) -> str:
    """Measure all contestants in turn, ``repeats`` times ``seconds`` of wall time each, and where a step's time goes.

    Returns:
        Two tables and their JSON lines: agent steps per second of ``num_envs`` environments together (medians), and
        CPU milliseconds of an agent step by part.

    Raises:
        ValueError: an impossible setting.
        RuntimeError: no OpenGL.
    """
    if repeats < 1 or seconds <= 0:
        raise ValueError(f"repeats must be at least 1 and seconds positive, got {repeats} and {seconds:g}")
    if get_body(get_task(task).body).factory:
        raise ValueError(f"bare MuJoCo knows dm_control's bodies only, not that of {task}")
    rows = race(task, num_envs, repeats, seconds)
    parts = [breakdown.breakdown(body, look) for body in breakdown.TASKS for look in ("fast", "stock")]
    versions = ("bitagent_jax", "dm_control", "mujoco", "gymnasium", "numpy")
    told = report.facts(versions, opengl=rendering.configure_gl().renderer)
    setting = dict(task=task, num_envs=num_envs, size=SIZE, action_repeat=REPEAT, repeats=repeats, seconds=seconds)
    tables = [", ".join(f"{k}: {v}" for k, v in {**setting, **told}.items()), report.table(rows), report.table(parts)]
    lines = [report.json_lines("pool", rows, setting | told), report.json_lines("pool.breakdown", parts, told)]
    return "\n\n".join([*tables, "\n".join(lines)])


def race(task: str, num_envs: int, repeats: int, seconds: float) -> list[dict[str, Any]]:
    """Run the contestants interleaved; returns a row for each, with ratios to bare MuJoCo and the plain peers."""
    os.environ.update(worker_environment(render=True))
    contestants, started = {}, {}
    try:
        for name, make in _contestants(task, num_envs).items():
            begun = time.perf_counter()
            contestants[name] = make()
            contestants[name].run(0)
            started[name] = time.perf_counter() - begun
        speeds: dict[tuple, list[float]] = {name: [] for name in contestants}
        for _ in range(repeats):
            for name, contestant in contestants.items():
                speeds[name].append(contestant.run(seconds))
    finally:
        for contestant in contestants.values():
            contestant.close()
    return _rows(speeds, started)


def _contestants(task: str, num_envs: int) -> dict[tuple[str, str], Callable[[], Any]]:
    """Name and look of each contestant -> a function that starts it."""
    workers = min(usable_cores(), num_envs)
    counts = [len(part) for part in np.array_split(np.arange(num_envs), workers)]
    args = (SIZE, REPEAT, num_envs)
    makers: dict[tuple[str, str], Callable[[], Any]] = {}
    for look in ("fast", "stock"):
        makers |= {
            ("pool", look): lambda look=look: Pool(task, look, num_envs),
            ("bare mj_step + renderer", look): lambda look=look: BareProcesses(task, look, SIZE, REPEAT, counts),
            (ASYNC, look): lambda look=look: Vector(peers.async_plain(task, look, *args)),
        }
    makers["gymnasium AsyncVectorEnv, make_env", "fast"] = lambda: Vector(peers.async_own(task, "fast", *args))
    return makers


class Pool:
    """Our pool with random actions."""

    def __init__(self, task: str, look: str, num_envs: int):
        self._pool = EnvPool([task] * num_envs, size=SIZE, action_repeat=REPEAT, look=look)
        self._rng = np.random.default_rng(0)
        self._pool.reset()
        self.close = self._pool.close

    def run(self, seconds: float) -> float:
        """Step at least once, and for some seconds of wall time; returns agent steps per second."""
        shape = (self._pool.num_envs, self._pool.action_dim)
        return _timed(lambda: self._pool.step(self._rng.uniform(-1, 1, shape)), seconds, shape[0])


class Vector:
    """A gymnasium vector environment with random actions."""

    def __init__(self, envs):
        self._envs = envs
        self._rng = np.random.default_rng(0)
        self._envs.reset()
        self.close = self._envs.close

    def run(self, seconds: float) -> float:
        """Step at least once, and for some seconds of wall time; returns agent steps per second."""
        space = self._envs.action_space
        step = lambda: self._envs.step(self._rng.uniform(space.low, space.high).astype(space.dtype))  # noqa: E731
        return _timed(step, seconds, self._envs.num_envs)


def _timed(step: Callable[[], Any], seconds: float, num_envs: int) -> float:
    done, begun = 0, time.perf_counter()
    while not done or time.perf_counter() < begun + seconds:
        step()
        done += num_envs
    return done / (time.perf_counter() - begun)


def _rows(speeds: dict[tuple, list[float]], started: dict[tuple, float]) -> list[dict[str, Any]]:
    """Make a row of each contestant; ratios are medians over the rounds, so that slow spells cancel out."""

    def ratio(name: tuple, other: tuple) -> float:
        return median(a / b for a, b in zip(speeds[name], speeds[other], strict=True))

    return [
        {
            "what": name[0],
            "look": name[1],
            "steps/s": median(values),
            "min": min(values),
            "max": max(values),
            "of bare": ratio(name, ("bare mj_step + renderer", name[1])),
            "x Async, same look": ratio(name, (ASYNC, name[1])),
            "x Async, stock": ratio(name, (ASYNC, "stock")),
            "first step after (s)": started[name],
        }
        for name, values in speeds.items()
    ]
