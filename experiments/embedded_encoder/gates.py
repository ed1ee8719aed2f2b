"""Measure the trained encoder on clips it never saw, write its card, and ship it if asked to.

    python -m experiments.embedded_encoder.gates --data DIR --weights RUN/embedded.safetensors [--ship]

Hardware: two CPU threads, about two minutes. Expected: a table of gates and the card beside the weights; exit
status 1 if a gate fails. Test clips come from other seeds than training clips; rollouts of the random policy
come from ``make_env`` itself, exactly as a user's first data set. All numbers are within one body.
"""

import argparse
import datetime
import hashlib
import importlib.metadata
import json
import platform
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from scipy import stats

from bitagent_jax.envs.tasks import TASKS
from bitagent_jax.mllm import embedded
from experiments.embedded_encoder import clips
from experiments.embedded_encoder.captions import score_table
from experiments.embedded_encoder.concepts import BODIES, CONCEPTS, Window

LIMITS = {"mean AUC": 0.95, "task prompt AUC": 0.9, "Spearman with the task's reward": 0.8}
VERDICTS = {"stand": "standing", "walk": "walking", "run": "running"}
WEAKNESSES = (
    "A quadruped's heading shows in about 20 of 64 x 64 pixels (two eyes on a body of fourfold symmetry): what "
    "depends on the sign of its speed, walking above all, is recognised less surely than the rest.",
    "Words that the grammar lacks are understood only through letters they share with words that it has.",
)
JUDGED = [task for task in TASKS.values() if task.goal in VERDICTS and task.body in BODIES]
"""The tasks whose prompts were trained: those that the captions know as a motion of a body in the clips."""
_START, _FEWEST = 2, 8


class Held:
    """Embedded test windows with their measurements and scores."""

    def __init__(self, encoder: embedded.EmbeddedEncoder, data: dict[str, np.ndarray]):
        window = slice(_START, _START + encoder.num_frames)
        self.encoder, self.bodies = encoder, data["bodies"]
        self.kinds, self.looks = np.array(clips.KINDS)[data["kinds"]], data["looks"]
        self.seen = encoder.embed_video(data["images"][:, window])
        self.states = data["states"][:, window]
        self.scores = score_table(self.states, self.bodies)

    def cosine(self, sentences) -> np.ndarray:
        """Mean cosine of every window with the sentences, [n]."""
        return (self.seen @ self.encoder.embed_text(list(sentences)).T).mean(-1)

    def column(self, name: str) -> np.ndarray:
        """Scores of the concept of this name, [n]."""
        return self.scores[:, [c.name for c in CONCEPTS].index(name)]


def auc(score: np.ndarray, truth: np.ndarray) -> float:
    """Area under the ROC curve of a score for labels 1 (true), 0 (false), NaN (left out); NaN if too few."""
    true, false = score[truth == 1], score[truth == 0]
    if min(len(true), len(false)) < _FEWEST:
        return float("nan")
    ranks = stats.rankdata(np.concatenate([true, false]))[: len(true)]
    return float((ranks.sum() - len(true) * (len(true) + 1) / 2) / (len(true) * len(false)))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; NaN if either is constant."""
    return float("nan") if np.ptp(a) == 0 or np.ptp(b) == 0 else float(stats.spearmanr(a, b).statistic)


def concept_aucs(held: Held) -> dict[str, dict[str, float]]:
    """AUC of every plain concept in every body it speaks of: by each trained phrasing, and by held-out ones."""
    out = {}
    graded = {c.phrases: c for c in CONCEPTS if c.graded}
    for column, concept in enumerate(CONCEPTS):
        for body in BODIES if not concept.graded else ():
            mine = held.bodies == body
            truth = held.scores[mine, column]
            if body not in concept.scores or np.isnan(auc(truth, truth)):
                continue
            twin = graded.get(concept.phrases, concept)
            trained = [auc(held.cosine([p])[mine], truth) for p in concept.phrases]
            fresh = [auc(held.cosine([p])[mine], truth) for p in twin.held_out]
            out[f"{body}: {concept.name}"] = {
                "trained": round(float(np.mean(trained)), 3),
                "held_out": round(float(np.mean(fresh)), 3),
                "true": int((truth == 1).sum()),
            }
    return out


def task_gates(held: Held) -> dict[str, dict[str, float]]:
    """For every judged task's prompt: AUC of its verdict, rank correlation with reward and raw quantities."""
    out = {}
    for task in JUDGED:
        mine = held.bodies == task.body
        cosine, window = held.cosine([task.prompt])[mine], Window(held.states[mine])
        reward = getattr(window, task.goal)
        upright, ahead = window.upright > 0.7, window.speed > -0.1
        random = held.kinds[mine] != "puppet"
        raw = window.height if task.goal == "stand" else window.speed
        out[task.name] = {
            "auc": auc(cosine, held.column(VERDICTS[task.goal])[mine]),
            "spearman_reward": spearman(cosine, reward),
            "spearman_reward_simulated_only": spearman(cosine[random], reward[random]),
            "spearman_reward_not_backward": spearman(cosine[ahead], reward[ahead]),
            "spearman_raw_when_upright": spearman(cosine[upright], raw[upright]),
            "spearman_upright": spearman(cosine, window.upright),
            "cosine_best_decile": float(np.mean(cosine[reward >= np.quantile(reward, 0.9)])),
            "cosine_worst_decile": float(np.mean(cosine[reward <= np.quantile(reward, 0.1)])),
        }
        out[task.name] = {key: round(value, 3) for key, value in out[task.name].items()}
    return out


