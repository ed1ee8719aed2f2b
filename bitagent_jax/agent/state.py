"""All that is trained, saved, resumed or sharded: one pytree."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from ml_collections import ConfigDict

from bitagent_jax.agent.model import BiTAgent

BEHAVIOR = ("actor", "critic")
SLOW = ("critic", "task_imagination", "aligner")


class TrainState(NamedTuple):
    """The training state; ``train_step`` maps it to the next one.

    Attributes:
        step: int32 scalar, updates done; randomness is ``fold_in(key, step)``, so a resumed run repeats itself.
        key: the run's random key.
        params: module name -> parameters.
        slow: module name -> moving average of the parameters (critic, task imagination, aligner).
        opt: module name -> optimiser state.
        norms: moving 5th and 95th percentiles of the returns.
    """

    step: jax.Array
    key: jax.Array
    params: dict[str, Any]
    slow: dict[str, Any]
    opt: dict[str, Any]
    norms: dict[str, jax.Array]


def build(config: ConfigDict, embed: int, actions: int) -> tuple[nnx.GraphDef, Callable[[jax.Array], dict]]:
    """Return the agent's graph (``nnx.merge(graph, params)`` gives the modules) and ``init(key) -> params``."""

    return build_module(lambda rngs: BiTAgent(config, embed, actions, rngs=rngs))


def build_module(make: Callable[[nnx.Rngs], nnx.Module]) -> tuple[nnx.GraphDef, Callable[[jax.Array], dict]]:
    """Return the graph of the module that ``make`` makes, without making it, and ``init(key) -> params``."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def init(key):
        return nnx.to_pure_dict(nnx.split(make(nnx.Rngs(key)))[1])

    return graph, init


def optimizer(config: ConfigDict, module: str) -> optax.GradientTransformation:
    """Return the optimiser of one module: global-norm clip, then Adam or Muon; then decay, by a share of the weights.

    Muon (Jordan et al. 2024) takes matrices along their orthogonalised momentum, of the size of Adam's updates (Liu et
    al. 2025), and everything else by Adam.
    """
    optim = config.optim
    rate, clip = (optim.behavior_lr, optim.behavior_clip) if module in BEHAVIOR else (optim.model_lr, optim.clip)
    if optim.kind == "muon":
        descend = optax.contrib.muon(rate, eps=optim.eps, consistent_rms=0.2)
    else:
        descend = optax.adam(rate, eps=optim.eps)
    return optax.chain(optax.clip_by_global_norm(clip), descend, optax.add_decayed_weights(-optim.decay))


def apply_gradients(
    config: ConfigDict, params: dict, opt: dict, grads: dict,
    shares: tuple[jax.Array | float, jax.Array | float] = (1.0, 1.0),
) -> tuple[dict, dict, dict]:  # fmt: skip
    """Update the modules that have gradients by shares of ``optim.model_lr`` and ``optim.behavior_lr``.

    Returns:
        all parameters, optimiser states, and the gradients' norms.
    """
    params, opt, norms = dict(params), dict(opt), {}
    of_model, of_behavior = shares
    for module, grad in grads.items():
        update, opt[module] = optimizer(config, module).update(grad, opt[module], params[module])
        update = optax.tree.scale(of_behavior if module in BEHAVIOR else of_model, update)
        params[module] = optax.apply_updates(params[module], update)
        norms[f"grad_norm/{module}"] = optax.tree.norm(grad)
    return params, opt, norms


def init_state(config: ConfigDict, init: Callable[[jax.Array], dict]) -> TrainState:
    """Build the initial state; run it under ``jax.jit(..., out_shardings=...)`` or ``jax.eval_shape``."""
    init_key, key = jax.random.split(jax.random.key(config.seed))
    params = init(init_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=key,
        params=params,
        slow={name: jax.tree.map(jnp.copy, params[name]) for name in SLOW if name in params},
        opt={name: optimizer(config, name).init(value) for name, value in params.items()},
        norms={"low": jnp.zeros(()), "high": jnp.zeros(())},
    )
