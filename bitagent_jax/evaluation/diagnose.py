"""Does a sentence's reward tell good behaviour from bad? Judged on the real frames of episodes with true rewards.

Windows of real frames, as long as an imagined rollout, take the place of one. The judges are ``raw cosine``, that of
the frozen encoder's clip and text embeddings, and, with a run, what it can be trained on: each form of the similarity
of latents, the posteriors of the frames against the task imagination, aligned as in training, and ``decoded cosine``,
that of the semantics which the model decodes from these states.
"""

import json
import logging
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bitagent_jax.agent.dynamics import flatten_latent
from bitagent_jax.agent.rewards import SIMILARITIES, semantic_reward, task_reward
from bitagent_jax.bench import report
from bitagent_jax.data.embeddings import embed_folder, open_embedding, without_embeddings
from bitagent_jax.data.episodes import list_episodes, open_episodes
from bitagent_jax.data.records import Records
from bitagent_jax.envs.tasks import TASKS, get_task
from bitagent_jax.evaluation import agreement
from bitagent_jax.evaluation.agreement import Judged
from bitagent_jax.evaluation.rollouts import task_prompts
from bitagent_jax.evaluation.scatter import Panel, scatter
from bitagent_jax.inference import load
from bitagent_jax.mllm.encoder import EMBEDDED, Encoder, load_encoder
from bitagent_jax.mllm.precomputed import Precomputed
from bitagent_jax.nn.distributions import mode_onehot
from bitagent_jax.policy import Agent
from bitagent_jax.training.run import RunFolder

_LOG = logging.getLogger(__name__)
RAW = "raw cosine"
DECODED = "decoded cosine"
STEPS = 16  # rows of a window without a run to say how far it imagines
NAMED = 5  # episodes of those that lack embeddings


class Diagnosis(NamedTuple):
    """Rows of the comparison, the text to print, and the files written."""

    rows: list[agreement.Row]
    text: str
    paths: list[Path]


def diagnose(
    source: str | Path, *, data: str | Path | None = None, encoder: str = "", weights: str = "", windows: int = 8,
    step: int | None = None, out: str | Path | None = None,
) -> Diagnosis:  # fmt: skip
    """Hold the rewards of sentences against the true ones of recorded episodes, task by task.

    Args:
        source: a run folder, all of whose forms of reward are judged, or a folder of episodes, for which only the
            encoder's cosine is. What embeddings the episodes lack is computed and cached beside them; those of a
            run without an encoder must be there.
        data: episodes for a run, instead of its own.
        encoder, weights: of a folder of episodes; by default ``embedded``.
        windows: drawn from each episode, evenly spread.
        step: the run's checkpoint; None: the newest.
        out: where ``diagnose.json`` and ``diagnose.png`` go; by default into ``source``.

    Raises:
        ValueError: what does not fit, no episode of a task that a sentence is known for, or embeddings that are
            missing and that no encoder can compute.
        RunError, CheckpointError: of a run.
    """
    if windows < 1:
        raise ValueError(f"windows must be at least 1, got {windows}")
    source, agent = Path(source), None
    if not list_episodes(source):
        if encoder or weights:
            raise ValueError(f"a run has its own encoder: --encoder and --weights are for episodes, not for {source}")
        agent = load(source, step)
        folder, judge = data or RunFolder.load(source).episodes, agent.encoder
    else:
        if data or step is not None:
            raise ValueError(f"{source} holds episodes, not a run: --data and --step are for a run")
        folder, judge = source, load_encoder(encoder or EMBEDDED, weights)
    episodes = open_episodes(list_episodes(folder))[0]
    prompts = _sentences(episodes, agent, folder)
    if not isinstance(judge, Precomputed):
        embed_folder(folder, judge)
    found, prompts = _with_windows(judge_windows(episodes, judge, agent, prompts, windows), prompts)
    rows = agreement.rows(found, list(prompts))
    shown = agent.config.reward.similarity if agent else RAW
    text = _text(found, rows, shown, prompts)
    told = report.facts(("jax", "flax", "numpy"), source=str(source), data=str(folder), encoder=judge.name)
    return Diagnosis(rows, text, _write(Path(out or source), found, rows, prompts, told))


