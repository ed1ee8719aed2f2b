"""Rewards of sentences on recorded episodes: which windows are judged, and that the judge is the training reward."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bitagent_jax.agent import rewards
from bitagent_jax.agent.state import build
from bitagent_jax.config import make_config
from bitagent_jax.data.embeddings import open_embedding, write_embedding
from bitagent_jax.data.episodes import list_episodes, open_episodes, write_episode
from bitagent_jax.envs.tasks import get_task
from bitagent_jax.evaluation import diagnose as module
from bitagent_jax.evaluation.diagnose import DECODED, RAW, diagnose, judge_windows, make_judge
from bitagent_jax.mllm.encoder import load_encoder
from bitagent_jax.mllm.precomputed import Precomputed
from bitagent_jax.policy import Agent

ROWS = 40


def episode(rows, number):
    rng, at = np.random.default_rng(number), np.arange(rows)
    return {
        "image": rng.integers(0, 256, (rows, 64, 64, 3), dtype=np.uint8),
        "action": rng.uniform(-1, 1, (rows, 6)).astype(np.float32),
        "reward": (at + 100 * number).astype(np.float32),
        "is_first": at == 0,
        "is_last": at == rows - 1,
    }


@pytest.fixture(scope="module")
def encoder():
    return load_encoder()


@pytest.fixture
def folder(tmp_path):
    """Two tasks of the walker and one of another body, and an episode too short for a window."""
    names = ("walker_stand", "walker_walk", "walker_stand", "cheetah_run", "walker_stand")
    for number, task in enumerate(names):
        meta = {"task": task, "policy": "good" if number == 2 else "bad"}
        write_episode(tmp_path / "data", episode(12 if number == 4 else ROWS, number), meta, name=f"{number}")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def agent(encoder):
    config = make_config("walker", "debug")
    config.imagination.horizon = 10
    _, init = build(config, encoder.embed_dim, 6)
    return Agent(config, jax.jit(init)(jax.random.key(0)), encoder)


def test_a_folder_of_episodes_needs_no_run(folder, tmp_path, encoder):
    done = diagnose(folder, windows=3, out=tmp_path / "out")
    assert [(row.task, row.judge, row.unit, row.count) for row in done.rows if row.task == "walker_stand"] == [
        ("walker_stand", RAW, "window", 6), ("walker_stand", RAW, "episode", 2)]  # fmt: skip
    assert {row.task for row in done.rows} == {"walker_stand", "walker_walk", "cheetah_run"}
    assert "| walker_walk | raw cosine |" in done.text and "| walker_stand | good | 3 |" in done.text
    written = json.loads((tmp_path / "out" / "diagnose.json").read_text())
    assert written["prompts"]["walker_walk"] == "walk fast clean" and written["facts"]["encoder"] == "embedded"
    assert written["rows"][0]["agreement"]["regret"] == done.rows[0].agreement.regret
    assert done.paths == [tmp_path / "out" / name for name in ("diagnose.json", "diagnose.png")]
    assert all(path.stat().st_size > 500 for path in done.paths)
    assert not list(folder.glob("diagnose*")) and len(list(folder.glob("*.emb"))) == 5


def test_windows_are_spread_over_the_rows_with_embeddings(folder, encoder):
    module.embed_folder(folder, encoder)
    episodes = open_episodes(list_episodes(folder))[0]
    prompts = {name: get_task(name).prompt for name in ("walker_stand", "walker_walk")}
    found = judge_windows(episodes, encoder, None, prompts, 2)
    assert found.task.tolist() == ["walker_stand"] * 2 + ["walker_walk"] * 2 + ["walker_stand"] * 2
    assert found.episode.tolist() == [0, 0, 1, 1, 2, 2] and found.policy.tolist() == ["bad"] * 4 + ["good"] * 2
    means = np.array([np.arange(7, 23).mean(), np.arange(24, 40).mean()])  # the first and last 16 rows of 7 to 39
    np.testing.assert_allclose(found.true, np.concatenate([means, means + 100, means + 200]))
    embedding = open_embedding(episodes[1], encoder.fingerprint).read()["embedding"]
    want = (embedding[24:40] @ encoder.embed_text(["walk fast clean"])[0]).mean()
    assert found.scores[RAW].shape == (6, 2) and found.scores[RAW][3, 1] == pytest.approx(want, abs=1e-6)
    assert len(judge_windows(episodes, encoder, None, prompts, 100).true) == 3 * 18  # each window once


def test_what_a_run_was_told_may_be_paraphrases(folder, agent, encoder):
    module.embed_folder(folder, encoder)
    episodes = open_episodes(list_episodes(folder))[0]
    found = judge_windows(episodes, encoder, agent, {"walker_stand": "stand | walk fast clean"}, 1)
    told = encoder.embed_text(["stand", "walk fast clean"]).mean(0)
    embedding = open_embedding(episodes[0], encoder.fingerprint).read()["embedding"][7 : 7 + 10].mean(0)
    assert found.scores[RAW][0, 0] == pytest.approx(embedding @ told / np.linalg.norm(told), abs=1e-5)


def test_a_runs_judges_are_its_reward_on_the_posteriors_of_the_frames(agent, encoder):
    data, context = episode(ROWS, 0), 7
    index = np.array([[3], [20]]) + np.arange(context + 10)
    prompts = encoder.embed_text(["walk fast clean", "doing backflips", "run fast clean"])
    judge = make_judge(agent, prompts, context)
    got = judge(data["image"][index], data["action"][index])
    assert {name: value.shape for name, value in got.items()} == dict.fromkeys((*rewards.SIMILARITIES, DECODED), (2, 3))
    agent_module = nnx.merge(agent.graph, agent.params)
    model = agent_module.world_model
    post = model.posterior(model.encode(data["image"][index[:, context:]]))
    target = agent_module.target(prompts[2:], jnp.zeros((1, 10, 6))).repeat(2, 0)
    read = lambda x: model.latent_features(jax.nn.one_hot(x.argmax(-1), 4).reshape(2, 10, -1))  # noqa: E731
    left, right = ({"features": read(x), "log_probs": x} for x in (post, target))
    left["stoch"] = jax.nn.one_hot(post.argmax(-1), 4).reshape(2, 10, -1)
    for kind in rewards.SIMILARITIES:
        want = rewards.align(rewards.similarity(kind, left, right), agent.config.reward.window)[0].mean(1)
        np.testing.assert_allclose(got[kind][:, 2], want, rtol=1e-4, atol=1e-5, err_msg=kind)
    seen = model.observe(data["image"][index], data["action"][index], np.zeros(index.shape, bool), jax.random.key(0))
    state = {"deter": seen["deter"][:, context:], "stoch": left["stoch"]}
    meant = agent_module.read_semantics(state, agent_module.fuser(prompts[2]))
    np.testing.assert_allclose(got[DECODED][:, 2], (meant @ agent_module.aligner(prompts[2])).mean(1), rtol=1e-4)
    earlier = index.copy()
    earlier[:, :context] = 0
    again = judge(data["image"][earlier], data["action"][index])  # this posterior sees one frame and no context
    np.testing.assert_allclose(again["cosine"], got["cosine"], rtol=1e-5)


def test_a_run_is_judged_in_all_forms_on_its_tasks(agent, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load", lambda source, step: agent)
    done = diagnose(tmp_path / "run", data=folder, windows=2)
    assert [row.judge for row in done.rows[::2]] == [RAW, *rewards.SIMILARITIES, DECODED] * 2
    assert {row.task for row in done.rows} == {"walker_stand", "walker_walk"}  # of three; the cheetah is no task of it
    assert "mean reward by max_cosine" in done.text
    assert done.paths[0] == tmp_path / "run" / "diagnose.json"


def test_a_run_without_an_encoder_judges_embeddings_that_are_there(agent, folder, tmp_path, monkeypatch):
    stand_in, rng = Precomputed("elsewhere", agent.encoder.embed_dim), np.random.default_rng(0)
    known = {get_task(name).prompt: rng.normal(size=stand_in.embed_dim) for name in agent.config.tasks}
    blind = Agent(agent.config, agent.params, stand_in, known)
    monkeypatch.setattr(module, "load", lambda source, step: blind)
    episodes, has = open_episodes(list_episodes(folder))[0], np.arange(ROWS) % 8 == 7
    for number, width in ((0, stand_in.embed_dim), (1, 3)):
        write_embedding(episodes[number], "elsewhere", rng.normal(size=(ROWS, width)), has, stride=8)
    with pytest.raises(ValueError, match="2 of 3 episodes to judge in .*data lack embeddings elsewhere:") as error:
        diagnose(tmp_path / "run", data=folder)
    assert "(1.ep, 2.ep), and precomputed computes none: store them beside" in str(error.value)
    for number in (1, 2):
        write_embedding(episodes[number], "elsewhere", rng.normal(size=(ROWS, stand_in.embed_dim)), has, stride=8)
    done = diagnose(tmp_path / "run", data=folder, windows=2)
    assert {row.task for row in done.rows} == {"walker_stand", "walker_walk"}
    assert len(list(folder.glob("*.emb"))) == 3


def test_what_does_not_fit_is_named(folder, tmp_path, agent, monkeypatch):
    with pytest.raises(ValueError, match="windows must be at least 1, got 0"):
        diagnose(folder, windows=0)
    with pytest.raises(RuntimeError, match="is not a run folder"):
        diagnose(tmp_path / "nothing")
    with pytest.raises(ValueError, match="--data and --step are for a run"):
        diagnose(folder, data=folder)
    with pytest.raises(ValueError, match="a run has its own encoder"):
        diagnose(tmp_path / "run", encoder="embedded")
    for path in list_episodes(folder):
        if path.stem != "3":
            path.unlink()
    monkeypatch.setattr(module, "load", lambda source, step: agent)
    with pytest.raises(ValueError, match="is of walker_stand, walker_walk, walker_run.*recorded there are cheetah_run"):
        diagnose(tmp_path / "run", data=folder)
    write_episode(tmp_path / "short", episode(22, 0), {"task": "walker_run"})
    with pytest.raises(ValueError, match="no episode has 23 rows"):
        diagnose(tmp_path / "short")
    path = write_episode(tmp_path / "bare", episode(ROWS, 0), {"task": "walker_run"})
    blind = Precomputed("elsewhere", 5)
    for one in open_episodes([path])[0]:
        write_embedding(one, "elsewhere", np.zeros((ROWS, 5)), np.zeros(ROWS, bool), stride=8)
        with pytest.raises(ValueError, match="no window of 10 rows of 1 episodes holds an embedding of precomputed"):
            judge_windows([one], blind, agent, {"walker_run": "x"}, 2)
