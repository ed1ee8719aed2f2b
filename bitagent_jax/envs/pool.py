"""Many environments in a few worker processes, stepped together through shared memory."""

import logging
import os
import time
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bitagent_jax.envs import rendering
from bitagent_jax.envs.dmc import check_settings
from bitagent_jax.envs.shared import SharedArrays, step_spec
from bitagent_jax.envs.supervision import Lost, Worker, close_all
from bitagent_jax.envs.tasks import get_task, shared_body

MAX_FAILURES = 3
"""Losses of one worker without a good step between them, after which the pool gives up."""
START_TIMEOUT = 180.0
"""Seconds within which a worker must have made its environments."""

_LOG = logging.getLogger(__name__)


class Timestep(NamedTuple):
    """One row of every environment: ``action`` led to ``image`` and ``reward``, and is zero where ``is_first``.

    ``is_first`` without ``is_last`` in the row before says that the episode until then was lost with its worker.
    ``is_terminal`` is True where an episode ended by itself, not by its time.

    ``state`` is float32 [N, S], ``DmcEnv.measurements`` of the same row; [N, 0] of a pool made without states.
    """

    image: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    is_first: np.ndarray
    is_last: np.ndarray
    is_terminal: np.ndarray
    state: np.ndarray


class EnvPool:
    """N environments of one body, stepped in lockstep by worker processes.

    Environment i equals ``make_env(tasks[i], seed=seed, slot=i)`` bit for bit, whatever the number of workers.
    Workers die with the pool: when it is closed, collected, or its process ends in any way.

    A worker that dies or hangs is started anew with a warning in the log: its environments' unfinished episodes are
    lost, and they go on with their next ones. An exception within an environment is raised instead: it would recur.
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
        timeout: float = 60.0,
    ):
        """Start the workers and wait until all environments are made.

        Args:
            tasks: the task of each environment, all of one body.
            seed, size, action_repeat, look, render: as in ``dmc.make_env``.
            workers: processes; by default one a core, and never more than environments.
            state: whether rows hold state vectors.
            timeout: seconds that a step or reset of eight environments or fewer may take before their worker counts as
                hung, of more in proportion; starting may take 180.

        Raises:
            ValueError: an impossible setting.
            RuntimeError: no OpenGL, or a worker that failed to start.
        """
        check_settings(tasks, seed=seed, size=size, action_repeat=action_repeat, look=look)
        body = shared_body(tasks)
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        if state and not body.state_dim:
            raise ValueError(f"states are those of dm_control's bodies: body {body.name} has none, but got state=True")
        if render and not body.factory:
            look = rendering.resolve_look(look, rendering.configure_gl())
        self.tasks, self.num_envs, self.action_dim = tuple(tasks), len(tasks), body.action_dim
        self.look = "" if body.factory or not render else look
        self.episode_steps = body.control_steps // action_repeat
        self._render = render
        self._seed, self._episodes = seed, [0] * self.num_envs
        shape = (self.num_envs, size if render else 0, body.action_dim, body.state_dim if state else 0)
        self._arrays = SharedArrays(step_spec(*shape))
        env = dict(size=shape[1], action_repeat=action_repeat, look=look)
        rows = dict(body=body, tasks=[get_task(name) for name in dict.fromkeys(tasks)])
        self._config = dict(env=env, shape=shape, fd=self._arrays.fd, **rows)
        self._workers: list[Worker] = []
        self._close = weakref.finalize(self, close_all, self._workers, self._arrays)
        shares = np.array_split(np.arange(self.num_envs), min(workers or usable_cores(), self.num_envs))
        self._timeout = timeout * max(1, len(shares[0]) / 8)
        for slots in shares:
            self._workers.append(self._start(slots.tolist()))
        self._started()

    def reset(self, seed: int | None = None) -> Timestep:
        """Begin the next episode everywhere, or the first one of another seed; returns the reset rows."""
        if seed is not None and seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        if seed is not None:
            self._seed, self._episodes = seed, [0] * self.num_envs
        return self._run(b"r", seed)

    def step(self, actions: np.ndarray) -> Timestep:
        """Step every environment, clipping actions to [-1, 1].

        An environment whose last row was ``is_last`` ignores its action and returns its next reset row.

        Args:
            actions: float32 [N, A], finite.

        Returns:
            Rows of all environments in fresh arrays.

        Raises:
            ValueError: wrong shape or actions that are not finite.
            RuntimeError: ``reset`` was never called, the pool is closed, an environment raised, or one worker was
                lost three times without a good step between.
        """
        actions = np.asarray(actions, np.float32)
        if actions.shape != (self.num_envs, self.action_dim):
            raise ValueError(f"expected actions of shape {(self.num_envs, self.action_dim)}, got {actions.shape}")
        if not np.isfinite(actions).all():
            raise ValueError(f"expected finite actions, got {actions}")
        if not all(self._episodes):
            raise RuntimeError("call reset() before the first step()")
        np.clip(actions, -1, 1, out=self._arrays["action"])
        return self._run(b"s")

    def close(self) -> None:
        """End all workers; safe to call twice."""
        self._close()

    def __enter__(self) -> "EnvPool":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _run(self, letter: bytes, seed: int | None = None) -> Timestep:
        """Send a command to all workers, wait for their answers, and replace those that are lost."""
        if not self._close.alive:
            raise RuntimeError("this pool is closed")
        try:
            for worker in self._workers:
                worker.send(letter, seed)
            deadline = time.monotonic() + self._timeout
            for index in range(len(self._workers)):
                self._finish(index, deadline, good_step=letter == b"s")
        except BaseException:
            self.close()
            raise
        rows = Timestep(**self._arrays.copies())
        self._episodes = [count + int(first) for count, first in zip(self._episodes, rows.is_first, strict=True)]
        return rows

    def _finish(self, index: int, deadline: float, good_step: bool) -> None:
        worker = self._workers[index]
        try:
            worker.wait(deadline, self._timeout)
        except Lost as lost:
            self._replace(index, lost)
        else:
            worker.failures *= not good_step

    def _replace(self, index: int, lost: Lost) -> None:
        """Start a lost worker anew and begin the next episodes of its environments, whatever the others do."""
        old = self._workers[index]
        old.kill()
        failures = old.failures + 1
        if failures == MAX_FAILURES:
            raise RuntimeError(f"{lost}\n{failures} failures of these environments without a good step") from lost
        _LOG.warning("%s: starting it anew; its unfinished episodes are lost", lost)
        new = self._workers[index] = self._start([slot for slot, _ in old.slots])
        new.failures = failures
        try:
            new.wait(time.monotonic() + START_TIMEOUT, START_TIMEOUT)
            new.send(b"r")
            new.wait(time.monotonic() + self._timeout, self._timeout)
        except Lost as again:
            self._replace(index, again)

    def _start(self, slots: list[int]) -> Worker:
        """Start a worker whose environments will begin the episodes that follow those already begun."""
        episodes = [self._episodes[slot] for slot in slots]
        config = dict(self._config, seed=self._seed, episodes=episodes)
        return Worker([(slot, self.tasks[slot]) for slot in slots], config, self._render)

    def _started(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        try:
            for worker in self._workers:
                worker.wait(deadline, START_TIMEOUT)
        except BaseException:
            self.close()
            raise


def usable_cores() -> int:
    """Count the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
