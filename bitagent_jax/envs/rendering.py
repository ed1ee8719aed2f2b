"""Headless OpenGL: choosing a backend that works, and cameras in a stock or a fast look."""

import functools
import hashlib
import importlib
import os
import subprocess
import sys
import weakref
from typing import NamedTuple

import numpy as np

from bitagent_jax.errors import unknown

INSTALL_GL = "apt-get install -y --no-install-recommends libegl1 libopengl0 libgl1-mesa-dri"
LOOKS = ("auto", "fast", "stock")
NO_GL = "disable"
# Rendering threads of dm_control print tracebacks when OSMesa contexts outlive them at exit.
QUIET_EXIT = ("DISABLE_RENDER_THREAD_OFFLOADING", "1")
_MAX_GEOMS = 1000
_SOFTWARE = ("llvmpipe", "softpipe", "swrast", "software rasterizer")
_PROBE = """
import os
from dm_control import _render
context = _render.Renderer(64, 64)
with context.make_current() as executor:
    from OpenGL import GL
    print(executor.call(GL.glGetString, GL.GL_RENDERER).decode(), flush=True)
os._exit(0)
"""


class GL(NamedTuple):
    """A working OpenGL: ``backend`` is a value of MUJOCO_GL, ``renderer`` the driver's own name."""

    backend: str
    renderer: str

    @property
    def software(self) -> bool:
        """Whether pixels are computed on the CPU."""
        return any(name in self.renderer.lower() for name in _SOFTWARE)


@functools.cache
def probe_gl(backend: str) -> tuple[str, str]:
    """Create an OpenGL context in a process of its own; return (renderer name, "") or ("", why it failed)."""
    env = dict(os.environ, MUJOCO_GL=backend)
    env.setdefault(*QUIET_EXIT)
    command = [sys.executable, "-c", _PROBE]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return "", "no answer within 120 s"
    if done.returncode == 0 and done.stdout.strip():
        return done.stdout.strip().splitlines()[-1], ""
    return "", (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]


def configure_gl() -> GL:
    """Set MUJOCO_GL to a backend that works here, and make dm_control use it.

    A value that the user set is respected; else EGL is tried, then OSMesa (GLFW off Linux). Each try creates
    a real context in another process, once per process and backend.

    Returns:
        The backend and the name of its renderer.

    Raises:
        RuntimeError: no backend works; the message holds the command that installs one.
    """
    given = os.environ.get("MUJOCO_GL")
    tries = (given,) if given else ("egl", "osmesa") if sys.platform == "linux" else ("glfw",)
    failures = []
    for backend in tries:
        renderer, why = probe_gl(backend)
        if renderer:
            os.environ["MUJOCO_GL"] = backend
            os.environ.setdefault(*QUIET_EXIT)
            _use_in_dm_control(backend)
            return GL(backend, renderer)
        failures.append(f"{backend}: {why}")
    chosen = f" with MUJOCO_GL={given}, as set in the environment" if given else ""
    raise RuntimeError(
        f"no OpenGL for rendering{chosen} ({'; '.join(failures)}). On Debian or Ubuntu run as root:\n  {INSTALL_GL}"
    )


def import_without_gl() -> None:
    """Import dm_control without loading any OpenGL library; rendering may still be configured later."""
    if "dm_control._render" in sys.modules:
        return
    given = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = NO_GL
    try:
        importlib.import_module("dm_control.mujoco")
    finally:
        del os.environ["MUJOCO_GL"]
        if given is not None:
            os.environ["MUJOCO_GL"] = given


def _use_in_dm_control(backend: str) -> None:
    """Switch an already imported dm_control, which reads MUJOCO_GL only at import, to the backend."""
    module = sys.modules.get("dm_control._render")
    if module is not None and module.BACKEND != backend:
        importlib.reload(module)


def resolve_look(look: str, gl: GL) -> str:
    """Turn ``auto`` into ``fast`` on software OpenGL and ``stock`` on a GPU; ValueError on an unknown look."""
    check_look(look)
    return look if look != "auto" else "fast" if gl.software else "stock"


