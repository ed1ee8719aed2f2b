"""BiTAgent in JAX: agents that learn from a sentence inside a learned world model.

Acting with a trained run:

    import bitagent_jax
    agent = bitagent_jax.load("runs/walker")
    action, state = agent.act(observation, prompt="walk fast clean", state=None)
"""

import importlib

_PUBLIC = {
    "load": "bitagent_jax.inference",
    "Agent": "bitagent_jax.policy",
    "make_config": "bitagent_jax.config",
    "make_env": "bitagent_jax.envs.dmc",
    "EnvPool": "bitagent_jax.envs.pool",
    "register_env": "bitagent_jax.envs.register",
    "Encoder": "bitagent_jax.mllm.encoder",
    "load_encoder": "bitagent_jax.mllm.encoder",
    "train": "bitagent_jax.training.loops",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    """Import a public name on first use, so that ``import bitagent_jax`` is instant."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'bitagent_jax' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__():
    return __all__
