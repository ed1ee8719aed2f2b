"""One table of tasks: which body performs each, the sentence that names it, and its score scale."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bitagent_jax.errors import unknown


class Body(NamedTuple):
    """A simulated body.

    Attributes:
        name: also that of the module in ``envs`` that builds it, unless it has a factory.
        action_dim: the width A of its actions.
        state_dim: the width S of its states, dm_control's own observation of the body, flattened; the same in all
            tasks of the body, and 0 of a body with a factory, which has none.
        camera: an index into its model's cameras.
        control_steps: in a full episode, before action repeat.
        factory: ``module:function`` or ``file.py:function`` that makes a gymnasium environment of a goal; "" for
            dm_control's bodies.
    """

    name: str
    action_dim: int
    state_dim: int = 0
    camera: int = 0
    control_steps: int = 1000
    factory: str = ""


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
        Body("walker", action_dim=6, state_dim=24),
        Body("cheetah", action_dim=6, state_dim=17),
        Body("quadruped", action_dim=12, state_dim=78, camera=2),
        Body("stickman", action_dim=10, state_dim=44),
        Body("kitchen", action_dim=9, control_steps=280, factory="bitagent_jax.envs.kitchen:make"),
    )
}

# Prompts and score scale are those of GenRL's public benchmark (NeurIPS 2024).
TASKS = {
    task.name: task
    for task in (
        Task("walker_stand", "walker", "standing up straight", 150, 970),
        Task("walker_walk", "walker", "walk fast clean", 45, 960),
        Task("walker_run", "walker", "run fast clean", 30, 770),
        Task("walker_one_foot", "walker", "stand on one foot", 20, 955),
        Task("walker_high_kick", "walker", "stand up and kick", 25, 960),
        Task("walker_lying_down", "walker", "lying down horizontally", 170, 975),
        Task("walker_sit_knees", "walker", "praying", 100, 945),
        Task("walker_lunge_pose", "walker", "lunge_pose", 150, 945),
        Task("walker_flipping", "walker", "doing backflips", 20, 720),
        Task("quadruped_stand", "quadruped", "spider standing", 15, 990),
        Task("quadruped_walk", "quadruped", "spider walking fast", 10, 960),
        Task("quadruped_run", "quadruped", "spider running fast", 10, 930),
        Task("quadruped_jump", "quadruped", "spider jumping", 15, 875),
        Task("quadruped_two_legs", "quadruped", "on two legs", 14, 875),
        Task("quadruped_lie_down", "quadruped", "lying down", 750, 965),
        Task("stickman_stand", "stickman", "standing up", 70, 970),
        Task("stickman_walk", "stickman", "robot walk fast clean", 35, 960),
        Task("stickman_run", "stickman", "robot run fast clean", 25, 830),
        Task("stickman_flipping", "stickman", "doing flips", 45, 790),
        Task("stickman_one_foot", "stickman", "stand on one foot", 20, 865),
        Task("stickman_high_kick", "stickman", "stand up and kick", 55, 920),
        Task("stickman_lying_down", "stickman", "lying down horizontally", 380, 965),
        Task("stickman_legs_up", "stickman", "lifting legs up while lying down", 115, 935),
        Task("stickman_sit_knees", "stickman", "praying", 40, 966),
        Task("stickman_lunge_pose", "stickman", "lunge_pose", 100, 950),
        Task("stickman_headstand", "stickman", "headstand", 180, 955),
        Task("stickman_boxing", "stickman", "punch", 80, 920),
        Task("stickman_hands_up", "stickman", "standing with the hands up", 5, 830),
        Task("cheetah_run", "cheetah", "running like a quadruped", 9, 890),
        Task("cheetah_standing", "cheetah", "standing like a human", 5, 930),
        Task("cheetah_lying_down", "cheetah", "lying down", 430, 920),
        Task("kitchen_microwave", "kitchen", "opening the microwave fully open", 0, 1),
        Task("kitchen_light", "kitchen", "switch light on", 0, 1),
        Task("kitchen_burner", "kitchen", "switch on red burner", 0, 1),
        Task("kitchen_slide", "kitchen", "slide cabinet above the knobs", 0, 1),
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


def tasks_of(body: str) -> tuple[str, ...]:
    """Return the names of all tasks of a body, in the table's order; ValueError on an unknown body."""
    return tuple(task.name for task in TASKS.values() if task.body == get_body(body).name)


def shared_body(tasks: Sequence[str]) -> Body:
    """Return the one body that performs all the named tasks; ValueError if there are none or several bodies."""
    bodies = sorted({get_task(name).body for name in tasks})
    if len(bodies) != 1:
        raise ValueError(f"expected tasks of one body, got tasks {list(tasks)} of bodies {bodies}")
    return BODIES[bodies[0]]


def normalised_score(task: str, returns: np.ndarray | float) -> np.ndarray:
    """Rescale episode returns (any shape) so that the random policy scores 0 and the expert 1.

    ``(return - random) / (expert - random)``, returns being summed over one full episode.
    """
    scale = get_task(task)
    return (np.asarray(returns, np.float64) - scale.random_score) / (scale.expert_score - scale.random_score)
