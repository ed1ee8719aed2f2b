"""Where the time of an agent step goes: physics, drawing, copying, or Python."""

import time
from collections.abc import Callable
from statistics import median

import numpy as np

from bitagent_jax.bench.bare import Bare
from bitagent_jax.envs.dmc import make_env

TASKS = ("walker_walk", "cheetah_run", "quadruped_walk", "stickman_walk")


def breakdown(task: str, look: str, *, size: int = 64, repeat: int = 2, rounds: int = 5) -> dict[str, str | float]:
    """Measure one environment in this process; medians of CPU milliseconds per agent step.

    Returns:
        ``physics`` (mj_step), ``render`` (scene and drawing), ``read`` (pixels out of OpenGL, with the drawing that
        it waits for), ``copy`` (flipping, and into shared memory), ``python`` (all else: rewards, observations,
        dm_control, checks) and ``total``, which is measured; beside task and look. ``python`` is what the parts leave
        of the total, 0 where they took more when timed by themselves.
    """
    env, bare = make_env(task, look=look, size=size, action_repeat=repeat), Bare(task, look, size, repeat)
    slot, action = np.empty((size, size, 3), np.uint8), np.zeros(env.action_space.shape, np.float32)
    env.reset()

    def copy() -> None:
        np.copyto(slot, np.ascontiguousarray(bare.images[0][::-1]))

    def whole() -> None:
        np.copyto(slot, env.step(action)[0])

    verbs = {"physics": lambda: bare.advance(0), "render": lambda: bare.draw(0), "read": lambda: bare.read(0)}
    times: dict[str, list[float]] = {name: [] for name in (*verbs, "copy", "total")}
    for _ in range(rounds):
        env.reset()
        with bare.physics.contexts.gl.make_current():
            for name, cost in _alternate(verbs).items():
                times[name].append(cost)
        times["copy"].append(_alternate({"copy": copy})["copy"])
        times["total"].append(_alternate({"total": whole})["total"])
    env.close()
    costs = {name: median(values) for name, values in times.items()}
    total = costs.pop("total")
    return dict(task=task, look=look, **costs, python=max(0.0, total - sum(costs.values())), total=total)


def _alternate(verbs: dict[str, Callable[[], None]], seconds: float = 0.15) -> dict[str, float]:
    """Call the verbs in turn until they took some seconds of CPU; returns milliseconds a call of each."""
    spent, calls = dict.fromkeys(verbs, 0.0), 0
    while sum(spent.values()) < seconds:
        for name, verb in verbs.items():
            begun = time.process_time()
            verb()
            spent[name] += time.process_time() - begun
        calls += 1
    return {name: 1000 * cost / calls for name, cost in spent.items()}
