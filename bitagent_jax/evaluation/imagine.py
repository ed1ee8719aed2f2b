"""Looking: the task imagination of a sentence beside the policy's imagined and real rollouts."""

import hashlib
import re
from pathlib import Path

import jax
import numpy as np

from bitagent_jax.agent import visual
from bitagent_jax.config import default_tasks
from bitagent_jax.envs.dmc import make_env
from bitagent_jax.mllm.prompts import Prompt, prompt_name
from bitagent_jax.policy import Agent
from bitagent_jax.video import contact_sheet, tile, write_mp4

WARMUP = 24  # real steps before the imagined rollout branches off


def imagine(agent: Agent, prompt: Prompt, folder: str | Path, *, steps: int = 32, seed: int = 0) -> dict[str, Path]:
    """Draw what the agent makes of a prompt, trained on or not.

    The policy acts in the simulator; after a warm-up its imagined rollout branches off from the same state, so that
    the two can be compared frame by frame. The task imagination is what the prompt alone calls up.

    Args:
        agent: from :func:`bitagent_jax.load`.
        prompt: see ``Agent.embed_prompt``; ValueError if it is none.
        folder: where ``<prompt>.mp4`` and ``<prompt>.png`` go.
        steps: agent steps shown, at least 1; where an episode ends before, its last frame stays.
        seed: of environment and policy.

    Returns:
        ``{"video": path, "sheet": path}``.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    task = agent.embed_prompt(prompt)
    config = agent.config
    name = (tuple(config.tasks) or default_tasks(config.body))[0]
    env = make_env(name, seed=seed, size=config.env.size, action_repeat=config.env.action_repeat, look=config.env.look)
    try:
        real, branch = _act(agent, env, task, steps, seed)
    finally:
        env.close()
    key = jax.random.key(seed)
    frames = {
        "task imagination": jax.jit(visual.task_frames, static_argnums=(0, 3))(agent.graph, agent.params, task, steps),
        "policy, imagined": jax.jit(visual.policy_frames, static_argnums=(0, 6, 7))(
            agent.graph,
            agent.params,
            branch["carry"],
            task,
            branch["clip"]["embedding"],
            branch["clip"]["has"],
            steps,
            config.imagination.semantics,
            key,
        ),
    }
    frames = {label: np.asarray(value) for label, value in frames.items()} | {"policy, real": real}
    stem = Path(folder) / _stem(prompt_name(prompt))
    return {
        "video": write_mp4(stem.with_suffix(".mp4"), tile(frames, height=192)),
        "sheet": contact_sheet(stem.with_suffix(".png"), frames, every=max(1, steps // 8)),
    }


def _stem(name: str) -> str:
    """Return a file name for a prompt; where that leaves something out, a hash tells it from others."""
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:60]
    whole = plain and plain.replace("_", " ") == name
    return plain if whole else f"{plain or 'prompt'}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _act(agent: Agent, env, task: np.ndarray, steps: int, seed: int) -> tuple[np.ndarray, dict]:
    """Return the real frames ``[steps, H, W, 3]`` after the warm-up and the agent's memory before them."""
    image, _ = env.reset(seed=seed)
    frames, state, branch = [], None, None
    for step in range(WARMUP + steps):
        action, state = agent.act(image, task, state, seed=seed)
        if step < WARMUP:
            branch = state
        image, _, terminated, truncated, _ = env.step(action)
        frames.append(image)
        if terminated or truncated:
            break
    frames += frames[-1:] * (WARMUP + steps - len(frames))
    return np.stack(frames[WARMUP - 1 : WARMUP - 1 + steps]), branch
