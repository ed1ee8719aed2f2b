"""Latents of a whole data set, from which behaviour is learned once the world model no longer changes."""

import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from bitagent_jax.agent import imitation
from bitagent_jax.data.replay import Replay
from bitagent_jax.training.exemplars import ROUND, Exemplars, padded


class Latents:
    """What a fixed world model makes of each episode of a replay, filtered from its first row as in acting.

    Held in memory: ``deter`` and the posterior's log-probabilities as float16, 816 bytes a row at ``cpu`` size and
    4 KB at the paper's, beside its action and embedding. No picture is read or encoded again.
    """

    def __init__(self, replay: Replay, graph: nnx.GraphDef, config: ConfigDict, exemplars: Exemplars | None = None):
        """Begin with none; see ``update``.

        Args:
            replay: whose episodes.
            graph: of the agent.
            config: the run's.
            exemplars: draws rows to imitate, of which batches then hold as many as of others.
        """
        self._replay, self._config, self._exemplars = replay, config, exemplars
        self._rows: dict[Path, dict[str, np.ndarray]] = {}

        @jax.jit
        def encode(params, image, action, is_first, key):
            seen = nnx.merge(graph, params).world_model.observe(image[None], action[None], is_first[None], key)
            return {name: seen[name][0].astype(jnp.float16) for name in ("deter", "post")}

        self._encode = encode

    def update(self, params: dict) -> None:
        """Encode the episodes that are new in the replay, and forget those that left it.

        An episode's latents are drawn by a key of its name, so that those of a resumed run are the same.

        Args:
            params: of the agent, on this process's own devices.
        """
        for path, rows in self._replay.whole(known=self._rows.keys()):
            count = len(rows["action"])
            seen = [padded(rows[name], ROUND) for name in ("image", "action", "is_first")]
            key = jax.random.fold_in(jax.random.key(self._config.seed), zlib.crc32(path.name.encode()))
            kept = {name: rows[name] for name in ("action", "embedding", "has_embedding")}
            made = self._encode(params, *seen, key)
            self._rows[path] = kept | {name: np.asarray(value)[:count] for name, value in made.items()}
        self._rows = {path: self._rows[path] for path in self._replay.paths}
        if self._exemplars:
            self._exemplars.update(params, self._rows)

    def sample(self, batch: int, length: int, rng: np.random.Generator, only: np.ndarray | None = None) -> dict:
        """Draw sequences as ``Replay.sample`` does, with latents in place of pictures.

        Returns:
            deter [B,T,D] and post, log-probabilities [B,T,S,C], both float16; action, embedding, has_embedding, text
            and has_text as of ``Replay.sample``. With exemplars also B times T of their rows, ``imitation.FIELDS``.
        """
        paths, starts, texts = self._replay.draw(batch, length, rng, only)
        rows = [self._rows[path] for path in paths]
        fields = {
            name: np.stack([r[name][start : start + length] for r, start in zip(rows, starts, strict=True)])
            for name in rows[0]
        }
        return fields | texts | self._shown((batch, length), rng, only)

    def _shown(self, shape: tuple[int, int], rng: np.random.Generator, only: np.ndarray | None) -> dict:
        """Draw rows to imitate, each with the action that was taken there."""
        if not self._exemplars:
            return {}
        drawn = self._exemplars.draw(shape, rng)
        episode, row, task = drawn if only is None else (one[only] for one in drawn)
        episodes = list(self._rows.values())

        def gather(name: str, later: int = 0) -> np.ndarray:
            some = [episodes[e][name][r + later] for e, r in zip(episode.flat, row.flat, strict=True)]
            return np.stack(some).reshape(*episode.shape, *some[0].shape)

        shown = {name: gather(name) for name in ("deter", "post", "embedding", "has_embedding")}
        shown |= {"action": gather("action", later=1), "task": task.astype(np.int32)}
        return {f"shown/{name}": shown[name] for name in imitation.FIELDS}
