"""The one table of settings: every field and its default, the paper's size; what departs from it is in presets.py.

Marks in the comments: [P] stated by the paper, [G] inherited from GenRL, [D] a decision where the paper is
silent; each [D] is a field so that it can be ablated.  ``experiments/configs`` compose these functions into
files for ``--config=FILE:ARG``; a run's resolved config lies in its folder and is all that loading needs.
"""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bitagent_jax import errors, zoo
from bitagent_jax.data import behaviors
from bitagent_jax.envs import register
from bitagent_jax.envs.tasks import BODIES, tasks_of
from bitagent_jax.files import write_atomically
from bitagent_jax.mllm.encoder import CLIP, ENCODERS
from bitagent_jax.mllm.precomputed import NAME as PRECOMPUTED
from bitagent_jax.presets import ABLATIONS, BODY_TASKS, PRESETS

CHOICES: dict[str, tuple[str, ...]] = {
    "env.look": ("auto", "stock", "fast"),
    "data.mix": behaviors.MIXES,
    "world_model.vision": ("conv", "patch"),
    "world_model.posterior": ("frame", "history"),
    "world_model.decoder": ("stoch", "feat"),
    "fusion.kind": ("tamf", "concat", "none"),
    "mllm.encoder": tuple(ENCODERS),
    "mllm.adapter": ("residual", "lowrank", "none"),
    "reward.similarity": ("max_cosine", "cosine", "neg_kl", "likelihood"),
    "imagination.semantics": ("decode", "hold"),
    "optim.kind": ("adam", "muon"),
    "task_imagination.feed": ("data", "own"),
    "compute.dtype": ("float32", "bfloat16"),
}

SIZE = 64
POSITIVE = (
    "train.batch", "train.length", "train.log_every", "train.checkpoint_every", "eval.episodes", "env.num_envs",
    "env.action_repeat", "data.online_episodes", "explore.updates", "imagination.horizon", "imagination.stride",
    "mllm.adapter_rank", "mllm.adapter_units", "mllm.aligner_units", "world_model.deter", "world_model.hidden",
    "world_model.stoch", "world_model.classes", "world_model.depth", "fusion.layers", "fusion.width",
    "behavior.layers", "behavior.units", "behavior.bins", "data.episodes", "data.capacity", "train.keep",
)  # fmt: skip
NOT_NEGATIVE = (
    "seed", "optim.model_lr", "optim.behavior_lr", "optim.refine", "train.stage1_steps", "train.stage2_steps",
    "train.video_every", "data.online_every", "joint.warmup",
)  # fmt: skip

SHARES = (
    "optim.cooldown", "fusion.semantic_dropout", "compute.data_share", "reward.semantic", "behavior.discount",
    "behavior.trace", "behavior.return_decay",
)  # fmt: skip


