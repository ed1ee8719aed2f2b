"""What a sentence claims, as a score computed from the simulator's state: 1 surely true, 0 surely false.

Between the two a plain concept is ambiguous and gives no label; a graded one keeps the value, so that the
cosine learns to grow with height, uprightness and speed. Graded scores of the tasks are increasing in the
tasks' own rewards, with a small penalty for what the sentence leaves out (a runner does not quite "stand").
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.embedded_encoder.clips import BODIES, FIELDS

_TWO_LEGGED, _PLANAR = ("walker", "stickman"), ("walker", "cheetah", "stickman")


class Concept(NamedTuple):
    """Phrasings of one claim: trained ones, ones held out for the gates, and its score for each body."""

    name: str
    phrases: tuple[str, ...]
    held_out: tuple[str, ...]
    scores: dict[str, Callable[["Window"], np.ndarray]]
    graded: bool = False


class Window:
    """Measurements of many windows [n, 8, F], read by name: ``w.speed`` is the mean over the window, [n]."""

    def __init__(self, states: np.ndarray):
        self.states = states

    def __getattr__(self, name: str) -> np.ndarray:
        return self.frames(name).mean(-1)

    def frames(self, name: str) -> np.ndarray:
        """One measurement in every frame, [n, 8]."""
        if name not in FIELDS:
            raise AttributeError(name)
        return self.states[..., FIELDS.index(name)]

    def gain(self, name: str) -> np.ndarray:
        """Mean of the last two frames less that of the first two, [n]."""
        x = self.frames(name)
        return x[:, -2:].mean(-1) - x[:, :2].mean(-1)


def ramp(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Rise linearly from 0 at ``low`` to 1 at ``high`` (which may be the smaller one)."""
    return np.clip((x - low) / (high - low), 0, 1)


def both(*scores: np.ndarray) -> np.ndarray:
    """Fuzzy and: the smallest of the scores."""
    return np.minimum.reduce(np.broadcast_arrays(*scores))


def _all(function) -> dict:
    return dict.fromkeys(BODIES, function)


_TALL = {"walker": (0.8, 1.12), "cheetah": (0.33, 0.46), "quadruped": (0.3, 0.43), "stickman": (0.75, 1.07)}
_LOW = {"walker": (0.7, 0.4), "cheetah": (0.4, 0.25), "quadruped": (0.4, 0.27), "stickman": (0.66, 0.4)}
_TOP = {"walker": (0.05, 1.3), "cheetah": (0.05, 0.9), "quadruped": (0.15, 0.7), "stickman": (0.05, 1.25)}
_ON_LEGS = {"walker": (0.8, 1.05), "stickman": (0.75, 1.0)}
_FAST = {"walker": (2.5, 4.0), "cheetah": (3, 5), "quadruped": (1.2, 2.2), "stickman": (2.5, 4.0)}
_WALK = {"walker": (0.4, 0.9, 3, 4.5), "cheetah": (0.3, 0.8, 2.5, 4), "quadruped": (0.15, 0.4, 1.5, 2.4)}
_WALK["stickman"] = _WALK["walker"]
_RUN = {"walker": (3.5, 5.5), "cheetah": (3, 5), "quadruped": (1.5, 2.8), "stickman": (3.5, 5.5)}
_TOP_SPEED = {"walker": 8.0, "cheetah": 10.0, "quadruped": 5.0, "stickman": 8.0}


def _each(make: Callable[[str], Callable]) -> dict:
    return {body: make(body) for body in BODIES}


def _up(w):
    return ramp(w.upright, 0.4, 0.85)


def _over(w):
    return ramp(w.upright, -0.2, -0.75)


def _still(w):
    return ramp(abs(w.speed), 1.0, 0.35)


def _on_legs(body):
    return (lambda w: ramp(w.height, *_ON_LEGS[body])) if body in _ON_LEGS else lambda w: 1.0


def _standing(body):
    return lambda w: both(_up(w), ramp(w.height, *_TALL[body]), ramp(abs(w.speed), 1.5, 0.7))


def _walking(body):
    """Faster than walking is ambiguous, not false: the walk tasks pay it in full."""
    slow, enough, top, over = _WALK[body]
    tall = _on_legs(body)
    pace = lambda v: both(ramp(v, slow, enough), 0.5 + 0.5 * ramp(v, over, top))  # noqa: E731
    return lambda w: both(_up(w), tall(w), pace(w.speed))


def _running(body):
    slow, enough = _RUN[body]
    tall = _on_legs(body)
    upside = (lambda w: 0.5 + 0.5 * ramp(w.upright, 0, 0.5)) if body == "cheetah" else _up
    return lambda w: both(upside(w), tall(w), ramp(w.speed, slow, enough))


