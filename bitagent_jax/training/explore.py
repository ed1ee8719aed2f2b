"""Plan2Explore as a collector: rounds of episodes, and between them updates on all the rounds before."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from bitagent_jax.agent.acting import initial_carry, make_act
from bitagent_jax.agent.baselines import plan2explore
from bitagent_jax.agent.state import TrainState, init_state
from bitagent_jax.config import flatten
from bitagent_jax.data.collect import Policy, RandomPolicy, numbered
from bitagent_jax.data.episodes import open_episodes
from bitagent_jax.data.loader import Loader
from bitagent_jax.data.replay import Replay
from bitagent_jax.envs.pool import Timestep
from bitagent_jax.envs.tasks import get_body
from bitagent_jax.training.checkpoint import CheckpointError, Checkpoints
from bitagent_jax.training.metrics import check_finite, progress

logger = logging.getLogger(__name__)

KEEP = 2  # checkpoints
USED = ("world_model", "behavior", "imagination", "explore", "optim")
USED_FIELDS = ("train.batch", "train.length", "data.capacity", "compute.dtype")


def used_settings(config: ConfigDict) -> dict[str, Any]:
    """Return the settings, by their full names, that what an explorer does depends on."""
    return {name: value for name, value in flatten(config).items() if name.split(".")[0] in USED or name in USED_FIELDS}


class ExplorerPolicy:
    """The explorer as the policy of a pool; draws its actions."""

    def __init__(self, act: Callable, params: Any, carry: dict, seed: int):
        self._act, self._params, self._carry = act, params, carry
        self._key, self._calls = jax.random.key(seed), 0

    def __call__(self, timestep: Timestep) -> np.ndarray:
        """Return float32 ``[N, A]`` for a timestep of N rows."""
        none, has = np.zeros((len(timestep.image), 0), np.float32), np.zeros(len(timestep.image), bool)
        key = jax.random.fold_in(self._key, self._calls)
        action, self._carry = self._act(
            self._params, self._carry, timestep.image, timestep.is_first, none, none, has, key, sample=True
        )
        self._calls += 1
        return np.asarray(action)


class Exploration:
    """What ``collect`` asks for the policy of a round: random in round 0, then the explorer after more updates.

    Before round k it has had ``k * config.explore.updates`` updates, each on the rounds that were there then. These
    are done when a policy is asked for, from the newest checkpoint that is not beyond, so that a collection can
    stop anywhere and continue: with all checkpoints lost, it comes to the same weights again.
    """

    def __init__(self, config: ConfigDict, folder: str | Path, tag: str, num_envs: int):
        """Explore into the collection ``tag`` of a folder; checkpoints go to its ``explorer-{tag}``."""
        self._config, self._folder, self._tag, self._num_envs = config, Path(folder), tag, num_envs
        self._actions = get_body(config.body).action_dim
        graph, self._init = plan2explore.build(config, self._actions)
        self._act = make_act(graph, config)
        self._train_step = jax.jit(plan2explore.make_train_step(graph, config), donate_argnums=0)
        self._state: TrainState | None = None

    def __call__(self, index: int, seed: int) -> Policy:
        """Return the policy of round ``index``, trained on the rounds before it, which must be complete."""
        if index == 0:
            return RandomPolicy(self._actions, seed)
        until = index * self._config.explore.updates
        if self._state is None or self._state.step > until:
            self._state = self._restore(until)
        while (step := int(self._state.step)) < until:
            self._train(step, rounds=step // self._config.explore.updates + 1)
        carry = initial_carry(self._config, self._actions, self._num_envs)
        return ExplorerPolicy(self._act, self._state.params, carry, seed)

    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self._folder / f"explorer-{self._tag}", KEEP)

    def _restore(self, until: int) -> TrainState:
        """Read the newest sound checkpoint of at most ``until`` updates; begin anew if there is none."""
        make = lambda: init_state(self._config, self._init)  # noqa: E731
        with self._checkpoints() as checkpoints:
            for step in reversed([step for step in checkpoints.steps() if step <= until]):
                try:
                    return checkpoints.restore(jax.eval_shape(make), step)
                except CheckpointError as error:
                    logger.warning("%s: training again from before it", error)
        return jax.jit(make)()

    def _train(self, step: int, rounds: int) -> None:
        """Do the updates between two rounds, on all that was there then, and save."""
        train, until = self._config.train, step + self._config.explore.updates
        chance = {"seed": self._config.seed, "start_step": step}
        loader = Loader(self._replay(rounds), train.batch, train.length, place=_place, **chance)
        with loader, progress(until, step, desc=f"exploring, {rounds} rounds seen") as bar:
            for _ in range(step, until):
                self._state, values = self._train_step(self._state, next(loader))
                bar.update()
        check_finite(until, values)
        with self._checkpoints() as checkpoints:
            checkpoints.save(until, self._state)

    def _replay(self, rounds: int) -> Replay:
        paths = numbered(self._folder, self._tag)
        episodes, corrupt = open_episodes([paths[number] for number in range(rounds * self._num_envs)])
        if corrupt:
            raise ValueError(f"{corrupt[0]} is damaged: delete it, and it is collected anew")
        replay = Replay(self._config.data.capacity)
        for episode in episodes:
            replay.add(episode)
        return replay


def _place(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    return jax.device_put({name: batch[name] for name in ("image", "action", "is_first")})
