"""Plan2Explore (arXiv 2005.05960): an actor that seeks, in imagination, what an ensemble cannot yet predict.

Several heads predict the next latent from state and action. Where there was data they agree; elsewhere each errs in
its own way. Their disagreement is the reward of an actor-critic in imagination, so no task and no text is needed.
World model, rollouts, returns and losses are those of the agent.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from ml_collections import ConfigDict, FrozenConfigDict

from bitagent_jax.agent import behavior
from bitagent_jax.agent.behavior import Actor, Critic
from bitagent_jax.agent.joint import Row, routed_gradients
from bitagent_jax.agent.state import TrainState, apply_gradients, build_module
from bitagent_jax.agent.world_model import WorldModel, feature
from bitagent_jax.nn.layers import MLP

TABLE = {
    "reconstruction": Row(1.0, ("world_model",)),
    "kl": Row(1.0, ("world_model",)),
    "ensemble": Row(1.0, ("ensemble",)),
    "actor": Row(1.0, ("actor",)),
    "critic": Row(1.0, ("critic",)),
}
"""Each loss, its scale and the modules that it may update."""


class Ensemble(nnx.Module):
    """Heads that predict the next latent's probabilities from a state's feature and an action."""

    def __init__(self, inputs: int, stoch: int, classes: int, config, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.count, self.shape = config.heads, (stoch, classes)
        for i in range(self.count):
            head = MLP(inputs, config.units, config.layers, stoch * classes, dtype=dtype, rngs=rngs)
            setattr(self, f"head{i}", head)

    def __call__(self, state: jax.Array, action: jax.Array) -> jax.Array:
        """Predict: features ``[..., F]`` and actions ``[..., A]`` that follow them -> ``[K, ..., S, C]``."""
        x = jnp.concatenate([state, action], -1)
        heads = jnp.stack([getattr(self, f"head{i}")(x) for i in range(self.count)])
        return heads.reshape(*heads.shape[:-1], *self.shape).astype(jnp.float32)

    def loss(self, state: jax.Array, action: jax.Array, target: jax.Array) -> jax.Array:
        """Return half the squared error toward probabilities ``target [..., S, C]``, summed over heads: ``[...]``."""
        return 0.5 * jnp.sum(jnp.square(self(state, action) - target), axis=(0, -2, -1))


def disagreement(predictions: jax.Array) -> jax.Array:
    """Return the variance over heads, summed over classes and averaged over latents: ``[K, ..., S, C] -> [...]``.

    Zero where all heads agree; below 1 for heads that predict probabilities.
    """
    return jnp.mean(jnp.sum(jnp.var(predictions, axis=0), -1), -1)


class Explorer(nnx.Module):
    """World model, ensemble, actor and critic. It has the calls that rollouts and acting make, but is told nothing.

    Where the agent has embeddings and sentences of width D, this has some of width 0; its policy reads the state.
    """

    def __init__(self, config: ConfigDict, actions: int, *, rngs: nnx.Rngs):
        config = FrozenConfigDict(config)
        kw = {"dtype": jnp.dtype(config.compute.dtype), "rngs": rngs}
        self.actions, model = actions, config.world_model
        self.world_model = WorldModel(model, actions, **kw)
        width = self.world_model.feature_dim
        self.ensemble = Ensemble(width + actions, model.stoch, model.classes, config.explore, **kw)
        self.actor = Actor(width, actions, config.behavior, **kw)
        self.critic = Critic(width, config.behavior, **kw)

    def adapt(self, embedding: jax.Array) -> jax.Array:
        """Return the embedding ``[..., 0]``."""
        return embedding

    def fuser(self, task) -> Callable[..., jax.Array]:
        """Return ``fuse(embedding, has, state)``, which is the state's feature ``[..., F]``."""
        return lambda embedding, has, state: state

    def read_semantics(self, state, fuse) -> jax.Array:
        """Return no embedding, ``[..., 0]``."""
        return jnp.zeros((*state["deter"].shape[:-1], 0))


