"""Training and exporting with the real library, where it is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sbx")
pytestmark = pytest.mark.filterwarnings("ignore")  # the library's own

ROOT = Path(__file__).parents[2]


def small_model(task: str = "cheetah_run", **settings):
    from sbx import SAC

    from experiments.zoo import train
    from experiments.zoo.vector import make_envs

    settings = train.SETTINGS | dict(buffer_size=2000, learning_starts=32) | settings
    return SAC("MlpPolicy", make_envs(task, 4, 3), seed=3, train_freq=1, gradient_steps=2, **settings)


def test_numpy_forward_equals_the_librarys_actor():
    from bitagent_jax.zoo.actor import from_bytes, to_bytes
    from experiments.zoo.checkpoint import actor_of

    model = small_model()
    model.learn(200)
    states = np.random.default_rng(0).normal(size=(50, 17), scale=3).astype(np.float32)
    theirs, _ = model.predict(states, deterministic=True)
    np.testing.assert_allclose(actor_of(model)(states), theirs, atol=1e-5)
    np.testing.assert_allclose(from_bytes(to_bytes(actor_of(model)))(states), theirs, atol=2e-2)


def test_a_checkpoint_holds_the_learner_the_replay_and_the_counts(tmp_path):
    import jax

    from experiments.zoo import checkpoint

    model, path = small_model(), tmp_path / "checkpoint.npz"
    model.learn(200)
    checkpoint.save(path, model, {"curve": [1]})
    other = small_model(learning_rate=1e-5)
    assert checkpoint.restore(path, other) == {"curve": [1]} and checkpoint.steps_of(path) == 200
    for mine, theirs in zip(*(jax.tree.leaves(checkpoint.learner(m)) for m in (model, other)), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    rows = model.replay_buffer.pos
    assert rows == other.replay_buffer.pos == 50 and (other.num_timesteps, other._n_updates) == (200, model._n_updates)
    for name in ("observations", "next_observations", "actions", "rewards", "dones"):
        np.testing.assert_array_equal(getattr(model.replay_buffer, name), getattr(other.replay_buffer, name))
    assert other.replay_buffer.timeouts[rows - 1].all()  # n-step returns stop where the episodes were cut
    with pytest.raises(ValueError, match="array of shape"):
        checkpoint.warm_start(path, small_model("walker_walk"))


def test_blur_adds_to_each_measurement_its_share_of_the_spread():
    from experiments.zoo.measure import spread
    from experiments.zoo.vector import make_envs

    clear, blurred = (make_envs("cheetah_run", 8, seed=1, blur=blur) for blur in (0.0, 0.5))
    rows = [(clear.reset(), blurred.reset())]
    for _ in range(100):
        rows.append(tuple(envs.step(np.zeros((8, 6), np.float32))[0] for envs in (clear, blurred)))
    noise = np.concatenate([seen - true for true, seen in rows])
    np.testing.assert_allclose(noise.std(0), 0.5 * spread("cheetah_run"), rtol=0.15)
    assert np.abs(np.corrcoef(noise[:-8].ravel(), noise[8:].ravel())[0, 1]) < 0.2


@pytest.mark.parametrize("progress, blur, kept", [({"blur": 0.35}, 0.0, "0.35, not 0"), ({}, 0.35, "0, not 0.35")])
def test_a_training_is_not_continued_with_another_blur(tmp_path, monkeypatch, progress, blur, kept):
    from experiments.zoo import checkpoint, train

    model = small_model()
    checkpoint.save(tmp_path / "checkpoint.npz", model, progress)
    monkeypatch.setattr(train, "ENVS", 4)
    with pytest.raises(ValueError, match=f"holds a training with blur {kept}: take another folder"):
        train.train("cheetah_run", tmp_path, 10, blur=blur)


DRIVER = """
import sys
from pathlib import Path
from experiments.zoo import train
train.ENVS, train.UPDATES, train.EVALUATE_EVERY, train.EVALUATIONS, train.SAVE_EVERY = 4, 2, 100, 1, 0.5
train.SETTINGS |= dict(buffer_size=2000, learning_starts=32)
train.train("cheetah_run", Path(sys.argv[1]), int(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_killed_training_continues_and_is_exported(tmp_path, monkeypatch):
    from bitagent_jax.zoo import library
    from experiments.zoo import export

    command = [sys.executable, "-c", DRIVER, str(tmp_path / "run"), "100000"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "run" / "checkpoint.npz").exists():
            assert json.loads(process.stdout.readline())["std"] == 0
        process.kill()
    saved = np.load(tmp_path / "run" / "checkpoint.npz", allow_pickle=False)
    steps = json.loads(str(saved["meta"]))["counts"]["steps"]
    command[-1] = str(steps + 500)
    out = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    assert out.startswith(f"continuing at step {steps}\n")
    curve = json.loads((tmp_path / "run" / "curve.json").read_text())["curve"]
    assert [row["steps"] for row in curve] == sorted({row["steps"] for row in curve}) and curve[-1]["steps"] > steps

    monkeypatch.setattr(library, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(export, "choose", lambda rows: dict(zip(library.STAGES[:3], rows, strict=False)))
    card = export.export(tmp_path / "run")["cheetah_run"]
    assert [entry["steps"] for entry in card.values()] == [row["steps"] for row in curve[:3]]
    assert len(list((tmp_path / "weights").glob("cheetah_run-*.safetensors"))) == 3
    assert list(export.export(tmp_path / "run", ["expert"])["cheetah_run"]) == ["expert"]


def test_stages_are_chosen_by_score():
    from experiments.zoo.export import choose

    curve = [dict(steps=i, score=score) for i, score in enumerate([0.0, 0.1, 0.25, 0.4, 0.56, 0.8, 0.5])]
    assert {stage: row["steps"] for stage, row in choose(curve).items()} == {"early": 2, "middle": 4, "expert": 5}
    warm = [dict(steps=i, score=score) for i, score in enumerate([0.6, 0.61, 0.62, 0.9])]
    assert {stage: row["steps"] for stage, row in choose(warm).items()} == {"early": 0, "middle": 1, "expert": 3}
    other = [dict(steps=i, score=score) for i, score in enumerate([0.95, 0.6, 0.7, 0.9])]
    assert choose(other)["expert"]["steps"] == 3, "what it begins with is another task's"
    with pytest.raises(ValueError, match="too few"):
        choose(curve[4:])
