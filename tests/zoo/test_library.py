"""The shipped actors: all load, are what the card says, and do what they are named for."""

import subprocess
import sys

import numpy as np
import pytest

from bitagent_jax import zoo
from bitagent_jax.data.collect import ZooPolicy
from bitagent_jax.envs.pool import EnvPool
from bitagent_jax.envs.tasks import get_body, get_task, normalised_score
from bitagent_jax.zoo import library

CARD = zoo.load_card()
SHIPPED = [(task, stage) for task, stages in CARD["actors"].items() for stage in stages]


def test_the_required_tasks_ship_with_every_stage():
    assert {"walker_stand", "walker_walk", "walker_run", "cheetah_run"} <= set(CARD["actors"])
    assert all(tuple(stages) in (zoo.STAGES, zoo.STAGES[:3]) for stages in CARD["actors"].values())
    assert all("steady" in CARD["actors"][f"walker_{task}"] for task in ("stand", "walk", "run"))
    files = {path.name for path in library.WEIGHTS.glob("*.safetensors")}
    assert files == {library.actor_path(*names).name for names in SHIPPED}


@pytest.mark.parametrize("task, stage", SHIPPED)
def test_a_shipped_actor_is_small_deterministic_and_as_its_card_says(task, stage):
    actor, entry, body = zoo.load_actor(task, stage), CARD["actors"][task][stage], get_body(get_task(task).body)
    assert zoo.load_actor(task, stage) is actor
    assert (actor.state_dim, actor.action_dim) == (body.state_dim, body.action_dim)
    assert (entry["state_dim"], entry["action_dim"]) == (body.state_dim, body.action_dim)
    assert library.actor_path(task, stage).stat().st_size < 300_000
    states = np.random.default_rng(0).normal(size=(7, body.state_dim)).astype(np.float32)
    actions = actor(states)
    np.testing.assert_array_equal(actions, actor(states))
    assert actions.dtype == np.float32 and (np.abs(actions) <= 1).all() and actions.std() > 0.1
    assert entry["episodes"] >= 10 and entry["return_std"] >= 0
    assert entry["normalised"] == pytest.approx(normalised_score(task, entry["return_mean"]), abs=1e-3)


@pytest.mark.parametrize("task", CARD["actors"])
def test_stages_are_in_order(task):
    stages = [CARD["actors"][task][stage] for stage in ("early", "middle", "expert")]
    for key in ("return_mean", "steps"):
        values = [entry[key] for entry in stages]
        assert values == sorted(values)


def rewards(task: str, stage: str, steps: int = 100) -> np.ndarray:
    """Mean reward a control step of four environments."""
    with EnvPool([task] * 4, seed=11, workers=1, render=False, state=True) as pool:
        policy, row, total = ZooPolicy([zoo.load_actor(task, stage)] * 4), pool.reset(), np.zeros(4)
        for _ in range(steps):
            row = pool.step(policy(row))
            total += row.reward
    return total / (2 * steps)


def test_the_expert_stands_up_within_a_hundred_steps():
    assert rewards("walker_stand", "expert").min() > 0.65


def test_the_expert_walks():
    assert rewards("walker_walk", "expert").min() > 0.6


def test_unknown_names_are_met_with_the_nearest():
    with pytest.raises(ValueError, match="unknown task of the zoo 'walker_wlak'. Did you mean 'walker_walk'"):
        zoo.load_actor("walker_wlak")
    with pytest.raises(ValueError, match="unknown stage of walker_walk 'exprt'. Did you mean 'expert'"):
        zoo.load_actor("walker_walk", "exprt")


def test_a_changed_file_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "WEIGHTS", tmp_path)
    monkeypatch.setattr(library, "load_card", lambda: CARD)
    library.actor_path("walker_walk", "early").write_bytes(b"other")
    with pytest.raises(ValueError, match="but the card says"):
        library.load_actor.__wrapped__("walker_walk", "early")


def test_the_zoo_needs_neither_jax_nor_the_simulator():
    code = "import sys; from bitagent_jax import zoo; zoo.load_actor('walker_walk'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"jax", "flax", "torch", "mujoco", "dm_control"} & set(done.stdout.split())
