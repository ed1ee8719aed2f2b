"""Bodies of a user's own: real gymnasium environments through the door, the pool and the config."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import bitagent_jax
from bitagent_jax import config as config_lib
from bitagent_jax.cli import parse_config
from bitagent_jax.envs import register, rendering
from bitagent_jax.envs.adapter import load_factory
from bitagent_jax.envs.dmc import make_env
from bitagent_jax.envs.pool import EnvPool
from bitagent_jax.envs.tasks import BODIES, TASKS, get_body

OWN = str(Path(__file__).with_name("own_envs.py"))
DOT = dict(factory=f"{OWN}:dot", action_dim=2, control_steps=20)
SCALES = {"seen": ("push the dot", 0, 100), "shown": ("push the dot and watch", 5, 200)}


@pytest.fixture(autouse=True)
def table():
    """Forget afterwards what a test registered."""
    saved = [(kept, dict(kept)) for kept in (BODIES, TASKS, register._own)]
    yield
    for kept, rows in saved:
        kept.clear(), kept.update(rows)


@pytest.fixture
def dot():
    bitagent_jax.register_env("dot", **DOT, tasks=SCALES)


@pytest.mark.parametrize("task", ["dot_seen", "dot_shown"])
def test_pictures_are_squared_actions_scaled_and_rewards_summed(dot, task):
    """Two actions in [-1, 1] reach [-2, 2] and [0, 10]; a reward is the second of them, twice a step."""
    env = make_env(task, size=16)
    image, _ = env.reset()
    assert image.dtype == np.uint8 and image.shape == (16, 16, 3)
    assert np.ptp(image[:, :8]) == 0 and not image[:, 8:].any()
    brighter, reward, terminated, truncated, info = env.step(np.float32([1, 0.5]))
    assert reward == 15 and int(brighter[0, 0, 0]) - image[0, 0, 0] == pytest.approx(0.04 * 255, abs=1)
    assert (terminated, truncated, info) == (False, False, {})
    assert env.step(np.float32([-9, -9]))[1] == 0
    assert env.render(48).shape == (48, 48, 3)


def test_episodes_are_truncated_or_end_by_themselves(dot):
    env = make_env("dot_seen", render=False)
    image, _ = env.reset()
    ends = [env.step(np.zeros(2))[2:4] for _ in range(10)]
    assert image.shape == (0, 0, 3) and ends == [(False, False)] * 9 + [(False, True)]
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros(2))
    env = make_env("dot_seen", render=False, action_repeat=20, seed=1)
    env._env.reset = lambda seed: setattr(env._env, "place", 0.97) or (None, {})
    env.reset()
    _, reward, terminated, truncated, _ = env.step(np.float32([1, 0]))
    assert (terminated, truncated) == (True, False) and reward == 2 * 5  # the second step passed the edge


def test_starts_depend_on_seed_slot_and_episode_only(dot):
    def start(seed, slot, episode):
        env = make_env("dot_seen", seed=seed, slot=slot, size=8)
        return [env.reset()[0] for _ in range(episode + 1)][-1].tobytes()

    assert start(5, 0, 1) == start(5, 0, 1)
    assert len({start(*case) for case in [(5, 0, 0), (5, 0, 1), (5, 1, 0), (6, 0, 0)]}) == 4


def test_gymnasium_finds_no_fault(dot):
    check_env(make_env("dot_seen"), skip_render_check=True)


def test_a_pool_equals_single_environments(dot):
    tasks = ["dot_seen", "dot_shown", "dot_seen"]
    envs = [make_env(task, seed=3, slot=slot) for slot, task in enumerate(tasks)]
    with EnvPool(tasks, seed=3, workers=2) as pool:
        rows, images = [pool.reset()], [[env.reset()[0] for env in envs]]
        for _ in range(11):
            rows.append(pool.step(np.float32([[0.1, 0], [0.2, 1], [-0.1, 1]])))
    steps = [env.step(action) for env, action in zip(envs, rows[1].action, strict=True)]
    images.append([step[0] for step in steps])
    for row, wanted in zip(rows, images, strict=False):
        np.testing.assert_array_equal(row.image, wanted)
    assert rows[1].reward.tolist() == [step[1] for step in steps] == [10, 20, 20]
    assert [row.is_last[0] for row in rows] == [False] * 10 + [True, False] and rows[11].is_first.all()
    assert not rows[10].is_terminal.any()  # its time was over


def test_a_mujoco_environment_of_gymnasium_goes_through_the_pool():
    pytest.importorskip("imageio", reason="gymnasium's MuJoCo environments import it")
    rendering.configure_gl()
    scale = {"balance": ("balance the pole", 10, 1000)}
    register.register_env("pole", f"{OWN}:pendulum", action_dim=1, control_steps=100, tasks=scale)
    env = make_env("pole_balance", seed=2, slot=1)
    with EnvPool(["pole_balance"] * 2, seed=2, workers=2) as pool:
        row, (image, _) = pool.reset(), env.reset()
        assert row.image.shape == (2, 64, 64, 3) and image.std() > 5
        np.testing.assert_array_equal(row.image[1], image)
        for action in ([[0.5], [-0.5]], [[0.0], [1.0]]):
            row, (image, reward, *_) = pool.step(np.float32(action)), env.step(action[1])
            np.testing.assert_array_equal(row.image[1], image)
            assert row.reward[1] == reward == 2
        for _ in range(50):  # pushed to one side it falls, which ends the episode
            row = pool.step(np.ones((2, 1)))
            if row.is_last[1]:
                break
        assert row.is_last[1] and row.is_terminal[1]
        row = pool.step(np.ones((2, 1)))
        assert row.is_first[1] and not row.is_terminal[1]
    env.close()


LOAD = """
import sys
from pathlib import Path
from bitagent_jax import config
from bitagent_jax.envs.pool import EnvPool
from bitagent_jax.envs.tasks import get_body, get_task
loaded = config.read(Path(sys.argv[1]))
print(get_body(loaded.body).action_dim, get_task("dot_shown").prompt, loaded.tasks)
with EnvPool(loaded.tasks, workers=1, render=False) as pool:
    print(pool.reset().image.shape, pool.episode_steps)