def defaults() -> ConfigDict:
    """Return the locked config at the paper's size (batch 64, length 32, RSSM 1024, CNN depth 48)."""
    return ConfigDict(
        {
            "seed": 0,
            "body": "walker",
            "tasks": ("walker_stand", "walker_walk", "walker_run"),
            "prompts": (),  # what to learn instead of the tasks' own prompts, see mllm/prompts.py; () = theirs
            "env": {
                "action_repeat": 2,
                "size": SIZE,
                "look": "auto",
                "num_envs": 4,  # at once in collecting; the first collection has at least one a behaviour
                "workers": 0,  # 0 = one per core
            },
            "custom": {  # a body of one's own, as register_env was told of it; make_config fills these in
                "factory": "",
                "action_dim": 0,
                "control_steps": 0,
                "tasks": (),
            },
            "data": {
                "folder": "",  # "" = RUN/episodes
                "mix": "random",  # behaviours that fill RUN/episodes: random | zoo (where the package ships actors)
                "episodes": 200,  # collected when RUN/episodes holds fewer
                "capacity": 3_000_000,  # frames drawn from; the oldest episodes leave first
                "online_every": 0,  # collect again every so many updates; 0 = offline
                "online_episodes": 4,
            },
            "mllm": {
                "encoder": "embedded",  # the names are those of mllm/encoder.py
                "weights": "",  # of any other encoder: a local folder, or owner/name on the Hugging Face Hub;
                # of precomputed: KEY:WIDTH of the embeddings that lie beside the episodes
                "adapter": "residual",  # [D] what the backward path trains on the MLLM side
                "adapter_units": 128,
                "adapter_rank": 16,  # of lowrank
                "aligner_units": 512,
                "aligner_noise": 0.5,  # [G] aligner(norm((1-n) e + n noise)) -> e
            },
            "world_model": {  # [G]
                "deter": 1024,
                "hidden": 1024,
                "stoch": 32,
                "classes": 32,
                "unimix": 0.01,
                "logit_scale": 1.0,  # [D] of the posterior's first logits; decided codes teach small models sooner
                "vision": "conv",
                "depth": 48,
                "posterior": "frame",  # [D] frame (GenRL) | history (DreamerV3, FOUNDER)
                "decoder": "stoch",  # [D] stoch: image from z alone | feat: from h and z
                "kl_scale": 0.6,
                "kl_balance": 0.85,
                "free_nats": 1.0,
            },
            "fusion": {
                "kind": "tamf",  # [P]; concat: linear of [e; s; tau]; none: [s; tau]
                "layers": 4,  # [D]
                "width": 512,  # [D]
                "layer_scale": 0.01,  # [D]
                "skip": False,  # [D] show actor and critic the state beside the fused feature
                "skip_task": False,  # [D] and the task
                "gates_learn_semantic": False,  # [D] from clips told a drawn task
                "semantic_dropout": 0.5,  # [D] rate of hiding e_v, so that f_dec must predict it
            },
            "task_imagination": {
                "action": False,  # [D] condition the task prior on the action too
                "feed": "data",  # [G] whose latents it goes on from in training: data | own
                "segment": 16,  # [D] steps rolled from the learned initial state in training; a multiple of 8
                "kl_scale": 0.8,  # [G]
            },
            "reward": {
                "similarity": "max_cosine",  # [D]
                "window": 8,  # [G]
                "semantic": 0.0,  # [D] share of the cosine of decoded semantics and sentence, the rest: similarity
            },
            "imagination": {
                "horizon": 16,  # [P]
                "semantics": "decode",  # [D] where imagined steps get e_v from: decode | hold
                "stride": 1,  # [D] rollouts start from every so many rows of a sequence
            },
            "behavior": {
                "layers": 4,
                "units": 1024,
                "min_std": 0.1,
                "init_std": 0.9,  # [D] of the untrained policy
                "discount": 0.99,
                "trace": 0.95,
                "entropy": 3e-4,
                "return_decay": 0.99,
                "bins": 255,
                "slow_rate": 0.02,
                "regression": 0.0,  # [D] weight of regression toward the data's actions of high return
                "regression_temperature": 0.25,  # [D] in standard deviations of the returns
            },
            "explore": {  # Plan2Explore, which `bitagent collect --mix plan2explore` runs; a training run ignores it
                "heads": 5,
                "layers": 4,
                "units": 1024,
                "updates": 200,  # between two rounds of episodes, one of each environment
            },
            "joint": {  # Eq. 8 scales; each loss's modules are the table in agent/joint.py
                "wm": 1.0,
                "mllm": 1.0,
                "jbo": 1.0,
                "dynamics_kl": 0.1,  # [D] Eq. 9
                "anchor": 5.0,  # [D] keeps the adapted embedding near the frozen one
                "relation": 0.0,  # [D] keeps the similarities among adapted clips and sentences near the frozen ones
                "jbo_reaches_adapter": True,  # False: the backward path ends at the fusion, a control
                "warmup": 0,  # [D] stage-2 updates over which jbo rises from 0 to its scale
                "target_ema": 0.02,  # [D] rate of the slow task imagination that draws the reference
                "world_model_in_stage2": True,  # [D]
            },
            "optim": {
                "kind": "adam",  # [D] adam | muon
                "model_lr": 1e-4,
                "behavior_lr": 1e-4,
                "clip": 1000.0,
                "behavior_clip": 100.0,
                "eps": 1e-8,
                "decay": 1e-6,
                "refine": 1.0,  # [D] share of model_lr in stage 2
                "cooldown": 0.0,  # [D] last part of each stage over which the rates fall to 0
            },
            "train": {
                "stage1_steps": 100_000,
                "stage2_steps": 50_000,
                "batch": 64,
                "length": 32,
                "log_every": 100,
                "checkpoint_every": 2000,
                "keep": 3,
                "video_every": 10_000,  # 0 = never
            },
            "eval": {"episodes": 10},
            "compute": {
                "dtype": "float32",
                "fsdp": 1,
                "data_share": 0.5,  # of an accelerator's memory that a data set may fill, to be read there; 0 = never
            },
        },
    ).lock()


