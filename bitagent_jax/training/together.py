"""Sessions of several seeds as one: their updates are one vmapped program on one device."""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from operator import itemgetter
from typing import Any, Self

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bitagent_jax.agent.joint import make_train_step
from bitagent_jax.agent.semantics import make_probe
from bitagent_jax.training.checkpoint import Checkpoints
from bitagent_jax.training.run import RunError, RunFolder
from bitagent_jax.training.session import Session


class Together:
    """What the training loop sees of a session, of several that are at the same step.

    States and batches carry the seeds along a leading axis; a metric of one is named ``FOLDER/name``. The memory is
    that of the sessions together, and of their states once more.
    """

    def __init__(self, sessions: list[Session]):
        """Stack the states of sessions whose configs differ in their seeds alone."""
        self._sessions = sessions
        self.config = sessions[0].config
        self.state = _stack([session.state for session in sessions])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    @property
    def step(self) -> int:
        """Updates done (waits for the last one)."""
        return int(self.state.step[0])

    def train_step(self, stage: int):
        """Compile the stage's ``train_step(state, batch) -> (state, metrics)``."""
        first = self._sessions[0]
        step = jax.vmap(make_train_step(first.graph, self.config, first.told.embeddings, stage))

        def together(state, batch):
            state, values = step(state, batch)
            return state, self._named(values)

        return jax.jit(together, donate_argnums=0)

    def probe(self):
        """Compile ``probe(state, batch) -> metrics`` of the MLLM side, for the steps that are reported."""
        first = self._sessions[0]
        probe = jax.vmap(make_probe(first.graph, first.told.embeddings))
        return jax.jit(lambda state, batch: self._named(probe(state.params, batch)))

    def loader(self, stage: int) -> "_Loaders":
        """Start drawing the batches of the present step of a stage and those after it."""
        self._hand_back()
        return _Loaders([session.loader(stage, among=len(self._sessions)) for session in self._sessions])

    def collect_online(self, step: int) -> None:
        """Collect each run's round of episodes that is due at a step."""
        self._hand_back()
        for session in self._sessions:
            session.collect_online(step)

    def save(self, step: int) -> None:
        """Write a checkpoint of each run in the background."""
        self._hand_back()
        for session in self._sessions:
            session.save(step)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Write a row of metrics of each run: its own, and those without a folder's name."""
        common = {name: value for name, value in values.items() if "/" not in name}
        for session in self._sessions:
            start = f"{session.run.path.name}/"
            own = {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)}
            session.report(step, common | own)

    def film(self, step: int, batch: dict[str, jax.Array]) -> None:
        """Report each run's sequences."""
        self._hand_back()
        for session, rows in zip(self._sessions, _split(batch, len(self._sessions)), strict=True):
            session.film(step, rows)

    def close(self) -> None:
        """Finish what is being written; safe to call twice."""
        with ExitStack() as stack:
            for session in self._sessions:
                stack.callback(session.close)

    def _hand_back(self) -> None:
        """Give each session its present state."""
        for session, state in zip(self._sessions, _split(self.state, len(self._sessions)), strict=True):
            session.state = state

    def _named(self, values: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Take apart metrics ``[seeds]``."""
        names = [session.run.path.name for session in self._sessions]
        return {f"{folder}/{name}": value[i] for name, value in values.items() for i, folder in enumerate(names)}


class _Loaders:
    """Loaders whose batches are stacked."""

    def __init__(self, loaders: list):
        self._loaders = loaders

    def __next__(self) -> dict[str, jax.Array]:
        return _stack([next(loader) for loader in self._loaders])

    def close(self) -> None:
        for loader in self._loaders:
            loader.close()


@jax.jit
def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@partial(jax.jit, static_argnums=1)
def _split(tree: Any, count: int) -> list[Any]:
    return [jax.tree.map(itemgetter(i), tree) for i in range(count)]


def with_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """Return the same config with another seed."""
    copy = config.copy_and_resolve_references()
    copy.seed = seed
    return copy


def common_step(runs: list[RunFolder]) -> int:
    """Return the step that runs trained together go on from.

    A process that dies between two saves leaves some runs one checkpoint behind; the others go back to it.

    Raises:
        RunError: some are further ahead than that.
    """
    steps = {run.path: Checkpoints(run.checkpoints).latest_step() or 0 for run in runs}
    first, last = min(steps, key=steps.get), max(steps, key=steps.get)
    if steps[last] - steps[first] > runs[0].config.train.checkpoint_every:
        raise RunError(
            f"{first} is at step {steps[first]} and {last} at {steps[last]}: only runs at the same step train together;"
            f" continue one alone (bitagent train {first}), or leave the others out of --seeds"
        )
    return steps[first]
