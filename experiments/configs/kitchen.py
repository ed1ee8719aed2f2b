"""Kitchen: four things to do in a Franka kitchen, from sentences, one policy.

Command:   bitagent train runs/kitchen --config=experiments/configs/kitchen.py:cpu
Install:   pip install 'bitagent_jax[kitchen]'
Argument:  comma-separated presets (debug, cpu, paper, short, bf16) and ablations (no_tamf, no_jbo, ...)
Hardware:  one data-centre GPU that also renders: software OpenGL draws about one picture a CPU-second
"""

from bitagent_jax.config import make_config


def get_config(arg="paper"):
    """Return the locked config; ``arg`` is the part of ``--config=FILE:ARG`` behind the colon."""
    return make_config("kitchen", arg)