LATER = (
    "explore.", "mllm.adapter_rank", "fusion.skip", "behavior.regression", "joint.relation", "joint.warmup",
    "joint.jbo_reaches_adapter", "optim.kind", "optim.refine", "optim.cooldown", "compute.data_share",
    "reward.semantic",
)  # fmt: skip
"""How fields begin that runs of earlier versions lack; their defaults learn what those versions did."""

EARLIER = {"fusion.gates_learn_semantic": True, "task_imagination.feed": "own"}
"""Fields that they lack too, with what those versions did."""


def default_tasks(body: str) -> tuple[str, ...]:
    """Return the tasks that a body's config names unless told otherwise: of a body of one's own, all."""
    return BODY_TASKS.get(body) or tasks_of(body)


def make_config(body: str = "walker", arg: str = "paper") -> ConfigDict:
    """Build the locked config of a body with presets and ablations applied from left to right.

    Args:
        body: of the table of tasks, or entered there by ``register_env``.
        arg: comma-separated names out of ``PRESETS`` and ``ABLATIONS``, for example ``"cpu,no_tamf"``.

    Raises:
        ValueError: for an unknown body or name, with its nearest match.
    """
    config = defaults()
    config.body, config.tasks = body, default_tasks(body)
    config.custom.update(register.registration(body))
    config.data.mix = "zoo" if set(config.tasks) & set(zoo.load_card()["actors"]) else "random"
    for name in filter(None, (arg or "").split(",")):
        if name not in PRESETS | ABLATIONS:
            raise errors.unknown("preset or ablation", name, PRESETS | ABLATIONS)
        config.update_from_flattened_dict((PRESETS | ABLATIONS)[name])
    return config


def validate(config: ConfigDict) -> ConfigDict:
    """Check values that a type cannot: choices, window and segment arithmetic; return the config.

    Raises:
        ValueError: naming the field, the value given and the values allowed.
    """
    flat = flatten(config)
    for field, allowed in CHOICES.items():
        if flat[field] not in allowed:
            raise errors.unknown(f"value of config.{field}", flat[field], allowed)
    if config.body not in BODIES:
        raise errors.unknown("value of config.body", config.body, BODIES)
    for task in config.tasks:
        if task not in tasks_of(config.body):
            raise errors.unknown(f"task of body {config.body}", task, tasks_of(config.body))
    if config.data.mix == "zoo" and not config.data.folder:
        behaviors.mixture("zoo", tuple(config.tasks) or default_tasks(config.body))
    if not config.tasks and not config.prompts:
        raise ValueError("config.tasks and config.prompts are both empty: nothing to learn")
    for prompt in config.prompts:
        if not isinstance(prompt, str):
            raise ValueError(f"config.prompts holds {prompt!r}, no string; paraphrases are written 'run fast | sprint'")
        if not prompt.strip():
            raise ValueError("config.prompts holds an empty sentence")
    if config.tasks and config.prompts and len(config.tasks) != len(config.prompts):
        raise ValueError(
            f"config.prompts holds {len(config.prompts)} sentences for {len(config.tasks)} tasks; give one for each "
            "task, or set config.tasks=() for sentences that no task's reward scores"
        )
    if config.reward.semantic and not config.joint.mllm:
        raise ValueError(
            f"config.reward.semantic={config.reward.semantic} needs the semantic decoder, which config.joint.mllm=0 "
            "leaves untrained: set one of them"
        )
    if config.behavior.regression and config.joint.world_model_in_stage2:
        raise ValueError(
            f"config.behavior.regression={config.behavior.regression} judges the data by latents that stay as they "
            "are: set config.joint.world_model_in_stage2=False"
        )
    if config.mllm.encoder == PRECOMPUTED:
        _check_precomputed(config)
    _check_lengths(config)
    return config


