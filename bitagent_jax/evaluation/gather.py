"""Collecting episodes into a folder of one's own, by a mix of behaviours, an explorer or a trained run."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from bitagent_jax.config import make_config, validate
from bitagent_jax.data.behaviors import EXPLORE, MIXES, acting, mixture, need_states, spread
from bitagent_jax.data.collect import collect, numbered
from bitagent_jax.data.plan import claim, tag_of
from bitagent_jax.envs.pool import EnvPool
from bitagent_jax.envs.tasks import get_task, shared_body
from bitagent_jax.errors import unknown
from bitagent_jax.evaluation.rollouts import task_prompts
from bitagent_jax.inference import load
from bitagent_jax.policy import AgentPolicy
from bitagent_jax.training.explore import Exploration, used_settings

ENV = {"size": 64, "action_repeat": 2, "look": "auto"}


class Gathered(NamedTuple):
    """The episodes of a collection in order, and how many of them are new."""

    paths: list[Path]
    new: int


class _Source(NamedTuple):
    """Who acts: for each environment of a pool a task and metadata; ``begin(folder, tag)`` is asked for policies."""

    tasks: list[str]
    metas: list[dict[str, Any]]
    begin: Callable
    env: dict[str, Any]
    settings: dict[str, Any]
    """What, beside seed and ``env``, fixes the episodes."""
    state: bool = False


def gather(folder: str | Path, tasks: Sequence[str], episodes: int, *, run: str | None = None, step: int | None = None,
           mix: str = "random", seed: int = 0, num_envs: int = 4,
           config: ConfigDict | None = None) -> Gathered:  # fmt: skip
    """Collect episodes of tasks in turn, or what is missing of them.

    All settings but ``episodes`` name the collection: the same ones in the same folder continue it, bit for bit as
    if it had never been stopped; other ones, such as another seed, add a collection of their own beside it.

    Args:
        folder: where to.
        tasks: names of one body; the reward of each is recorded, although the agent never sees it.
        episodes: how many the collection shall have.
        run: a run folder whose policy acts, told each task's prompt, its own where it has one, and sampling; None:
            ``mix`` acts.
        step: the run's checkpoint; None: the newest.
        mix: of behaviours, see :func:`bitagent_jax.data.behaviors.mixture`, or ``plan2explore``.
        seed: of environments and policy.
        num_envs: environments stepped at once; at least one a task, and one a behaviour.
        config: of the body, for ``plan2explore``; by default that of the preset ``cpu``.

    Raises:
        ValueError: bad input, before anything is written.
        CollectionInUse: another process collects the same, and not all of them are there.
        RunError, CheckpointError: of ``run``.
    """
    if episodes < 1 or num_envs < 1:
        raise ValueError(f"episodes and num_envs must be at least 1, got {episodes} and {num_envs}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    shared_body(tasks)
    if run:
        source = _run_source(run, step, tasks, num_envs)
    elif mix == EXPLORE:
        source = _explore_source(config, tasks, num_envs, seed)
    else:
        source = _mix_source(mix, tasks, num_envs)
    settings = {"seed": seed, **source.env, **source.settings}
    whole = _whole(folder, tag_of(settings), episodes)
    if whole:
        return Gathered(whole, 0)
    with claim(folder, settings) as tag:
        whole = _whole(folder, tag, episodes)  # another process may have just ended
        if whole:
            return Gathered(whole, 0)
        missing = len(set(range(episodes)) - numbered(folder, tag).keys())
        with EnvPool(source.tasks, seed=seed, state=source.state, **source.env) as pool:
            behave = source.begin(folder, tag)
            paths = collect(
                pool, behave, episodes=episodes, folder=folder, seed=seed, metas=source.metas, tag=tag
            )  # fmt: skip
    return Gathered(paths, missing)


def _whole(folder: str | Path, tag: str, episodes: int) -> list[Path]:
    """Return the paths of a collection's episodes, none if some are missing."""
    present = numbered(folder, tag)
    return [present[number] for number in range(episodes)] if present.keys() >= set(range(episodes)) else []


def _mix_source(mix: str, tasks: Sequence[str], num_envs: int) -> _Source:
    if mix not in MIXES:
        raise unknown("mix of behaviours", mix, (*MIXES, EXPLORE))
    behaviors = spread(mixture(mix, tasks), num_envs)
    metas = [b.meta() for b in behaviors]
    settings = {"environments": [b.meta() | {"task": b.task} for b in behaviors]}
    tasks, policies = [b.task for b in behaviors], acting(behaviors)
    return _Source(tasks, metas, lambda folder, tag: policies, ENV, settings, need_states(behaviors))


def _explore_source(config: ConfigDict | None, tasks: Sequence[str], num_envs: int, seed: int) -> _Source:
    body = get_task(tasks[0]).body
    config = validate(make_config(body, "cpu") if config is None else config).copy_and_resolve_references()
    if config.body != body:
        raise ValueError(f"the config is of body {config.body}, but task {tasks[0]} is of body {body}")
    config.seed = seed
    names = [tasks[i % len(tasks)] for i in range(max(len(tasks), num_envs))]
    env = {name: config.env[name] for name in ENV}
    settings = {"policy": EXPLORE, "environments": names, "config": used_settings(config)}
    begin = lambda folder, tag: Exploration(config, folder, tag, len(names))  # noqa: E731
    return _Source(names, [{"policy": EXPLORE}] * len(names), begin, env, settings)


def _run_source(run: str, step: int | None, tasks: Sequence[str], num_envs: int) -> _Source:
    agent = load(run, step)
    if get_task(tasks[0]).body != agent.config.body:
        raise ValueError(f"task {tasks[0]} is not of the run's body {agent.config.body}")
    names = [tasks[i % len(tasks)] for i in range(max(len(tasks), num_envs))]
    told = task_prompts(agent, tasks)
    prompts = [told[name] for name in names]
    behave = lambda _, seed: AgentPolicy(agent, prompts, sample=True, seed=seed)  # noqa: E731
    begin = lambda folder, tag: behave  # noqa: E731
    env = {name: agent.config.env[name] for name in ENV}
    weights = {"weights": _digest(agent.params)}
    settings = {"environments": names, **weights} | ({"prompts": prompts} if agent.config.prompts else {})
    return _Source(names, [{"policy": str(run), **weights}] * len(names), begin, env, settings)


def _digest(params: Any) -> str:
    """Return 16 hexadecimal digits that tell a policy's weights from all others."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]
