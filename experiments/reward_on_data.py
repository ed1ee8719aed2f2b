"""Does the imagined reward tell good behaviour from bad? A run's own reward on real frames, against the true one.

    python -m experiments.reward_on_data RUN [--data FOLDER] [--windows 4]

Hardware: CPU, about a minute for 240 episodes. Expected: for each task, the rank correlation of the true reward with
the reward that training uses and with the frozen encoder's cosine, over that task's episodes; then what each policy's
episodes are paid on average for each sentence. The frames of a window take the place of an imagined rollout.
"""

import argparse
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.stats import spearmanr

from bitagent_jax.agent.dynamics import flatten_latent
from bitagent_jax.agent.joint import task_reward
from bitagent_jax.data.embeddings import embed_folder, open_embedding
from bitagent_jax.data.episodes import list_episodes, open_episodes
from bitagent_jax.envs.tasks import get_task
from bitagent_jax.inference import load
from bitagent_jax.nn.distributions import mode_onehot
from bitagent_jax.policy import Agent
from bitagent_jax.training.run import RunFolder


def make_judge(agent: Agent, prompts: np.ndarray):
    """Build ``judge(image [B, H, 64, 64, 3]) -> [B, K]``: mean reward of real windows for each prompt ``[K, D]``."""
    module = nnx.merge(agent.graph, agent.params)
    prompts = jnp.asarray(prompts)

    @jax.jit
    def judge(image):
        log_probs = module.world_model.posterior(module.world_model.encode(image))
        path = {
            "prior": log_probs,
            "stoch": flatten_latent(mode_onehot(log_probs)),
            "action": jnp.zeros((*image.shape[:2], agent.action_dim)),
        }
        ids = [jnp.full(image.shape[0], k) for k in range(len(prompts))]
        rewards = [task_reward(module, module, path, prompts, one, agent.config)[0].mean(1) for one in ids]
        return jnp.stack(rewards, 1)

    return judge


def windows(folder, agent: Agent, prompts: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Draw ``count`` windows of the horizon's length from each episode and score them.

    Returns:
        ``task``, ``policy`` (names), ``true`` mean reward ``[W]``, ``reward`` and ``cosine [W, K]``.
    """
    judge, steps = make_judge(agent, prompts), agent.config.imagination.horizon
    rng, rows = np.random.default_rng(0), []
    for episode in open_episodes(list_episodes(folder))[0]:
        arrays, embedding = episode.read(), open_embedding(episode, agent.encoder.fingerprint).read()["embedding"]
        starts = rng.integers(agent.encoder.num_frames, episode.rows - steps, count)
        scores = np.asarray(judge(np.stack([arrays["image"][s : s + steps] for s in starts])))
        for start, score in zip(starts, scores, strict=True):
            true = arrays["reward"][start : start + steps].mean()
            cosine = prompts @ embedding[start + steps - 1]
            rows.append((episode.meta["task"], episode.meta["policy"], true, score, cosine))
    names = ("task", "policy", "true", "reward", "cosine")
    return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def report(found: dict[str, np.ndarray], tasks: Sequence[str]) -> str:
    """Write both tables as text."""
    lines = ["rank correlation with the true reward: the run's reward, the encoder's cosine"]
    for k, task in enumerate(tasks):
        own = found["task"] == task
        pair = [spearmanr(found[name][own, k], found["true"][own])[0] for name in ("reward", "cosine")]
        lines.append(f"  {task:20s} {pair[0]:6.2f} {pair[1]:6.2f}")
    lines.append("mean reward of each policy's frames, for the sentence of " + ", ".join(tasks))
    for task, policy in sorted(set(zip(found["task"], found["policy"], strict=True))):
        mine = (found["task"] == task) & (found["policy"] == policy)
        values = " ".join(f"{value:6.3f}" for value in found["reward"][mine].mean(0))
        lines.append(f"  {task:16s} {policy:14s} {values}   true {found['true'][mine].mean():.2f}")
    return "\n".join(lines)


def main() -> None:
    """Parse, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--data", help="episodes; the run's own by default")
    parser.add_argument("--windows", type=int, default=4, help="drawn from each episode")
    args = parser.parse_args()
    agent = load(args.run)
    tasks = tuple(agent.config.tasks)
    folder = args.data or RunFolder.load(args.run).episodes
    embed_folder(folder, agent.encoder, stride=1)
    prompts = np.stack([agent.embed_prompt(get_task(task).prompt) for task in tasks])
    print(report(windows(folder, agent, prompts, args.windows), tasks))


if __name__ == "__main__":
    main()
