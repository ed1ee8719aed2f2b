"""What the backward path is worth: L_JBO as it is, off, and stopped before the adapter, over seeds.

    python -m experiments.backward_path OUT [--stage1 RUN] [--seeds 5] [--updates N] [--episodes 10] [--config=...]

Hardware: CPU; with the walker's cpu preset (the default) some minutes a variant and seed. All start from one stage-1
checkpoint, of RUN or else of OUT/stage1, which is then trained first; a seed stands for another untrained actor and
critic, other batches, other noise and other episodes, the same ones in every variant. Stopped at any moment, the same
command continues. Expected: OUT/results.json, and the mean difference of normalised scores between ``gradient`` and
each control, paired by seed, with a 95% interval (Student's t) over seeds.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from bitagent_jax.agent.state import BEHAVIOR, TrainState, build, init_state
from bitagent_jax.cli import parse_config
from bitagent_jax.config import make_config
from bitagent_jax.envs.tasks import get_body
from bitagent_jax.evaluation import rollouts
from bitagent_jax.evaluation.scores import Interval, mean_interval
from bitagent_jax.files import write_atomically
from bitagent_jax.inference import load
from bitagent_jax.mllm.encoder import load_encoder
from bitagent_jax.presets import ABLATIONS
from bitagent_jax.training.checkpoint import Checkpoints
from bitagent_jax.training.loops import train
from bitagent_jax.training.run import RunFolder

VARIANTS = {"gradient": {}, "off": ABLATIONS["no_jbo"], "stop": ABLATIONS["stop_jbo"]}
Results = dict[str, dict[str, dict[str, float]]]
"""Variant -> seed -> task -> mean normalised score."""


def variant_config(stage1: RunFolder, variant: str, seed: int, updates: int | None) -> ConfigDict:
    """Return the config of one run: that of stage 1, on its episodes alone, with the variant's settings."""
    config = stage1.config.copy_and_resolve_references()
    config.update_from_flattened_dict(
        {"seed": seed, "data.folder": str(stage1.episodes.resolve()), "data.online_every": 0, **VARIANTS[variant]}
    )
    if updates is not None:
        config.train.stage2_steps = updates
    return config


def branch(stage1: RunFolder, path: Path, config: ConfigDict) -> None:
    """Begin a run at the end of stage 1, with the actor, critic and random key of the config's own seed."""
    encoder = load_encoder(config.mllm.encoder, config.mllm.weights)
    _, init = build(config, encoder.embed_dim, get_body(config.body).action_dim)
    fresh: TrainState = jax.jit(lambda: init_state(config, init))()
    with Checkpoints(stage1.checkpoints) as checkpoints:
        state = checkpoints.restore(jax.eval_shape(lambda: fresh), config.train.stage1_steps)
    new = lambda old, own: old | {name: own[name] for name in BEHAVIOR if name in own}  # noqa: E731
    parts = {name: new(getattr(state, name), getattr(fresh, name)) for name in ("params", "slow", "opt")}
    with RunFolder.open(path, config) as run, Checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(config.train.stage1_steps, state._replace(key=fresh.key, norms=fresh.norms, **parts))
        checkpoints.wait()


def score(path: Path, episodes: int, seed: int) -> dict[str, float]:
    """Evaluate a run: task -> mean normalised score."""
    agent = load(path)
    rows = rollouts.evaluate(agent, list(agent.config.tasks), episodes, seed=seed)
    return {row.task: row.normalised.value for row in rows if row.task != "all"}


def run_all(out: Path, stage1: RunFolder, seeds: int, updates: int | None, episodes: int) -> Results:
    """Train and score what ``OUT/results.json`` lacks, seed by seed, so that any prefix can be compared.

    Raises:
        ValueError: the file was begun with other settings.
    """
    file, settings = out / "results.json", {"stage1": str(stage1.path), "updates": updates, "episodes": episodes}
    stored = json.loads(file.read_text()) if file.exists() else {"settings": settings, "scores": {}}
    if stored["settings"] != settings:
        raise ValueError(f"{file} was begun with {stored['settings']}, not {settings}: use another folder")
    results: Results = stored["scores"]
    for seed in range(seeds):
        for variant in VARIANTS:
            done = results.setdefault(variant, {})
            if str(seed) in done:
                continue
            path, config = out / f"{variant}-{seed}", variant_config(stage1, variant, seed, updates)
            with Checkpoints(path / "checkpoints") as checkpoints:
                begun = checkpoints.latest_step() is not None
            if not begun:
                branch(stage1, path, config)
            train(path, config)
            done[str(seed)] = score(path, episodes, seed)
            text = json.dumps(stored, indent=1) + "\n"
            write_atomically(file, lambda opened, text=text: opened.write(text.encode()))
    return results


def differences(results: Mapping[str, Mapping[str, Mapping[str, float]]], control: str) -> dict[str, Interval]:
    """Compare ``gradient`` with a control over the seeds that both have: task (and ``mean`` of all) -> difference."""
    left, right = results["gradient"], results[control]
    seeds = [seed for seed in left if seed in right]
    tasks = list(left[seeds[0]])
    pairs = np.array([[left[seed][task] - right[seed][task] for task in tasks] for seed in seeds])
    columns = dict(zip(tasks, pairs.T, strict=True)) | {"mean": pairs.mean(1)}
    return {name: mean_interval(values) for name, values in columns.items()}


def report(results: Results) -> str:
    """Write each variant's mean score and the differences as text."""
    lines = []
    for variant, seeds in results.items():
        values = [np.mean(list(tasks.values())) for tasks in seeds.values()]
        lines.append(f"{variant:10s} mean normalised score {np.mean(values):.3f} over {len(values)} seeds")
    for control in ("off", "stop"):
        for name, value in differences(results, control).items():
            bounds = f"[{value.low:+.3f}, {value.high:+.3f}]"
            lines.append(f"gradient - {control:5s} {name:16s} {value.value:+.3f}  95% {bounds}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Parse, train what is missing, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--stage1", type=Path, help="run with a checkpoint at the end of stage 1")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--updates", type=int, help="of stage 2; by default as many as stage 1's config says")
    parser.add_argument("--episodes", type=int, default=10, help="scored in each task")
    args, rest = parser.parse_known_args(argv)
    if args.seeds < 1 or args.episodes < 1:
        parser.error(f"--seeds and --episodes must be at least 1, got {args.seeds} and {args.episodes}")
    if args.updates is not None and args.updates < 1:
        parser.error(f"--updates must be at least 1, got {args.updates}")
    if args.stage1 and rest:
        parser.error(f"{args.stage1} has its own config: {' '.join(rest)} would not be used")
    updates, stage1 = args.updates, args.stage1
    if stage1 is None:
        stage1, config = args.out / "stage1", parse_config(rest, default=make_config("walker", "cpu"))
        updates, config.train.stage2_steps = config.train.stage2_steps if updates is None else updates, 0
        train(stage1, config)
    elif updates is None and not RunFolder.load(stage1).config.train.stage2_steps:
        parser.error(f"the config of {stage1} has no updates of stage 2: say how many with --updates")
    print(report(run_all(args.out, RunFolder.load(stage1), args.seeds, updates, args.episodes)))


if __name__ == "__main__":
    main()
