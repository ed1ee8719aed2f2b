"""Measure the trained encoder on clips it never saw, write its card, and ship it if asked to.

    python -m experiments.embedded_encoder.gates --data DIR --weights RUN/embedded.safetensors [--ship]

Hardware: two CPU threads, about four minutes. Expected: a table of gates and the card beside the weights (which
is written over: measure the shipped weights in a copy); exit status 1 if a gate fails. Test clips come from other
seeds than training clips, but their actors are the same; rollouts of the random policy come from ``make_env``
itself, exactly as a user's first data set. All numbers are within one body:

  concepts, tasks: AUC of every described motion; of every prompt of standing, walking and running also the rank
                   correlation of its cosine with the task's true reward. Their means and minima are the gates.
  poses:           the same of all other tasks; ``trained`` tells whether captions ever used the prompt. No gate.
  retrieval:       text to clip, recall@1 over behaviours, see ``retrieval``. No gate.

After ``--ship``, write the new golden values into ``tests/mllm/test_shipped.py`` and the numbers into the README.
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
    "The test clips of the zoo's actors are of other episodes than the training clips, but of the same actors.",
)
JUDGED = [task for task in TASKS.values() if task.goal in VERDICTS and task.body in BODIES]
"""The tasks whose prompts were trained: those that the captions know as a motion of a body in the clips."""
POSED = [task for task in TASKS.values() if task.goal not in VERDICTS and task.body in BODIES]
"""The other tasks of those bodies."""
_START, _FEWEST = 2, 8
_DRAWS = 200


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
    """Rank correlation; NaN if either is constant or they are too few."""
    if len(a) < _FEWEST or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(stats.spearmanr(a, b).statistic)


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
        random, acted = held.kinds[mine] != "puppet", held.kinds[mine] == "acted"
        raw = window.height if task.goal == "stand" else window.speed
        out[task.name] = {
            "auc": auc(cosine, held.column(VERDICTS[task.goal])[mine]),
            "spearman_reward": spearman(cosine, reward),
            "spearman_reward_simulated_only": spearman(cosine[random], reward[random]),
            "spearman_reward_not_backward": spearman(cosine[ahead], reward[ahead]),
            "spearman_reward_acted": spearman(cosine[acted], reward[acted]),
            "spearman_raw_when_upright": spearman(cosine[upright], raw[upright]),
            "spearman_upright": spearman(cosine, window.upright),
            "cosine_best_decile": float(np.mean(cosine[reward >= np.quantile(reward, 0.9)])),
            "cosine_worst_decile": float(np.mean(cosine[reward <= np.quantile(reward, 0.1)])),
        }
        out[task.name] = {key: round(value, 3) for key, value in out[task.name].items()}
    return out


def pose_table(held: Held) -> dict[str, dict]:
    """For every other task's prompt: AUC of the plain concept that has it, if any, and rank correlation with reward."""
    out = {}
    for task in POSED:
        mine = held.bodies == task.body
        cosine = held.cosine([task.prompt])[mine]
        spoken = [c for c in CONCEPTS if task.prompt in c.phrases and task.body in c.scores]
        area = [auc(cosine, held.column(c.name)[mine]) for c in spoken if not c.graded]
        out[task.name] = {
            "trained": bool(spoken),
            "auc": round(area[0], 3) if area and not np.isnan(area[0]) else None,
            "spearman_reward": round(spearman(cosine, getattr(Window(held.states[mine]), task.goal)), 3),
        }
    return out


def recall_at_one(cosine: np.ndarray, labels: np.ndarray, draws: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ask for behaviours by sentences in small galleries that hold one clip drawn of each.

    In each draw the gallery has, for every behaviour, one clip that surely shows it. The sentence of a behaviour
    finds it if the gallery's clip of the largest cosine surely shows it, whichever behaviour it was drawn for;
    clips of which it cannot be said are left out of that sentence's gallery.

    Args:
        cosine: of Q sentences and n clips, [Q, n].
        labels: 1 where the clip surely shows the sentence's behaviour, 0 where surely not, else NaN; [Q, n], a 1
            in every row.
        draws: galleries to draw.
        seed: of the draws.

    Returns:
        Two float64 [Q]: the share of galleries in which the behaviour was found, and its expectation under chance,
        the mean share of clips that show it among those that were left in.
    """
    rng, queries = np.random.default_rng(seed), np.arange(len(cosine))
    found, chance = np.zeros((2, len(cosine)))
    shown = [np.flatnonzero(row == 1) for row in labels]
    for _ in range(draws):
        gallery = np.unique([rng.choice(rows) for rows in shown])
        truth, score = labels[:, gallery], cosine[:, gallery]
        best = np.where(np.isnan(truth), -np.inf, score).argmax(1)
        found += truth[queries, best] == 1
        chance += (truth == 1).sum(1) / (~np.isnan(truth)).sum(1)
    return found / draws, chance / draws


def retrieval(held: Held) -> dict[str, dict[str, float | int]]:
    """Text-to-clip retrieval in every body: recall@1 over its behaviours, by ``recall_at_one`` on held-out clips.

    The behaviours are the plain concepts that at least eight clips surely show and eight surely do not; each is
    asked for by the prompt of a task, if it is one, or by its first phrasing; of those with the same truth in every
    clip only one counts. ``chance`` is what random
    embeddings reach; ``missed`` names the three found least.
    """
    out = {}
    prompts = {(task.body, task.prompt) for task in TASKS.values()}
    for body in BODIES:
        mine = held.bodies == body
        rows = []
        for column, concept in enumerate(CONCEPTS):
            truth = held.scores[mine, column]
            if not concept.graded and body in concept.scores and not np.isnan(auc(truth, truth)):
                said = [phrase for phrase in concept.phrases if (body, phrase) in prompts]
                rows.append((not said, (said or concept.phrases)[0], truth))
        asked = {}
        for _, sentence, truth in sorted(rows, key=lambda row: row[0]):
            if not any(np.array_equal(truth, other, equal_nan=True) for other in asked.values()):
                asked[sentence] = truth
        if not asked:
            continue
        cosine = np.stack([held.cosine([sentence])[mine] for sentence in asked])
        found, chance = recall_at_one(cosine, np.stack(list(asked.values())), _DRAWS)
        worst = [f"{list(asked)[i]} ({found[i]:.2f})" for i in found.argsort()[:3]]
        out[body] = {
            "recall@1": round(float(found.mean()), 3),
            "chance": round(float(chance.mean()), 3),
            "behaviours": len(asked),
            "missed": ", ".join(worst),
        }
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
        "task prompt AUC": np.min([row["auc"] for row in tasks.values()]),
        "Spearman with the task's reward": np.min([row["spearman_reward"] for row in tasks.values()]),
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
        | {"frames_per_sequence": clips.STEPS,
           "kinds": dict(zip(clips.KINDS, clips.SHARES, strict=True)),
           "seeds": "clips.parts(): train below 600000, test above; stock look from 900000"},
        "training": run,
        "versions": {name: importlib.metadata.version(name) for name in
                     ("jax", "flax", "optax", "numpy", "dm-control", "mujoco")} | {"python": platform.python_version()},
        "weaknesses": WEAKNESSES,
        "gates": verdicts(concepts, tasks),
        "tasks": tasks,
        "poses": pose_table(held),
        "retrieval": retrieval(held),
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
    for section in ("concepts", "tasks", "poses", "random_policy_rollouts", "retrieval", "gates"):
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
