"""Train a state-based expert of one task and keep an actor at every evaluation.

    python -m experiments.zoo.train walker_walk --out runs/zoo/walker_walk --steps 500000

Needs ``pip install -e .[zoo]``. Hardware: one CPU core. Kill it at any time and run the same command again: it
continues from the last checkpoint, at most three minutes old. Soft actor-critic from sbx-rl with 3-step returns;
cheap physics against dear updates on a CPU make for layers of 128, batches of 128 and one update to two agent steps.
``--warm DIR`` begins with the networks of another task's run of the same body. ``--blur B`` adds noise to what the
actor sees, so that it can be followed by an agent that sees pictures, which tell velocities only roughly.
Then ``experiments.zoo.export`` chooses the stages and ``experiments.zoo.measure`` measures them.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from sbx import SAC
from stable_baselines3.common.callbacks import BaseCallback

from bitagent_jax.envs.tasks import get_task, normalised_score
from bitagent_jax.files import write_atomically
from bitagent_jax.zoo.actor import to_bytes
from experiments.zoo import checkpoint
from experiments.zoo.vector import episode_returns, make_envs

ENVS, UPDATES = 64, 32  # per round: one step of 64 environments, then 32 updates in one program
EVALUATE_EVERY, EVALUATIONS = 25_000, 5  # agent steps, episodes
SAVE_EVERY = 180.0  # seconds
EVALUATION_SEED = 10**6
SETTINGS = dict(
    learning_rate=1e-3, buffer_size=1_000_000, learning_starts=4_000, batch_size=128, tau=0.01, gamma=0.99, n_steps=3,
    policy_delay=2, policy_kwargs=dict(net_arch=[128, 128], layer_norm=True),
)  # fmt: skip


class Watch(BaseCallback):
    """Between rounds: evaluate at the start and when due, keep that actor, and save a checkpoint when due."""

    def __init__(self, folder: Path, task: str, progress: dict[str, Any]):
        super().__init__()
        self._folder, self._task, self._progress = folder, task, progress
        self._envs = make_envs(task, EVALUATIONS, EVALUATION_SEED, progress["blur"])
        self._begun, self._saved = time.monotonic() - progress["seconds"], time.monotonic()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self._progress["seconds"] = round(time.monotonic() - self._begun, 1)
        curve = self._progress["curve"]
        if not curve or self.num_timesteps >= curve[-1]["steps"] + EVALUATE_EVERY:
            self._evaluate()
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write the checkpoint."""
        checkpoint.save(self._folder / "checkpoint.npz", self.model, self._progress)
        self._saved = time.monotonic()

    def _evaluate(self) -> None:
        steps, actor = self.model.num_timesteps, checkpoint.actor_of(self.model)
        self._envs.seed(EVALUATION_SEED)
        returns = episode_returns(actor, self._envs)
        row = dict(steps=steps, mean=round(returns.mean(), 2), std=round(returns.std(), 2))
        row |= dict(score=round(float(normalised_score(self._task, returns.mean())), 4))
        row |= dict(updates=self.model._n_updates, seconds=self._progress["seconds"])
        write_atomically(self._folder / f"{steps:08d}.safetensors", lambda file: file.write(to_bytes(actor)))
        self._progress["curve"].append(row)
        write_atomically(self._folder / "curve.json", lambda file: file.write(_pretty(self._progress)))
        print(json.dumps(row), flush=True)


def _pretty(progress: dict[str, Any]) -> bytes:
    rows = ",\n  ".join(json.dumps(row) for row in progress["curve"])
    rest = {key: value for key, value in progress.items() if key != "curve"}
    return f'{json.dumps(rest)[:-1]}, "curve": [\n  {rows}\n]}}\n'.encode()


def train(
    task: str, folder: Path, steps: int, *, seed: int = 0, warm: Path | None = None, blur: float = 0.0
) -> dict[str, Any]:
    """Train until a number of agent steps, continuing what ``folder`` holds.

    Args:
        task: a name in ``tasks.TASKS``.
        folder: receives checkpoint.npz, curve.json and one actor an evaluation.
        steps: agent steps (of two control steps) in all environments together.
        seed: of networks, replay and environments.
        warm: another run's folder, whose networks to begin with.
        blur: noise on what the actor sees, in training and in evaluations (``vector.make_envs``).

    Returns:
        The progress, as in curve.json: ``seconds`` of wall time, the ``settings`` trained with from which step on,
        and the ``curve`` of evaluations.
    """
    saved = folder / "checkpoint.npz"
    envs = make_envs(get_task(task).name, ENVS, seed, blur)
    model = SAC("MlpPolicy", envs, seed=seed, train_freq=1, gradient_steps=UPDATES, **SETTINGS)
    progress = {"task": task, "seed": seed, "warm": _origin(warm), "blur": blur, "seconds": 0.0, "curve": []}
    if saved.exists():
        progress = {"blur": 0.0} | checkpoint.restore(saved, model)  # trainings from before there was blur had none
        if progress["blur"] != blur:
            kept = f"{folder} holds a training with blur {progress['blur']:g}"
            raise ValueError(f"{kept}, not {blur:g}: take another folder")
        print(f"continuing at step {model.num_timesteps}", flush=True)
    elif warm:
        checkpoint.warm_start(warm / "checkpoint.npz", model)
    _note_settings(progress, model.num_timesteps)
    np.random.seed(seed + model.num_timesteps)  # the replay draws from NumPy's global generator
    envs.seed(seed + model.num_timesteps)
    watch = Watch(folder, task, progress)
    model.learn(max(0, steps - model.num_timesteps), callback=watch, reset_num_timesteps=False)
    watch.save()
    return progress


def _note_settings(progress: dict[str, Any], steps: int) -> None:
    """Add the settings to the list of those trained with, unless they are still the same."""
    notes, now = progress.setdefault("settings", []), {"envs": ENVS, "updates": UPDATES, **SETTINGS}
    if not notes or {**notes[-1], "from": steps} != {"from": steps, **now}:
        notes.append({"from": steps, **now})


def _origin(warm: Path | None) -> dict[str, Any] | None:
    """Say which training was the beginning: its task, its steps and, in turn, its own beginning."""
    if warm is None:
        return None
    before = json.loads((warm / "curve.json").read_text())
    return {"task": before["task"], "steps": checkpoint.steps_of(warm / "checkpoint.npz"), "warm": before["warm"]}


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--warm", type=Path)
    parser.add_argument("--blur", type=float, default=0.0)
    given = parser.parse_args()
    train(given.task, given.out, given.steps, seed=given.seed, warm=given.warm, blur=given.blur)


if __name__ == "__main__":
    main()
