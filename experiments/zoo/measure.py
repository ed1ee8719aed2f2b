"""Measure the shipped actors: the returns of whole episodes, beside the random policy's and GenRL's scale.

    python -m experiments.zoo.measure --out runs/zoo/measured [--tasks walker_walk ...]

Needs the package alone. Hardware: one CPU core, ten seconds an actor. Writes table.txt and table.json. Every
row is the mean and standard deviation over 20 episodes whose initial states no training and no choice of a
stage ever used; actions without noise, action repeat 2, the weights as shipped. The last column is the normalised
return of an actor that sees its state blurred by BLUR. Expected result: the numbers in
``bitagent_jax/zoo/weights/card.json`` and in the README.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bitagent_jax import zoo
from bitagent_jax.data.collect import RandomPolicy, ZooPolicy
from bitagent_jax.envs.pool import EnvPool, Timestep
from bitagent_jax.envs.tasks import get_task, normalised_score
from bitagent_jax.evaluation.rollouts import episode_returns, random_returns
from bitagent_jax.files import write_atomically

EPISODES, SEED, BLUR = 20, 2 * 10**6, 0.5


def spread(task: str) -> np.ndarray:
    """Return the standard deviation of each measurement over four episodes of random actions, ``[S]``."""
    with EnvPool([task] * 4, seed=0, render=False, state=True, workers=1) as pool:
        act, timestep, states = RandomPolicy(pool.action_dim, 0), pool.reset(), []
        while not timestep.is_last.any():
            timestep = pool.step(act(timestep))
            states.append(np.array(timestep.state))
    return np.concatenate(states).std(0)


def blurred(policy: Callable, noise: np.ndarray) -> Callable:
    """Let a policy see states with normal noise of the standard deviations ``noise [S]``."""
    rng = np.random.default_rng(SEED)

    def act(timestep: Timestep) -> np.ndarray:
        seen = timestep.state + noise * rng.standard_normal(timestep.state.shape)
        return policy(timestep._replace(state=seen.astype(np.float32)))

    return act


def measure(
    task: str, actor: zoo.Actor, *, episodes: int = EPISODES, workers: int = 1, blur: float = 0.0
) -> dict[str, Any]:
    """Run an actor without action noise; returns ``return_mean``, ``return_std``, ``normalised`` and how it was done.

    ``blur`` is the noise on each measurement that it sees, as a part of its :func:`spread`.
    """
    noise = blur * spread(task) if blur else np.zeros(actor.state_dim)
    returns = episode_returns(
        lambda pool, slots: blurred(ZooPolicy([actor] * len(slots)), noise), [task], episodes,
        seed=SEED, desc=task, render=False, state=True, workers=workers,
    )  # fmt: skip
    return _summary(task, returns[task])


def _summary(task: str, returns: list[float]) -> dict[str, Any]:
    return dict(
        return_mean=round(float(np.mean(returns)), 1),
        return_std=round(float(np.std(returns)), 1),
        normalised=round(float(normalised_score(task, np.mean(returns))), 3),
        episodes=len(returns),
        evaluation_seed=SEED,
    )


def rows_of(task: str, stages: dict[str, Any]) -> list[dict[str, Any]]:
    """Measure the random policy and every shipped stage of a task."""
    random = _summary(task, random_returns([task], EPISODES, action_repeat=2, seed=SEED)[task])
    rows = [dict(task=task, stage="random", steps=0, **random)]
    for stage, entry in stages.items():
        actor = zoo.load_actor(task, stage)
        rows.append(dict(task=task, stage=stage, steps=entry["steps"], **measure(task, actor)))
        rows[-1]["blurred"] = measure(task, actor, blur=BLUR)["normalised"]
    for row in rows:
        row["genrl_expert"] = get_task(task).expert_score
        print(_line(row), flush=True)
    return rows


HEADER = (
    f"{'task':16} {'stage':8} {'steps':>9} {'return':>7} {'std':>6} {'GenRL expert':>12} {'normalised':>10} "
    f"{'blurred':>7}"
)


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['task']:16} {row['stage']:8} {row['steps']:9,} {row['return_mean']:7.1f} {row['return_std']:6.1f} "
        f"{row['genrl_expert']:12g} {row['normalised']:10.3f} {row.get('blurred', ''):>7}"
    )


def main() -> None:
    """Read the command line, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actors = zoo.load_card()["actors"]
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=actors, default=actors, metavar="TASK")
    given = parser.parse_args()
    print(HEADER)
    rows = [row for task in given.tasks for row in rows_of(task, actors[task])]
    table = "\n".join([HEADER, *map(_line, rows)]) + "\n"
    write_atomically(given.out / "table.txt", lambda file: file.write(table.encode()))
    write_atomically(given.out / "table.json", lambda file: file.write(json.dumps(rows, indent=1).encode()))


if __name__ == "__main__":
    main()