"""


def test_a_stored_config_is_enough_in_a_fresh_process(dot, tmp_path):
    config = config_lib.validate(config_lib.make_config("dot", "debug"))
    assert config.tasks == ("dot_seen", "dot_shown") and config.custom.action_dim == 2
    config_lib.save(config, tmp_path / "config.json")
    assert config_lib.read(tmp_path / "config.json") == config
    done = subprocess.run([sys.executable, "-c", LOAD, tmp_path / "config.json"], capture_output=True, text=True)
    expected = "2 push the dot and watch ('dot_seen', 'dot_shown')\n(2, 0, 0, 3) 10\n"
    assert done.stdout == expected, done.stderr
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["custom.factory"] == f"{OWN}:dot"


USER_FILE = """
import bitagent_jax
from bitagent_jax.config import make_config


def make(goal):
    raise NotImplementedError


bitagent_jax.register_env("mine", make, action_dim=3, control_steps=10, tasks={"go": ("go", 0, 1)})


def get_config(arg="cpu"):
    return make_config("mine", arg)
"""


def test_a_users_own_config_file_registers_and_its_functions_are_found_by_path(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(USER_FILE)
    config = parse_config([f"--config={file}:debug"])
    assert config.body == "mine" and config.tasks == ("mine_go",) and get_body("mine").action_dim == 3
    assert config.custom.factory == f"{file}:make"
    with pytest.raises(NotImplementedError):
        make_env("mine_go")


BESIDE = """
from __future__ import annotations

import dataclasses
import subprocess

