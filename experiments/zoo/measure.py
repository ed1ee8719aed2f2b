"""Measure the shipped actors: the returns of whole episodes, beside the random policy's and GenRL's scale.

    python -m experiments.zoo.measure --out runs/zoo/measured

Needs the package alone. Hardware: one CPU core, a few seconds an actor. Writes table.txt and table.json. Every
row is the mean and standard deviation over 20 episodes whose initial states no training and no choice of a
stage ever used; actions without noise, action repeat 2, the weights as shipped. Expected result: the numbers in
``bitagent_jax/zoo/weights/card.json`` and in the README.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from bitagent_jax import zoo
from bitagent_jax.data.collect import ZooPolicy
from bitagent_jax.envs.tasks import get_task, normalised_score
from bitagent_jax.evaluation.rollouts import episode_returns, random_returns
from bitagent_jax.files import write_atomically

EPISODES, SEED = 20, 2 * 10**6


def measure(task: str, actor: zoo.Actor, *, episodes: int = EPISODES, workers: int = 1) -> dict[str, Any]:
    """Run an actor without noise; returns ``return_mean``, ``return_std``, ``normalised`` and how it was done."""
    returns = episode_returns(
        lambda pool, slots: ZooPolicy([actor] * len(slots)), [task], episodes,
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
        rows.append(dict(task=task, stage=stage, steps=entry["steps"], **measure(task, zoo.load_actor(task, stage))))
    for row in rows:
        row["genrl_expert"] = get_task(task).expert_score
        print(_line(row), flush=True)
    return rows


HEADER = f"{'task':16} {'stage':8} {'steps':>9} {'return':>7} {'std':>6} {'GenRL expert':>12} {'normalised':>10}"


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['task']:16} {row['stage']:8} {row['steps']:9,} {row['return_mean']:7.1f} {row['return_std']:6.1f} "
        f"{row['genrl_expert']:12g} {row['normalised']:10.3f}"
    )


def main() -> None:
    """Read the command line, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    folder = parser.parse_args().out
    print(HEADER)
    rows = [row for task, stages in zoo.load_card()["actors"].items() for row in rows_of(task, stages)]
    table = "\n".join([HEADER, *map(_line, rows)]) + "\n"
    write_atomically(folder / "table.txt", lambda file: file.write(table.encode()))
    write_atomically(folder / "table.json", lambda file: file.write(json.dumps(rows, indent=1).encode()))


if __name__ == "__main__":
    main()
