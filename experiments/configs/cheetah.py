"""Cheetah: run from a sentence.

Command:   bitagent train runs/cheetah --config=experiments/configs/cheetah.py:cpu
Argument:  comma-separated presets (debug, cpu, paper, short, bf16) and ablations (no_tamf, no_jbo, ...)
Hardware:  cpu: 2 cores, about half an hour; paper: one data-centre GPU or a TPU slice
"""

from bitagent_jax.config import make_config


def get_config(arg="paper"):
    """Return the locked config; ``arg`` is the part of ``--config=FILE:ARG`` behind the colon."""
    return make_config("cheetah", arg)
