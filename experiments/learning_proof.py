"""Does a sentence alone teach a body to do something?  Walker stand, walk and run, one policy, on a CPU.

    pip install -e '.[plots]' && python -m experiments.learning_proof runs/proof [--variants full] [--seeds 0 1 2]

Hardware: two CPU cores; a quarter of an hour or so to collect the data once, then two runs side by side, pinned to
a core each (about an hour).  Each run and the collection continue when called again, and what is in the results is
not done again, so that the runs can be spread over days and machines.  Other sizes (``--presets paper,short,bf16``),
``--steps``, ``--episodes`` and another encoder need a folder of ``--results`` of their own.

Every variant and seed learns from the same episodes, collected by `bitagent collect --mix zoo`, without rewards or
labels:

    full      the method
    genrl     no fusion, no L_MLLM, no L_JBO (the ablation `genrl` of the config)
    shuffled  the method, but each task is told the sentence of another motion, drawn by the seed (control)
    random    uniformly random actions

Expected: ``learning_proof.json`` (one entry a run: scores of each episode of the final policy, and of fewer episodes
along the way, imagined rewards, minutes) and ``learning_proof.png`` in ``experiments/results``, and a table.  An
interval is that of the mean over seeds at 95 % (Student's t), or, of a single seed, over its episodes.
"""

import argparse
import fcntl
import hashlib
import importlib.util
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bitagent_jax.config import flatten, make_config
from bitagent_jax.envs.tasks import TASKS, normalised_score, tasks_of
from bitagent_jax.evaluation import rollouts
from bitagent_jax.evaluation.gather import gather
from bitagent_jax.evaluation.scores import mean_interval
from bitagent_jax.files import write_atomically
from bitagent_jax.inference import load
from bitagent_jax.mllm.embedded import CARD
from bitagent_jax.presets import SHORT
from bitagent_jax.training.checkpoint import Checkpoints
from bitagent_jax.training.loops import train

RESULTS = Path(__file__).parent / "results"
VARIANTS = {"full": "", "genrl": "genrl", "shuffled": "", "random": None}
STAND_WALK_RUN = ("walker_stand", "walker_walk", "walker_run")
DATA = {"episodes": 648, "mix": "zoo", "num_envs": 36, "seed": 1}
FINAL, ALONG = 10, 4
"""Episodes a task by which the last checkpoint and the earlier ones of stage 2 are scored."""
STEPS = SHORT["train.stage1_steps"], SHORT["train.stage2_steps"]
TRAIN = {
    "train.log_every": 100,
    "train.checkpoint_every": 1000,
    "train.keep": 100,
    "train.video_every": 0,
}


def configure(variant: str, seed: int, data: Path, presets: str = "cpu", steps: tuple[int, int] = STEPS) -> ConfigDict:
    """Return the config of a run; ``steps`` of stage 1 and 2."""
    config = make_config("walker", ",".join(filter(None, (presets, VARIANTS[variant]))))
    config.update_from_flattened_dict(TRAIN)
    config.train.stage1_steps, config.train.stage2_steps = steps
    config.seed, config.data.folder = seed, str(data)
    config.data.capacity = make_config().data.capacity
    if variant == "shuffled":
        config.prompts = shuffled(seed)
    return config


def shuffled(seed: int) -> tuple[str, ...]:
    """Draw for each task the sentence of another motion of the body, all different."""
    motions = tasks_of("walker")
    rng = np.random.default_rng(seed)
    while True:
        drawn = rng.permutation(motions)[: len(STAND_WALK_RUN)]
        if not set(drawn) & set(STAND_WALK_RUN):
            return tuple(TASKS[name].prompt for name in drawn)


def settings_of(presets: str, steps: tuple[int, int], episodes: int) -> dict[str, Any]:
    """Return what the runs of one table have in common: arguments, the resulting config, the encoder's weights."""
    config = flatten(configure("full", 0, Path(), presets, steps))
    del config["data.episodes"]  # of a collection that these runs do not make
    values = json.dumps(config, sort_keys=True).encode()
    encoder = json.loads(CARD.read_text())["sha256"][:8]
    return {"presets": presets, "steps": list(steps), "episodes": episodes, "encoder": encoder,
            "config": hashlib.sha256(values).hexdigest()[:8]}  # fmt: skip


def read(store: Path, settings: dict[str, Any]) -> dict[str, dict]:
    """Return the results so far, one entry a run; ValueError if they are of other settings."""
    stored = json.loads(store.read_text()) if store.exists() else {"settings": settings, "runs": {}}
    if stored["settings"] != settings:
        raise ValueError(
            f"{store} is of another experiment, {stored['settings']}, not {settings}: give --results another folder"
        )
    return stored["runs"]