from beside import WIDTH
from own_envs import Dot

print("what an environment's file prints", flush=True)
RUNS = []


@dataclasses.dataclass
class Wide:
    width: int = WIDTH


def make(goal):
    RUNS.append(goal)
    assert subprocess.run(["cat"], stdout=subprocess.PIPE).stdout == b""  # a child that reads what it inherits
    assert len(RUNS) == 1 or Wide().width == 3
    return Dot("seen")


def get_config(arg):
    raise NotImplementedError
"""


def test_a_users_file_may_import_others_print_and_start_processes_that_read(tmp_path, monkeypatch):
    (tmp_path / "beside.py").write_text("WIDTH = 3")
    (tmp_path / "whole.py").write_text(BESIDE)
    for folder in (tmp_path, Path(OWN).parent):
        monkeypatch.syspath_prepend(folder)
    scale = {"go": ("go", 0, 1)}
    register.register_env("whole", f"{tmp_path / 'whole.py'}:make", action_dim=2, control_steps=20, tasks=scale)
    assert load_factory(get_body("whole").factory) is load_factory(get_body("whole").factory)
    with EnvPool(["whole_go"] * 2, workers=1, timeout=5) as pool:
        pool.reset()
        assert pool.step(np.zeros((2, 2))).reward.tolist() == [10, 10]
    with pytest.raises(NotImplementedError):
        parse_config([f"--config={tmp_path / 'whole.py'}:x"])


def test_registering_again_changes_nothing_and_another_thing_is_refused(dot):
    bitagent_jax.register_env("dot", **DOT, tasks=SCALES)
    with pytest.raises(ValueError, match="dot is already registered as Body.*action_dim=2.*not as Body.*action_dim=3"):
        bitagent_jax.register_env("dot", **DOT | {"action_dim": 3}, tasks=SCALES)
    with pytest.raises(ValueError, match="walker is already registered"):
        bitagent_jax.register_env("walker", **DOT, tasks=SCALES)
    assert get_body("dot").action_dim == 2 and get_body("walker").factory == ""


@pytest.mark.parametrize(
    "change, message",
    [
        ({"body": "my-body"}, "letters, digits and underscores only, not 'my-body'"),
        ({"action_dim": 0}, "at least 1, got 0 and 20"),
        ({"control_steps": 0}, "at least 1, got 2 and 0"),
        ({"tasks": {}}, "at least one task"),
        ({"tasks": {"seen": ("push", 5, 5)}}, r"other_seen needs two scores.*not \(5, 5\)"),
        ({"tasks": {"seen": ("push", 0, np.nan)}}, r"other_seen needs two scores.*not \(0, nan\)"),
        ({"factory": "make"}, "module:function or file.py:function, not 'make'"),
        ({"factory": lambda goal: None}, "top level of a file"),
        ({"factory": print}, "top level of a file"),
    ],
)
def test_impossible_registrations_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        bitagent_jax.register_env(**{"body": "other", **DOT, "tasks": SCALES, **change})
    assert "other" not in BODIES


@pytest.mark.parametrize(
    "factory, message",
    [
        (f"{OWN}:dots", "no 'dots'"),
        ("no.such.module:make", "cannot import the environment factory 'no.such.module:make'"),
        ("/no/such/file.py:make", "cannot import"),
        (f"{OWN}:blind", 'shows no picture.*render_mode="rgb_array"'),
        (f"{OWN}:switch", r"bounded Box of 1 actions \(action_dim of body bad\), but takes Discrete"),
        (f"{OWN}:dot", "bounded Box of 1 actions"),
    ],
)
def test_factories_that_cannot_serve_are_named(factory, message):
    width = 2 if factory.endswith("blind") else 1
    register.register_env("bad", factory, action_dim=width, control_steps=10, tasks={"x": ("x", 0, 1)})
    with pytest.raises(ValueError, match=message):
        make_env("bad_x")
