"""The main job in one call: train from sentences, score against the random policy, film the result."""

import time
from pathlib import Path

from bitagent_jax.config import make_config
from bitagent_jax.evaluation import rollouts, scores
from bitagent_jax.evaluation.imagine import imagine
from bitagent_jax.evaluation.imagined import imagined_rewards
from bitagent_jax.inference import load
from bitagent_jax.training.loops import train
from bitagent_jax.training.session import sentences

FILM = 192
"""Steps of the films, 9.6 s of a walker: enough to rise, go somewhere, and fall."""


def quickstart(path: Path, body: str = "walker", preset: str = "cpu") -> list[scores.Row]:
    """Train ``body`` at ``preset`` in the run folder ``path``, then print scores and the paths of all results.

    Run again, it continues where it was stopped.
    """
    began = time.monotonic()
    config = make_config(body, preset)
    print(f"Learning from the sentences {', '.join(map(repr, sentences(config)))} in {path}", flush=True)
    run = train(path, config)
    agent = load(path)
    rows = rollouts.evaluate(agent, config.tasks, config.eval.episodes, with_random=True)
    rollouts.write_scores(rows, path / "scores.json")
    films = [imagine(agent, sentence, run.videos, steps=FILM) for sentence in sentences(config)]
    print(f"\n{scores.to_text(rows)}\n")
    print("imagined reward per step, from the same states: untrained policy -> trained policy")
    print(*(f"  {text}: {old:.3f} -> {new:.3f}" for text, (old, new) in imagined_rewards(path).items()), sep="\n")
    print(*(f"film:        {film['video']}  (sheet {film['sheet'].name})" for film in films), sep="\n")
    print(f"checkpoints: {run.checkpoints}\nscores:      {path / 'scores.json'}")
    print(f"curves:      tensorboard --logdir {run.tensorboard}")
    print(f"done in {(time.monotonic() - began) / 60:.1f} min")
    return rows
