"""The shipped weights: the card tells the truth, embeddings are golden, and real pictures mean what they show."""

import hashlib
import json

import mujoco
import numpy as np
import pytest

from bitagent_jax.envs.tasks import TASKS
from bitagent_jax.mllm import embedded
from bitagent_jax.mllm.encoder import load_encoder

GOLDEN_VIDEO = [0.1298, -0.0488, -0.1441, 0.0033, 0.1025, -0.0233]
GOLDEN_TEXT = [0.0122, -0.0317, -0.0516, -0.0296, -0.0067, -0.0618]


@pytest.fixture(scope="module")
def encoder():
    return load_encoder()


@pytest.fixture(scope="module")
def film():
    """Return a function that shows joint positions of a body, one agent step apart: uint8 [T, 64, 64, 3]."""
    from bitagent_jax.envs.dmc import make_env

    envs = {}

    def show(body, qpos):
        if body not in envs:
            envs[body] = make_env(f"{body}_run", seed=0, look="fast", render=True)
            envs[body].reset()
        physics, frames = envs[body].physics, []
        for row in qpos:
            physics.data.qpos[:] = row
            mujoco.mj_forward(physics.model.ptr, physics.data.ptr)
            frames.append(envs[body].render(64))
        return np.stack(frames)

    yield show
    for env in envs.values():
        env.close()


def walker(pitch=0.0, height=0.0, speed=0.0, stride=0.0):
    """A walker's eight frames: (z, x, pitch) and two legs that swing with the stride."""
    time = 0.05 * np.arange(8)
    swing = stride * np.sin(2 * np.pi * 2.5 * time)
    zero = 0 * time
    legs = [0.1 + swing, zero - 0.2, zero, 0.1 - swing, zero - 0.2, zero]
    return np.column_stack([zero + height, 3 + speed * time, zero + pitch, *legs])


def cheetah(speed):
    """A cheetah's eight frames on its feet, its legs swinging when it moves."""
    time = 0.02 * np.arange(8)
    swing = 0.3 * np.sign(speed) * np.sin(2 * np.pi * 4 * time)[:, None] * [1, 1, -1, -1, 1, 1]
    return np.column_stack([3 + speed * time, 0 * time - 0.12, 0 * time, swing])


def spider(speed=0.0, roll=0.0, height=0.57, course=0.0):
    """A quadruped's eight frames: facing along the course (an angle to x), moving along it, rolled about it."""
    time = 0.04 * np.arange(8)
    turn = np.outer([np.cos(course / 2), np.sin(course / 2)], [np.cos(roll / 2), np.sin(roll / 2)])
    pose = np.tile([0, 0, height, *turn[0], turn[1, 1], turn[1, 0], *np.zeros(16)], (8, 1))
    pose[:, :2] = np.outer(speed * time, [np.cos(course), np.sin(course)])
    return pose


def stickman(pitch=0.0, height=0.0, shoulders=0.0, elbows=0.0):
    """A stickman's eight frames, at rest on straight legs, its arms at their sides unless raised."""
    return np.tile([height, 0, pitch, *np.zeros(6), shoulders, elbows, shoulders, elbows], (8, 1))


def cosines(encoder, clips, prompts):
    return encoder.embed_video(np.stack(clips)) @ encoder.embed_text(prompts).T


def test_the_card_describes_the_file():
    card = json.loads(embedded.CARD.read_text())
    raw = embedded.WEIGHTS.read_bytes()
    assert card["sha256"] == hashlib.sha256(raw).hexdigest()
    assert card["bytes"] == len(raw) < 5_000_000
    assert "simulator state" in card["privileged"]
    known = [task for task in TASKS.values() if task.body in card["data"] and task.goal in ("stand", "walk", "run")]
    assert set(card["tasks"]) == {task.name for task in known}


def test_embeddings_are_golden(encoder):
    frames = (np.arange(8 * 64 * 64 * 3) * 7919 % 251).astype(np.uint8).reshape(1, 8, 64, 64, 3)
    np.testing.assert_allclose(encoder.embed_video(frames)[0, :6], GOLDEN_VIDEO, atol=2e-3)
    np.testing.assert_allclose(encoder.embed_text(["run fast clean"])[0, :6], GOLDEN_TEXT, atol=2e-3)


def test_a_standing_walker_stands_and_a_lying_one_lies(encoder, film):
    clips = [film("walker", walker()), film("walker", walker(pitch=1.57, height=-1.2))]
    table = cosines(encoder, clips, ["standing up straight", "lying on the floor"])
    assert table[0, 0] > table[1, 0] + 0.4
    assert table[1, 1] > table[0, 1] + 0.4


def test_a_walker_runs_when_fast_and_stands_when_slow(encoder, film):
    clips = [film("walker", walker(speed=v, stride=s)) for v, s in ((0, 0), (2, 0.4), (7.5, 0.7))]
    table = cosines(encoder, clips, ["standing up straight", "walk fast clean", "run fast clean"])
    assert table[0, 2] < table[1, 2] < table[2, 2] and table[2, 2] > table[0, 2] + 0.25
    assert table[1, 1] > table[0, 1] + 0.25


def test_a_faster_cheetah_runs_more_like_a_quadruped(encoder, film):
    clips = [film("cheetah", cheetah(v)) for v in (-4, 0, 4, 9)]
    scores = cosines(encoder, clips, ["running like a quadruped"])[:, 0]
    assert (np.diff(scores) > 0).all() and scores[3] > scores[1] + 0.25


def test_a_spider_on_its_feet_stands_and_one_on_its_back_does_not(encoder, film):
    clips = [film("quadruped", spider()), film("quadruped", spider(roll=np.pi, height=0.3))]
    table = cosines(encoder, clips, ["spider standing", "upside down"])
    assert table[0, 0] > table[1, 0] + 0.4
    assert table[1, 1] > table[0, 1] + 0.4


def test_a_spider_walking_backward_does_not_walk_forward(encoder, film):
    courses = np.linspace(0, 2 * np.pi, 8, endpoint=False) + 0.2
    ahead, back = ([film("quadruped", spider(v, course=c)) for c in courses] for v in (0.8, -0.8))
    ahead, back = (cosines(encoder, clips, ["spider walking fast"])[:, 0] for clips in (ahead, back))
    assert (ahead > back).sum() >= 7 and ahead.mean() > back.mean() + 0.2


def test_a_stickman_stands_lies_or_raises_its_hands(encoder, film):
    poses = stickman(), stickman(pitch=1.57, height=-1.2), stickman(shoulders=1.7, elbows=1.2)
    clips = [film("stickman", pose) for pose in poses]
    table = cosines(encoder, clips, ["standing up", "lying down", "standing with the hands up"])
    assert table[[0, 2], 0].min() > table[1, 0] + 0.4
    assert table[1, 1] > table[[0, 2], 1].max() + 0.4
    assert table[2, 2] > table[:2, 2].max() + 0.4


def test_a_body_is_known_by_its_name(encoder, film):
    shown = {"walker": walker(), "cheetah": cheetah(0), "quadruped": spider(), "stickman": stickman()}
    clips = [film(body, pose) for body, pose in shown.items()]
    table = cosines(encoder, clips, ["a walker", "a cheetah", "a spider", "a stickman"])
    assert table.argmax(axis=1).tolist() == [0, 1, 2, 3]
