"""One file holds all of an unfinished training: learner, replay and progress. Plain arrays and JSON, no pickle."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sbx import SAC

from bitagent_jax.files import write_atomically
from bitagent_jax.zoo.actor import Actor

_COLUMNS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def learner(model: SAC) -> tuple:
    """Return everything that learns or draws random numbers, as one pytree."""
    policy = model.policy
    return policy.actor_state, policy.qf_state, model.ent_coef_state, model.key, policy.key, policy.noise_key


def _set_learner(model: SAC, tree: tuple) -> None:
    policy = model.policy
    policy.actor_state, policy.qf_state, model.ent_coef_state, model.key, policy.key, policy.noise_key = tree


def save(path: Path, model: SAC, progress: dict[str, Any]) -> None:
    """Replace the file at ``path`` all at once by the model's state and a dictionary that JSON can hold."""
    replay = model.replay_buffer
    rows = replay.buffer_size if replay.full else replay.pos
    arrays = {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(learner(model)))}
    arrays |= {name: getattr(replay, name)[:rows] for name in _COLUMNS}
    counts = {"steps": model.num_timesteps, "updates": model._n_updates, "at": replay.pos, "full": replay.full}
    meta = json.dumps({"counts": counts, "progress": progress})
    write_atomically(path, lambda file: np.savez(file, meta=np.array(meta), **arrays))


def restore(path: Path, model: SAC) -> dict[str, Any]:
    """Load a file into a model made with the same settings and return the progress saved with it.

    The episodes that ran at the time are cut off: training goes on with fresh ones.
    """
    with np.load(path, allow_pickle=False) as archive:
        meta = json.loads(str(archive["meta"]))
        _load_leaves(model, archive)
        replay, counts = model.replay_buffer, meta["counts"]
        for name in _COLUMNS:
            saved = archive[name]
            getattr(replay, name)[: len(saved)] = saved
    replay.pos, replay.full = counts["at"], counts["full"]
    replay.timeouts[replay.pos - 1] = np.maximum(replay.timeouts[replay.pos - 1], 1 - replay.dones[replay.pos - 1])
    model.num_timesteps, model._n_updates = counts["steps"], counts["updates"]
    return meta["progress"]


def steps_of(path: Path) -> int:
    """Return the agent steps that a file's model was trained for."""
    with np.load(path, allow_pickle=False) as archive:
        return json.loads(str(archive["meta"]))["counts"]["steps"]


def warm_start(path: Path, model: SAC) -> None:
    """Begin with the networks and optimisers of another training's file, but none of its replay."""
    with np.load(path, allow_pickle=False) as archive:
        _load_leaves(model, archive)


def _load_leaves(model: SAC, archive) -> None:
    leaves, tree = jax.tree.flatten(learner(model))
    saved = [archive[f"leaf{i}"] for i in range(len(leaves))]
    for mine, other in zip(leaves, saved, strict=True):
        if np.shape(mine) != other.shape:
            raise ValueError(f"the checkpoint has an array of shape {other.shape} where {np.shape(mine)} is needed")
    _set_learner(model, jax.tree.unflatten(tree, [jnp.asarray(leaf) for leaf in saved]))


def actor_of(model: SAC) -> Actor:
    """Copy the policy's mean action out of the model: its hidden layers and the first of its two heads."""
    params = model.policy.actor_state.params["params"]
    names = [f"Dense_{i}" for i in range(len(params) - 1)]
    return Actor([(np.asarray(params[name]["kernel"]), np.asarray(params[name]["bias"])) for name in names])
