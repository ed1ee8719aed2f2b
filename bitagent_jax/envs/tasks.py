"""One table of tasks: which body performs each, the sentence that names it, and its score scale."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bitagent_jax.errors import unknown

CONTROL_STEPS = 1000
"""Control steps in every episode, before action repeat; no task of these bodies ends early."""


class Body(NamedTuple):
    """A simulated body: its camera (an index into the model's cameras), and the widths of actions and states.

    A state is dm_control's own observation of the body, flattened; it is the same in all tasks of the body.
    """

    name: str
    camera: int
    action_dim: int
    state_dim: int


class Task(NamedTuple):
    """A task of a body: the prompt that describes it, and mean episode returns of random and expert policies."""

    name: str
    body: str
    prompt: str
    random_score: float
    expert_score: float

    @property
    def goal(self) -> str:
        """The name without its body: ``"run"`` for ``walker_run``."""
        return self.name.removeprefix(self.body + "_")


BODIES = {
    body.name: body
    for body in (
        Body("walker", camera=0, action_dim=6, state_dim=24),
        Body("cheetah", camera=0, action_dim=6, state_dim=17),
        Body("quadruped", camera=2, action_dim=12, state_dim=78),
    )
}

# Prompts and score scale are those of GenRL's public benchmark (NeurIPS 2024).
TASKS = {
    task.name: task
    for task in (
        Task("walker_stand", "walker", "standing up straight", 150, 970),
        Task("walker_walk", "walker", "walk fast clean", 45, 960),
        Task("walker_run", "walker", "run fast clean", 30, 770),
        Task("quadruped_stand", "quadruped", "spider standing", 15, 990),
        Task("quadruped_walk", "quadruped", "spider walking fast", 10, 960),
        Task("quadruped_run", "quadruped", "spider running fast", 10, 930),
        Task("cheetah_run", "cheetah", "running like a quadruped", 9, 890),
    )
}


def get_task(name: str) -> Task:
    """Look up a task by name; ValueError with the nearest name if there is none."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]


def get_body(name: str) -> Body:
    """Look up a body by name; ValueError with the nearest name if there is none."""
    if name not in BODIES:
        raise unknown("body", name, BODIES)
    return BODIES[name]


def shared_body(tasks: Sequence[str]) -> Body:
    """Return the one body that performs all the named tasks; ValueError if there are none or several bodies."""
    bodies = sorted({get_task(name).body for name in tasks})
    if len(bodies) != 1:
        raise ValueError(f"expected tasks of one body, got tasks {list(tasks)} of bodies {bodies}")
    return BODIES[bodies[0]]


def normalised_score(task: str, returns: np.ndarray | float) -> np.ndarray:
    """Rescale episode returns (any shape) so that the random policy scores 0 and the expert 1.

    ``(return - random) / (expert - random)``, returns being summed over one full episode (at most 1000).
    """
    scale = get_task(task)
    return (np.asarray(returns, np.float64) - scale.random_score) / (scale.expert_score - scale.random_score)