def _sentences(episodes: list[Records], agent: Agent | None, folder: str | Path) -> dict[str, str]:
    """Return the prompt of each task that there are episodes of, of those that the agent knows."""
    recorded = {str(episode.meta.get("task")) for episode in episodes}
    known = [name for name in TASKS if agent is None or get_task(name).body == agent.config.body]
    known = list(agent.config.tasks) if agent and agent.config.tasks else known
    tasks = [name for name in known if name in recorded]
    if not tasks:
        held = ", ".join(sorted(recorded)) or "nothing"
        raise ValueError(f"no episode in {folder} is of {', '.join(known)}: the tasks recorded there are {held}")
    return task_prompts(agent, tasks) if agent else {name: get_task(name).prompt for name in tasks}


def judge_windows(
    episodes: list[Records], encoder: Encoder, agent: Agent | None, prompts: dict[str, str], windows: int
) -> Judged:
    """Score windows of the episodes of some tasks for each of these tasks' sentences.

    Args:
        episodes: with cached embeddings; those of other tasks are left out.
        encoder: whose embeddings.
        agent: whose forms of reward are judged too; None: the cosine alone.
        prompts: task -> sentence.
        windows: of each episode, evenly spread from the first row with an embedding to the last row.
    """
    told = list(prompts.values())  # a run's may be of any kind
    texts = np.stack([agent.embed_prompt(prompt) for prompt in told]) if agent else encoder.embed_text(told)
    context, steps = encoder.num_frames - 1, agent.config.imagination.horizon if agent else STEPS
    judge = make_judge(agent, texts, context) if agent else None
    fit = [one for one in episodes if one.meta.get("task") in prompts and one.rows >= context + steps]
    if not fit:
        raise ValueError(f"no episode has {context + steps} rows: all are too short for one window")
    _require_embeddings(fit, encoder)
    judged = []
    for number, episode in enumerate(fit):
        last = episode.rows - steps
        arrays, cached = episode.read(), open_embedding(episode, encoder.fingerprint).read()
        starts = np.unique(np.linspace(context, last, windows).astype(int))
        rows = starts[:, None] + np.arange(-context, steps)
        rows = rows[cached["has_embedding"][rows[:, context:]].any(1)]
        if not len(rows):
            continue
        scores = {RAW: _mean_embedding(cached, rows[:, context:]) @ texts.T}
        if judge:
            given = judge(arrays["image"][rows], arrays["action"][rows])
            scores |= {name: np.asarray(given[name]) for name in (*SIMILARITIES, DECODED)}
        names = (np.repeat(str(episode.meta.get(name, "unknown")), len(rows)) for name in ("task", "policy"))
        true = arrays["reward"][rows[:, context:]].mean(1)
        judged.append(Judged(*names, np.full(len(rows), number), true, scores))
    if not judged:
        raise ValueError(f"no window of {steps} rows of {len(fit)} episodes holds an embedding of {encoder.name}")
    *columns, scores = zip(*judged, strict=True)
    together = {kind: np.concatenate([one[kind] for one in scores]) for kind in scores[0]}
    return Judged(*map(np.concatenate, columns), together)


def _with_windows(found: Judged, prompts: dict[str, str]) -> tuple[Judged, dict[str, str]]:
    """Leave out the sentences of tasks none of whose episodes has a window, and name them."""
    present = set(found.task.tolist())
    if bare := [task for task in prompts if task not in present]:
        _LOG.warning("no episode of %s has a window that can be judged", ", ".join(bare))
    kept = [number for number, task in enumerate(prompts) if task in present]
    scores = {name: values[:, kept] for name, values in found.scores.items()}
    return found._replace(scores=scores), {task: prompt for task, prompt in prompts.items() if task in present}


def _require_embeddings(episodes: list[Records], encoder: Encoder) -> None:
    lacking = [one.path for one in without_embeddings(episodes, encoder.fingerprint, encoder.embed_dim)]
    if lacking:
        names = ", ".join(path.name for path in lacking[:NAMED]) + (", ..." if len(lacking) > NAMED else "")
        raise ValueError(
            f"{len(lacking)} of {len(episodes)} episodes to judge in {lacking[0].parent} lack embeddings "
            f"{encoder.fingerprint}:{encoder.embed_dim} ({names}), and {encoder.name} computes none: store them beside "
            "the episodes (bitagent import --format genrl, or write_embedding of bitagent_jax.data.embeddings), or "
            "name episodes that have them with --data"
        )


