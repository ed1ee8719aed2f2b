"""From a run folder to an agent that acts."""

from pathlib import Path

import jax

from bitagent_jax.agent.state import build
from bitagent_jax.envs.tasks import get_body
from bitagent_jax.mllm.encoder import load_encoder
from bitagent_jax.policy import Agent
from bitagent_jax.training.checkpoint import Checkpoints
from bitagent_jax.training.run import RunFolder
from bitagent_jax.training.told import known


def load(run: str | Path, step: int | None = None) -> Agent:
    """Load a run's newest readable checkpoint (or that of ``step``) for acting.

    Raises:
        RunError: if the folder is not a run, or its prompts.npz is damaged.
        CheckpointError: if there is no checkpoint, or the wanted one is damaged.
    """
    folder = RunFolder.load(run)
    encoder = load_encoder(folder.config.mllm.encoder, folder.config.mllm.weights)
    _, init = build(folder.config, encoder.embed_dim, get_body(folder.config.body).action_dim)
    abstract = {"params": jax.eval_shape(init, jax.random.key(0))}
    with Checkpoints(folder.checkpoints) as checkpoints:
        params = checkpoints.restore_part(abstract, step)["params"]
    return Agent(folder.config, params, encoder, known(folder.prompts, encoder))
