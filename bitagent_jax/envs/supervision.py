"""The pool's end of its worker processes: starting them, talking to them, noticing that they are gone."""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

from bitagent_jax.envs import rendering
from bitagent_jax.envs.shared import SharedArrays
from bitagent_jax.envs.worker import COMMAND, NO_SEED

_GRACE = 2.0


class Lost(RuntimeError):
    """A worker that died or hangs, without an exception of its own to explain it."""


class Worker:
    """One worker process; ``failures`` counts its environments' losses since their last good step."""

    def __init__(self, slots: list[tuple[int, str]], config: dict, render: bool):
        """Start the process; ``wait`` for it before the first command.

        Args:
            slots: number and task of each of its environments.
            config: see ``worker``; all but the slots.
            render: whether it needs OpenGL.
        """
        self.slots, self.failures = slots, 0
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "bitagent_jax.envs.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            pass_fds=(config["fd"],),
            env=worker_environment(render, own=bool(config["body"].factory)),
        )
        self._write(json.dumps({**config, "slots": slots}).encode() + b"\n")

    def send(self, letter: bytes, seed: int | None = None) -> None:
        """Send a command; whether the worker lives to obey it is seen by ``wait``."""
        self._write(COMMAND.pack(letter, NO_SEED if seed is None else seed))

    def wait(self, deadline: float, timeout: float) -> None:
        """Wait until ``deadline`` (of the monotonic clock) for the answer to the last command.

        Raises:
            Lost: it died, or gave no answer within what the caller calls ``timeout`` seconds.
            RuntimeError: it failed with an exception, whose traceback the error holds.
        """
        poll = select.poll()  # unlike select.select, of any file descriptor
        poll.register(self.process.stdout, select.POLLIN)
        if not poll.poll(1000 * max(0.0, deadline - time.monotonic())):
            raise Lost(f"{self} gave no answer within {timeout:g} s")
        answer = self.process.stdout.read(1)
        if answer != b"k":
            raise self._failure(answer + self.process.stdout.read())

    def kill(self) -> None:
        """End the process at once, also a stopped one, and close its pipes."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(data)

    def _failure(self, answer: bytes) -> RuntimeError:
        try:
            code = self.process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            code = "none yet"
        trace = answer.removeprefix(b"e").decode(errors="replace").strip()
        kind = RuntimeError if answer.startswith(b"e") else Lost
        return kind(f"{self} failed (exit code {code})" + (f":\n{trace}" if trace else ""))

    def __str__(self) -> str:
        names = ", ".join(f"{slot}: {task}" for slot, task in self.slots)
        return f"environment worker with process id {self.process.pid} (environments {names})"


def close_all(workers: list[Worker], arrays: SharedArrays) -> None:
    """Let the workers leave by closing their stdin, then kill those that do not; free the shared memory."""
    for worker in workers:
        worker.process.stdin.close()
    deadline = time.monotonic() + _GRACE
    for worker in workers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        worker.kill()
    arrays.close()


def worker_environment(render: bool, own: bool = False) -> dict[str, str]:
    """Environment variables of a worker: this package importable, one thread, this process's OpenGL or none.

    For environments of a user's ``own``, all is importable that is here.
    """
    root = str(Path(__file__).resolve().parents[2])
    others = map(os.path.abspath, sys.path) if own else filter(None, [os.environ.get("PYTHONPATH")])
    changes = {
        "PYTHONPATH": os.pathsep.join([root, *others]),
        "LP_NUM_THREADS": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    if not render:
        changes["MUJOCO_GL"] = rendering.NO_GL
    return {**os.environ, **changes}
