"""Many environments in a few worker processes, stepped together through shared memory."""

import json
import os
import select
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bitagent_jax.envs import rendering
from bitagent_jax.envs.dmc import check_settings
from bitagent_jax.envs.shared import SharedArrays, step_spec
from bitagent_jax.envs.tasks import get_task, shared_body
from bitagent_jax.envs.worker import COMMAND, NO_SEED

_GRACE = 2.0


class Timestep(NamedTuple):
    """One row of every environment: ``action`` led to ``image`` and ``reward``, and is zero where ``is_first``.

    ``state`` is float32 [N, S], ``DmcEnv.measurements`` of the same row; [N, 0] of a pool made without states.
    """

    image: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    is_first: np.ndarray
    is_last: np.ndarray
    state: np.ndarray


class EnvPool:
    """N environments of one body, stepped in lockstep by worker processes.

    Environment i equals ``make_env(tasks[i], seed=seed, slot=i)`` bit for bit, whatever the number of workers.
    Workers die with the pool: when it is closed, collected, or its process ends in any way.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        *,
        seed: int = 0,
        workers: int | None = None,
        size: int = 64,
        action_repeat: int = 2,
        look: str = "auto",
        render: bool = True,
        state: bool = False,
        timeout: float = 180.0,
    ):
        """Start the workers and wait until all environments are made.

        Args:
            tasks: the task of each environment, all of one body.
            seed, size, action_repeat, look, render: as in ``dmc.make_env``.
            workers: processes; by default one a core, and never more than environments.
            state: whether rows hold state vectors.
            timeout: seconds without an answer after which a worker counts as hung.

        Raises:
            ValueError: an impossible setting.
            RuntimeError: no OpenGL, or a worker that failed.
        """
        check_settings(tasks, seed=seed, size=size, action_repeat=action_repeat, look=look)
        body = shared_body(tasks)
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        if render and not body.factory:
            look = rendering.resolve_look(look, rendering.configure_gl())
        self.tasks, self.num_envs, self.action_dim = tuple(tasks), len(tasks), body.action_dim
        self.episode_steps = body.control_steps // action_repeat
        self._timeout, self._begun = timeout, False
        shape = (self.num_envs, size if render else 0, body.action_dim, body.state_dim if state else 0)
        self._arrays = SharedArrays(step_spec(*shape))
        env = dict(size=shape[1], action_repeat=action_repeat, look=look)
        rows = dict(body=body, tasks=[get_task(name) for name in dict.fromkeys(tasks)])
        config = dict(seed=seed, env=env, shape=shape, fd=self._arrays.fd, **rows)
        self._workers: list[_Worker] = []
        self._close = weakref.finalize(self, _close_all, self._workers, self._arrays)
        for slots in np.array_split(np.arange(self.num_envs), min(workers or _cores(), self.num_envs)):
            self._workers.append(_Worker([(int(i), tasks[i]) for i in slots], config, render))
        self._gather()

    def reset(self, seed: int | None = None) -> Timestep:
        """Begin the next episode everywhere, or the first one of another seed; returns the reset rows."""
        if seed is not None and seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        return self._run(b"r", NO_SEED if seed is None else seed)

    def step(self, actions: np.ndarray) -> Timestep:
        """Step every environment, clipping actions to [-1, 1].

        An environment whose last row was ``is_last`` ignores its action and returns its next reset row.

        Args:
            actions: float32 [N, A], finite.

        Returns:
            Rows of all environments in fresh arrays.

        Raises:
            ValueError: wrong shape or actions that are not finite.
            RuntimeError: ``reset`` was never called, the pool is closed, or a worker died or hangs.
        """
        actions = np.asarray(actions, np.float32)
        if actions.shape != (self.num_envs, self.action_dim):
            raise ValueError(f"expected actions of shape {(self.num_envs, self.action_dim)}, got {actions.shape}")
        if not np.isfinite(actions).all():
            raise ValueError(f"expected finite actions, got {actions}")
        if not self._begun:
            raise RuntimeError("call reset() before the first step()")
        np.clip(actions, -1, 1, out=self._arrays["action"])
        return self._run(b"s", NO_SEED)

    def close(self) -> None:
        """End all workers; safe to call twice."""
        self._close()

    def __enter__(self) -> "EnvPool":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _run(self, letter: bytes, seed: int) -> Timestep:
        if not self._close.alive:
            raise RuntimeError("this pool is closed")
        try:
            for worker in self._workers:
                worker.send(COMMAND.pack(letter, seed))
            self._gather()
        except BaseException:
            self.close()
            raise
        self._begun = True
        return Timestep(**self._arrays.copies())

    def _gather(self) -> None:
        deadline = time.monotonic() + self._timeout
        try:
            for worker in self._workers:
                worker.wait(deadline, self._timeout)
        except BaseException:
            self.close()
            raise


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, slots: list[tuple[int, str]], config: dict, render: bool):
        self.slots = slots
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "bitagent_jax.envs.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            pass_fds=(config["fd"],),
            env=_worker_environment(render),
        )
        self.send(json.dumps({**config, "slots": slots}).encode() + b"\n")

    def send(self, data: bytes) -> None:
        try:
            self.process.stdin.write(data)
        except BrokenPipeError:
            raise self._failure(self.process.stdout.read()) from None

    def wait(self, deadline: float, timeout: float) -> None:
        """Wait for the answer to the last command; RuntimeError if it does not come."""
        ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RuntimeError(f"{self} gave no answer within {timeout:g} s")
        answer = self.process.stdout.read(1)
        if answer != b"k":
            raise self._failure(answer + self.process.stdout.read())

    def _failure(self, answer: bytes) -> RuntimeError:
        try:
            code = self.process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            code = "none yet"
        trace = answer.removeprefix(b"e").decode(errors="replace").strip()
        return RuntimeError(f"{self} failed (exit code {code})" + (f":\n{trace}" if trace else ""))

    def __str__(self) -> str:
        names = ", ".join(f"{slot}: {task}" for slot, task in self.slots)
        return f"environment worker with process id {self.process.pid} (environments {names})"


def _close_all(workers: list[_Worker], arrays: SharedArrays) -> None:
    """Let the workers leave by closing their stdin, then kill those that do not."""
    for worker in workers:
        worker.process.stdin.close()
    deadline = time.monotonic() + _GRACE
    for worker in workers:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        worker.process.stdout.close()
    arrays.close()


def _worker_environment(render: bool) -> dict[str, str]:
    """Environment variables of a worker: this package importable, one thread, this process's OpenGL or none."""
    root = str(Path(__file__).resolve().parents[2])
    inherited = os.environ.get("PYTHONPATH")
    changes = {
        "PYTHONPATH": root + (os.pathsep + inherited if inherited else ""),
        "LP_NUM_THREADS": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    if not render:
        changes["MUJOCO_GL"] = rendering.NO_GL
    return {**os.environ, **changes}


def _cores() -> int:
    """Count the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
