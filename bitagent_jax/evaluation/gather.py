"""Collecting episodes into a folder of one's own, by the random policy, the zoo or a trained run."""

from collections.abc import Sequence
from pathlib import Path

from bitagent_jax.data.behaviors import make_policy, mixture, need_states, spread
from bitagent_jax.data.collect import collect
from bitagent_jax.envs.pool import EnvPool
from bitagent_jax.envs.tasks import get_task
from bitagent_jax.inference import load
from bitagent_jax.policy import AgentPolicy


def gather(folder: str | Path, tasks: Sequence[str], episodes: int, *, run: str | None = None, mix: str = "random",
           seed: int = 0, num_envs: int = 4) -> list[Path]:  # fmt: skip
    """Collect episodes of tasks in turn.

    Args:
        folder: where to; episodes are added to those it holds.
        tasks: names of one body; the reward of each is recorded, although the agent never sees it.
        episodes: how many.
        run: a run folder whose policy acts, told each task's prompt and sampling; None: ``mix`` acts.
        mix: of behaviours, see :func:`bitagent_jax.data.behaviors.mixture`.
        seed: of environments and policy.
        num_envs: environments stepped at once; at least one a task, and one a behaviour.

    Returns:
        the paths written.
    """
    if episodes < 1 or num_envs < 1:
        raise ValueError(f"episodes and num_envs must be at least 1, got {episodes} and {num_envs}")
    agent = load(run) if run else None
    for task in tasks:
        if agent is not None and get_task(task).body != agent.config.body:
            raise ValueError(f"task {task} is not of the run's body {agent.config.body}")
    count = min(num_envs, episodes)
    if agent is None:
        behaviors = spread(mixture(mix, tasks), count)
        with EnvPool([b.task for b in behaviors], seed=seed, state=need_states(behaviors)) as pool:
            policy, metas = make_policy(behaviors, seed), [b.meta() for b in behaviors]
            return collect(pool, policy, episodes=episodes, folder=folder, seed=seed, metas=metas)
    slots = [get_task(tasks[i % len(tasks)]) for i in range(max(len(tasks), count))]
    settings = {name: agent.config.env[name] for name in ("size", "action_repeat", "look")}
    with EnvPool([task.name for task in slots], seed=seed, **settings) as pool:
        policy = AgentPolicy(agent, [task.prompt for task in slots], sample=True, seed=seed)
        metas = [{"policy": str(run)}] * len(slots)
        return collect(pool, policy, episodes=episodes, folder=folder, seed=seed, metas=metas)
