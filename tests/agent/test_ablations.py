"""Ablations by config alone: each runs ten steps of both stages and learns what it should, finitely."""

import jax
import numpy as np
import pytest

from bitagent_jax.agent.joint import loss_table
from bitagent_jax.presets import ABLATIONS

# No TAMF, no L_MLLM (which holds), no L_JBO, no adapter, each similarity: several at a time, since compiling is slow.
QUICK = ("no_tamf,cosine,semantic_reward,no_jbo", "no_mllm_loss,no_adapter,neg_kl")


def run(config, start, compiled, batch):
    state, history = start(config), []
    for stage in (1, 2):
        _, step = compiled(config, stage)
        for _ in range(10):
            state, metrics = step(state, batch)
            history.append({name: float(value) for name, value in metrics.items()})
    return state, history


def check(config, before, state, history):
    assert int(state.step) == 20
    bad = [(i, name) for i, row in enumerate(history) for name, value in row.items() if not np.isfinite(value)]
    assert not bad
    rows = loss_table(config, 1) | loss_table(config, 2)
    learned = {module for row in rows.values() for module in row.modules}
    for module, old in before.params.items():
        moved = [np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (old, state.params[module])), strict=True)]
        assert any(moved) == (module in learned), module
    assert history[9]["loss/reconstruction"] < history[0]["loss/reconstruction"]


@pytest.mark.parametrize("names", ["", *(f"frozen_world_model,{names}" for names in QUICK)])
def test_twenty_steps(tiny, start, compiled, batch, names):
    config = tiny(names)
    check(config, start(config), *run(config, start, compiled, batch))


@pytest.mark.slow
@pytest.mark.parametrize("names", ABLATIONS)
def test_twenty_steps_of_every_ablation_with_the_model_learning_throughout(tiny, start, compiled, batch, names):
    config = tiny(names)
    check(config, start(config), *run(config, start, compiled, batch))
