"""What fills a data set: actors of the zoo at several competences, with action noise, beside flailing at random."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from bitagent_jax import zoo
from bitagent_jax.data.collect import ZooPolicy
from bitagent_jax.errors import unknown

MIXES = ("random", "zoo")
NOISE = {"expert": (0.0, 0.2), "middle": (0.2,), "early": (0.3,)}
"""Standard deviations of the action noise with which each stage of an actor is run in the mix ``zoo``."""


class Behavior(NamedTuple):
    """Who acts in one environment: an actor of the zoo with noise, or the random policy (``stage`` "")."""

    task: str
    stage: str = ""
    noise: float = 0.0

    def meta(self) -> dict[str, str | float]:
        """Return what an episode's record says of it."""
        return {"policy": f"zoo {self.stage}" if self.stage else "random", "noise": self.noise}


def mixture(kind: str, tasks: Sequence[str]) -> list[Behavior]:
    """List the behaviours of a data set, one environment each.

    Args:
        kind: ``random``: the random policy in every task; ``zoo``: in every task with shipped actors also each stage
            of them, the expert once without noise and once with it.
        tasks: names of one body.

    Raises:
        ValueError: an unknown kind, or ``zoo`` for tasks none of which has an actor.
    """
    if kind not in MIXES:
        raise unknown("mix of behaviours", kind, MIXES)
    out = [Behavior(task) for task in tasks]
    if kind == "zoo":
        actors = zoo.load_card()["actors"]
        known = [task for task in tasks if task in actors]
        if not known:
            raise unknown("task of the zoo", ", ".join(tasks), actors)
        out += [Behavior(task, stage, noise) for task in known for stage in actors[task] for noise in NOISE[stage]]
    return out


def need_states(behaviors: Sequence[Behavior]) -> bool:
    """Tell whether any of the behaviours acts on the simulator's state."""
    return any(behavior.stage for behavior in behaviors)


def spread(behaviors: Sequence[Behavior], count: int) -> list[Behavior]:
    """Repeat behaviours in turn until there are ``count``; all of them if they are more."""
    return [behaviors[i % len(behaviors)] for i in range(max(len(behaviors), count))]


def acting(behaviors: Sequence[Behavior]) -> Callable[[int, int], ZooPolicy]:
    """Load the actors of the behaviours for ``collect``: ``(round, seed) -> policy``, the i-th for environment i."""
    actors = [zoo.load_actor(b.task, b.stage) if b.stage else None for b in behaviors]
    return lambda _, seed: ZooPolicy(actors, noise=[b.noise for b in behaviors], seed=seed)
