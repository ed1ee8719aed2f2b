"""The whole agent as one module tree, and the few calls that join its parts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict, FrozenConfigDict

from bitagent_jax.agent.behavior import Actor, Critic
from bitagent_jax.agent.fusion import Fusion
from bitagent_jax.agent.semantics import Residual, SemanticDecoder, make_adapter
from bitagent_jax.agent.task_imagination import TaskImagination
from bitagent_jax.agent.world_model import WorldModel, feature


class BiTAgent(nnx.Module):
    """World model, fusion, semantics, task imagination, actor and critic; top-level names are the loss table's."""

    def __init__(self, config: ConfigDict, embed: int, actions: int, *, rngs: nnx.Rngs):
        config = FrozenConfigDict(config)
        kw = {"dtype": jnp.dtype(config.compute.dtype), "rngs": rngs}
        self.embed, self.actions = embed, actions
        self.skip = int(config.task_imagination.feed == "data")
        self.world_model = WorldModel(config.world_model, actions, **kw)
        self.fusion = Fusion(config.fusion, embed, self.world_model.feature_dim, **kw)
        self.semantic = SemanticDecoder(self.fusion.width, config.fusion.width, embed, **kw)
        self.task_imagination = TaskImagination(
            config.world_model, embed, actions, config.task_imagination.action, **kw
        )
        self.aligner = Residual(embed, config.mllm.aligner_units, 2, **kw)
        self.adapter = make_adapter(config.mllm, embed, **kw)
        self.actor = Actor(self.fusion.outputs, actions, config.behavior, **kw)
        self.critic = Critic(self.fusion.outputs, config.behavior, **kw)

    def adapt(self, embedding: jax.Array) -> jax.Array:
        """Pass frozen video embeddings ``[..., D]`` through the adapter, if there is one."""
        return embedding if self.adapter is None else self.adapter(embedding)

    def fuser(self, task: jax.Array) -> Callable[..., jax.Array]:
        """Return ``fuse(embedding, has, state)``: the fusion for a task, with what a loop can do once done."""
        return self.fusion.fuser(task)

    def read_semantics(self, state, fuse: Callable) -> jax.Array:
        """Decode the embedding that a state implies: ``e^ = f_dec(f_TAMF(no e_v, s, tau))``, ``[..., D]``.

        ``fuse`` is ``fuser(task)``.
        """
        return self.semantic(fuse(None, None, feature(state)))

    def target(self, task: jax.Array, action: jax.Array) -> jax.Array:
        """Imagine the task: aligned ``tau [N, D]`` for H steps of ``action [N, H, A]`` -> ``[N, H, S, C]``.

        Where training feeds it latents of the data, the step off the learned start is left out, as in GenRL.
        """
        action = jnp.concatenate([action[:, : self.skip], action], 1)
        aligned = jnp.broadcast_to(self.aligner(task)[:, None], (*action.shape[:2], self.embed))
        return self.task_imagination.rollout(aligned, action)[:, self.skip :]
