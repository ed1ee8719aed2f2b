"""Did the policy learn, in the model's own eyes? Trained and untrained actor from the same states."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bitagent_jax.agent.joint import behavior_losses
from bitagent_jax.agent.state import build, init_state
from bitagent_jax.data.replay import Replay, load_folder
from bitagent_jax.envs.tasks import get_body
from bitagent_jax.mllm.encoder import load_encoder
from bitagent_jax.mllm.prompts import embed_prompt
from bitagent_jax.training.checkpoint import Checkpoints
from bitagent_jax.training.run import RunFolder
from bitagent_jax.training.session import sentences
from bitagent_jax.training.told import known


def imagined_rewards(path: str | Path, *, batches: int = 8, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Compare the mean imagined reward of a run's actor with that of the actor it began with.

    Both act in the run's final world model, from the same states of its data, with the same noise, toward the same
    target, so that their difference is what behaviour learning gained.

    Returns:
        prompt -> (untrained, trained) mean reward per imagined step.
    """
    run = RunFolder.load(path)
    config, encoder = run.config, load_encoder(run.config.mllm.encoder, run.config.mllm.weights)
    told, stored = sentences(config), known(run.prompts, encoder)
    prompts = jnp.stack([stored[one] if one in stored else embed_prompt(encoder, one) for one in told])
    graph, init = build(config, encoder.embed_dim, get_body(config.body).action_dim)
    start = jax.jit(lambda: init_state(config, init))()
    with Checkpoints(run.checkpoints) as checkpoints:
        state = checkpoints.restore(jax.eval_shape(lambda: start))
    replay = Replay(config.data.capacity)
    load_folder(run.episodes, replay, fingerprint=encoder.fingerprint)

    @jax.jit
    def measure(params, batch, key):
        agent, slow = nnx.merge(graph, params), nnx.merge(graph, params | state.slow)
        observed = agent.world_model.observe(batch["image"], batch["action"], batch["is_first"], key)
        ids = jnp.arange(batch["image"].shape[0]) % len(prompts)
        _, metrics, _ = behavior_losses(agent, slow, observed, batch, prompts, ids, config, state.norms, key)
        return jnp.stack([metrics[f"imagined/reward_{k}"] for k in range(len(prompts))])

    actors = {"untrained": start.params["actor"], "trained": state.params["actor"]}
    sums = {name: np.zeros(len(prompts)) for name in actors}
    for i in range(batches):
        size = max(config.train.batch, len(prompts))
        batch = replay.sample(size, config.train.length, np.random.default_rng((seed, i)))
        for name, actor in actors.items():
            sums[name] += np.asarray(measure(state.params | {"actor": actor}, batch, jax.random.key(i)))
    pairs = zip(sums["untrained"] / batches, sums["trained"] / batches, strict=True)
    return {prompt: (float(before), float(after)) for prompt, (before, after) in zip(told, pairs, strict=True)}