def _check_precomputed(config: ConfigDict) -> None:
    """Without an encoder, episodes and prompts come embedded, and no new picture can be."""
    needs = {
        "data.folder": (config.data.folder != "", "of episodes with embeddings"),
        "prompts": (len(config.prompts) > 0, "of .npy files"),
        "data.online_every": (config.data.online_every == 0, "to be 0"),
        "imagination.semantics": (config.imagination.semantics == "decode", "to be decode"),
    }
    for field, (fits, wanted) in needs.items():
        if not fits:
            raise ValueError(f"config.mllm.encoder={PRECOMPUTED} needs config.{field} {wanted}")


def _check_lengths(config: ConfigDict) -> None:
    segment, length = config.task_imagination.segment, config.train.length
    window, steps = config.reward.window, config.imagination.horizon
    if segment % CLIP or segment < CLIP:
        raise ValueError(f"config.task_imagination.segment={segment} is no multiple of {CLIP} (frames a clip)")
    if length % segment:
        raise ValueError(f"config.train.length={length} is not a multiple of config.task_imagination.segment={segment}")
    if not 1 <= window <= steps:
        raise ValueError(f"config.reward.window={window} is outside 1..{steps} (config.imagination.horizon)")
    narrow, first = config.behavior.min_std, config.behavior.init_std
    if not 0 <= narrow < first < 1:
        raise ValueError(f"config.behavior.init_std={first} is not between config.behavior.min_std={narrow} and 1")
    if config.env.size != SIZE:
        raise ValueError(f"config.env.size={config.env.size} is not {SIZE}, the pixels that the world model decodes")
    if config.explore.heads < 2:
        raise ValueError(f"config.explore.heads={config.explore.heads} cannot disagree: at least 2 are needed")
    flat = flatten(config)
    for field in SHARES:
        if not 0 <= flat[field] <= 1:
            raise ValueError(f"config.{field}={flat[field]} is no share, 0 to 1")
    for least, fields in ((1, POSITIVE), (0, NOT_NEGATIVE)):
        for field in fields:
            if flat[field] < least:
                raise ValueError(f"config.{field}={flat[field]} must be at least {least}")


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Return the config as one flat dict ``{"world_model.deter": 1024, ...}``."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def save(config: ConfigDict, path: Path) -> None:
    """Write the resolved config as flat JSON, unless the file says the same."""
    text = json.dumps(flatten(config), indent=1, sort_keys=True).encode() + b"\n"
    if not path.exists() or path.read_bytes() != text:
        write_atomically(path, lambda file: file.write(text))


def read(path: Path) -> ConfigDict:
    """Read a config written by :func:`save`, and register its body if it is one of the user's own.

    What runs of earlier versions do not hold gets the defaults (``LATER``), or what they did (``EARLIER``).

    Raises:
        ValueError: if the file holds a field this version does not know, or a value of another kind, or lacks one.
    """
    try:
        stored = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(stored, dict):
        raise ValueError(f"{path} holds no settings but {str(stored)[:40]!r}")
    config = defaults()
    known = flatten(config)
    for key in stored:
        if key not in known:
            raise errors.unknown(f"config field in {path}", key, known)
    absent = known.keys() - stored.keys() - EARLIER.keys()
    if missing := sorted(name for name in absent if not name.startswith(LATER)):
        raise ValueError(f"{path} lacks the config fields {', '.join(missing)}")
    config.update_from_flattened_dict(EARLIER)
    for key, value in stored.items():
        try:
            config.update_from_flattened_dict({key: _tuples(value)})
        except TypeError as error:
            raise ValueError(f"config.{key} in {path} takes a value like {known[key]!r}, not {value!r}") from error
    if config.custom.factory:
        register.restore(config.body, config.custom.to_dict())
    return validate(config)


def _tuples(value: Any) -> Any:
    """Undo what JSON does to tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
