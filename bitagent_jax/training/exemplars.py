"""Which rows of a data set to imitate for each sentence: those after which it came true, more than others did.

Rows are drawn in proportion to ``exp(merit / temperature)``, the merit being made of the rewards of all sentences over
the rest of the row's episode (reward-weighted regression, Peters and Schaal 2007).
"""

import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from scipy.signal import lfilter

from bitagent_jax.agent import imitation
from bitagent_jax.files import write_atomically
from bitagent_jax.training.run import RunError

ROUND = 128  # episodes are padded to a multiple of so many rows, so that few programs are compiled
CAP = 5.0
"""Of ``merit / temperature``, so that no row is drawn more than ``e^5`` times as often as one of average merit."""


def padded(rows: np.ndarray, multiple: int) -> np.ndarray:
    """Append zeros until the number of rows is a multiple."""
    return np.pad(rows, [(0, -len(rows) % multiple)] + [(0, 0)] * (rows.ndim - 1))


def returns_to_go(reward: np.ndarray, discount: float) -> np.ndarray:
    """Return the mean of the rewards after each row but the last, weighted by ``discount^k``: ``[T, K] -> [T-1, K]``.

    A mean, so that rows late in an episode, with little left to come, are no worse than others.
    """

    def total(x):
        return lfilter([1.0], [1.0, -discount], x[::-1], axis=0)[::-1]

    return (total(reward) / total(np.ones_like(reward)))[1:]


def standardised(x: np.ndarray) -> np.ndarray:
    """Bring each column to mean 0 and standard deviation 1."""
    return (x - x.mean(0)) / (x.std(0) + 1e-8)


def merits(returns: np.ndarray) -> np.ndarray:
    """Return a sentence's return plus how far it exceeds the highest of the others', standardised: ``[N, K]``.

    Sentences of alike behaviours, to walk and to run, have high returns in the same episodes; the excess tells which of
    them such an episode shows.

    Args:
        returns: ``[N, K]``.
    """
    own = standardised(returns)
    if own.shape[1] == 1:
        return own
    others = np.stack([np.delete(own, k, 1).max(1) for k in range(own.shape[1])], 1)
    return standardised(2 * own - others)


def weights(returns: np.ndarray, temperature: float) -> np.ndarray:
    """Return how often rows are drawn for a sentence, ``exp(min(merit / temperature, CAP))``: ``[N, K]``, sums of 1.

    Args:
        returns: ``[N, K]``.
        temperature: in standard deviations of a sentence's merits.
    """
    weight = np.exp(np.minimum(merits(returns) / temperature, CAP))
    return weight / weight.sum(0)


class Exemplars:
    """Draws rows for sentences as often as the ``weights`` of their returns say."""

    def __init__(
        self, graph: nnx.GraphDef, config: ConfigDict, prompts: np.ndarray, path: Path, *, primary: bool = True
    ):
        """Begin with none; see ``update``.

        Args:
            graph: of the agent.
            config: the run's.
            prompts: ``tau [K, D]`` of its sentences.
            path: where returns are kept: a run that goes on, whose fusion has learned since, must not judge anew.
            primary: whether this process writes that file.
        """
        self._config, self._path, self._primary = config, path, primary
        self._chances = np.zeros((len(prompts), 0))  # cumulative, of the N rows that an action follows
        self._ends = np.zeros(0, np.int64)  # of each episode among these

        @jax.jit
        def judge(params, rows, key):
            return imitation.judge(nnx.merge(graph, params), rows, jnp.asarray(prompts), config, key)

        self._judge = judge

    def update(self, params: dict, episodes: Mapping[Path, Mapping[str, np.ndarray]]) -> None:
        """Take the place of the episodes known so far; judge those that the file does not hold, and write it.

        Args:
            params: of the agent, on this process's own devices.
            episodes: path -> rows ``deter``, ``post`` and ``action``.

        Raises:
            RunError: the file is damaged.
        """
        stored = self._read()
        known, returns = len(stored), []
        for path, rows in episodes.items():
            name = f"{self._config.train.stage1_steps}-{zlib.crc32(rows['action'].tobytes()):08x}-{path.name}"
            if name not in stored:
                stored[name] = self._returns(params, rows, zlib.crc32(name.encode()))
            returns.append(stored[name])
        if self._primary and len(stored) > known:
            write_atomically(self._path, lambda file: np.savez(file, **stored))
        chances = weights(np.concatenate(returns, dtype=np.float64), self._config.behavior.regression_temperature)
        self._chances = np.cumsum(chances.T, 1)
        self._ends = np.cumsum([len(one) for one in returns])

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw a sentence and a row for it, ``shape`` times: numbers of episodes, of rows in them, of sentences."""
        task, share = rng.integers(len(self._chances), size=shape), rng.random(shape)
        at = np.zeros(shape, np.int64)
        for k, chances in enumerate(self._chances):
            at[task == k] = np.searchsorted(chances, share[task == k] * chances[-1], side="right")
        episode = np.searchsorted(self._ends, at, side="right")
        return episode, at - np.concatenate([[0], self._ends])[episode], task

    def _returns(self, params: dict, rows: Mapping[str, np.ndarray], number: int) -> np.ndarray:
        """Judge one episode: float32 ``[T-1, K]``."""
        count = len(rows["action"])
        multiple = math.lcm(ROUND, self._config.imagination.horizon)
        whole = {name: padded(rows[name], multiple) for name in ("deter", "post", "action")}
        key = jax.random.fold_in(jax.random.key(self._config.seed), number)
        rewards = np.asarray(self._judge(params, whole, key))[:count]
        return returns_to_go(rewards, self._config.behavior.discount).astype(np.float32)

    def _read(self) -> dict[str, np.ndarray]:
        if not self._path.exists():
            return {}
        try:
            with open(self._path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                return dict(stored)
        except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile) as error:
            raise RunError(f"{self._path} is damaged ({error}): delete it, to judge episodes again") from error
