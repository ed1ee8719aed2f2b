"""Training clips: what is known of every frame, of every body and kind of sequence, without pictures."""

import numpy as np
import pytest

from experiments.embedded_encoder import clips


class NoCamera:
    def render(self):
        return np.zeros((64, 64, 3), np.uint8)


def studio(monkeypatch, body, seed=0):
    monkeypatch.setattr("bitagent_jax.envs.rendering.configure_gl", lambda: None)
    monkeypatch.setattr("bitagent_jax.envs.rendering.Camera", lambda *_: NoCamera())
    return clips.Studio(body, "fast", "run", np.random.default_rng(seed))


@pytest.mark.parametrize("body", ["walker", "cheetah", "quadruped", "stickman"])
def test_every_kind_of_sequence_is_measured(monkeypatch, body):
    from bitagent_jax.envs.tasks import TASKS

    stage = studio(monkeypatch, body)
    states = np.concatenate([stage.shoot(kind)[1] for kind in clips.KINDS])
    assert states.shape == (len(clips.KINDS) * clips.STEPS, len(clips.FIELDS)) and np.isfinite(states).all()
    rewards = dict(zip(clips.GOALS, states[:, len(clips.MEASURED) :].T, strict=True))
    for goal, values in rewards.items():
        assert values.min() >= 0 and values.max() <= 1
        assert f"{body}_{goal}" in TASKS or not values.any()


def test_experts_of_the_zoo_walk_in_acted_sequences(monkeypatch):
    from bitagent_jax import zoo
    from bitagent_jax.data.collect import ZooPolicy

    expert = ZooPolicy([zoo.load_actor("walker_walk", "expert")])
    monkeypatch.setattr(clips, "_cast", lambda *_: expert)
    stage = studio(monkeypatch, "walker", seed=1)
    speed = np.array([stage.shoot("acted")[1][:, clips.FIELDS.index("speed")].mean() for _ in range(8)])
    assert np.median(speed[3:]) > 0.7


def test_a_split_has_parts_of_every_body_and_no_seed_twice():
    parts = clips.parts()
    assert {part.body for part in parts} == set(clips.BODIES)
    assert len({part.seed for part in parts}) == len(parts)
    assert sum(clips.SHARES) == pytest.approx(1)
