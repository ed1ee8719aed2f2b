"""MLLM-WM joint optimisation: every loss, the table of which modules each may update, and the train step.

    L_total = l_WM L_WM + l_MLLM L_MLLM + l_JBO L_JBO   (Eq. 8)

``L_JBO`` is differentiable through the imagined rollout, the fusion and the adapter: the backward path.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from ml_collections import ConfigDict

from bitagent_jax.agent import behavior, imitation, rewards, task_imagination
from bitagent_jax.agent.semantics import add_noise, relation_loss
from bitagent_jax.agent.state import TrainState, apply_gradients
from bitagent_jax.agent.world_model import as_observed, feature

IMAGINED = ("fusion", "adapter", "actor", "critic")  # what stage-2 losses may reach; the rest is fixed in imagination


class Row(NamedTuple):
    """One row of the loss table: the scale of a loss and the modules that it may update."""

    scale: float
    modules: tuple[str, ...]


def loss_table(config: ConfigDict, stage: int) -> dict[str, Row]:
    """Return the losses of stage 1 (model) or 2 (behaviour and joint optimisation); rows at scale 0 are left out."""
    joint = config.joint
    adapter = ("adapter",) if config.mllm.adapter != "none" else ()
    fusion = ("fusion",) if config.fusion.kind != "none" else ()
    rows = {
        "semantic": Row(joint.mllm, (*fusion, "semantic", *adapter)),
        "text": Row(joint.mllm or 1.0, ("aligner", *(adapter if joint.mllm else ()))),
        "anchor": Row(joint.anchor, adapter),
        "relation": Row(joint.relation, adapter),
    }
    if stage == 1 or joint.world_model_in_stage2:
        rows |= {
            "reconstruction": Row(joint.wm, ("world_model",)),
            "kl": Row(joint.wm, ("world_model",)),
            "task_kl": Row(config.task_imagination.kl_scale, ("task_imagination",)),
            "dynamics_kl": Row(joint.dynamics_kl, ("task_imagination",)),
        }
    if stage == 2:
        rows |= {
            "jbo": Row(joint.jbo, (*fusion, *(adapter if joint.jbo_reaches_adapter else ()))),
            "actor": Row(1.0, ("actor",)),
            "critic": Row(1.0, ("critic",)),
            "regression": Row(config.behavior.regression, ("actor",)),
        }
    return {name: row for name, row in rows.items() if row.scale and row.modules}


def warm_up(table: dict[str, Row], config: ConfigDict, step: jax.Array) -> dict[str, Row]:
    """Let the scale of L_JBO rise linearly from 0 over the first ``joint.warmup`` updates of stage 2."""
    if not config.joint.warmup or "jbo" not in table:
        return table
    share = jnp.clip((step - config.train.stage1_steps) / config.joint.warmup, 0.0, 1.0)
    return table | {"jbo": table["jbo"]._replace(scale=table["jbo"].scale * share)}


def rate_shares(config: ConfigDict, stage: int, step: jax.Array) -> tuple[jax.Array | float, jax.Array | float]:
    """Return the shares of ``optim.model_lr`` and ``optim.behavior_lr`` at a step.

    Both fall linearly to 0 over the last part (``optim.cooldown``) of each stage; in stage 2 the model's is
    ``optim.refine`` of that.
    """
    share = 1.0
    if config.optim.cooldown:
        first, second = config.train.stage1_steps, config.train.stage2_steps
        left, steps = (first - step, first) if stage == 1 else (first + second - step, second)
        share = jnp.clip(left / (config.optim.cooldown * steps), 0.0, 1.0)
    return (share if stage == 1 else config.optim.refine * share), share


def routed_gradients(losses: Callable, params: dict, table: dict[str, Row]) -> tuple[dict, dict, dict]:
    """Differentiate each loss with respect to the modules of its row, and nothing else.

    Losses that share their modules share one backward pass; the forward pass runs once, and each backward pass goes
    only where its losses lead (of one pullback for all, a zero cotangent would still run through every scan).

    Args:
        losses: ``params -> (dict of loss arrays, aux)``.
        params: module name -> parameters.
        table: loss name -> row; losses that are not in the table are ignored.

    Returns:
        gradients (module name -> tree, only of modules in the table), the mean of each loss, and aux.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, row in table.items():
        groups.setdefault(row.modules, []).append(name)

    def totals(params):
        values, aux = losses(params)
        means = {name: jnp.mean(values[name]) for name in values}
        return [sum(table[n].scale * means[n] for n in names) for names in groups.values()], (means, aux)

    _, linear, (means, aux) = jax.linearize(totals, params, has_aux=True)
    gradients: dict = {}
    for i, modules in enumerate(groups):
        (pulled,) = jax.linear_transpose(lambda p, i=i: linear(p)[i], params)(jnp.ones(()))
        for module in modules:
            known = gradients.get(module)
            gradients[module] = pulled[module] if known is None else jax.tree.map(jnp.add, known, pulled[module])
    return gradients, means, aux


