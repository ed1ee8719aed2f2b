"""Choosing OpenGL, and the looks."""

import os
import subprocess
import sys

import numpy as np
import pytest

from bitagent_jax.envs import rendering
from bitagent_jax.envs.dmc import make_env
from bitagent_jax.envs.rendering import GL
from bitagent_jax.envs.tasks import BODIES

SOFTWARE, HARDWARE = GL("egl", "llvmpipe (LLVM 15.0.6, 256 bits)"), GL("egl", "NVIDIA H100 PCIe/PCIe/SSE2")


def run_python(code: str, **env: str) -> subprocess.CompletedProcess:
    unset = [name for name, value in env.items() if not value]
    full = {k: v for k, v in {**os.environ, **env}.items() if k not in unset}
    return subprocess.run([sys.executable, "-W", "error", "-c", code], env=full, capture_output=True, text=True)


def test_configured_gl_is_what_dm_control_uses():
    gl = rendering.configure_gl()
    assert os.environ["MUJOCO_GL"] == gl.backend and gl.renderer
    from dm_control import _render

    assert _render.BACKEND == gl.backend


def test_auto_is_fast_on_software_only():
    assert SOFTWARE.software and not HARDWARE.software
    looks = [rendering.resolve_look(look, gl) for look in ("auto", "fast", "stock") for gl in (SOFTWARE, HARDWARE)]
    assert looks == ["fast", "stock", "fast", "fast", "stock", "stock"]
    with pytest.raises(ValueError, match="unknown look 'fats'. Did you mean 'fast'"):
        rendering.resolve_look("fats", SOFTWARE)


def test_egl_is_tried_before_osmesa_and_the_choice_is_kept(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    tried = []

    def probe(backend):
        tried.append(backend)
        return ("llvmpipe", "") if backend == "osmesa" else ("", "no display")

    monkeypatch.setattr(rendering, "probe_gl", probe)
    monkeypatch.setattr(rendering, "_use_in_dm_control", lambda backend: None)
    assert rendering.configure_gl().backend == "osmesa"
    assert tried == ["egl", "osmesa"] and os.environ["MUJOCO_GL"] == "osmesa"
    assert rendering.configure_gl().backend == "osmesa" and tried[2:] == ["osmesa"]


NO_GL = """
from bitagent_jax.envs import rendering
rendering.probe_gl = lambda backend: ("", "library not found")
from bitagent_jax.envs.dmc import make_env
make_env("walker_run")
"""


def test_without_opengl_the_error_holds_the_fix():
    done = run_python(NO_GL, MUJOCO_GL="")
    assert done.returncode == 1
    assert "RuntimeError: no OpenGL for rendering (egl: library not found; osmesa: library not found)" in done.stderr
    assert "apt-get install -y --no-install-recommends libegl1 libopengl0 libgl1-mesa-dri" in done.stderr


def test_a_backend_set_by_the_user_is_really_tried_and_not_replaced(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "disable")
    with pytest.raises(RuntimeError, match="with MUJOCO_GL=disable.*No OpenGL rendering backend"):
        rendering.configure_gl()


NO_RENDER = """
import os, sys
from bitagent_jax.envs.dmc import make_env
env = make_env("walker_run", render=False)
image, _ = env.reset()
assert image.shape == (0, 0, 3) == env.step(env.action_space.sample())[0].shape
assert "OpenGL" not in sys.modules and "glfw" not in sys.modules and "MUJOCO_GL" not in os.environ
assert "jax" not in sys.modules
assert make_env("walker_run").reset()[0].shape == (64, 64, 3)
"""


def test_without_rendering_no_opengl_is_loaded_and_it_can_still_be_later():
    done = run_python(NO_RENDER, MUJOCO_GL="")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("task", ["walker_run", "cheetah_run", "quadruped_jump", "stickman_walk"])
def test_stock_look_has_dm_controls_own_pixels(task):
    env, other = (make_env(task, slot=slot, look="stock") for slot in range(2))
    other.reset(), env.reset()
    for _ in range(2):
        image = env.step(env.action_space.sample())[0]
        drawn = env.physics.render(64, 64, camera_id=BODIES[env.task.body].camera)
        np.testing.assert_array_equal(image, drawn)
        other.step(other.action_space.sample())
    env.close(), other.close()


@pytest.mark.parametrize("task", ["walker_run", "cheetah_run", "quadruped_walk", "stickman_walk"])
def test_fast_look_is_close_to_stock(task):
    """PSNR = 10 log10(255^2 / MSE), averaged over the pictures of a random episode's start."""
    actions = np.random.default_rng(0).uniform(-1, 1, (40, 12)).astype(np.float32)
    films = {}
    for look in ("stock", "fast"):
        env = make_env(task, look=look)
        film = [env.reset(seed=3)[0]]
        film += [env.step(action[: env.action_space.shape[0]])[0] for action in actions]
        films[look] = np.array(film, np.float64)
        env.close()
    error = np.mean((films["stock"] - films["fast"]) ** 2, (1, 2, 3))
    assert 0 < error.min()
    assert np.mean(10 * np.log10(255**2 / error)) >= 38


@pytest.mark.parametrize("look", ["fast", "stock"])
def test_larger_pictures_show_the_same_scene_and_leave_the_observations_alone(look):
    plain, filmed = (make_env("walker_walk", look=look) for _ in range(2))
    np.testing.assert_array_equal(plain.reset(seed=1)[0], filmed.reset(seed=1)[0])
    for _ in range(3):
        video, large = filmed.render(256), filmed.render(700)
        action = filmed.action_space.sample()
        image = filmed.step(action)[0]
        np.testing.assert_array_equal(plain.step(action)[0], image)
        np.testing.assert_array_equal(plain.state(), filmed.state())
    assert video.shape == (256, 256, 3) and large.shape == (700, 700, 3)
    shrunk = filmed.render(256).reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert 10 * np.log10(255**2 / np.mean((shrunk - image) ** 2)) > 28
    plain.close(), filmed.close()
