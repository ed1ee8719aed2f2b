"""Render training clips of four bodies, with the simulator's measurements of every frame.

    python -m experiments.embedded_encoder.clips --out DIR [--workers 2] [--scale 1.0]

Hardware: two CPU threads, software OpenGL, about 20 minutes and 2.1 GB at scale 1. Run it again to continue
after an interruption: finished parts are kept. Expected: DIR/train and DIR/test hold parts
``{body}-{look}-{number}.npz`` of sequences of 12 frames, one agent step (two control steps) apart.

Four kinds of sequences: ``puppet`` (drawn joint positions), ``random`` (rollouts of random torques from
dm_control's own resets: mostly lying and tumbling, which is what a first data set looks like), ``thrown``
(random torques from a puppet's pose and velocity) and ``acted`` (rollouts of the zoo's actors, alone with their
noise or, twice as often, taking turns with flailing and held joints as the mix ``zoo`` of ``bitagent collect`` does
it: real gaits, poses, falls and recoveries; standing, walking and running in half of the episodes, any task in the
others).
"""

import argparse
import multiprocessing
import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bitagent_jax.envs.tasks import TASKS, get_body, tasks_of

STEPS = 12
BODIES = ("walker", "cheetah", "quadruped", "stickman")
KINDS = ("puppet", "random", "thrown", "acted")
SHARES = (0.34, 0.24, 0.11, 0.31)
CASTING = {"": 1, "early": 1, "middle": 2, "expert": 3}
NOISE = {"early": (0.3,), "middle": (0.2,), "expert": (0.0, 0.2)}
IN_TURNS, GAITS = 2 / 3, 1 / 2
"""Who acts in sequences of the zoo: how often each stage of each task when all take turns, noise of those alone; in
which part of the episodes they take turns, and in which all are standing, walking or running.

Not those of ``bitagent collect``, so that what the encoder learns from does not change with it.
"""
MEASURED = (
    "height upright speed rise spin pitch feet_low feet_high clearance motion side nose_x nose_y knees hands punch"
).split()
"""Measured in every frame: metres, cosines, m/s, rad/s, radians.

``nose_x`` and ``nose_y`` are the horizontal components of the torso's forward axis: where the body faces.
``knees`` is the mean height of a two-legged body's; ``hands`` the height of a stickman's lower hand, ``punch`` the
horizontal speed of its faster one relative to the torso. They are 0 of bodies without.
"""
GOALS = list(dict.fromkeys(task.goal for task in TASKS.values() if task.body in BODIES))
FIELDS = MEASURED + GOALS
"""What is known of every frame: measurements, and the rewards of all tasks of the four bodies, 0 of others' tasks."""
_PART = 250


class Part(NamedTuple):
    """A file to make: ``count`` sequences of one body in one look, drawn from ``seed``."""

    split: str
    body: str
    look: str
    number: int
    count: int
    seed: int

    def path(self, out: Path) -> Path:
        """Where it is stored."""
        return out / self.split / f"{self.body}-{self.look}-{self.number:03d}.npz"


def parts(scale: float = 1.0) -> list[Part]:
    """List the parts of a data set: 3000 + 3000 + 2500 + 2750 training sequences at scale 1, 4 % more in stock look."""
    counts = {"walker": 12, "cheetah": 12, "quadruped": 10, "stickman": 11}
    out = []
    for number in range(max(1, round(max(counts.values()) * scale))):
        for index, (body, wanted) in enumerate(counts.items()):
            if number < max(1, round(wanted * scale)):
                out.append(Part("train", body, "fast", number, _PART, 1000 * index + number))
    for index, body in enumerate(counts):
        for number in range(3):
            out.append(Part("test", body, "fast", number, 200, 600_000 + 1000 * index + number))
        out.append(Part("train", body, "stock", 0, 120, 900_000 + index))
        out.append(Part("test", body, "stock", 0, 30, 920_000 + index))
    order = {"test": 0, "train": 1}
    return sorted(out, key=lambda part: (part.number, order[part.split]))


