"""Choose the actors of a finished training, measure them and put them into the package with their card.

    python -m experiments.zoo.export runs/zoo/walker_walk [runs/zoo/walker_run ...] [--stages expert]

Hardware: one CPU core, a quarter of a minute a task. The expert is the best evaluation of the curve; early and
middle are those before it that are nearest to .3 and .65 of its normalised return; of a training with ``--blur``
the best alone is kept, as ``steady``. Of a second training of a task ``--stages`` replaces what is named. What the
card states was measured anew by ``experiments.zoo.measure`` on other initial states.
"""

import argparse
import hashlib
import json
from collections.abc import Collection
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bitagent_jax.envs.tasks import TASKS, get_task
from bitagent_jax.files import write_atomically
from bitagent_jax.zoo import STAGES, library
from bitagent_jax.zoo.actor import from_bytes
from experiments.zoo.measure import measure

TARGETS = {"early": 0.3, "middle": 0.65}
LIBRARIES = ("sbx-rl", "stable-baselines3", "jax", "numpy", "dm_control", "mujoco")
NOTES = dict(
    state="dm_control's own observation of the task, its arrays flattened and joined in their order; float32",
    network="affine layers with ReLU between and tanh after the last; tensors w0, b0, ..., stored in float16",
    returns="sums of rewards over one episode of 1000 control steps, action repeat 2, without action noise",
    normalised="(return - random) / (expert - random) on the scale of GenRL's benchmark",
    trained_by="experiments/zoo (train.py, export.py), soft actor-critic of sbx-rl",
    steps="agent steps, each of two control steps, in all environments together",
    blur="noise on what the actor saw in training, in standard deviations of each measurement under random actions",
    licence="Apache-2.0",
)


def choose(curve: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Pick a row for each stage, in order of steps; ValueError if too few rows precede the best one.

    The best one was trained: what a training begins with may be another task's expert.
    """
    best = max(curve[1:], key=lambda row: row["score"])
    before = [row for row in curve if row["steps"] < best["steps"]]
    if len(before) < len(TARGETS):
        raise ValueError(f"the best evaluation is number {len(before) + 1}: too few come before it")
    early = min(before[:-1], key=lambda row: abs(row["score"] - TARGETS["early"] * best["score"]))
    later = [row for row in before if row["steps"] > early["steps"]]
    middle = min(later, key=lambda row: abs(row["score"] - TARGETS["middle"] * best["score"]))
    return {"early": early, "middle": middle, "expert": best}


def export(folder: Path, stages: Collection[str] = STAGES) -> dict[str, Any]:
    """Write the weights of one training's ``stages`` into the package and return their part of the card."""
    progress = json.loads((folder / "curve.json").read_text())
    task, entries = progress["task"], {}
    chosen = choose(progress["curve"])
    if progress["blur"]:
        chosen = {"steady": chosen["expert"]}
    for stage, row in chosen.items():
        if stage not in stages:
            continue
        raw = (folder / f"{row['steps']:08d}.safetensors").read_bytes()
        actor = from_bytes(raw)
        write_atomically(library.actor_path(task, stage), lambda file, raw=raw: file.write(raw))
        entries[stage] = dict(
            file=library.actor_path(task, stage).name,
            sha256=hashlib.sha256(raw).hexdigest(),
            state_dim=actor.state_dim,
            action_dim=actor.action_dim,
            **{key: row[key] for key in ("steps", "updates", "seconds")},
            seed=progress["seed"],
            warm=progress["warm"],
            blur=progress["blur"],
            settings=[note for note in progress["settings"] if note["from"] < row["steps"]],
            genrl_random=get_task(task).random_score,
            genrl_expert=get_task(task).expert_score,
            **measure(task, actor),
            date=datetime.now(UTC).date().isoformat(),
            versions={name: version(name) for name in LIBRARIES},
        )
    return {task: entries}


def main() -> None:
    """Read the command line, export and rewrite the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    path = library.WEIGHTS / "card.json"
    actors = json.loads(path.read_text())["actors"] if path.exists() else {}
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    given = parser.parse_args()
    for folder in given.folders:
        for task, entries in export(folder, given.stages).items():
            actors[task] = actors.get(task, {}) | entries
    known = {task: actors[task] for task in TASKS if task in actors}
    card = NOTES | {"actors": {task: {s: own[s] for s in STAGES if s in own} for task, own in known.items()}}
    write_atomically(path, lambda file: file.write((json.dumps(card, indent=1) + "\n").encode()))


if __name__ == "__main__":
    main()