def add(store: Path, settings: dict[str, Any], name: str, result: dict) -> dict[str, dict]:
    """Add a run to the results, to which other processes may add too, and return them all."""
    store.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(store.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        runs = dict(sorted((read(store, settings) | {name: json.loads(json.dumps(result))}).items()))
        text = json.dumps({"settings": settings, "runs": runs}, indent=1) + "\n"
        write_atomically(store, lambda file: file.write(text.encode()))
    finally:
        os.close(folder)
    return runs


def prove(run: Path, config: ConfigDict) -> dict:
    """Train a run, or what is missing of it, and score its checkpoints of stage 2."""
    clock, begun = run.with_suffix(".seconds"), time.monotonic()
    try:
        train(run, config)
    finally:
        before = float(clock.read_text()) if clock.exists() else 0.0
        seconds = str(before + time.monotonic() - begun).encode()
        write_atomically(clock, lambda file: file.write(seconds))
    with Checkpoints(run / "checkpoints") as checkpoints:
        steps = [step for step in checkpoints.steps() if step >= config.train.stage1_steps]
    curve = {step: score(run, step, FINAL if step == steps[-1] else ALONG) for step in steps}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "curve": curve,
        "imagined": {line["step"]: [line[f"imagined/reward_{k}"] for k in range(len(config.tasks))]
                     for line in lines if line["stage"] == 2},
        "minutes": float(clock.read_text()) / 60,
        "prompts": dict(zip(config.tasks, config.prompts, strict=True)) if config.prompts else {},
    }  # fmt: skip


def score(run: Path, step: int, episodes: int) -> dict[str, list[float]]:
    """Return the normalised score of each episode, by task."""
    return normalised(rollouts.agent_returns(load(run, step), STAND_WALK_RUN, episodes, seed=1000))


def normalised(returns: dict[str, list[float]]) -> dict[str, list[float]]:
    """Put returns on GenRL's scale: 0 random, 1 expert."""
    return {name: normalised_score(name, values).tolist() for name, values in returns.items()}


def random_policy(seed: int) -> dict:
    """Score uniformly random actions."""
    returns = rollouts.random_returns(STAND_WALK_RUN, FINAL, action_repeat=2, seed=1000 + seed)
    return {"curve": {0: normalised(returns)}, "imagined": {}, "minutes": 0.0, "prompts": {}}


def interval(values: Iterable[list[float]]) -> tuple[float, float]:
    """Return mean and half width over seeds of the episodes' means; of a single seed, over its episodes."""
    per_seed = [list(episodes) for episodes in values]
    points = [np.mean(episodes) for episodes in per_seed] if len(per_seed) > 1 else per_seed[0]
    found = mean_interval(points)
    return found.value, found.high - found.value


def table(results: dict[str, dict]) -> str:
    """Format the final scores as a Markdown table."""
    lines = ["| | seeds | stand | walk | run | minutes a run |", "|---|---|---|---|---|---|"]
    for variant in VARIANTS:
        runs = [result for name, result in results.items() if name.split("-")[0] == variant]
        if runs:
            last = [list(result["curve"].values())[-1] for result in runs]
            cells = ["{:.2f} ± {:.2f}".format(*interval(end[task] for end in last)) for task in STAND_WALK_RUN]
            minutes = np.mean([result["minutes"] for result in runs])
            lines.append(f"| {variant} | {len(runs)} | {' | '.join(cells)} | {minutes:.0f} |")
    return "\n".join(lines)


def plot(results: dict[str, dict], path: Path) -> None:
    """Draw true scores and imagined rewards along stage 2, one column a task."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(STAND_WALK_RUN), figsize=(11, 6), sharex=True, layout="constrained")
    colors = dict(zip(VARIANTS, ("tab:blue", "tab:orange", "tab:gray", "black"), strict=True))
    for name, result in results.items():
        variant = name.split("-")[0]
        for k, task in enumerate(STAND_WALK_RUN):
            top, bottom = axes[:, k]
            points = {int(step): np.mean(run[task]) for step, run in result["curve"].items()}
            if variant == "random":
                top.axhline(points[0], color="black", linestyle=":", linewidth=1)
            else:
                top.plot(points.keys(), points.values(), color=colors[variant], marker=".", linewidth=1)
                steps = [int(step) for step in result["imagined"]]
                bottom.plot(steps, [r[k] for r in result["imagined"].values()], color=colors[variant], linewidth=1)
            top.set_title(task)
            top.locator_params(axis="x", nbins=4)
    axes[0, 0].set_ylabel("true score (0 random, 1 expert)")
    axes[1, 0].set_ylabel("imagined reward")
    axes[1, 1].set_xlabel("update")
    shown = {name.split("-")[0] for name in results}
    colors = {variant: color for variant, color in colors.items() if variant in shown}
    handles = [pyplot.Line2D([], [], color=c, linestyle=":" if v == "random" else "-") for v, c in colors.items()]
    figure.legend(handles, list(colors), loc="outside upper center", ncols=4)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Do the runs that are asked for and not yet in the results, then print the table and draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of data and runs")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--presets", default="cpu", help="of the config, for example paper,short,bf16")
    parser.add_argument("--steps", nargs=2, type=int, default=STEPS, metavar=("STAGE1", "STAGE2"))
    parser.add_argument("--episodes", type=int, default=DATA["episodes"])
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("the curves need matplotlib: pip install -e '.[plots]'")
    store, steps = given.results / "learning_proof.json", tuple(given.steps)
    settings = settings_of(given.presets, steps, given.episodes)
    try:
        results = read(store, settings)
    except ValueError as error:
        parser.error(str(error))
    for variant in given.variants:
        for seed in given.seeds:
            name = f"{variant}-{seed}"
            if name in results:
                continue
            if VARIANTS[variant] is None:
                result = random_policy(seed)
            else:
                data = given.out / "data"
                gather(data, STAND_WALK_RUN, **(DATA | {"episodes": given.episodes}))
                result = prove(given.out / name, configure(variant, seed, data, given.presets, steps))
            results = add(store, settings, name, result)
    print(table(results))
    plot(results, given.results / "learning_proof.png")


if __name__ == "__main__":
    main()