def _mean_embedding(cached: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Average what embeddings windows ``rows [W, H]`` hold: ``[W, D]``."""
    has = cached["has_embedding"][rows][..., None]
    return np.where(has, cached["embedding"][rows], 0).sum(1) / has.sum(1)


def make_judge(agent: Agent, prompts: np.ndarray, context: int):
    """Build ``judge(image [W, C+H, 64, 64, 3], action [W, C+H, A]) -> {judge: [W, K]}``, means of real windows.

    The rows of a window, posteriors of its frames beside its own actions, take the place of an imagined rollout;
    C rows before it are context, which a posterior with a history needs.

    Args:
        agent: whose task imagination and world model; its present weights stand for their slow averages.
        prompts: ``tau [K, D]``.
        context: C.
    """
    prompts = jnp.asarray(prompts)
    configs = {kind: agent.config.copy_and_resolve_references() for kind in SIMILARITIES}
    for kind, config in configs.items():
        config.reward.update(similarity=kind, semantic=0.0)

    @jax.jit
    def judge(params, image, action):
        module = nnx.merge(agent.graph, params)
        seen = module.world_model.observe(image, action, jnp.zeros(image.shape[:2], bool), jax.random.key(0))
        post = seen["post"][:, context:]
        path = {"prior": post, "deter": seen["deter"][:, context:], "stoch": flatten_latent(mode_onehot(post))}
        path["action"] = action[:, context:]

        def of_every_task(reward):
            return jnp.stack([reward(jnp.full(len(image), task)).mean(1) for task in range(len(prompts))], 1)

        def of_config(config, ids):
            return task_reward(module, path, prompts, ids, config)[0]

        forms = {kind: of_every_task(partial(of_config, config)) for kind, config in configs.items()}
        return forms | {DECODED: of_every_task(lambda ids: semantic_reward(module, path, prompts[ids]))}

    return lambda image, action: judge(agent.params, image, action)


def _text(found: Judged, rows: list[agreement.Row], shown: str, prompts: dict[str, str]) -> str:
    counts = ", ".join(f"{row.task} {row.count}" for row in rows if row.unit == "episode" and row.judge == RAW)
    parts = [
        f"agreement with the true reward over windows and over episodes ({counts}); precision by chance is "
        f"{agreement.TOP}, more where true rewards are equal",
        report.table(agreement.table(rows)),
        f"mean reward by {shown} of the windows of each policy, for the sentence of each task",
        report.table(agreement.policies(found, shown, list(prompts))),
    ]
    return "\n\n".join(parts)


def _write(out: Path, found: Judged, rows: list[agreement.Row], prompts: dict[str, str], told: dict) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    plain = [{**row._asdict(), "agreement": _finite(row.agreement._asdict())} for row in rows]
    means = {kind: agreement.policies(found, kind, list(prompts)) for kind in found.scores}
    path = out / "diagnose.json"
    path.write_text(json.dumps({"facts": told, "prompts": prompts, "rows": plain, "policies": means}, indent=1) + "\n")
    return [path, scatter(out / "diagnose.png", _panels(found, rows, list(prompts)))]


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else value for name, value in values.items()}


def _panels(found: Judged, rows: list[agreement.Row], tasks: list[str]) -> list[list[Panel]]:
    """Make a line of panels for each task, a column for each judge."""
    cells = {(row.task, row.judge, row.unit): row.agreement for row in rows}
    lines = []
    for number, task in enumerate(tasks):
        own, line = found.task == task, []
        for kind, values in found.scores.items():
            window, episode = (cells[task, kind, unit].correlation for unit in agreement.UNITS)
            note = f"rank correlation {window:.2f}, of episodes {episode:.2f}"
            dots = values[own, number], found.true[own], found.policy[own]
            line.append(Panel(f"true reward of {task}", kind, note, *dots))
        lines.append(line)
    return lines
