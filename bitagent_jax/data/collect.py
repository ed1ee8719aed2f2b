"""From a pool and a policy to episodes on disk, in rounds that can be done again one by one."""

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
MAX_LOSSES = 3
"""Times that a round begins anew because a worker was lost, after which collecting gives up."""


class _Lost(Exception):
    """An episode of the round was lost with its worker."""


class RandomPolicy:
    """Uniformly random actions in [-1, 1], independent at each step."""

    def __init__(self, action_dim: int, seed: int):
        self._action_dim = action_dim
        self._rng = np.random.default_rng(seed)

    def __call__(self, timestep: Timestep) -> np.ndarray:
        """Return float32 [N, A] for a timestep of N rows."""
        return self._rng.uniform(-1, 1, (len(timestep.reward), self._action_dim)).astype(np.float32)


class ZooPolicy:
    """Actors of the zoo with Gaussian action noise, one for each environment of a pool made with ``state=True``.

    In environments that are ``mixed`` the actor is drawn anew at the start of an episode and then every ``TURN`` steps
    on average, so that each competence meets the states that the others leave behind: experts rise from where flailing
    fell.  With it one of two disturbances is drawn, so that the same state is followed by many actions: noise as
    above, or a share of the joints that hold random actions, often extreme ones, for some steps; under those bodies
    move further than under noise, which averages out.

    Policies may be ``calm`` for a part of the time: noise then comes in spells, so that the states are those of a body
    that was pushed, while most of their actions are the actor's own.
    """

    TURN = 50
    SPELL = 10  # steps of noise on average
    NOISE = 0.0, 0.2, 0.4, 0.8
    HELD = 1, 2, 4, 8
    SHARE = 0.25, 0.5, 1.0

    def __init__(
        self,
        actors: Sequence[Actor | None],
        *,
        noise: float | Sequence[float] = 0.0,
        mixed: bool | Sequence[bool] = False,
        repertoire: Sequence[Actor | None] = (None,),
        calm: float = 0.0,
        seed: int = 0,
    ):
        """Set who acts.

        Args:
            actors: of each environment; None acts at random.
            noise: of each, standard deviation as a part of the actions' reach.
            mixed: which environments draw from the repertoire instead.
            repertoire: what they draw from, in equal shares.
            calm: part of the time without noise, below 1.
            seed: of noise and draws.
        """
        count = len(actors)
        self._actors = list(actors)
        self._noise = np.array(np.broadcast_to(np.asarray(noise, np.float32), count))
        self._mixed = np.broadcast_to(mixed, count)
        self._held, self._share = np.ones(count), np.zeros(count)  # mean steps, and share of joints, of held actions
        self._kept: np.ndarray | None = None  # the held actions, NaN in joints that are free
        self._repertoire = list(repertoire)
        self._sees_state = any(self._actors) or (self._mixed.any() and any(self._repertoire))
        self._rng = np.random.default_rng(seed)
        self._calm, self._noisy = calm, np.ones(count, bool)

    def __call__(self, timestep: Timestep) -> np.ndarray:
        """Return float32 [N, A] in [-1, 1]; ValueError for other than one row an actor, or rows without states."""
        blind = self._sees_state and not timestep.state.size
        if blind or len(timestep.state) != len(self._noise):
            raise ValueError(
                f"{len(self._noise)} actors need the states of as many environments (a pool made with state=True), "
                f"got states of shape {timestep.state.shape}"
            )
        if self._mixed.any():
            self._turn(timestep.is_first, timestep.action.shape)
        if self._calm:
            self._change_spells(timestep.is_first)
        noise = np.where(self._noisy, self._noise, 0)
        actions = noise[:, None] * self._rng.standard_normal(timestep.action.shape, np.float32)
        # Environments of the same actor share one forward pass.
        for actor in dict.fromkeys(self._actors):
            slots = [slot for slot, other in enumerate(self._actors) if other is actor]
            if actor is None:
                actions[slots] = self._rng.uniform(-1, 1, actions[slots].shape)
            else:
                actions[slots] += actor(timestep.state[slots])
        if self._kept is not None:
            actions = np.where(np.isnan(self._kept), actions, self._kept)
        return np.clip(actions, -1, 1)

    def _change_spells(self, is_first: np.ndarray) -> None:
        """Begin and end spells of noise; at the start of an episode each environment is as likely in one as later."""
        ends = 1 / self.SPELL
        drawn = self._rng.random(len(is_first))
        begins = drawn < ends * (1 - self._calm) / self._calm
        self._noisy = np.where(is_first, drawn >= self._calm, np.where(self._noisy, drawn >= ends, begins))

    def _turn(self, is_first: np.ndarray, shape: tuple[int, ...]) -> None:
        """In mixed environments, now and then draw actors and disturbances, and the actions that joints hold."""
        rng, count = self._rng, len(is_first)
        due = self._mixed & (is_first | (rng.random(count) < 1 / self.TURN))
        for slot in np.flatnonzero(due):
            self._actors[slot] = self._repertoire[rng.integers(len(self._repertoire))]
            holds = rng.random() < 0.5
            self._noise[slot] = 0.0 if holds else rng.choice(self.NOISE)
            self._held[slot], self._share[slot] = rng.choice(self.HELD), holds * rng.choice(self.SHARE)
        if self._kept is None:
            self._kept = np.full(shape, np.nan, np.float32)
        new = due | (self._mixed & (rng.random(count) < 1 / self._held))
        drawn = np.clip(2 * rng.uniform(-1, 1, shape), -1, 1)
        drawn[rng.random(shape) >= self._share[:, None]] = np.nan
        self._kept = np.where(new[:, None], drawn, self._kept).astype(np.float32)


