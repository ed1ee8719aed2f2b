"""Bodies of a user's own: any gymnasium environment with a picture, entered into the table of tasks."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bitagent_jax.envs.tasks import BODIES, TASKS, Body, Task

Scale = tuple[str, float, float]
"""A task's prompt, and the mean episode returns of a random and an expert policy."""

_own: dict[str, dict[str, Any]] = {}


def register_env(
    body: str,
    factory: Callable[[str], Any] | str,
    *,
    action_dim: int,
    control_steps: int,
    tasks: Mapping[str, Scale],
) -> None:
    """Enter a body and its tasks into the table, for ``make_env``, ``EnvPool`` and configs.

    A run's ``config.json`` holds the registration: a later process needs none to load or continue it.

    Args:
        body: its name, of letters, digits and underscores.
        factory: called with the goal, returns a gymnasium environment with a bounded one-dimensional Box of actions,
            and either pictures (uint8 [H, W, 3]) as observations or ``render_mode="rgb_array"``. Worker processes
            import it by name: a function at the top level of a module or file, or its name as a string,
            ``"module:function"`` or ``"file.py:function"``.
        action_dim: the width of its actions.
        control_steps: after which an episode is truncated, before action repeat.
        tasks: goal -> (prompt, random score, expert score); the task is called ``{body}_{goal}``.

    Raises:
        ValueError: an impossible name, number or factory, no task, scores that make no scale, or a name that is
            taken by something else.
    """
    if not body.isidentifier():
        raise ValueError(f"a body's name has letters, digits and underscores only, not {body!r}")
    if action_dim < 1 or control_steps < 1:
        raise ValueError(f"action_dim and control_steps must be at least 1, got {action_dim} and {control_steps}")
    if odd := [goal for goal in tasks if not str(goal).isidentifier()]:
        raise ValueError(f"a task's name has letters, digits and underscores only, not {odd[0]!r}")
    if not tasks:
        raise ValueError(f"body {body} needs at least one task: goal -> (prompt, random score, expert score)")
    row = Body(body, int(action_dim), control_steps=int(control_steps), factory=factory_name(factory))
    rows = {f"{body}_{goal}": Task(f"{body}_{goal}", body, *scale) for goal, scale in tasks.items()}
    for task in rows.values():
        scores = task.random_score, task.expert_score
        if not np.isfinite(scores).all() or scores[0] == scores[1]:
            raise ValueError(f"{task.name} needs two scores that differ, of random policy and expert, not {scores}")
    for name, value in ({body: row} | rows).items():
        known = (BODIES | TASKS).get(name, value)
        if known != value:
            raise ValueError(f"{name} is already registered as {known}, not as {value}")
    BODIES[body] = row
    TASKS.update(rows)
    scales = tuple((task.goal, *task[2:]) for task in rows.values())
    _own[body] = dict(factory=row.factory, action_dim=row.action_dim, control_steps=row.control_steps, tasks=scales)


def registration(body: str) -> dict[str, Any]:
    """Return what ``register_env`` was told of a body, as plain values for a config; {} if it is not one of those.

    The keys are ``factory`` (a name), ``action_dim``, ``control_steps`` and ``tasks``, a tuple of
    (goal, prompt, random score, expert score).
    """
    return dict(_own.get(body, {}))


def restore(body: str, told: Mapping[str, Any]) -> None:
    """Enter a body into the table again from what ``registration`` returned."""
    register_env(body, **{**told, "tasks": {goal: tuple(scale) for goal, *scale in told["tasks"]}})


def factory_name(factory: Callable | str) -> str:
    """Return the name by which another process finds a factory: ``module:function`` or ``/path/file.py:function``.

    Raises:
        ValueError: a string without a colon, or a callable that is no function at the top level of a file.
    """
    if isinstance(factory, str):
        module, colon, function = factory.rpartition(":")
        if not (colon and module and function.isidentifier()):
            raise ValueError(f"a factory is named module:function or file.py:function, not {factory!r}")
        return f"{Path(module).resolve()}:{function}" if module.endswith(".py") else factory
    code = getattr(factory, "__code__", None)
    if code is None or not factory.__qualname__.isidentifier() or not Path(code.co_filename).is_file():
        raise ValueError(f"worker processes cannot import {factory}: give a function at the top level of a file")
    return f"{Path(code.co_filename).resolve()}:{factory.__qualname__}"
