import jax
import numpy as np
import pytest

from bitagent_jax.agent import visual
from bitagent_jax.envs.dmc import make_env
from bitagent_jax.evaluation import imagine as module
from bitagent_jax.inference import load


@pytest.fixture(scope="module")
def agent(trained):
    return load(trained[0])


def test_films_show_the_task_the_imagined_and_the_real_rollout(agent, tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(module, "contact_sheet", lambda path, frames, every: shown.update(frames) or path)
    paths = module.imagine(agent, "Walk, fast & clean!", tmp_path, steps=6, seed=2)
    stem = module._stem("Walk, fast & clean!")
    assert paths["video"] == tmp_path / f"{stem}.mp4" and paths["video"].stat().st_size > 1000
    assert list(shown) == ["task imagination", "policy, imagined", "policy, real"]
    for frames in shown.values():
        assert frames.shape == (6, 64, 64, 3) and frames.dtype == np.uint8 and np.ptp(frames) > 0


def test_an_empty_sentence_is_refused_before_anything_is_drawn(agent, tmp_path):
    with pytest.raises(ValueError, match="a prompt must be a sentence"):
        module.imagine(agent, " ", tmp_path / "films")
    assert not (tmp_path / "films").exists()


def test_a_sentence_without_letters_still_has_a_file_name(agent, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_act", lambda *_: (np.zeros((2, 64, 64, 3), np.uint8), _branch(agent)))
    assert module.imagine(agent, "走れ", tmp_path, steps=2)["sheet"].name.startswith("prompt-")
    names = [module._stem(name) for name in ("走れ", "走", "walk!", "walk?", "walk", "w" * 61)]
    assert len(set(names)) == 6 and names[4] == "walk"
    alike = [module._stem(name) for name in ("lunge pose", "lunge_pose", "Lunge pose", "lunge  pose", "_", "__")]
    assert len(set(alike)) == 6 and alike[0] == "lunge_pose" and all(alike)


def test_the_last_frame_stays_where_an_episode_ends_early(agent):
    env = make_env("walker_walk", seed=0, action_repeat=100)  # ten steps
    frames, branch = module._act(agent, env, agent.embed_prompt("walk"), 6, seed=0)
    env.close()
    assert frames.shape == (6, 64, 64, 3) and not np.any(frames != frames[-1]) and branch["steps"] == 10
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        module.imagine(agent, "walk", "nowhere", steps=0)


def _branch(agent):
    return agent.act(np.zeros((1, 64, 64, 3), np.uint8), "stand")[1]


def test_open_loop_prediction_shares_the_context_and_sees_no_later_frame(agent):
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (2, 7, 64, 64, 3), dtype=np.uint8),
        "action": rng.uniform(-1, 1, (2, 7, 6)).astype(np.float32),
        "is_first": np.zeros((2, 7), bool),
    }
    draw = jax.jit(visual.open_loop, static_argnums=(0, 3))
    frames = draw(agent.graph, agent.params, batch, 3, jax.random.key(0))
    assert {name: value.shape for name, value in frames.items()} == dict.fromkeys(frames, (2, 7, 64, 64, 3))
    np.testing.assert_array_equal(frames["truth"], batch["image"])
    np.testing.assert_array_equal(frames["prediction"][:, :3], frames["posterior"][:, :3])
    later = batch["image"].copy()
    later[:, 3:] = 255 - later[:, 3:]
    blind = draw(agent.graph, agent.params, batch | {"image": later}, 3, jax.random.key(0))
    np.testing.assert_array_equal(blind["prediction"], frames["prediction"])
    assert np.any(np.asarray(blind["posterior"]) != np.asarray(frames["posterior"]))
