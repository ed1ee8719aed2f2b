import jax
import numpy as np
import pytest

import bitagent_jax
from bitagent_jax.agent.state import build
from bitagent_jax.config import make_config
from bitagent_jax.mllm.encoder import load_encoder
from bitagent_jax.policy import Agent, AgentPolicy


def make_agent(names="debug"):
    config, encoder = make_config("walker", names), load_encoder()
    params = jax.jit(build(config, encoder.embed_dim, 6)[1])(jax.random.key(0))
    return Agent(config, params, encoder)


@pytest.fixture(scope="module")
def agent():
    return make_agent()


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (24, 2, 64, 64, 3), dtype=np.uint8)


def test_a_loaded_run_acts_in_the_simulator(trained):
    agent = bitagent_jax.load(trained[0])
    env = bitagent_jax.make_env("walker_walk", seed=1)
    observation, _ = env.reset(seed=1)
    state = None
    for _ in range(3):
        action, state = agent.act(observation, prompt="walk fast clean", state=state)
        assert action.shape == (6,) and action.dtype == np.float32 and np.abs(action).max() <= 1
        observation, *_ = env.step(action)
    env.close()
    other = bitagent_jax.load(trained[0], step=40)
    assert not np.array_equal(*(a.act(observation, "walk fast clean")[0] for a in (agent, other)))


def test_acting_is_deterministic_and_remembers(agent, frames):
    def episode(seed=0, sample=False):
        state, actions = None, []
        for image in frames[:4, 0]:
            action, state = agent.act(image, "stand up", state, sample=sample, seed=seed)
            actions.append(action)
        return np.stack(actions)

    np.testing.assert_array_equal(episode(), episode(5))
    np.testing.assert_array_equal(episode(3, True), episode(3, True))
    assert np.abs(episode(3, True) - episode(4, True)).max() > 1e-3
    assert np.abs(episode(sample=True) - episode()).max() > 1e-3
    fresh, _ = agent.act(frames[3, 0], "stand up")
    assert not np.array_equal(fresh, episode()[-1])  # the same picture with a past


def test_the_sentence_matters(agent, frames):
    stand, run = (agent.act(frames[0, 0], sentence)[0] for sentence in ("standing up straight", "run fast clean"))
    assert not np.array_equal(stand, run)


def test_many_environments_at_once_with_their_own_sentences_and_resets(agent, frames):
    told = ["standing up straight", "run fast clean"]
    action, state = agent.act(frames[0], told)
    assert action.shape == (2, 6)
    _, state = agent.act(frames[1], told, state)
    first = np.array([False, True])
    _, after = agent.act(frames[2], told, state, is_first=first)

    deter = np.asarray(after["carry"]["deter"])
    alone = np.asarray(agent.act(frames[2], told)[1]["carry"]["deter"])
    np.testing.assert_allclose(deter[1], alone[1], atol=1e-6)  # it forgot
    assert np.abs(deter[0] - alone[0]).max() > 1e-4  # the other did not


def test_a_prompt_is_embedded_once_whatever_it_is(agent, frames, monkeypatch):
    """Two environments: one told to do what a clip shows, one by paraphrases; and one told by an embedding."""
    clip = frames[:12, 0]
    action, state = agent.act(frames[0], [clip, ["run fast", "sprint"]])
    seen = agent.encoder.embed_video(clip[None, [0, 2, 3, 5, 6, 8, 9, 11]])[0]
    told = [seen, agent.embed_prompt("run fast | sprint")]
    np.testing.assert_allclose(action, agent.act(frames[0], told)[0], atol=1e-5)
    np.testing.assert_allclose(action, agent.act(frames[0], np.stack(told))[0], atol=1e-5)
    one = frames[0, 1]  # of one picture, a list holds paraphrases
    np.testing.assert_array_equal(agent.act(one, ["run fast", "sprint"])[0], agent.act(one, "run fast | sprint")[0])
    both = agent.act(frames[0], clip)[0]
    np.testing.assert_allclose(both[0], action[0], atol=1e-5)
    for name in ("embed_video", "embed_text"):
        monkeypatch.setattr(type(agent.encoder), name, lambda *_: pytest.fail("embedded again"))
    agent.act(frames[1], [clip.copy(), ["run fast", "sprint"]], state)


