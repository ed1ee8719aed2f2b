"""What fills a data set: actors of the zoo at several competences, with noise, and flailing; each alone, and mixed."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from bitagent_jax import zoo
from bitagent_jax.data.collect import ZooPolicy
from bitagent_jax.envs.tasks import get_task, shared_body, tasks_of
from bitagent_jax.errors import unknown

MIXES = ("random", "zoo")
EXPLORE = "plan2explore"
PRESETS = ("small", "full")
SMALL, FRAMES = (160, 40), 2_000_000
"""Of the presets of ``bitagent collect``: episodes of behaviours and of Plan2Explore; frames, in equal shares."""
LEVELS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
NOISE = {"steady": LEVELS, "expert": LEVELS, "middle": (0.2,), "early": (0.3,)}
"""Standard deviations of the action noise with which each stage of an actor is run in the mix ``zoo``.

Under strong noise an expert stumbles, falls and rises: what a policy that learns from it has to know of such states.
"""
CALM = 0.7
"""Part of the time without it: a policy that imitates is taught more by the actors' own actions than by their noise."""

MIXED = "mixed"
MIXED_EVERY = 3
"""In the mix ``zoo``, for so many environments with an actor of their own, one in which actors follow one another."""
SHARES = {"": 1, "early": 1, "middle": 2, "expert": 3, "steady": 3}
"""How often each stage of each task's actor, and flailing, act in those.

The best actor of each other task of the body acts there once: good actors then rise from where a pose left them, such
as on the back with the legs up.
"""


class Behavior(NamedTuple):
    """Who acts in one environment: an actor of the zoo with noise, the random policy (stage ""), or all ``mixed``."""

    task: str
    stage: str = ""
    noise: float = 0.0

    def meta(self) -> dict[str, str | float]:
        """Return what an episode's record says of it."""
        noise = {} if self.stage == MIXED else {"noise": self.noise}
        return {"policy": f"zoo {self.stage}" if self.stage else "random"} | noise


def played(task: str) -> list[str]:
    """List the stages of a task's actors that fill data: where one is steady, it stands in for the expert.

    An expert stumbles once it sees its state blurred, and a policy that sees pictures knows the state only so. The best
    comes last.
    """
    stages = list(zoo.load_card()["actors"][task])
    return [stage for stage in stages if stage != "expert" or "steady" not in stages]


def mixture(kind: str, tasks: Sequence[str]) -> list[Behavior]:
    """List the behaviours of a data set, one environment each.

    Args:
        kind: ``random``: the random policy in every task; ``zoo``: in every task with shipped actors also each stage
            of them that is ``played``, the best with more and more noise, and for every three of these environments
            one in which all take turns.
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
            bodies = dict.fromkeys(get_task(task).body for task in actors)
            raise ValueError(
                f"the zoo has no actor of {', '.join(tasks)}, only of tasks of {', '.join(bodies)}: use the mix random"
            )
        out += [Behavior(task, stage, noise) for task in known for stage in played(task) for noise in NOISE[stage]]
        out += [Behavior(known[i % len(known)], MIXED) for i in range(-(-len(out) // MIXED_EVERY))]
    return out


class Part(NamedTuple):
    """A share of a data set: one of ``MIXES`` or ``EXPLORE``, and how many episodes of it."""

    mix: str
    episodes: int


def parts(preset: str, tasks: Sequence[str]) -> tuple[Part, Part]:
    """List what a preset collects: behaviours of the zoo (random ones without actors), then Plan2Explore.

    Args:
        preset: ``small``, 200 episodes; ``full``, two million frames at action repeat 2, half of them each.
        tasks: names of one body.
    """
    if preset not in PRESETS:
        raise unknown("preset of collect", preset, PRESETS)
    body = shared_body(tasks)
    half = -(-FRAMES // (2 * (body.control_steps // 2 + 1)))
    known = set(tasks) & set(zoo.load_card()["actors"])
    mixed, explored = SMALL if preset == "small" else (half, half)
    return Part("zoo" if known else "random", mixed), Part(EXPLORE, explored)


def need_states(behaviors: Sequence[Behavior]) -> bool:
    """Tell whether any of the behaviours acts on the simulator's state."""
    return any(behavior.stage for behavior in behaviors)


def spread(behaviors: Sequence[Behavior], count: int) -> list[Behavior]:
    """Repeat behaviours in turn until there are ``count``; all of them if they are more."""
    return [behaviors[i % len(behaviors)] for i in range(max(len(behaviors), count))]


def acting(behaviors: Sequence[Behavior]) -> Callable[[int, int], ZooPolicy]:
    """Load the actors of the behaviours for ``collect``: ``(round, seed) -> policy``, the i-th for environment i."""
    known = zoo.load_card()["actors"]
    mixed = [b.stage == MIXED for b in behaviors]
    actors = [zoo.load_actor(b.task, b.stage) if b.stage in zoo.STAGES else None for b in behaviors]
    repertoire = []
    for task in dict.fromkeys(b.task for b in behaviors if b.task in known):
        repertoire += SHARES[""] * [None]
        for stage in played(task):
            repertoire += SHARES[stage] * [zoo.load_actor(task, stage)]
    if any(mixed):
        told = [b.task for b in behaviors]
        others = [task for task in tasks_of(shared_body(told).name) if task in known and task not in told]
        repertoire += [zoo.load_actor(task, played(task)[-1]) for task in others]
    noise = [b.noise for b in behaviors]
    return lambda _, seed: ZooPolicy(actors, noise=noise, mixed=mixed, repertoire=repertoire, calm=CALM, seed=seed)