def masked(loss: jax.Array, mask: jax.Array) -> jax.Array:
    """Zero the rows outside the mask and rescale, so that the mean is over the rows inside: ``[B, T]``."""
    return jnp.where(mask, loss, 0.0) / jnp.maximum(jnp.mean(mask), 1 / mask.size)


def semantic_losses(agent, observed: dict, batch: dict, task: jax.Array, config: ConfigDict, key) -> tuple[dict, dict]:
    """Return the losses of the MLLM side, each ``[B, T]``, and metrics.

    Unless ``fusion.gates_learn_semantic``, gates do not learn from ``semantic``: its tasks are drawn, whatever the clip
    shows, so that they would learn to leave the task out.

    Args:
        agent: the modules.
        observed: what ``WorldModel.observe`` returned for the batch.
        batch: ``image``, ``action``, ``embedding [B, T, D]``, ``has_embedding [B, T]``, ``text [B, D]`` (of the
            episode's label), ``has_text [B]``.
        task: ``tau [B, D]`` of each sequence.
    """
    hide_key, noise_key = jax.random.split(key)
    frozen, has = batch["embedding"], batch["has_embedding"]
    losses = {}
    state = jax.lax.stop_gradient(feature(observed))
    embedding = agent.adapt(frozen)

    shown = has & ~jax.random.bernoulli(hide_key, config.fusion.semantic_dropout, has.shape)
    decoded = agent.semantic(agent.fusion(embedding, shown, state, task[:, None], config.fusion.gates_learn_semantic))
    losses["semantic"] = masked(squared(embedding - decoded), has)

    noised = add_noise(noise_key, jax.lax.stop_gradient(embedding), config.mllm.aligner_noise)
    text = jnp.where(batch["has_text"][:, None, None], batch["text"][:, None], noised)
    losses["text"] = masked(squared(embedding - agent.aligner(text)), has)
    cosine = jnp.sum(embedding * frozen, -1)
    losses["anchor"] = masked(1.0 - cosine, has)
    if config.joint.relation:
        texts = jnp.concatenate([task, batch["text"]])
        known = jnp.concatenate([jnp.ones(len(task), bool), batch["has_text"]])
        losses["relation"] = masked(*relation_loss(frozen, embedding, has, texts, known))
    return losses, {"adapter/cosine_to_frozen": 1.0 - jnp.mean(losses["anchor"])}


def world_losses(agent, observed: dict, batch: dict, config: ConfigDict, key) -> dict:
    """Return the losses of the world model and of the task imagination that is matched to it, each ``[B, T]``."""
    embedding = jax.lax.stop_gradient(agent.adapt(batch["embedding"]))
    matching = task_imagination.matching_losses(
        agent.task_imagination, observed, batch["action"], embedding, batch["has_embedding"],
        config.task_imagination.segment, config.task_imagination.feed, key,
    )  # fmt: skip
    matched = {name: masked(matching[name], matching["valid"]) for name in ("task_kl", "dynamics_kl")}
    return agent.world_model.loss(observed, batch["image"]) | matched


def squared(x: jax.Array) -> jax.Array:
    """Return the squared length of vectors ``[..., D]``."""
    return jnp.sum(jnp.square(x), -1)