def rollout_gates(encoder: embedded.EmbeddedEncoder, episodes: int = 3, steps: int = 120, look: str = "fast") -> dict:
    """Rank correlation of cosine and mean reward over windows of random-policy rollouts made by ``make_env``."""
    from bitagent_jax.envs.dmc import make_env

    out = {}
    for task in JUDGED:
        env, rng = make_env(task.name, seed=777, look=look), np.random.default_rng(777)
        cosines, rewards = [], []
        for _ in range(episodes):
            images, reward = [env.reset()[0]], [0.0]
            for _ in range(steps):
                image, value, *_ = env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
                images.append(image), reward.append(value / 2)
            rows, full = encoder.embed_windows(np.stack(images))
            cosines.append((rows @ encoder.embed_text([task.prompt])[0])[full])
            means = np.convolve(reward, np.full(encoder.num_frames, 1 / encoder.num_frames), "valid")
            rewards.append(means)
        env.close()
        cosines, rewards = np.concatenate(cosines), np.concatenate(rewards)
        out[task.name] = {
            "spearman": round(spearman(cosines, rewards), 3),
            "cosine_mean": round(float(cosines.mean()), 3),
            "reward_mean": round(float(rewards.mean()), 3),
        }
    return out


def throughput(encoder: embedded.EmbeddedEncoder) -> int:
    """Frames per second of ``embed_windows`` on 1007 frames, the best of five after a warm-up."""
    frames = np.random.default_rng(0).integers(0, 256, (1007, 64, 64, 3), np.uint8)
    best = 0.0
    for _ in range(6):
        start = time.perf_counter()
        encoder.embed_windows(frames)
        best = max(best, len(frames) / (time.perf_counter() - start))
    return round(best)


def verdicts(concepts: dict, tasks: dict) -> dict[str, dict]:
    """Compare the measurements with LIMITS."""
    found = {
        "mean AUC": np.mean([row["trained"] for row in concepts.values()]),
        "task prompt AUC": min(row["auc"] for row in tasks.values()),
        "Spearman with the task's reward": min(row["spearman_reward"] for row in tasks.values()),
    }
    return {
        name: {"value": round(float(value), 3), "limit": LIMITS[name], "passed": bool(value >= LIMITS[name])}
        for name, value in found.items()
    }


def make_card(weights: Path, data: Path, run: dict) -> dict:
    """Measure weights and write everything that is known about them."""
    raw = weights.read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    weights.with_suffix(".json").write_text(json.dumps({"sha256": digest}))
    encoder = embedded.load(weights)
    test, train = clips.load_split(data, "test"), clips.load_split(data, "train")
    held = Held(encoder, test)
    concepts, tasks = concept_aucs(held), task_gates(held)
    fresh = [row["held_out"] for row in concepts.values() if not np.isnan(row["held_out"])]
    return {
        "name": encoder.name,
        "sha256": digest,
        "bytes": len(raw),
        "parameters": sum(value.size for value in embedded.params_to_arrays(encoder.params).values()),
        "embed_dim": encoder.embed_dim,
        "num_frames": encoder.num_frames,
        "date": datetime.date.today().isoformat(),
        "licence": "Apache-2.0",
        "privileged": "Captions and graded targets were computed from simulator state, and include the tasks' own "
        "rewards. Not for comparisons with the paper or with any encoder trained without them.",
        "trained_by": "experiments/embedded_encoder (clips.py, train.py, gates.py)",
        "data": {
            body: {split: int((part["bodies"] == body).sum()) for split, part in (("train", train), ("test", test))}
            for body in BODIES
        }
        | {"frames_per_sequence": clips.STEPS, "kinds": dict(zip(clips.KINDS, clips.SHARES, strict=True)),
           "seeds": "clips.parts(): train below 600000, test above; stock look from 900000"},
        "training": run,
        "versions": {name: importlib.metadata.version(name) for name in
                     ("jax", "flax", "optax", "numpy", "dm-control", "mujoco")} | {"python": platform.python_version()},
        "weaknesses": WEAKNESSES,
        "gates": verdicts(concepts, tasks),
        "tasks": tasks,
        "random_policy_rollouts": rollout_gates(encoder),
        "held_out_phrasings_mean_auc": round(float(np.mean(fresh)), 3),
        "concepts": concepts,
        "frames_per_second_cpu": throughput(encoder),
    }  # fmt: skip


def main() -> None:
    """Measure, print, write the card, copy into the package if told to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--ship", action="store_true", help="copy weights and card into the package")
    args = parser.parse_args()
    log = args.weights.parent / "run.json"
    card = make_card(args.weights, args.data, json.loads(log.read_text()) if log.exists() else {})
    args.weights.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")
    for section in ("concepts", "tasks", "random_policy_rollouts", "gates"):
        print(f"\n{section}")
        for name, row in card[section].items():
            print(f"  {name:34s}" + "  ".join(f"{key} {value}" for key, value in row.items()))
    print(f"\nheld-out phrasings {card['held_out_phrasings_mean_auc']}, {card['frames_per_second_cpu']} frames/s")
    if args.ship:
        shutil.copyfile(args.weights, embedded.WEIGHTS)
        shutil.copyfile(args.weights.with_suffix(".json"), embedded.CARD)
    sys.exit(0 if all(gate["passed"] for gate in card["gates"].values()) else 1)


if __name__ == "__main__":
    main()
