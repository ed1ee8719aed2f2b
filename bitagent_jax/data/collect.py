"""From a pool and a policy to episodes on disk."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bitagent_jax.data.episodes import list_episodes, write_episode
from bitagent_jax.envs.pool import EnvPool, Timestep
from bitagent_jax.envs.tasks import get_task
from bitagent_jax.zoo import Actor

Policy = Callable[[Timestep], np.ndarray]
"""Maps the latest rows to actions, float32 [N, A]; sees ``is_first`` to begin anew."""


class RandomPolicy:
    """Uniformly random actions in [-1, 1], independent at each step."""

    def __init__(self, action_dim: int, seed: int):
        self._action_dim = action_dim
        self._rng = np.random.default_rng(seed)

    def __call__(self, timestep: Timestep) -> np.ndarray:
        """Return float32 [N, A] for a timestep of N rows."""
        return self._rng.uniform(-1, 1, (len(timestep.reward), self._action_dim)).astype(np.float32)


class ZooPolicy:
    """Actors of the zoo with Gaussian action noise, one for each environment of a pool made with ``state=True``."""

    def __init__(self, actors: Sequence[Actor | None], *, noise: float | Sequence[float] = 0.0, seed: int = 0):
        """Hold an actor for each environment (None acts at random) and its noise, as a part of the actions' reach."""
        self._noise = np.broadcast_to(np.asarray(noise, np.float32), len(actors))[:, None]
        self._rng = np.random.default_rng(seed)
        # Environments of the same actor share one forward pass.
        self._slots = {one: [i for i, other in enumerate(actors) if other is one] for one in actors}

    def __call__(self, timestep: Timestep) -> np.ndarray:
        """Return float32 [N, A] in [-1, 1]; ValueError for other than one row an actor, or rows without states."""
        blind = any(self._slots) and not timestep.state.size
        if blind or len(timestep.state) != len(self._noise):
            raise ValueError(
                f"{len(self._noise)} actors need the states of as many environments (a pool made with state=True), "
                f"got states of shape {timestep.state.shape}"
            )
        actions = self._noise * self._rng.standard_normal(timestep.action.shape, np.float32)
        for actor, slots in self._slots.items():
            if actor is None:
                actions[slots] = self._rng.uniform(-1, 1, actions[slots].shape)
            else:
                actions[slots] += actor(timestep.state[slots])
        return np.clip(actions, -1, 1)


def collect(
    pool: EnvPool,
    policy: Policy,
    *,
    episodes: int,
    folder: str | Path,
    seed: int,
    metas: Sequence[Mapping[str, Any]],
    start: int | None = None,
    progress: bool = True,
) -> list[Path]:
    """Run a policy until a number of episodes is finished, and write each as it ends.

    Episodes are named ``{number}-{task}-{rows}.ep`` in the order of their ends (then of their environments), so
    that the same call with the same ``start`` writes the same files again. Without ``start`` they are added to the
    folder's, and a random ending tells their names from those of other collectors at work in it.

    Args:
        pool: is reset with ``seed``.
        policy: called once a step with all rows; actions for rows that are ``is_last`` are ignored.
        episodes: how many to write; what is unfinished then is dropped, as is what a lost worker left unfinished.
        folder: where to.
        seed: of the environments.
        metas: of each environment, added to its episodes' task, body, slot, seed and versions: at least the
            ``policy``, and as ``label`` the sentence that they show, if any.
        start: the first number; by default one more than the number of the folder's last episode.
        progress: show a bar after two seconds.

    Returns:
        The paths written, in order.
    """
    if len(metas) != pool.num_envs:
        raise ValueError(f"expected the metadata of each of {pool.num_envs} environments, got {len(metas)}")
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    ending = "" if start is not None else f"-{secrets.token_hex(4)}"
    start = _next_number(folder) if start is None else start
    metas = [_meta_of(pool, slot, seed) | dict(meta) for slot, meta in enumerate(metas)]
    rows: list[list[Timestep]] = [[] for _ in range(pool.num_envs)]
    paths: list[Path] = []
    total = -(-episodes // pool.num_envs) * pool.num_envs * (pool.episode_steps + 1)
    with tqdm(total=total, desc="collecting", unit="row", delay=2, disable=not progress) as bar:
        timestep = pool.reset(seed=seed)
        while True:
            bar.update(pool.num_envs)
            for slot in range(pool.num_envs):
                if timestep.is_first[slot]:  # what is there was lost with its worker
                    rows[slot] = []
                rows[slot].append(Timestep(*(array[slot] for array in timestep)))
                if not timestep.is_last[slot]:
                    continue
                name = f"{start + len(paths):06d}-{pool.tasks[slot]}-{len(rows[slot])}{ending}"
                paths.append(write_episode(folder, _stack(rows[slot]), metas[slot], name))
                rows[slot] = []
                if len(paths) == episodes:
                    return paths
            timestep = pool.step(policy(timestep))


def _stack(rows: list[Timestep]) -> dict[str, np.ndarray]:
    return {key: np.stack(column) for key, column in zip(Timestep._fields, zip(*rows, strict=True), strict=True)}


def _meta_of(pool: EnvPool, slot: int, seed: int) -> dict[str, Any]:
    task = get_task(pool.tasks[slot])
    versions = {name: version(name) for name in ("dm_control", "mujoco")}
    return dict(task=task.name, body=task.body, slot=slot, seed=seed, versions=versions)


def _next_number(folder: str | Path) -> int:
    heads = [path.name.split("-")[0] for path in list_episodes(folder)]
    return 1 + max((int(head) for head in heads if head.isdecimal()), default=-1)
