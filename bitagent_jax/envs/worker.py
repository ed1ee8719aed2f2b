"""A pool's worker process: steps a few environments when told to, and never imports JAX.

Started by ``pool.EnvPool`` as ``python -m bitagent_jax.envs.worker``, with settings that were checked and MUJOCO_GL
chosen. The first line of stdin is its configuration in JSON; then each command is one letter (``s``tep, ``r``eset)
and a signed 64-bit seed (-1: none). Each answer is one letter, ``k`` for done; on an error it is ``e`` and a
traceback. When stdin ends, because the pool closes or dies, the worker leaves without a word.
"""

import json
import os
import signal
import struct
import sys
import traceback
from typing import BinaryIO

from bitagent_jax.envs.shared import SharedArrays, step_spec
from bitagent_jax.envs.tasks import Body, Task

COMMAND = struct.Struct("<cq")
NO_SEED = -1


def main() -> None:
    """Serve the pool on stdin and stdout until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    commands = os.fdopen(os.dup(0), "rb")
    os.dup2(2, 1)  # what environments and their children write or read is not the pool's
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    try:
        _serve(commands, answers)
    except BrokenPipeError:
        sys.exit(1)
    except Exception:
        answers.write(b"e" + traceback.format_exc().encode())
        answers.close()  # the pool reads to the end, which must not wait for the libraries' own clean-up
        sys.exit(1)


def _serve(commands: BinaryIO, answers: BinaryIO) -> None:
    from bitagent_jax.envs.dmc import open_env

    config = json.loads(commands.readline())
    body, tasks = Body(*config["body"]), {row[0]: Task(*row) for row in config["tasks"]}
    envs = {}
    for (slot, name), episode in zip(config["slots"], config["episodes"], strict=True):
        envs[slot] = open_env(tasks[name], body, (config["seed"], slot, episode), **config["env"])
    arrays = SharedArrays(step_spec(*config["shape"]), config["fd"])
    answers.write(b"k")
    while command := commands.read(COMMAND.size):
        letter, seed = COMMAND.unpack(command)
        for slot, env in envs.items():
            if letter == b"r" or arrays["is_last"][slot]:
                _reset(slot, env, arrays, None if seed == NO_SEED else seed)
            else:
                _step(slot, env, arrays)
        answers.write(b"k")
    if body.factory:  # of a user's own, which may hold other processes; dm_control's end with this one
        for env in envs.values():
            env.close()


def _reset(slot: int, env, arrays: SharedArrays, seed: int | None) -> None:
    arrays["image"][slot], _ = env.reset(seed=seed)
    arrays["action"][slot], arrays["reward"][slot] = 0, 0
    arrays["is_first"][slot], arrays["is_last"][slot], arrays["is_terminal"][slot] = True, False, False
    _measure(slot, env, arrays)


def _step(slot: int, env, arrays: SharedArrays) -> None:
    image, reward, terminated, truncated, _ = env.step(arrays["action"][slot])
    arrays["image"][slot], arrays["reward"][slot] = image, reward
    arrays["is_first"][slot], arrays["is_last"][slot] = False, terminated or truncated
    arrays["is_terminal"][slot] = terminated
    _measure(slot, env, arrays)


def _measure(slot: int, env, arrays: SharedArrays) -> None:
    if arrays["state"].size:
        arrays["state"][slot] = env.measurements()


if __name__ == "__main__":
    main()
