"""Sentences about clips with their exact labels: which of a batch's captions are true of which of its clips."""

from typing import NamedTuple

import numpy as np

from experiments.embedded_encoder.concepts import BODIES, CONCEPTS, Window

SUBJECTS = {
    "": ("", "", "", "a robot", "the robot is", "an agent", "it is", "a simulated body", "someone"),
    "walker": ("a walker", "the walker is", "walker", "a two-legged robot", "a biped", "the biped is"),
    "cheetah": ("a cheetah", "the cheetah is", "cheetah", "a running animal,", "the half cheetah is"),
    "quadruped": ("a spider", "the spider is", "spider", "a quadruped", "the quadruped is", "a four-legged robot"),
    "stickman": ("a stickman", "the stickman is", "stickman", "a stick figure", "the stick figure is", "a humanoid"),
}
_NAMES = {
    "walker": ("a walker", "walker", "a two-legged robot", "a biped"),
    "cheetah": ("a cheetah", "cheetah", "a half cheetah"),
    "quadruped": ("a spider", "a quadruped", "a four-legged robot", "spider robot"),
    "stickman": ("a stickman", "stickman", "a stick figure", "a humanoid"),
}
JOINTS = ("and", "while", "and also", ",")


class Captions(NamedTuple):
    """A batch's sentences, their labels [B, K] in 0..1 (NaN: no label) and which of them are graded [K]."""

    sentences: list[str]
    labels: np.ndarray
    graded: np.ndarray


def score_table(states: np.ndarray, bodies: np.ndarray) -> np.ndarray:
    """Score every concept for windows [n, 8, F] of named bodies [n].

    Returns:
        float32 [n, len(CONCEPTS)]; NaN where a concept says nothing about the body or a plain one is ambiguous.
    """
    out = np.full((len(states), len(CONCEPTS)), np.nan, np.float32)
    for body in BODIES:
        rows = np.flatnonzero(bodies == body)
        window = Window(states[rows])
        for column, concept in enumerate(CONCEPTS):
            if body in concept.scores:
                score = concept.scores[body](window)
                out[rows, column] = score if concept.graded else np.where((score == 0) | (score == 1), score, np.nan)
    return out


def sample(rng: np.random.Generator, table: np.ndarray, bodies: np.ndarray, count: int) -> Captions:
    """Write ``count`` sentences for a batch of clips with scores [B, C] and bodies [B]; see ``Captions``."""
    weights = np.array([3.0 if "stand" in c.name or "walk" in c.name or "run" in c.name or "gallop" in c.name else 1.0
                        for c in CONCEPTS])  # fmt: skip
    weights /= weights.sum()
    sentences, labels, graded = [], [], []
    for _ in range(count):
        sentence, label, kind = _draw(rng, table, bodies, weights)
        sentences.append(sentence), labels.append(label), graded.append(kind)
    return Captions(sentences, np.stack(labels, -1), np.array(graded))


def _draw(rng, table, bodies, weights):
    if rng.random() < 0.04:
        body = rng.choice(BODIES)
        return str(rng.choice(_NAMES[body])), (bodies == body).astype(np.float32), False
    column = rng.choice(len(CONCEPTS), p=weights)
    concept, label = CONCEPTS[column], table[:, column]
    sentence = str(rng.choice(concept.phrases))
    if not concept.graded and rng.random() < 0.15:
        second = rng.choice([i for i, c in enumerate(CONCEPTS) if not c.graded and i != column])
        sentence = f"{sentence} {rng.choice(JOINTS)} {rng.choice(CONCEPTS[second].phrases)}"
        label = conjoin(label, table[:, second])
    body = str(rng.choice(list(concept.scores))) if rng.random() < 0.35 else ""
    if sentence.startswith(("spider", "a spider")):
        return sentence, label, concept.graded
    if body:
        label = np.where(bodies == body, label, np.nan if concept.graded else 0.0)
    return f"{rng.choice(SUBJECTS[body])} {sentence}".strip(), label, concept.graded


def conjoin(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Label "left and right": false if either is false, true if both are true, otherwise NaN."""
    return np.where((left == 0) | (right == 0), 0.0, np.where((left == 1) & (right == 1), 1.0, np.nan))