def _cheetah_down(w):
    low = np.maximum(ramp(w.height, 0.38, 0.25), ramp(w.upright, -0.2, -0.7))
    return both(low, ramp(abs(w.speed), 2, 1), ramp(w.clearance, 0.3, 0.1))


def _stand_reward(body):
    """Grade standing: increasing in the stand task's reward, a little less when fast or flat on the floor.

    A quadruped's reward is above .95 for every upright pose, so it is stretched there.
    """

    def score(w):
        if body in _TWO_LEGGED:
            return w.stand * (1 - 0.2 * ramp(abs(w.speed), 1.5, 6))
        if body == "quadruped":
            base = 1 - np.sqrt(1 - np.clip(w.stand, 0, 1))
            return base * (0.95 + 0.05 * ramp(w.height, 0.2, 0.45)) * (1 - 0.06 * ramp(abs(w.speed), 1.5, 5))
        return (1 + w.upright) / 2 * (0.9 + 0.1 * ramp(w.height, 0.2, 0.45)) * (1 - 0.12 * ramp(abs(w.speed), 1.5, 5))

    return score


def _walk_reward(body):
    """Grade walking: the walk task's reward, a little less when running."""

    def score(w):
        if body in _TWO_LEGGED:
            return w.walk**0.6 * (1 - 0.2 * ramp(w.speed, 3.5, 8))
        if body == "quadruped":
            return w.walk * (1 - 0.2 * ramp(w.speed, 1.5, 5))
        return (1 + w.upright) / 2 * (0.2 + 0.8 * ramp(w.speed, -0.5, 1)) * (1 - 0.3 * ramp(w.speed, 3, 8))

    return score


def _run_reward(body):
    """Grade running: increasing in the run task's reward, steeper at low speed where learning begins."""

    def score(w):
        if body in _TWO_LEGGED:
            return w.run**0.6
        if body == "quadruped":
            return (1 + w.upright) / 2 * (0.25 * ramp(w.speed, -5, 0) + 0.75 * ramp(w.speed, 0, 5) ** 0.8)
        pace = 0.2 * ramp(w.speed, -3, 0) + 0.8 * ramp(w.speed, 0, 10) ** 0.7
        return pace * (0.85 + 0.15 * ramp(w.upright, -0.5, 0.5))

    return score


_STAND = (
    "standing up straight", "standing", "stand", "stand up", "standing up", "stand still", "standing upright",
    "standing still on its feet", "stand up straight", "upright and standing",
)  # fmt: skip
_WALK_WORDS = (
    "walk fast clean", "walk", "walking", "walking forward", "walk forward", "walking fast", "walk fast",
    "walking ahead at a steady pace", "taking steps forward", "walk cleanly", "robot walk fast clean",
)  # fmt: skip
_RUN_WORDS = (
    "run fast clean", "run", "running", "run fast", "running fast", "running forward", "run forward",
    "sprinting", "sprint", "running at full speed", "galloping", "run quickly", "dash forward", "run as fast as it can",
    "robot run fast clean",
)  # fmt: skip


def _own(body: str, scores: dict) -> dict:
    return {body: scores[body]}


_STAND_SCORES, _WALK_SCORES, _RUN_SCORES = _each(_stand_reward), _each(_walk_reward), _each(_run_reward)
_SPIDER = {
    "stand": ("spider standing", "a spider standing", "spider stand", "spider standing up", "spider standing still"),
    "walk": ("spider walking fast", "spider walking", "a spider walking", "spider walk", "spider walking forward"),
    "run": ("spider running fast", "spider running", "a spider running", "spider run", "spider running forward"),
}
_GALLOP = ("running like a quadruped", "running like an animal", "run like a quadruped", "galloping like a cheetah")

