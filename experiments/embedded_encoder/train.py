"""Train the embedded video-text encoder on rendered clips and export its weights.

    python -m experiments.embedded_encoder.train --data DIR --out RUN [--steps 4500]

Hardware: two CPU threads, about 40 minutes and 5 GB of memory. Run it again to continue from the last checkpoint
(every 200 steps); the batch of step s depends on the seed and s alone. Then ``experiments.embedded_encoder.gates``
measures the weights, writes their card and, with ``--ship``, puts both into the package.

All of it, each line to be run again after an interruption at any point:

    python -m experiments.embedded_encoder.clips --out DIR
    python -m experiments.embedded_encoder.train --data DIR --out RUN
    python -m experiments.embedded_encoder.gates --data DIR --weights RUN/embedded.safetensors

Loss, over a batch of B clips and K sentences with exact labels (``captions.py``), cosines c [B, K]:
  plain:   sigmoid cross-entropy of ``scale * (c - 0.5)`` against the label, unlabelled pairs masked;
  graded:  squared error between c and ``0.9 * score``;
  helper:  squared error of a linear readout of the simulator's measurements from the clip's embedding;
  facing:  squared error of a linear readout of where the torso faces from the close-ups: it shows in a few
           pixels, which the other losses alone do not find.
The readouts are thrown away after training.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from bitagent_jax.mllm import embedded, towers
from bitagent_jax.mllm.hashing import hash_sentences
from experiments.embedded_encoder import captions
from experiments.embedded_encoder.clips import FIELDS, MEASURED, STEPS, load_split

BATCH, SENTENCES = 64, 128
LEARNING_RATE, WARMUP, AVERAGE = 1.5e-3, 150, 0.99
GRADED, HELPER, FACING = 25.0, 0.3, 1.0
SHARES = {"walker": 0.2, "cheetah": 0.25, "quadruped": 0.33, "stickman": 0.22}
HELPED = FIELDS[: len(MEASURED) + 3]
"""What is read out: all measurements, and the rewards of standing, walking and running."""
_NOSE = [FIELDS.index(name) for name in ("nose_x", "nose_y")]
OFFSETS = STEPS - towers.NUM_FRAMES + 1


class Learner(NamedTuple):
    """All that training changes: weights and readout, their running mean, the optimiser's state."""

    weights: dict
    mean: dict
    opt: optax.OptState


