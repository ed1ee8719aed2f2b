"""From episode returns to a table: normalised scores with intervals, as plain text and as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A statistic and the bounds of its 95% bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One line of a table: raw returns and their normalised statistics; ``random`` is a baseline's mean return."""

    task: str
    prompt: str
    episodes: int
    returns: tuple[float, ...]
    mean_return: float
    normalised: Interval
    iqm: Interval
    random: float | None = None


def normalise(returns: np.ndarray, random_score: float, expert_score: float) -> np.ndarray:
    """Return ``(returns - random) / (expert - random)``: 0 is a random policy, 1 an expert; not clipped.

    Raises:
        ValueError: if the two scores are equal.
    """
    if expert_score == random_score:
        raise ValueError(f"expert_score and random_score are both {random_score}: no scale")
    return (np.asarray(returns, float) - random_score) / (expert_score - random_score)


def iqm(values: np.ndarray) -> np.ndarray:
    """Return the interquartile mean over the last axis: the mean of the middle half, ``[..., n] -> [...]``.

    Both ends lose a quarter of the total weight; a value at the border counts by the fraction that stays in,
    so that the result is smooth in ``n`` (``n = 5``: weights 0, .75, 1, .75, 0 over 2.5).
    """
    ordered = np.sort(np.asarray(values, float), axis=-1)
    count = ordered.shape[-1]
    position = np.arange(count)
    weight = np.clip(np.minimum(position + 1, 0.75 * count) - np.maximum(position, 0.25 * count), 0, None)
    return ordered @ weight / weight.sum()


def interval(
    values: Sequence[np.ndarray] | np.ndarray, seed: int = 0, statistic: str = "mean", samples: int = 5000
) -> Interval:
    """Return a statistic with its 95% stratified bootstrap percentile interval.

    Args:
        values: the normalised scores, ``[n]`` of one task or a list of such arrays, one a task (a stratum):
            each stratum is resampled by itself with replacement, then all are pooled (Agarwal et al., 2021).
        seed: of the resampling; the same seed gives the same interval.
        statistic: ``"mean"`` or ``"iqm"``.

    Raises:
        ValueError: if there is no value, or the statistic is unknown.
    """
    if statistic not in _STATISTICS:
        raise ValueError(f"unknown statistic {statistic!r}; allowed: {', '.join(_STATISTICS)}")
    strata = _as_strata(values)
    compute = _STATISTICS[statistic]
    rng = np.random.default_rng(seed)
    draws = [stratum[rng.integers(len(stratum), size=(samples, len(stratum)))] for stratum in strata]
    low, high = np.percentile(compute(np.concatenate(draws, axis=-1)), [2.5, 97.5])
    return Interval(float(compute(np.concatenate(strata))), float(low), float(high))


def summary(
    returns: Mapping[str, Sequence[float]],
    scales: Mapping[str, tuple[float, float]],
    prompts: Mapping[str, str] | None = None,
    random: Mapping[str, Sequence[float]] | None = None,
    seed: int = 0,
) -> list[Row]:
    """Summarise episodes by task; the last row, ``"all"``, pools them (left out for a single task).

    Args:
        returns: task -> the return of each episode.
        scales: task -> ``(random_score, expert_score)``.
        prompts: task -> the sentence the policy was given.
        random: task -> returns of a random policy, shown as another column.
        seed: of the bootstrap.
    """
    scored = {task: normalise(np.array(values), *scales[task]) for task, values in returns.items()}
    rows = [
        _row(task, (prompts or {}).get(task, ""), returns[task], [scored[task]], (random or {}).get(task), seed)
        for task in returns
    ]
    if len(rows) > 1:
        pooled = [value for values in returns.values() for value in values]
        baseline = [value for task in returns for value in random[task]] if random else None
        rows.append(_row("all", "", pooled, list(scored.values()), baseline, seed))
    return rows


def to_text(rows: Sequence[Row]) -> str:
    """Format rows as a plain-text table: task, prompt, episodes, return, normalised, 95% interval (, random)."""
    with_random = any(row.random is not None for row in rows)
    header = ["task", "prompt", "episodes", *(["random"] if with_random else []), "return", "normalised", "95% CI"]
    lines = [header] + [_cells(row, with_random) for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    left = 2  # task and prompt are text; the rest are numbers
    text = [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([text[0], rule, *text[1:]])


def to_json(rows: Sequence[Row]) -> str:
    """Format rows as a JSON list with every return and both statistics."""
    return json.dumps([_plain(row) for row in rows], indent=1) + "\n"


def _row(task, prompt, returns, strata, random, seed) -> Row:
    return Row(
        task=task,
        prompt=prompt,
        episodes=len(returns),
        returns=tuple(float(value) for value in returns),
        mean_return=float(np.mean(returns)),
        normalised=interval(strata, seed, "mean"),
        iqm=interval(strata, seed, "iqm"),
        random=float(np.mean(random)) if random is not None else None,
    )


def _cells(row: Row, with_random: bool) -> list[str]:
    random = ["-" if row.random is None else f"{row.random:.1f}"] if with_random else []
    bounds = f"[{row.normalised.low:.3f}, {row.normalised.high:.3f}]"
    return [
        row.task,
        row.prompt,
        str(row.episodes),
        *random,
        f"{row.mean_return:.1f}",
        f"{row.normalised.value:.3f}",
        bounds,
    ]


def _plain(row: Row) -> dict:
    return asdict(row) | {"normalised": row.normalised._asdict(), "iqm": row.iqm._asdict()}


def _as_strata(values: Sequence[np.ndarray] | np.ndarray) -> list[np.ndarray]:
    single = len(values) > 0 and np.ndim(values[0]) == 0
    strata = [np.asarray(stratum, float) for stratum in ([values] if single else values)]
    if not strata or any(not len(stratum) for stratum in strata):
        raise ValueError("an interval needs at least one value in each stratum")
    return strata


_STATISTICS = {"mean": lambda values: values.mean(-1), "iqm": iqm}