def behavior_losses(agent, slow, observed, batch, prompts, ids, config, norms, key) -> tuple[dict, dict, dict]:
    """Return the stage-2 losses, each ``[N, H]`` over ``N = B*T/stride`` imagined rollouts, metrics, and new norms.

    Args:
        agent: the modules.
        slow: the modules with the slow critic, task imagination and aligner, never differentiated.
        observed: filtered states of the batch, where the rollouts start.
        prompts: ``[K, D]`` text embeddings of the task set.
        ids: int ``[B]``, each sequence's task.
        norms: moving percentiles of the returns.
    """
    settings, horizon = config.behavior, config.imagination.horizon
    starts = behavior.start_rows(
        {"state": {k: jax.lax.stop_gradient(observed[k]) for k in ("deter", "stoch")},
         "embedding": batch["embedding"], "has": batch["has_embedding"]},
        config.imagination.stride,
    )  # fmt: skip
    ids = jnp.repeat(ids, len(starts["has"]) // len(ids))
    path = behavior.rollout(
        agent, starts["state"], agent.adapt(starts["embedding"]), starts["has"], prompts[ids],
        horizon, config.imagination.semantics, key,
    )  # fmt: skip
    reward, offset = rewards.task_reward(slow, path, prompts, ids, config)
    losses, metrics, norms = behavior.actor_critic(agent.critic, slow.critic, path, reward, norms, settings)
    losses["jbo"] = -(settings.discount ** jnp.arange(horizon)) * reward
    metrics |= {
        "imagined/reward": jnp.mean(reward),
        "imagined/offset": jnp.mean(offset.astype(jnp.float32)),
    }
    for k in range(prompts.shape[0]):
        mine = (ids == k)[:, None]
        metrics[f"imagined/reward_{k}"] = jnp.sum(jnp.where(mine, reward, 0)) / jnp.maximum(jnp.sum(mine) * horizon, 1)
    return losses, metrics, norms


def assign_tasks(key: jax.Array, sequences: int, tasks: int) -> jax.Array:
    """Give each sequence a task, ``int [sequences]``, at random but with equal shares (to within one)."""
    shuffle_key, offset_key = jax.random.split(key)
    offset = jax.random.randint(offset_key, (), 0, tasks)
    return jax.random.permutation(shuffle_key, (jnp.arange(sequences) + offset) % tasks)


def make_train_step(graph: nnx.GraphDef, config: ConfigDict, prompts: jax.Array, stage: int) -> Callable:
    """Build the pure ``train_step(state, batch) -> (state, metrics)`` of a stage; jit it with the state donated.

    With a world model that rests in stage 2, its batches may hold latents in place of pictures.

    Args:
        graph: the agent's graph from :func:`bitagent_jax.agent.state.build`.
        config: the run's config.
        prompts: ``[K, D]`` text embeddings of the task set, unit norm.
        stage: 1 for world model, fusion and connectors; 2 for behaviour and joint optimisation.
    """
    table = loss_table(config, stage)
    prompts = jnp.asarray(prompts)
    with_world = stage == 1 or config.joint.world_model_in_stage2

    def losses(params, state, batch):
        agent = nnx.merge(graph, params)
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), 6)
        ids = assign_tasks(keys[0], batch["action"].shape[0], prompts.shape[0])
        if "image" in batch:
            observed = agent.world_model.observe(batch["image"], batch["action"], batch["is_first"], keys[1])
        else:
            observed = as_observed(batch, keys[1])
        values, metrics = semantic_losses(agent, observed, batch, prompts[ids], config, keys[2])
        norms = state.norms
        if with_world:
            values |= world_losses(agent, observed, batch, config, keys[4])
        if stage == 2:
            fixed = jax.lax.stop_gradient(params)
            slow = nnx.merge(graph, fixed | jax.lax.stop_gradient(state.slow))
            imaginer = nnx.merge(graph, fixed | {name: params[name] for name in IMAGINED if name in params})
            more, imagined, norms = behavior_losses(
                imaginer, slow, observed, batch, prompts, ids, config, state.norms, keys[3]
            )
            values, metrics = values | more, metrics | imagined
            if config.behavior.regression:
                values["regression"] = imitation.regression(
                    imaginer, batch, prompts, config.imagination.semantics, keys[5]
                )
        return values, (metrics, norms)

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict[str, jax.Array]]:
        rows = warm_up(table, config, state.step)
        grads, means, (metrics, norms) = routed_gradients(lambda p: losses(p, state, batch), state.params, rows)
        shares = rate_shares(config, stage, state.step)
        params, opt, grad_norms = apply_gradients(config, state.params, state.opt, grads, shares)
        target_rate = config.joint.target_ema if stage == 2 else 1.0
        slow = {
            name: optax.incremental_update(
                params[name], value, config.behavior.slow_rate if name == "critic" else target_rate
            )
            for name, value in state.slow.items()
        }
        metrics |= grad_norms | {f"loss/{name}": value for name, value in means.items()}
        return TrainState(state.step + 1, state.key, params, slow, opt, norms), metrics

    return train_step