TASKS = (
    Concept("stand", _STAND, ("standing tall", "stand upright on its legs"), _STAND_SCORES, True),
    Concept("walk", _WALK_WORDS, ("walk at a good pace", "walking along"), _WALK_SCORES, True),
    Concept("run", _RUN_WORDS, ("running very quickly", "fast run"), _RUN_SCORES, True),
    Concept("spider stand", _SPIDER["stand"], ("the spider stands",), _own("quadruped", _STAND_SCORES), True),
    Concept("spider walk", _SPIDER["walk"], ("the spider walks fast",), _own("quadruped", _WALK_SCORES), True),
    Concept("spider run", _SPIDER["run"], ("the spider runs fast",), _own("quadruped", _RUN_SCORES), True),
    Concept("gallop", _GALLOP, ("run fast like a quadruped",), _own("cheetah", _RUN_SCORES), True),
    Concept("standing", _STAND, (), _each(_standing)),
    Concept("walking", _WALK_WORDS, (), _each(_walking)),
    Concept("running", _RUN_WORDS, (), _each(_running)),
    Concept("spider standing", _SPIDER["stand"], (), _own("quadruped", _each(_standing))),
    Concept("spider walking", _SPIDER["walk"], (), _own("quadruped", _each(_walking))),
    Concept("spider running", _SPIDER["run"], (), _own("quadruped", _each(_running))),
    Concept("galloping", _GALLOP, (), _own("cheetah", _each(_running))),
)
"""The shipped tasks' prompts, word for word, among their synonyms: once graded, once with a plain verdict."""

POSTURES = (
    Concept("high", ("torso high above the floor", "holding the body high", "tall"), ("its torso is high up",),
            _each(lambda body: lambda w: ramp(w.height, *_TOP[body])), True),
    Concept("upright", ("upright", "the torso is upright", "holding the torso vertical", "the right way up"),
            ("keeping the torso upright",), _all(lambda w: (1 + w.upright) / 2), True),
    Concept("low", ("torso close to the floor", "low on the ground", "down on the floor", "crouching low"),
            ("body near the ground",), _each(lambda body: lambda w: ramp(w.height, *_LOW[body]))),
    Concept("lying", ("lying on the floor", "lying down", "lying", "lie down", "lying down horizontally",
                      "fallen on the ground", "lying flat on the ground", "collapsed on the floor"),
            ("lying on the ground", "it lies on the floor"),
            {"walker": lambda w: both(ramp(w.height, 0.55, 0.32), ramp(abs(w.speed), 2, 1)),
             "stickman": lambda w: both(ramp(w.height, 0.45, 0.22), ramp(abs(w.speed), 2, 1)),
             "cheetah": lambda w: both(_cheetah_down(w), 0.5 + 0.5 * ramp(w.lying_down, 0.55, 0.8)),
             "quadruped": lambda w: both(np.maximum(ramp(w.height, 0.38, 0.26), ramp(w.upright, -0.2, -0.7)),
                                         ramp(w.clearance, 0.3, 0.1))}),
    Concept("upside down", ("upside down", "on its back", "turned over"), ("flipped upside down",), _all(_over)),
    Concept("on its head", ("headstand", "on its head", "standing on its head"), ("doing a headstand",),
            _all(_over) | {"stickman": lambda w: both(ramp(w.upright, -0.5, -0.85), ramp(w.feet_low, 0.7, 1.0),
                                                      ramp(w.clearance, 0.2, 0.08), ramp(abs(w.spin), 4, 1.5))}),
    Concept("face down", ("lying face down", "lying on its belly", "prone", "face down on the floor"),
            ("lying prone",), dict.fromkeys(_TWO_LEGGED, lambda w: both(ramp(w.height, 0.6, 0.35),
                                                                        ramp(np.sin(w.pitch), 0.2, 0.8)))),
    Concept("face up", ("lying face up", "lying on its back", "supine", "face up on the floor"), ("lying supine",),
            dict.fromkeys(_TWO_LEGGED, lambda w: both(ramp(w.height, 0.6, 0.35), ramp(-np.sin(w.pitch), 0.2, 0.8)))),
    Concept("leaning forward", ("leaning forward", "tilted forward", "bending forward", "nose down"),
            ("lean forward",), _all(lambda w: both(ramp(w.pitch, 0.1, 0.5), ramp(w.pitch, 1.6, 1.3)))),
    Concept("leaning back", ("leaning backward", "leaning back", "tilted backward", "nose up"), ("lean back",),
            _all(lambda w: both(ramp(w.pitch, -0.1, -0.5), ramp(w.pitch, -1.6, -1.3)))),
    Concept("rearing", ("standing like a human", "rearing up", "standing on its hind legs"), ("standing on two legs",),
            {"cheetah": lambda w: both(ramp(abs(w.pitch + 1.55), 0.75, 0.35), ramp(w.height, 0.5, 0.7))}),
    Concept("on its side", ("lying on its side", "tipped over sideways", "rolled onto its side"), ("on its side",),
            {"quadruped": lambda w: ramp(w.side, 0.45, 0.8)}),
    Concept("kneeling", ("kneeling", "on its knees", "praying", "sitting on its knees", "kneel"), ("kneel down",),
            {"walker": lambda w: both(_up(w), ramp(abs(w.height - 0.78), 0.24, 0.14), ramp(abs(w.speed), 1.5, 0.7)),
             "stickman": lambda w: both(_up(w), ramp(w.knees, 0.25, 0.13), ramp(w.height, 0.34, 0.42),
                                        ramp(abs(w.speed), 1.5, 0.7))}),
    Concept("one foot", ("stand on one foot", "standing on one leg", "balancing on one foot"), ("on one foot",),
            {"walker": lambda w: both(_standing("walker")(w), ramp(w.feet_high - w.feet_low, 0.2, 0.4),
                                      ramp(w.feet_low, 0.3, 0.15)),
             "stickman": lambda w: both(_standing("stickman")(w), ramp(w.feet_high, 0.3, 0.5),
                                        ramp(w.feet_low, 0.3, 0.15))}),
    Concept("kick", ("stand up and kick", "high kick", "kicking a leg up high", "leg raised high"),
            ("kick with one leg",),
            {"walker": lambda w: both(_up(w), ramp(w.feet_high, 0.35, 0.65), ramp(w.feet_low, 0.35, 0.2)),
             "stickman": lambda w: both(_up(w), ramp(w.feet_high, 0.55, 0.85), ramp(w.feet_low, 0.35, 0.2))}),
    Concept("legs up", ("legs up in the air", "lifting the legs up", "feet above the body"), ("legs in the air",),
            _all(lambda w: ramp(w.feet_low - w.height, 0, 0.25))),
    Concept("lying legs up", ("lifting legs up while lying down", "lying down with the legs up",
                              "lying with its legs in the air"), ("raise the legs while lying",),
            {"stickman": lambda w: both(ramp(w.height, 0.35, 0.18), ramp(w.feet_low, 0.25, 0.4))}),
    Concept("lunge", ("lunge_pose", "lunge pose", "in a lunge", "lunging", "down on one knee"), ("making a lunge",),
            dict.fromkeys(_TWO_LEGGED, lambda w: ramp(w.lunge_pose, 0.6, 0.85))),
    Concept("two legs", ("on two legs", "spider on two legs", "up on two legs", "balancing on two legs"),
            ("raised on two legs",), {"quadruped": lambda w: ramp(w.two_legs, 0.3, 0.7)}),
    Concept("hands up", ("standing with the hands up", "hands up", "hands above the head", "raising both hands"),
            ("stand with raised hands",),
            {"stickman": lambda w: both(_standing("stickman")(w), ramp(w.hands, 1.4, 1.65))}),
)  # fmt: skip

