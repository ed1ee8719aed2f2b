"""The shipped actors: one card that describes them all, and a weight file each."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from bitagent_jax.errors import unknown
from bitagent_jax.zoo.actor import Actor, from_bytes

STAGES = ("early", "middle", "expert", "steady")
"""Competences: the best of a training, and what came before it at about .3 and .65 of its normalised return.

``steady``, of some tasks: the best of a training that blurred what the actor sees, so that it needs no exact state.
"""

WEIGHTS = Path(__file__).parent / "weights"


@functools.cache
def load_actor(task: str, stage: str = "expert") -> Actor:
    """Load a shipped actor; the same object for the same names.

    Args:
        task: a task that the card lists.
        stage: one of ``STAGES``.

    Raises:
        ValueError: there is no such actor, or its file is not the one that the card describes.
    """
    actors = load_card()["actors"]
    if task not in actors:
        raise unknown("task of the zoo", task, actors)
    if stage not in actors[task]:
        raise unknown(f"stage of {task}", stage, actors[task])
    path = actor_path(task, stage)
    raw, expected = path.read_bytes(), actors[task][stage]["sha256"]
    digest = hashlib.sha256(raw).hexdigest()
    if digest != expected:
        raise ValueError(f"{path} has sha256 {digest}, but the card says {expected}: reinstall the package")
    return from_bytes(raw)


def load_card() -> dict[str, Any]:
    """Read the card: notes, and ``actors[task][stage]`` with provenance and measured returns."""
    return json.loads((WEIGHTS / "card.json").read_text())


def actor_path(task: str, stage: str) -> Path:
    """Return the path of an actor's weights, whether there are any or not."""
    return WEIGHTS / f"{task}-{stage}.safetensors"