class Clips:
    """A split in memory, from which windows of 8 frames are drawn at a random offset."""

    def __init__(self, data: dict[str, np.ndarray]):
        self.images, self.bodies = data["images"], data["bodies"]
        self.rows = {body: np.flatnonzero(self.bodies == body) for body in SHARES}
        windows = [data["states"][:, start : start + towers.NUM_FRAMES] for start in range(OFFSETS)]
        self.scores = np.stack([captions.score_table(window, self.bodies) for window in windows], 1)
        measured = np.stack([window[..., : len(HELPED)].mean(1) for window in windows], 1)
        self.measured = np.clip((measured - measured.mean((0, 1))) / (measured.std((0, 1)) + 1e-6), -4, 4)

    def batch(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draw clips, shift and relight them, and write sentences with labels about them."""
        bodies = rng.choice(list(SHARES), size=BATCH, p=list(SHARES.values()))
        rows, starts = np.array([rng.choice(self.rows[b]) for b in bodies]), rng.integers(OFFSETS, size=BATCH)
        said = captions.sample(rng, self.scores[rows, starts], self.bodies[rows], SENTENCES)
        spans = [slice(start, start + towers.NUM_FRAMES) for start in starts]
        return {
            "clips": np.stack([_shift(rng, self.images[r, s]) for r, s in zip(rows, spans, strict=True)]),
            "gain": rng.uniform(0.75, 1.3, (BATCH, 1, 1, 1, 1)) * rng.uniform(0.94, 1.06, (BATCH, 1, 1, 1, 3)),
            "lift": rng.uniform(-15, 15, (BATCH, 1, 1, 1, 1)),
            "ids": hash_sentences(said.sentences),
            "labels": said.labels,
            "graded": said.graded,
            "measured": self.measured[rows, starts],
        }


def _shift(rng, clip):
    """Move a clip's picture by up to two pixels, repeating the border; half of them stay."""
    if rng.random() < 0.5:
        return clip
    across, down = (np.clip(np.arange(64) + rng.integers(-2, 3), 0, 63) for _ in range(2))
    return clip[:, down][:, :, across]


def optimiser(steps: int) -> optax.GradientTransformation:
    """AdamW, clipped at norm 1; warm-up, a constant rate up to 60 % of ``steps``, then linear decay to nought."""
    rise, hold = optax.linear_schedule(0, LEARNING_RATE, WARMUP), optax.constant_schedule(LEARNING_RATE)
    fall = optax.linear_schedule(LEARNING_RATE, 0, steps - steps * 6 // 10)
    rate = optax.join_schedules([rise, hold, fall], [WARMUP, steps * 6 // 10])
    decayed = partial(jax.tree.map, lambda x: x.ndim > 1)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.02, mask=decayed))


def loss_fn(weights: dict, graph: nnx.GraphDef, batch: dict) -> tuple[jax.Array, dict]:
    """Compute the loss of a batch and its parts; see the module's docstring."""
    model = nnx.merge(graph, weights["towers"])
    lit = jnp.clip(batch["clips"].astype(jnp.float32) * batch["gain"] + batch["lift"], 0, 255)
    rows = model.video.clip_rows(lit)
    seen, faces = model.video.head(rows), rows.close.mean(-2) @ weights["facing"]
    cosine = seen @ model.text(batch["ids"]).T
    known = ~jnp.isnan(batch["labels"])
    label = jnp.where(known, batch["labels"], 0.0)
    plain, graded = known & ~batch["graded"], known & batch["graded"]
    entropy = optax.sigmoid_binary_cross_entropy(jnp.exp(weights["scale"]) * (cosine - 0.5), label)
    weight = jnp.where(label > 0.5, 3.0, 1.0) * plain
    losses = {
        "plain": (entropy * weight).sum() / weight.sum(),
        "graded": (jnp.square(cosine - 0.9 * label) * graded).sum() / jnp.maximum(graded.sum(), 1),
        "helper": jnp.square(seen @ weights["readout"] - batch["measured"]).mean(),
        "facing": jnp.square(faces - batch["measured"][:, jnp.array(_NOSE)]).mean(),
    }
    scales = {"plain": 1.0, "graded": GRADED, "helper": HELPER, "facing": FACING}
    return sum(scales[name] * losses[name] for name in scales), losses


@partial(jax.jit, static_argnames=("graph", "steps"), donate_argnames="learner")
def train_step(learner: Learner, batch: dict, graph: nnx.GraphDef, steps: int) -> tuple[Learner, dict]:
    """Take one step on a batch."""
    (_, losses), grads = jax.value_and_grad(loss_fn, has_aux=True)(learner.weights, graph, batch)
    updates, opt = optimiser(steps).update(grads, learner.opt, learner.weights)
    weights = optax.apply_updates(learner.weights, updates)
    mean = jax.tree.map(lambda m, w: AVERAGE * m + (1 - AVERAGE) * w, learner.mean, weights)
    return Learner(weights, mean, opt), losses


def init_learner(seed: int, steps: int) -> Learner:
    """Make fresh weights and an optimiser."""
    readout = jax.random.normal(jax.random.key(seed), (towers.EMBED_DIM, len(HELPED)))
    facing = readout[: towers.CLOSE, : len(_NOSE)] / 8
    weights = {"towers": embedded.init_params(seed), "readout": readout, "facing": facing, "scale": jnp.log(10.0)}
    return Learner(weights, jax.tree.map(jnp.copy, weights), optimiser(steps).init(weights))


def save(path: Path, learner: Learner, step: int) -> None:
    """Write a checkpoint under a temporary name, then rename it."""
    leaves = {f"{index:04d}": np.asarray(leaf) for index, leaf in enumerate(jax.tree.leaves(learner))}
    draft = path.with_suffix(".tmp.npz")
    np.savez(draft, step=step, **leaves)
    draft.rename(path)


def restore(path: Path, learner: Learner) -> tuple[Learner, int]:
    """Read a checkpoint into the structure of ``learner``; returns (learner, steps done)."""
    if not path.exists():
        return learner, 0
    with np.load(path) as stored:
        leaves = [jnp.asarray(stored[name]) for name in sorted(stored.files) if name != "step"]
        return jax.tree.unflatten(jax.tree.structure(learner), leaves), int(stored["step"])


def main() -> None:
    """Train, log one JSON line every 50 steps, checkpoint, export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    clips, graph = Clips(load_split(args.data, "train")), embedded.graph()
    learner, first = restore(args.out / "checkpoint.npz", init_learner(args.seed, args.steps))
    begun, sums = time.monotonic(), []
    for step in range(first, args.steps):
        batch = clips.batch(np.random.default_rng((args.seed, step)))
        learner, losses = train_step(learner, batch, graph, args.steps)
        sums.append(losses)
        if (step + 1) % 50 == 0 or step + 1 == args.steps:
            line = {name: round(float(np.mean([one[name] for one in sums])), 4) for name in losses}
            if not all(np.isfinite(value) for value in line.values()):
                raise FloatingPointError(f"loss is not finite at step {step + 1}: {line}")
            print(json.dumps({"step": step + 1, **line, "s": round(time.monotonic() - begun)}), flush=True)
            sums = []
        if (step + 1) % 200 == 0 or step + 1 == args.steps:
            save(args.out / "checkpoint.npz", learner, step + 1)
            export(learner, args.out / "embedded.safetensors")
            run = {"steps": step + 1, "planned_steps": args.steps, "seed": args.seed, "losses": line}
            sizes = {"batch": BATCH, "sentences": SENTENCES, "sequences": len(clips.images)}
            (args.out / "run.json").write_text(json.dumps(run | sizes | {"learning_rate": LEARNING_RATE}))


def export(learner: Learner, path: Path) -> None:
    """Write the running mean of the towers' weights as float16 safetensors."""
    from safetensors.numpy import save_file

    save_file(embedded.params_to_arrays(learner.mean["towers"]), path)


if __name__ == "__main__":
    main()