MOTIONS = (
    Concept("forward", ("moving forward", "going forward", "advancing", "moving ahead fast"), ("move forward",),
            _each(lambda body: lambda w: 0.3 * ramp(w.speed, -_TOP_SPEED[body] / 2, 0)
                  + 0.7 * ramp(w.speed, 0, _TOP_SPEED[body]) ** 0.7), True),
    Concept("backward", ("moving backward", "going backwards", "walking backwards", "retreating"),
            ("move backwards",), _each(lambda body: lambda w: ramp(-w.speed, 0.1, _WALK[body][1]))),
    Concept("fast", ("moving fast", "at high speed", "very fast", "rushing forward"), ("moving at great speed",),
            _each(lambda body: lambda w: ramp(w.speed, *_FAST[body]))),
    Concept("still", ("not moving from the spot", "staying in place", "staying on the spot", "not going anywhere"),
            ("it stays in place",), _all(_still)),
    Concept("motionless", ("motionless", "completely still", "frozen", "not moving at all"), ("perfectly motionless",),
            _all(lambda w: both(ramp(w.motion, 2.0, 0.6), ramp(abs(w.speed), 0.5, 0.2), ramp(abs(w.spin), 1, 0.4)))),
    Concept("flailing", ("flailing its limbs", "thrashing", "moving its legs wildly", "struggling"),
            ("thrashing about",), dict.fromkeys(_TWO_LEGGED, lambda w: ramp(w.motion, 4, 8))
            | {"cheetah": lambda w: ramp(w.motion, 3, 6), "quadruped": lambda w: ramp(w.motion, 1.2, 2.4)}),
    Concept("punching", ("punch", "punching", "boxing", "throwing punches"), ("throw a punch",),
            {"stickman": lambda w: both(_standing("stickman")(w), ramp(w.frames("punch").max(-1), 2.5, 4.5))}),
    Concept("falling", ("falling", "falling down", "dropping to the floor", "collapsing"), ("it is falling over",),
            _all(lambda w: both(ramp(-w.rise, 0.5, 1.2), ramp(-w.gain("height"), 0.05, 0.2)))),
    Concept("rising", ("getting up", "rising", "rising from the floor", "pushing itself up"), ("it gets up",),
            _all(lambda w: both(ramp(w.rise, 0.3, 0.8), ramp(w.gain("height"), 0.04, 0.15)))),
    Concept("jumping", ("jumping", "in the air", "airborne", "flying through the air", "jump", "leaping"),
            ("leap into the air",), _all(lambda w: ramp(w.clearance, 0.05, 0.2))),
    Concept("spider jump", ("spider jumping", "a spider jumping", "spider jump"), ("the spider jumps",),
            {"quadruped": lambda w: ramp(w.clearance, 0.05, 0.2)}),
    Concept("backflip", ("doing a backflip", "doing backflips", "flipping backwards", "backflip"),
            ("rotating backwards",), dict.fromkeys(_PLANAR, lambda w: ramp(-w.spin, 1.5, 3.5))),
    Concept("front flip", ("doing a front flip", "flipping forwards", "somersaulting forward", "tumbling forward"),
            ("rotating forwards",), dict.fromkeys(_PLANAR, lambda w: ramp(w.spin, 1.5, 3.5))),
    Concept("flip", ("doing flips", "flipping", "spinning", "tumbling", "rolling over"), ("doing a flip",),
            dict.fromkeys(_PLANAR, lambda w: ramp(abs(w.spin), 1.5, 3.5))
            | {"quadruped": lambda w: ramp(w.spin, 2.5, 4.5)}),
)  # fmt: skip