def collect(
    pool: EnvPool,
    behave: Callable[[int, int], Policy],
    *,
    episodes: int,
    folder: str | Path,
    seed: int,
    metas: Sequence[Mapping[str, Any]],
    start: int = 0,
    tag: str = "",
    progress: bool = True,
) -> list[Path]:
    """Collect a number of episodes, or what is missing of them, in rounds of one episode of every environment.

    Round k begins with a reset to ``round_seed(seed, k)`` and a policy of its own, so that it depends on no other
    round: a collection that was killed and is started again, or is given more ``episodes``, ends with the same
    files as one that was never stopped. Rounds whose files are all there are left out; a round in which a worker is
    lost begins anew.

    Args:
        pool: its environments; their number is that of a round's episodes.
        behave: called with the number of a round and its seed, returns the policy, which is then called once a step
            with all rows; actions for rows that are ``is_last`` are ignored.
        episodes: how many there shall be; of the last round only those of the first environments may be needed.
        folder: where to. Episodes are named ``{start + number}-{task}-{rows}[-{tag}].ep``.
        seed: of the collection.
        metas: of each environment, added to its episodes' task, body, look, slot, round, seed (of the round),
            versions and whether they terminated: at least the ``policy``, and as ``label`` the sentence that they
            show, if any.
        start: the number of the first episode.
        tag: tells the files of this collection from those of others in the folder; without one, all are its own.
        progress: show a bar after two seconds.

    Returns:
        The paths of all episodes, in order.

    Raises:
        ValueError: metadata for another number of environments, or no episodes.
        RuntimeError: a worker was lost in each of three attempts at a round.
    """
    if len(metas) != pool.num_envs:
        raise ValueError(f"expected the metadata of each of {pool.num_envs} environments, got {len(metas)}")
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    numbers = range(start, start + episodes)
    missing = set(numbers) - numbered(folder, tag).keys()
    rounds = sorted({(number - start) // pool.num_envs for number in missing})
    total = len(rounds) * pool.num_envs * (pool.episode_steps + 1)
    with tqdm(total=total, desc="collecting", unit="row", delay=2, disable=not progress) as bar:
        for index in rounds:
            first, seed_of_round = start + index * pool.num_envs, round_seed(seed, index)
            for slot, arrays in _attempts(pool, behave, index, seed_of_round, bar).items():
                if first + slot in missing:
                    meta = _meta_of(pool, slot, index, seed_of_round) | dict(metas[slot])
                    meta["terminated"] = bool(arrays["is_terminal"][-1])
                    name = f"{first + slot:06d}-{pool.tasks[slot]}-{len(arrays['reward'])}{_ending(tag)}"
                    write_episode(folder, arrays, meta, name)
    paths = numbered(folder, tag)
    return [paths[number] for number in numbers]


def numbered(folder: str | Path, tag: str = "") -> dict[int, Path]:
    """Find the episodes of the collection ``tag`` in a folder: their numbers and paths, in order."""
    paths = [path for path in list_episodes(folder) if path.stem.endswith(_ending(tag))]
    return {int(head): path for path in paths if (head := path.name.split("-")[0]).isdecimal()}


def round_seed(seed: int, index: int) -> int:
    """Derive the seed of a round, below 2^32, from that of its collection and its number."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1)[0])


def _attempts(pool: EnvPool, behave: Callable, index: int, seed: int, bar: tqdm) -> dict[int, dict[str, np.ndarray]]:
    """Play a round until no worker is lost in it."""
    for _ in range(MAX_LOSSES):
        try:
            return _play(pool, behave(index, seed), seed, bar)
        except _Lost:
            bar.total += pool.num_envs * (pool.episode_steps + 1)
    raise RuntimeError(f"round {index} of the collection lost a worker in each of {MAX_LOSSES} attempts")


def _play(pool: EnvPool, policy: Policy, seed: int, bar: tqdm) -> dict[int, dict[str, np.ndarray]]:
    """Step until the first episode of every environment has ended; returns slot -> its arrays."""
    rows: dict[int, list[Timestep]] = {slot: [] for slot in range(pool.num_envs)}
    ended = {}
    timestep = pool.reset(seed=seed)
    while True:
        bar.update(len(rows))
        for slot in list(rows):
            if timestep.is_first[slot] and rows[slot]:
                raise _Lost
            rows[slot].append(Timestep(*(array[slot] for array in timestep)))
            if timestep.is_last[slot]:
                ended[slot] = _stack(rows.pop(slot))
        if not rows:
            return ended
        timestep = pool.step(policy(timestep))


def _stack(rows: list[Timestep]) -> dict[str, np.ndarray]:
    return {key: np.stack(column) for key, column in zip(Timestep._fields, zip(*rows, strict=True), strict=True)}


def _meta_of(pool: EnvPool, slot: int, index: int, seed: int) -> dict[str, Any]:
    task = get_task(pool.tasks[slot])
    versions = {name: version(name) for name in ("dm_control", "mujoco")}
    return dict(
        task=task.name, body=task.body, look=pool.look, slot=slot, round=index, seed=seed, versions=versions
    )  # fmt: skip


def _ending(tag: str) -> str:
    return f"-{tag}" if tag else ""
