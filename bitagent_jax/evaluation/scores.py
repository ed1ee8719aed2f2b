"""From episode returns to a table: normalised scores with intervals, as plain text and as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from bitagent_jax.envs.tasks import normalised_score


class Interval(NamedTuple):
    """A statistic and the bounds of its 95% interval, NaN where there is one value alone."""

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


def mean_interval(values: Sequence[np.ndarray] | np.ndarray) -> Interval:
    """Return the mean with its 95% interval by Student's t, which holds for a few values too.

    Args:
        values: the normalised scores, ``[n]`` of one task or a list of such arrays, one a task (a stratum), which are
            pooled: the interval is that of their scatter within the tasks (degrees of freedom by Welch and
            Satterthwaite).

    Raises:
        ValueError: if there is no value.
    """
    strata = _as_strata(values)
    pooled = np.concatenate(strata)
    if min(map(len, strata)) < 2:
        return Interval(float(pooled.mean()), np.nan, np.nan)
    parts = np.array([len(one) * one.var(ddof=1) for one in strata]) / len(pooled) ** 2
    half = 0.0
    if parts.any():
        freedom = parts.sum() ** 2 / np.sum(parts**2 / [len(one) - 1 for one in strata])
        half = float(stats.t.ppf(0.975, freedom) * np.sqrt(parts.sum()))
    return Interval(float(pooled.mean()), float(pooled.mean()) - half, float(pooled.mean()) + half)


def iqm_interval(values: Sequence[np.ndarray] | np.ndarray, seed: int = 0, samples: int = 5000) -> Interval:
    """Return the interquartile mean with its 95% stratified bootstrap percentile interval (Agarwal et al., 2021).

    Of few values (below twenty or so) it is too narrow.

    Args:
        values: as of :func:`mean_interval`; each stratum is resampled by itself with replacement, then all are pooled.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: if there is no value.
    """
    strata = _as_strata(values)
    rng = np.random.default_rng(seed)
    draws = [stratum[rng.integers(len(stratum), size=(samples, len(stratum)))] for stratum in strata]
    low, high = np.percentile(iqm(np.concatenate(draws, axis=-1)), [2.5, 97.5])
    return Interval(float(iqm(np.concatenate(strata))), float(low), float(high))


def summary(
    returns: Mapping[str, Sequence[float]],
    prompts: Mapping[str, str] | None = None,
    random: Mapping[str, Sequence[float]] | None = None,
    seed: int = 0,
) -> list[Row]:
    """Summarise episodes by task; the last row, ``"all"``, pools them (left out for a single task).

    Args:
        returns: task of the table -> the return of each episode.
        prompts: task -> the sentence the policy was given.
        random: task -> returns of a random policy, shown as another column.
        seed: of the bootstrap.
    """
    scored = {task: normalised_score(task, values) for task, values in returns.items()}
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
        normalised=mean_interval(strata),
        iqm=iqm_interval(strata, seed),
        random=float(np.mean(random)) if random is not None else None,
    )


def _cells(row: Row, with_random: bool) -> list[str]:
    random = ["-" if row.random is None else f"{row.random:.1f}"] if with_random else []
    known = np.isfinite(row.normalised.low)
    bounds = f"[{row.normalised.low:.3f}, {row.normalised.high:.3f}]" if known else "-"
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
    return asdict(row) | {name: _finite(getattr(row, name)) for name in ("normalised", "iqm")}


def _finite(interval: Interval) -> dict[str, float | None]:
    return {name: value if np.isfinite(value) else None for name, value in interval._asdict().items()}


def _as_strata(values: Sequence[np.ndarray] | np.ndarray) -> list[np.ndarray]:
    single = len(values) > 0 and np.ndim(values[0]) == 0
    strata = [np.asarray(stratum, float) for stratum in ([values] if single else values)]
    if not strata or any(not len(stratum) for stratum in strata):
        raise ValueError("an interval needs at least one value in each stratum")
    return strata
