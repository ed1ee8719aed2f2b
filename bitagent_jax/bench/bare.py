"""The yardstick of the pool: ``mj_step`` and MuJoCo's low-level renderer in the smallest loop, without rewards.

As a program (``python -m bitagent_jax.bench.bare TASK LOOK SIZE REPEAT COUNT``) it answers each line on stdin, a
number of seconds, by the agent steps a second of that long a run, after a first line that says it is ready.
"""

import subprocess
import sys
import time

import mujoco
import numpy as np

from bitagent_jax.envs import rendering
from bitagent_jax.envs.dmc import build_control
from bitagent_jax.envs.supervision import worker_environment
from bitagent_jax.envs.tasks import get_body, get_task


class Bare:
    """Some simulations of one model that share a scene and an OpenGL context; random controls.

    The drawing verbs need ``physics.contexts.gl`` to be current. ``images`` is uint8 [count, size, size, 3],
    bottom row first.
    """

    def __init__(self, task: str, look: str, size: int, repeat: int, count: int = 1):
        control, body = build_control(get_task(task)), get_body(get_task(task).body)
        self.physics = control.physics
        rendering.set_quality(self.physics.model.vis, size, look)
        self._model = self.physics.model.ptr
        self._substeps = repeat * round(control.control_timestep() / self.physics.timestep())
        self._datas = [self._start(control) for _ in range(count)]
        limits = control.action_spec()
        self._controls = np.random.default_rng(0).uniform(limits.minimum, limits.maximum, (997, self._model.nu))
        self._scene = mujoco.MjvScene(self._model, maxgeom=1000)
        self._option, self._perturb, self._camera = mujoco.MjvOption(), mujoco.MjvPerturb(), mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, body.camera
        self._rect = mujoco.MjrRect(0, 0, size, size)
        self._steps, self.images = 0, np.empty((count, size, size, 3), np.uint8)
        self._context = self.physics.contexts.mujoco

    def advance(self, index: int) -> None:
        """Simulate one agent step."""
        self._steps += 1
        self._datas[index].ctrl[:] = self._controls[self._steps % len(self._controls)]
        mujoco.mj_step(self._model, self._datas[index], nstep=self._substeps)

    def draw(self, index: int) -> None:
        """Draw the present state into OpenGL's buffer."""
        everything = mujoco.mjtCatBit.mjCAT_ALL
        data = self._datas[index]
        mujoco.mjv_updateScene(self._model, data, self._option, self._perturb, self._camera, everything, self._scene)
        mujoco.mjr_render(self._rect, self._scene, self._context.ptr)

    def read(self, index: int) -> None:
        """Copy OpenGL's buffer into ``images``; this also waits for what is not drawn yet."""
        mujoco.mjr_readPixels(self.images[index], None, self._rect, self._context.ptr)

    def run(self, seconds: float) -> float:
        """Step and draw all simulations for some seconds of wall time; returns agent steps per second."""
        done, begun = 0, time.perf_counter()
        with self.physics.contexts.gl.make_current():
            while time.perf_counter() < begun + seconds:
                for index in range(len(self._datas)):
                    self.advance(index), self.draw(index), self.read(index)
                done += len(self._datas)
        return done / (time.perf_counter() - begun)

    def _start(self, control) -> mujoco.MjData:
        control.reset()
        data = mujoco.MjData(self._model)
        data.qpos[:] = self.physics.data.qpos
        mujoco.mj_forward(self._model, data)
        return data


class BareProcesses:
    """Bare loops in processes of their own that run side by side and never wait for one another."""

    def __init__(self, task: str, look: str, size: int, repeat: int, counts: list[int]):
        self._processes = []
        for count in counts:
            command = [sys.executable, "-P", "-m", __name__, task, look, *map(str, (size, repeat, count))]
            pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=worker_environment(True))
            self._processes.append(subprocess.Popen(command, **pipes))
        for process in self._processes:
            process.stdout.readline()

    def run(self, seconds: float) -> float:
        """Run all for some seconds; returns agent steps per second of all together."""
        for process in self._processes:
            print(seconds, file=process.stdin, flush=True)
        return sum(float(process.stdout.readline()) for process in self._processes)

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.stdin.close()
            process.wait()
            process.stdout.close()


def main(task: str, look: str, size: str, repeat: str, count: str) -> None:
    """Serve the numbers of seconds on stdin."""
    bare = Bare(task, look, int(size), int(repeat), int(count))
    bare.run(0.1)
    print("ready", flush=True)
    for line in sys.stdin:
        print(bare.run(float(line)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