def check_look(look: str) -> None:
    """Raise a ValueError unless ``look`` is one of LOOKS."""
    if look not in LOOKS:
        raise unknown("look", look, LOOKS)


class Camera:
    """A square picture of a dm_control physics, through one of its model's cameras.

    Cameras of equal models share one OpenGL context: changing contexts between pictures costs a tenth of a fast one.
    ``stock`` is dm_control's own quality. ``fast`` costs 5 to 8 times less on software OpenGL and stays above
    38 dB PSNR of it: a 256 pixel shadow map, capsules of 12 x 6 facets, a buffer of the picture's own size.
    """

    def __init__(self, physics, size: int, camera: int, look: str):
        import mujoco

        set_quality(physics.model.vis, size, look)
        self._physics = physics
        self._contexts = _shared_contexts(physics.model)
        self._scene = mujoco.MjvScene(physics.model.ptr, maxgeom=_MAX_GEOMS)
        self._option, self._perturb, self._camera = mujoco.MjvOption(), mujoco.MjvPerturb(), mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera
        self._rect, self._pixels = mujoco.MjrRect(0, 0, size, size), np.empty((size, size, 3), np.uint8)

    def render(self) -> np.ndarray:
        """Draw the present state; uint8 [size, size, 3], a fresh array."""
        with self._contexts.gl.make_current() as gl:
            gl.call(self._draw_and_read)
        return self._pixels[::-1].copy()  # OpenGL's first row is the lowest

    def _draw_and_read(self) -> None:
        import mujoco

        model, data, context = self._physics.model.ptr, self._physics.data.ptr, self._contexts.mujoco.ptr
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, data, self._option, self._perturb, self._camera, everything, self._scene)
        mujoco.mjr_render(self._rect, self._scene, context)
        mujoco.mjr_readPixels(self._pixels, None, self._rect, context)


class _Contexts:
    """An OpenGL context and MuJoCo's resources of one model in it; freed with the last camera that uses them."""

    def __init__(self, model):
        from dm_control import _render
        from dm_control.mujoco import wrapper

        self.gl = _render.Renderer(model.vis.global_.offwidth, model.vis.global_.offheight)
        self.mujoco = wrapper.MjrContext(model, self.gl)


_contexts: weakref.WeakValueDictionary[bytes, _Contexts] = weakref.WeakValueDictionary()


def _shared_contexts(model) -> _Contexts:
    """Return the contexts of all models that equal this one, quality included, to the last byte."""
    import mujoco

    content = np.empty(mujoco.mj_sizeModel(model.ptr), np.uint8)
    mujoco.mj_saveModel(model.ptr, None, content)
    key = hashlib.sha256(content).digest()
    contexts = _contexts.get(key)
    if contexts is None:
        contexts = _contexts[key] = _Contexts(model)
    return contexts


def set_quality(visual, size: int, look: str) -> None:
    """Give a model's ``vis`` the quality of a look; works only before an OpenGL context is made for it."""
    if look == "fast":
        quality = visual.quality
        quality.offsamples, quality.shadowsize = 4, 256
        quality.numslices, quality.numstacks, quality.numquads = 12, 6, 1
        visual.global_.offwidth = visual.global_.offheight = size
    else:
        visual.global_.offwidth = max(size, visual.global_.offwidth)
        visual.global_.offheight = max(size, visual.global_.offheight)


class SideView:
    """A camera of another size for the same model, drawn from a copy so that the first camera is untouched."""

    def __init__(self, physics, size: int, camera: int, look: str):
        self._source = physics
        self._copy = physics.copy(share_model=False)
        self._camera = Camera(self._copy, size, camera, look)

    def render(self) -> np.ndarray:
        """Draw the source's present state; uint8 [size, size, 3], a fresh array."""
        self._copy.set_state(self._source.get_state())
        self._copy.forward()
        return self._camera.render()

    def close(self) -> None:
        """Free the copy, and its OpenGL context if no other camera uses it."""
        self._camera = None
        self._copy.free()