def build(config: ConfigDict, actions: int) -> tuple[nnx.GraphDef, Callable[[jax.Array], dict]]:
    """Return the explorer's graph (``nnx.merge(graph, params)`` gives the modules) and ``init(key) -> params``."""

    return build_module(lambda rngs: Explorer(config, actions, rngs=rngs))


def model_losses(explorer: Explorer, observed: dict, batch: dict) -> dict[str, jax.Array]:
    """Return ``reconstruction`` and ``kl [B, T]`` of the world model, and ``ensemble [B, T-1]`` on its fixed latents.

    A head's target is the posterior of the next row. Pairs over the start of an episode count as zero.
    """
    stop = jax.lax.stop_gradient
    losses = explorer.world_model.loss(observed, batch["image"])
    error = explorer.ensemble.loss(
        stop(feature(observed))[:, :-1], batch["action"][:, 1:], jnp.exp(stop(observed["post"]))[:, 1:]
    )
    return losses | {"ensemble": jnp.where(batch["is_first"][:, 1:], 0.0, error)}


def behavior_losses(explorer: Explorer, slow_critic, observed, config, norms, key) -> tuple[dict, dict, dict]:
    """Return the losses of actor and critic ``[N, H]`` over N imagined rollouts, metrics, and new norms.

    Args:
        explorer: the modules, of which only actor and critic may be differentiated.
        slow_critic: the moving average of the critic.
        observed: filtered states of a batch ``[B, T, ...]``, where the rollouts start.
        norms: moving percentiles of the returns.
    """
    start = {name: jax.lax.stop_gradient(observed[name]) for name in ("deter", "stoch")}
    start = behavior.start_rows(start, config.imagination.stride)
    count = len(start["deter"])
    none, has = jnp.zeros((count, 0)), jnp.zeros(count, bool)
    path = behavior.rollout(explorer, start, none, has, none, config.imagination.horizon, "decode", key)
    reward = disagreement(explorer.ensemble(path["fused"][:, :-1], path["action"]))
    losses, metrics, norms = behavior.actor_critic(explorer.critic, slow_critic, path, reward, norms, config.behavior)
    return losses, metrics | {"imagined/disagreement": jnp.mean(reward)}, norms


def make_train_step(graph: nnx.GraphDef, config: ConfigDict) -> Callable:
    """Build the pure ``train_step(state, batch) -> (state, metrics)``; jit it with the state donated.

    Args:
        graph: the explorer's graph from :func:`build`.
        config: of which ``world_model``, ``behavior``, ``imagination``, ``explore`` and ``optim`` are used.

    A batch holds ``image [B, T, 64, 64, 3]``, ``action [B, T, A]`` and ``is_first [B, T]``.
    """

    def losses(params, state, batch):
        explorer = nnx.merge(graph, params)
        observe_key, imagine_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        observed = explorer.world_model.observe(batch["image"], batch["action"], batch["is_first"], observe_key)
        values = model_losses(explorer, observed, batch)
        fixed = jax.lax.stop_gradient(params)
        imaginer = nnx.merge(graph, fixed | {name: params[name] for name in ("actor", "critic")})
        slow = nnx.merge(graph, fixed | jax.lax.stop_gradient(state.slow))
        more, metrics, norms = behavior_losses(imaginer, slow.critic, observed, config, state.norms, imagine_key)
        return values | more, (metrics, norms)

    def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict[str, jax.Array]]:
        grads, means, (metrics, norms) = routed_gradients(lambda p: losses(p, state, batch), state.params, TABLE)
        params, opt, norm_metrics = apply_gradients(config, state.params, state.opt, grads)
        slow = {"critic": optax.incremental_update(params["critic"], state.slow["critic"], config.behavior.slow_rate)}
        metrics |= norm_metrics | {f"loss/{name}": value for name, value in means.items()}
        return TrainState(state.step + 1, state.key, params, slow, opt, norms), metrics

    return train_step