class Studio:
    """One body under one camera: puppets it, simulates it, measures it and takes its pictures."""

    def __init__(self, body: str, look: str, goal: str, rng: np.random.Generator):
        from bitagent_jax.envs import rendering

        rendering.configure_gl()
        self.body, self.rng = body, rng
        self.env, self.tasks = _environment(body, goal, int(rng.integers(2**31)))
        self.policy = None
        self.physics = self.env.physics
        self.camera = rendering.Camera(self.physics, 64, get_body(body).camera, look)
        self.repeat = 2 * round(self.env.control_timestep() / self.physics.timestep())
        self.dt = self.repeat * self.physics.timestep()
        spec = self.env.action_spec()
        self.low, self.high = spec.minimum, spec.maximum
        self.age = np.inf

    def shoot(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Make one sequence: uint8 [STEPS, 64, 64, 3] and float32 [STEPS, len(FIELDS)]."""
        if kind == "puppet":
            return self._film(self._puppet_frames())
        if kind == "acted":
            if self.policy is None or self.age > 250 or self.rng.random() < 0.08:
                self._restart()
                self.policy = _cast(self.body, self.rng)
            return self._film(self._frames(self._acts(), skip=25 * (self.age > 0)))
        if kind == "thrown":
            next(self._puppet_frames())
            self.age = np.inf
        elif self.age > 400 or self.rng.random() < 0.08:
            self._restart()
        torques = _torques(self.rng, self.low, self.high)
        return self._film(self._frames(torques, skip=0 if kind == "thrown" or self.age == 0 else 25))

    def measure(self) -> np.ndarray:
        """Read all FIELDS of the present state, float32."""
        from experiments.embedded_encoder.puppets import lowest_point

        physics, data = self.physics, self.physics.named.data
        rewards = [float(self.tasks[goal].get_reward(physics)) if goal in self.tasks else 0.0 for goal in GOALS]
        zz, joints = data.xmat["torso", "zz"], physics.data.qvel
        if self.body == "quadruped":
            feet = np.sort([data.xpos[f"toe_{leg}", "z"] for leg in _LEGS])
            feet = feet[:2].mean(), feet[2:].mean()
            own = float(physics.torso_velocity()[0]), joints[2], np.linalg.norm(joints[3:6])
            pitch, joints = np.arcsin(np.clip(-data.xmat["torso", "zx"], -1, 1)), joints[6:]
        else:
            names = ("bfoot", "ffoot") if self.body == "cheetah" else ("right_foot", "left_foot")
            feet = sorted(data.geom_xpos[name, "z"] for name in names)
            rise = joints[1] if self.body == "cheetah" else joints[0]
            own = float(data.sensordata["torso_subtreelinvel"][0]), rise, joints[2]
            pitch, joints = np.arctan2(data.xmat["torso", "xz"], zz), joints[3:]
        height, moving = data.xpos["torso", "z"], np.sqrt(np.mean(np.square(joints)))
        side, nose = abs(data.xmat["torso", "zy"]), (data.xmat["torso", "xx"], data.xmat["torso", "yx"])
        knees, hands, punch = self._limbs(own[0])
        state = [height, zz, *own, pitch, *feet, lowest_point(physics), moving, side, *nose, knees, hands, punch]
        state += rewards
        return np.array(state, np.float32)

    def _limbs(self, speed: float) -> tuple[float, float, float]:
        """Read the knees' mean height, the lower hand's height and the faster hand's speed relative to the body."""
        physics, data = self.physics, self.physics.named.data
        if self.body not in ("walker", "stickman"):
            return 0.0, 0.0, 0.0
        shins = ["right_leg", "left_leg"]
        knees = (data.xpos[shins, "z"] + 0.25 * data.xmat[shins, "zz"]).mean()
        if self.body != "stickman":
            return knees, 0.0, 0.0
        punch = abs(data.subtree_linvel[["right_hand", "left_hand"], 0] - speed).max()
        return knees, physics.heights("hand").min(), punch

    def _film(self, frames):
        shots = [(self.camera.render(), self.measure()) for _ in frames]
        return np.stack([image for image, _ in shots]), np.stack([state for _, state in shots])

    def _puppet_frames(self):
        from experiments.embedded_encoder.puppets import PUPPETS, ground

        qpos = ground(self.physics, self.body, PUPPETS[self.body](self.rng, STEPS + 1, self.dt))
        import mujoco

        for before, now in zip(qpos[:-1], qpos[1:], strict=True):
            mujoco.mj_differentiatePos(self.physics.model.ptr, self.physics.data.qvel, self.dt, before, now)
            self.physics.data.qpos[:] = now
            self.physics.data.act[:] = 0
            self.physics.forward()
            yield

    def _frames(self, action, skip: int):
        for _ in range(self.rng.integers(skip + 1)):
            self._advance(next(action))
        for _ in range(STEPS):
            self._advance(next(action))
            yield

    def _acts(self):
        """Yield for ever what the policy does in the present state, scaled to the actuators' limits."""
        from bitagent_jax.data.collect import Timestep

        none, blank = np.zeros(1, bool), np.zeros((1, len(self.low)), np.float32)
        while True:
            state = [np.ravel(value) for value in self.env.task.get_observation(self.physics).values()]
            state = np.concatenate(state, dtype=np.float32)[None]
            row = Timestep(
                none, blank, none, is_first=np.array([self.age == 0]), is_last=none, is_terminal=none, state=state
            )
            yield (self.low + self.high) / 2 + (self.high - self.low) / 2 * self.policy(row)[0]

    def _restart(self):
        """Begin an episode as dm_control does; half of them elsewhere, so that the place tells nothing."""
        from experiments.embedded_encoder.puppets import PLACE, somewhere

        self.env.reset()
        self.age = 0
        if self.rng.random() < 0.5:
            place = PLACE[self.body]
            self.physics.data.qpos[place] += somewhere(self.rng, place.stop - place.start)
            self.physics.forward()

    def _advance(self, action):
        self.age += 1
        self.physics.set_control(action)
        self.physics.step(self.repeat)


_LEGS = ("front_left", "front_right", "back_left", "back_right")


_HOME = {"walker": "one_foot", "cheetah": "standing", "stickman": "stand"}
"""A goal whose physics knows all measurements of the body; the quadruped's always does, and its floor differs."""


def _environment(body: str, goal: str, seed: int):
    """Make the dm_control environment of a body, and the tasks whose rewards are measured: goal -> task."""
    from bitagent_jax.envs.dmc import build_control

    env = build_control(TASKS[f"{body}_{_HOME.get(body, goal)}"])
    env.task.random.seed(seed)
    return env, {TASKS[name].goal: build_control(TASKS[name]).task for name in tasks_of(body)}


def _cast(body: str, rng: np.random.Generator):
    """Draw who acts in an episode: one actor of the zoo with its noise, or two times in three all of them in turns."""
    from bitagent_jax import zoo
    from bitagent_jax.data.collect import ZooPolicy

    known, seed = zoo.load_card()["actors"], int(rng.integers(2**31))
    tasks = [task for task in tasks_of(body) if task in known]
    if rng.random() < GAITS:
        tasks = [task for task in tasks if TASKS[task].goal in ("stand", "walk", "run")]
    if rng.random() < IN_TURNS:
        turns = [(task, stage) for task in tasks for stage, share in CASTING.items() for _ in range(share)]
        repertoire = [zoo.load_actor(task, stage) if stage else None for task, stage in turns]
        return ZooPolicy([None], mixed=True, repertoire=repertoire, seed=seed)
    alone = [(task, stage, noise) for task in tasks for stage in NOISE for noise in NOISE[stage]]
    task, stage, noise = alone[rng.integers(len(alone))]
    return ZooPolicy([zoo.load_actor(task, stage)], noise=noise, seed=seed)


def _torques(rng, low, high):
    """Yield actions for ever: fresh uniform ones (the random policy), smooth noise, or one that is held."""
    style = rng.choice(3, p=[0.65, 0.2, 0.15])
    action = rng.uniform(low, high) * (style < 2 or rng.random() < 0.5)
    while True:
        yield action
        if style == 0:
            action = rng.uniform(low, high)
        elif style == 1:
            action = np.clip(0.85 * action + 0.5 * rng.normal(0, 1, len(low)), low, high)


def make_part(part: Part, out: Path) -> str:
    """Render one part unless it is there already; returns a line for the log."""
    from dm_control.rl.control import PhysicsError

    path = part.path(out)
    if path.exists():
        return f"{path.name} is there"
    start, rng = time.monotonic(), np.random.default_rng(part.seed)
    studio = Studio(part.body, part.look, "run" if part.number % 2 else "walk", rng)
    drawn = rng.choice(len(KINDS), size=part.count, p=SHARES)
    # Actors come last, as their episodes go on from one sequence to the next.
    drawn = drawn[np.argsort(drawn == KINDS.index("acted"), kind="stable")]
    images, states, kinds = [], [], []
    while len(kinds) < part.count:
        kind = drawn[len(kinds)]
        try:
            image, state = studio.shoot(KINDS[kind])
        except PhysicsError:
            studio.age = np.inf
            continue
        if np.isfinite(state).all():
            images.append(image), states.append(state), kinds.append(kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp.npz")
    np.savez(draft, images=np.stack(images), states=np.stack(states), kinds=np.array(kinds), body=part.body)
    draft.rename(path)
    return f"{part.split}/{path.name}: {part.count} sequences in {time.monotonic() - start:.0f} s"


def load_split(out: Path, split: str) -> dict[str, np.ndarray]:
    """Read a split: ``images`` [S, 12, 64, 64, 3], ``states`` [S, 12, F], ``kinds`` [S], ``bodies`` [S], ``looks``."""
    found = sorted((out / split).glob("*-*-???.npz"))
    if not found:
        raise FileNotFoundError(f"no clips in {out / split}: run experiments.embedded_encoder.clips first")
    columns = {"images": [], "states": [], "kinds": [], "bodies": [], "looks": []}
    for path in found:
        with np.load(path) as part:
            for key in ("images", "states", "kinds"):
                columns[key].append(part[key])
            columns["bodies"].append(np.repeat(str(part["body"]), len(part["kinds"])))
            columns["looks"].append(np.repeat(path.stem.split("-")[1], len(part["kinds"])))
    return {key: np.concatenate(values) for key, values in columns.items()}


def main() -> None:
    """Render every part in worker processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0)
    args = parser.parse_args()
    os.environ.setdefault("LP_NUM_THREADS", "0")
    todo = [(part, args.out) for part in parts(args.scale)]
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        for done, line in enumerate(pool.imap_unordered(_make, todo), 1):
            print(f"[{done}/{len(todo)}] {line}", flush=True)


def _make(job: tuple[Part, Path]) -> str:
    return make_part(*job)


if __name__ == "__main__":
    main()
