"""How far a reward made from a sentence agrees with the true one: rank correlation, regret and precision.

The quantities are those with which FOUNDER compares reward functions; they need nothing of a reward but the order in
which it puts trajectories.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

TOP = 0.1  # share of the trajectories that precision asks for
UNITS = ("window", "episode")


class Agreement(NamedTuple):
    """What :func:`agreement` returns."""

    correlation: float
    regret: float
    precision: float


class Judged(NamedTuple):
    """Windows of real episodes and what each judge gives them for each sentence.

    Attributes:
        task, policy: names ``[W]`` from the episode's record.
        episode: int ``[W]``, which episode the window is of.
        true: mean true reward of the window's rows ``[W]``.
        scores: judge -> mean reward ``[W, K]`` for the sentences of K tasks.
    """

    task: np.ndarray
    policy: np.ndarray
    episode: np.ndarray
    true: np.ndarray
    scores: dict[str, np.ndarray]


class Row(NamedTuple):
    """One judge in one task; ``unit`` says whether windows or episodes count as trajectories."""

    task: str
    judge: str
    unit: str
    count: int
    agreement: Agreement


def agreement(score: np.ndarray, true: np.ndarray, top: float = TOP) -> Agreement:
    """Compare the order of N trajectories by a reward with that by the true reward.

    Args:
        score: mean reward of each trajectory that the judge gives, ``[N]``.
        true: mean true reward of each ``[N]``.
        top: share of trajectories that count as best, ``k = max(1, round(top N))``.

    Returns:
        ``correlation``: Spearman's, -1 to 1. ``regret``: ``(max true - true of the trajectory with the largest
        score) / (max true - min true)``, 0 if the judge's favourite is the best and 1 if it is the worst.
        ``precision``: share of the k trajectories with the largest scores whose true reward is at least the k-th
        largest; ``top`` is what chance gives where true rewards differ, more where they are equal. Trajectories of
        equal score take the mean of all orders of them. All are NaN where all true rewards are equal, which nothing
        can be measured by; the correlation also where all scores are.

    Raises:
        ValueError: for no trajectory, other shapes, or values that are not finite.
    """
    score, true = np.asarray(score, float), np.asarray(true, float)
    if score.ndim != 1 or score.shape != true.shape or not len(score):
        raise ValueError(f"expected two arrays [N] with N > 0, got {list(score.shape)} and {list(true.shape)}")
    if not np.isfinite(score).all() or not np.isfinite(true).all():
        raise ValueError("some rewards are not finite")
    if not np.ptp(true):
        return Agreement(np.nan, np.nan, np.nan)
    regret = (true.max() - true[score == score.max()].mean()) / np.ptp(true)
    count = max(1, round(top * len(score)))
    best = true >= np.sort(true)[-count]
    least = np.sort(score)[-count]
    surely, tied = best[score > least], best[score == least]
    precision = (surely.sum() + (count - len(surely)) * tied.mean()) / count
    return Agreement(_correlation(score, true), float(regret), float(precision))


def _correlation(left: np.ndarray, right: np.ndarray) -> float:
    if not np.ptp(left):
        return np.nan
    return float(np.corrcoef(rankdata(left), rankdata(right))[0, 1])


def rows(found: Judged, tasks: Sequence[str]) -> list[Row]:
    """Measure each judge in each task over the windows and over the episodes recorded in that task.

    An episode's reward is the mean over its windows. Only a task's own episodes hold its true reward.

    Args:
        found: the windows.
        tasks: names, in the order of the sentences that were judged.
    """
    out = []
    for number, task in enumerate(tasks):
        own = found.task == task
        true = dict(zip(UNITS, (found.true[own], by_episode(found.true, found.episode, own)), strict=True))
        for judge, values in found.scores.items():
            score = values[own, number], by_episode(values[:, number], found.episode, own)
            for unit, one in zip(UNITS, score, strict=True):
                out.append(Row(task, judge, unit, len(one), agreement(one, true[unit])))
    return out


def by_episode(values: np.ndarray, episode: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Average the windows ``values [W]`` with ``own [W]`` over each of their episodes, in order of its number."""
    _, index = np.unique(episode[own], return_inverse=True)
    return np.bincount(index, values[own]) / np.bincount(index)


def table(found: Sequence[Row]) -> list[dict[str, object]]:
    """Lay rows out by task and judge, windows beside episodes, then each judge's mean over the tasks."""
    cells = {(row.task, row.judge, row.unit): row.agreement for row in found}
    tasks, judges = dict.fromkeys(row.task for row in found), dict.fromkeys(row.judge for row in found)
    lines = []
    for task in (*tasks, *(["mean"] if len(tasks) > 1 else [])):
        for judge in judges:
            line: dict[str, object] = {"task": task, "judge": judge}
            for unit in UNITS:
                mine = [cells[name, judge, unit] for name in (tasks if task == "mean" else [task])]
                line |= {f"{unit} {name}": _mean([getattr(one, name) for one in mine]) for name in Agreement._fields}
            lines.append(line)
    return lines


def policies(found: Judged, judge: str, tasks: Sequence[str]) -> list[dict[str, object]]:
    """Average a judge's rewards over the windows of each task and policy, for every task's sentence."""
    lines = []
    for task, policy in sorted(set(zip(found.task.tolist(), found.policy.tolist(), strict=True))):
        mine = (found.task == task) & (found.policy == policy)
        line = {"episodes of": task, "policy": policy, "windows": int(mine.sum()), "true": _round(found.true[mine])}
        lines.append(line | {f"for {name}": _round(found.scores[judge][mine, k]) for k, name in enumerate(tasks)})
    return lines


def _mean(values: Sequence[float]) -> str:
    """Write two digits, or a dash if any value is missing."""
    return "-" if np.isnan(values).any() else f"{np.mean(values):.2f}"


def _round(values: np.ndarray) -> float:
    return round(float(values.mean()), 3)