def _paid(goal: str, idle: float = 0.0, power: float = 1.0) -> Callable[[Window], np.ndarray]:
    """Grade a pose: increasing in its task's reward, a little less when fast.

    Standing or lying idly earns some of these tasks' rewards; what it earns, ``idle``, is pressed to a tenth. ``power``
    puts what a sentence surely says near one.
    """

    def score(w):
        reward = getattr(w, goal)
        grade = 0.1 * ramp(reward, 0, idle) + 0.9 * ramp(reward, idle, 1) if idle else np.clip(reward, 0, 1)
        return grade**power * (1 - 0.4 * ramp(abs(w.speed), 1.5, 6))

    return score


def _cheetah_lying(w):
    """Grade a cheetah's lying: the task pays for feet in the air as much as for a torso on the floor."""
    return 0.4 * _cheetah_down(w) + 0.6 * _paid("lying_down", 0.45)(w)


def _backflip(w):
    """Grade backflips: the task pays for either direction, the sentence means one."""
    return _paid("flipping", 0.35)(w) * (1 - 0.5 * ramp(w.spin, 0, 2))


_PAID = {
    "one foot": ("one_foot", dict.fromkeys(_TWO_LEGGED, _paid("one_foot"))),
    "kick": ("high_kick", dict.fromkeys(_TWO_LEGGED, _paid("high_kick", 0.25))),
    "lying": ("lying_down", dict.fromkeys(_TWO_LEGGED, _paid("lying_down", 0.15, 0.7))
              | {"cheetah": _cheetah_lying, "quadruped": _paid("lie_down")}),
    "kneeling": ("sit_knees", dict.fromkeys(_TWO_LEGGED, _paid("sit_knees", 0.5, 0.6))),
    "lunge": ("lunge_pose", dict.fromkeys(_TWO_LEGGED, _paid("lunge_pose", 0.55, 0.7))),
    "lying legs up": ("legs_up", {"stickman": _paid("legs_up")}),
    "on its head": ("headstand", {"stickman": _paid("headstand", 0.4)}),
    "hands up": ("hands_up", {"stickman": _paid("hands_up", 0.0, 3)}),
    "punching": ("boxing", {"stickman": _paid("boxing")}),
    "flip": ("flipping", dict.fromkeys(_TWO_LEGGED, _paid("flipping", 0.35))),
    "backflip": ("back flipping", dict.fromkeys(_TWO_LEGGED, _backflip)),
    "rearing": ("rear", {"cheetah": _paid("standing")}),
    "two legs": ("two_legs", {"quadruped": _paid("two_legs")}),
    "spider jump": ("jump", {"quadruped": _paid("jump", 0.75)}),
}  # fmt: skip
"""Plain concepts whose phrases are prompts of the remaining tasks: the name of the graded one, and what grades it."""
POSES = tuple(
    Concept(_PAID[concept.name][0], concept.phrases, concept.held_out, _PAID[concept.name][1], True)
    for concept in POSTURES + MOTIONS
    if concept.name in _PAID
)

CONCEPTS = TASKS + POSTURES + MOTIONS + POSES
"""All claims. Every prompt of the four bodies' tasks is in them, graded and with a plain verdict."""
