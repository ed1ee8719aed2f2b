"""Episodes in the real simulator: returns of a policy, of the random policy, and the scores made of them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bitagent_jax.data.collect import RandomPolicy
from bitagent_jax.envs.pool import EnvPool
from bitagent_jax.envs.tasks import get_task, shared_body
from bitagent_jax.evaluation import scores
from bitagent_jax.mllm.prompts import Prompt, prompt_name
from bitagent_jax.policy import Agent, AgentPolicy
from bitagent_jax.training.metrics import progress

SLOTS = 32  # environments stepped at once


def episode_returns(make_policy: Callable, tasks: Sequence[str], episodes: int, *, seed: int = 0, desc: str = "",
                    **pool_settings) -> dict[str, list[float]]:  # fmt: skip
    """Run whole episodes of each task and sum their rewards.

    Args:
        make_policy: called with the pool and its slots' task names, returns the policy ``timestep -> actions``.
        tasks: names of one body.
        episodes: per task.
        seed: of the environments.
        pool_settings: passed to :class:`EnvPool`.

    Returns:
        task -> ``episodes`` returns.
    """
    wanted = [task for task in tasks for _ in range(episodes)]
    returns: dict[str, list[float]] = {task: [] for task in tasks}
    for first in range(0, len(wanted), SLOTS):
        slots = wanted[first : first + SLOTS]
        with EnvPool(slots, seed=seed + first, **pool_settings) as pool:
            totals = _run_once(pool, make_policy(pool, slots), desc)
        for task, total in zip(slots, totals, strict=True):
            returns[task].append(float(total))
    return returns


def _run_once(pool: EnvPool, policy: Callable, desc: str) -> np.ndarray:
    timestep = pool.reset()
    totals, running = np.zeros(pool.num_envs), np.ones(pool.num_envs, bool)
    with progress(500, desc=desc) as bar:
        while running.any():
            timestep = pool.step(policy(timestep))
            totals[timestep.is_first & running] = 0  # its worker was lost: the episode is run anew
            totals += timestep.reward * running
            running &= ~timestep.is_last
            bar.update()
    return totals


def random_returns(tasks: Sequence[str], episodes: int, *, action_repeat: int, seed: int = 0) -> dict[str, list[float]]:
    """Return the random policy's episode returns; draws no pictures."""
    policy = RandomPolicy(shared_body(tasks).action_dim, seed)  # of all episodes: none repeats another's actions
    return episode_returns(
        lambda pool, slots: policy, tasks, episodes,
        seed=seed, desc="random policy", render=False, action_repeat=action_repeat,
    )  # fmt: skip


def agent_returns(
    agent: Agent, tasks: Sequence[str], episodes: int, *, prompts: dict[str, Prompt] | None = None, seed: int = 0
) -> dict[str, list[float]]:
    """Return the agent's episode returns, told each task's prompt (or that in ``prompts``)."""
    env = agent.config.env
    told = task_prompts(agent, tasks) | (prompts or {})
    return episode_returns(
        lambda pool, slots: AgentPolicy(agent, [told[task] for task in slots], sample=False, seed=seed),
        tasks, episodes, seed=seed, desc="trained policy", size=env.size, action_repeat=env.action_repeat,
        look=env.look, workers=env.workers or None,
    )  # fmt: skip


def task_prompts(agent: Agent, tasks: Sequence[str]) -> dict[str, str]:
    """Return what the agent is told for each task: the run's own prompt where it has one, else the table's."""
    own = dict(zip(agent.config.tasks, agent.config.prompts, strict=False))
    return {task: own.get(task) or get_task(task).prompt for task in tasks}


def evaluate(agent: Agent, tasks: Sequence[str], episodes: int, *, prompt: Prompt | None = None,
             with_random: bool = False, seed: int = 0) -> list[scores.Row]:  # fmt: skip
    """Score an agent on tasks, normalised on GenRL's scale (random 0, expert 1).

    Args:
        agent: from :func:`bitagent_jax.load`.
        tasks: names; each must be of the agent's body.
        episodes: per task.
        prompt: told in every task instead of its own; see ``Agent.embed_prompt``.
        with_random: also run the random policy, for comparison.
        seed: of environments and policy.

    Returns:
        one row a task and a last one over all.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    for task in tasks:
        if get_task(task).body != agent.config.body:
            raise ValueError(f"task {task} is not of the run's body {agent.config.body}")
    told = task_prompts(agent, tasks) if prompt is None else {task: prompt for task in tasks}
    for one in told.values():
        agent.embed_prompt(one)
    trained = agent_returns(agent, tasks, episodes, prompts=told, seed=seed)
    repeat = agent.config.env.action_repeat
    random = random_returns(tasks, episodes, action_repeat=repeat, seed=seed) if with_random else None
    return scores.summary(trained, {task: prompt_name(one) for task, one in told.items()}, random, seed)


def write_scores(rows: list[scores.Row], path: Path) -> Path:
    """Write the rows as JSON and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(scores.to_json(rows))
    return path