@pytest.mark.parametrize(
    "observation, prompt, message",
    [
        (np.zeros((64, 64, 3), np.float32), "run", r"must be uint8 .* not float32 \[64, 64, 3\]"),
        (np.zeros((32, 64, 3), np.uint8), "run", r"not uint8 \[32, 64, 3\]"),
        (np.zeros((1, 1, 64, 64, 3), np.uint8), "run", r"not uint8 \[1, 1, 64, 64, 3\]"),
        (np.zeros((64, 64), np.uint8), "run", r"not uint8 \[64, 64\]"),
        (np.zeros((64, 64, 3), np.uint8), " ", "a prompt must be a sentence"),
        (np.zeros((3, 64, 64, 3), np.uint8), ["run", "stand"], "2 prompts given for 3 environments"),
        (np.zeros((64, 64, 3), np.uint8), None, "a prompt must be a sentence, a file, .* got None"),
        (np.zeros((64, 64, 3), np.uint8), "none.gif", "no file 'none.gif' for a prompt"),
        (np.zeros((64, 64, 3), np.uint8), np.zeros(3), r"not float64 \[3\]"),
    ],
)
def test_wrong_input_is_named(agent, observation, prompt, message):
    with pytest.raises(ValueError, match=message):
        agent.act(observation, prompt)


class Spy:
    """Counts the clips that the encoder is shown."""

    def __init__(self, encoder):
        self.encoder, self.clips = encoder, []

    def __getattr__(self, name):
        return getattr(self.encoder, name)

    def embed_video(self, clips):
        self.clips.append(clips)
        return self.encoder.embed_video(clips)


def test_with_decode_no_picture_goes_to_the_encoder(agent, frames):
    spy = Spy(agent.encoder)
    watched, state = Agent(agent.config, agent.params, spy), None
    for image in frames[:9]:
        _, state = watched.act(image, "run", state)
    assert not spy.clips


def test_with_hold_the_encoder_sees_the_last_eight_frames_of_this_episode_every_eight_steps(frames):
    agent = make_agent("debug,hold")
    agent.encoder = Spy(agent.encoder)
    state, has = None, []
    for t, image in enumerate(frames[:20]):
        first = np.array([t == 0, t in (0, 3)])  # the second environment begins anew at step 3
        _, state = agent.act(image, "run", state, is_first=first)
        has.append(state["clip"]["has"].tolist())
    assert [t for t, row in enumerate(has) if row[0]] == list(range(7, 20))
    assert [t for t, row in enumerate(has) if row[1]] == list(range(10, 20))
    assert len(agent.encoder.clips) == 4  # at steps 7, 15 and 10, 18
    np.testing.assert_array_equal(agent.encoder.clips[0][0], frames[0:8, 0])
    np.testing.assert_array_equal(agent.encoder.clips[1][1], frames[3:11, 1])
    want = agent.encoder.encoder.embed_video(frames[8:16, :1].swapaxes(0, 1))
    np.testing.assert_allclose(state["clip"]["embedding"][:1], want, atol=1e-5)


def test_a_policy_for_the_pool_follows_resets(agent, frames):
    from types import SimpleNamespace

    policy = AgentPolicy(agent, ["run", "stand"], sample=True, seed=0)
    step = lambda t, first: policy(SimpleNamespace(image=frames[t], is_first=np.array(first)))  # noqa: E731
    assert step(0, [True, True]).shape == (2, 6)
    before = policy._state["steps"]
    step(1, [False, True])
    assert policy._state["steps"] == before + 1


def test_public_names_are_imported_lazily_and_unknown_ones_named():
    assert "load" in dir(bitagent_jax) and callable(bitagent_jax.make_config)
    with pytest.raises(AttributeError, match="no attribute 'lod'; it offers"):
        bitagent_jax.lod  # noqa: B018


@pytest.fixture
def forget():
    """Return a function that empties the table of bodies registered by a test; called again at its end."""
    from bitagent_jax.envs import register, tasks

    saved = [(table, dict(table)) for table in (tasks.BODIES, tasks.TASKS, register._own)]

    def restore():
        for table, rows in saved:
            table.clear(), table.update(rows)

    yield restore
    restore()


def test_a_run_of_a_registered_body_loads_where_it_is_not_registered(tmp_path, forget, frames):
    from bitagent_jax.agent.state import init_state
    from bitagent_jax.training.checkpoint import Checkpoints
    from bitagent_jax.training.run import RunFolder

    tasks = {"go": ("go", 0, 1)}
    bitagent_jax.register_env("own", "some.module:make", action_dim=5, control_steps=10, tasks=tasks)
    config, encoder = make_config("own", "debug"), load_encoder()
    init = build(config, encoder.embed_dim, 5)[1]
    with RunFolder.open(tmp_path / "run", config) as run, Checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(0, jax.jit(lambda: init_state(config, init))())
    forget()
    with pytest.raises(ValueError, match="unknown body 'own'"):
        make_config("own")
    loaded = bitagent_jax.load(tmp_path / "run")
    assert loaded.act(frames[0, 0], "go")[0].shape == (5,) and loaded.config.tasks == ("own_go",)
