"""The Franka kitchen of gymnasium-robotics: four tasks, each to bring one thing into a wanted state."""

from typing import NamedTuple

import gymnasium
import numpy as np

from bitagent_jax.envs import rendering

INSTALL = "pip install 'bitagent_jax[kitchen]'"
_PICTURE = 256
_CAMERA = {"distance": 2.2, "lookat": np.array([-0.2, 0.5, 2.0]), "azimuth": 70.0, "elevation": -35.0}


class Goal(NamedTuple):
    """A thing of the kitchen by gymnasium-robotics' name, and how near its joints must come to the wanted state."""

    thing: str
    near: float


GOALS = {
    "burner": Goal("bottom burner", 0.5),
    "light": Goal("light switch", 0.5),
    "slide": Goal("slide cabinet", 0.2),
    "microwave": Goal("microwave", 0.25),
}


class Kitchen(gymnasium.Wrapper):
    """Reward 1 when the goal is reached, which ends the episode; 0 until then."""

    def __init__(self, env: gymnasium.Env, goal: Goal):
        super().__init__(env)
        self._goal = goal

    def step(self, action: np.ndarray):
        """Apply joint velocities, float [9], for 40 steps of the simulation."""
        observation, _, _, _, info = self.env.step(action)
        done = self.distance(observation) < self._goal.near
        return observation, float(done), bool(done), False, info

    def distance(self, observation: dict) -> float:
        """Return |q - wanted| of the goal's joints, in radians or metres."""
        reached, wanted = observation["achieved_goal"], observation["desired_goal"]
        return float(np.linalg.norm(reached[self._goal.thing] - wanted[self._goal.thing]))

    def render(self) -> np.ndarray:
        """Draw the present state; uint8 [256, 256, 3]."""
        rendering.configure_gl()
        return self.env.render()


def make(goal: str) -> Kitchen:
    """Make the kitchen for a goal in ``GOALS``; RuntimeError with the command that installs what is missing."""
    try:
        from gymnasium_robotics.envs.franka_kitchen import franka_env, kitchen_env
    except ModuleNotFoundError as error:
        raise RuntimeError(f"the kitchen needs gymnasium-robotics: {INSTALL}") from error
    # Its own (1.4.2) finds no joint in MuJoCo 3.12 or later: there numpy's integers no longer equal enums.
    franka_env.robot_get_obs = _robot_state
    env = kitchen_env.KitchenEnv(
        tasks_to_complete=[GOALS[goal].thing],
        terminate_on_tasks_completed=False,
        remove_task_when_completed=False,
        render_mode="rgb_array",
        width=_PICTURE,
        height=_PICTURE,
        default_camera_config=_CAMERA,
    )
    return Kitchen(env, GOALS[goal])


def _robot_state(model, data, joint_names) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and velocities of the robot's joints, which all have one degree of freedom."""
    joints = [model.joint(name) for name in joint_names if name.startswith("robot")]
    positions, velocities = ([joint.qposadr[0] for joint in joints], [joint.dofadr[0] for joint in joints])
    return data.qpos[positions].copy(), data.qvel[velocities].copy()
