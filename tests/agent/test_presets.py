"""Every preset and ablation builds and traces; the paper's size has the paper's shapes."""

import jax
import numpy as np
import pytest

from bitagent_jax.agent.joint import loss_table, make_train_step
from bitagent_jax.agent.state import SLOW, build, init_state
from bitagent_jax.config import make_config

EMBED = 512  # InternVideo2-S2


def abstract_batch(config, embed, actions):
    rows, shape = (config.train.batch, config.train.length), jax.ShapeDtypeStruct
    return {
        "image": shape((*rows, 64, 64, 3), np.uint8),
        "action": shape((*rows, actions), np.float32),
        "is_first": shape(rows, bool),
        "embedding": shape((*rows, embed), np.float32),
        "has_embedding": shape(rows, bool),
        "text": shape((rows[0], embed), np.float32),
        "has_text": shape(rows[:1], bool),
    }


def trace(config, embed, actions, stage):
    """Trace a stage without computing anything; returns the state before and after, and the metrics."""
    graph, init = build(config, embed, actions)
    state = jax.eval_shape(lambda: init_state(config, init))
    prompts = np.eye(len(config.tasks), embed, dtype=np.float32)
    step = make_train_step(graph, config, prompts, stage)
    return state, *jax.eval_shape(step, state, abstract_batch(config, embed, actions))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("stage", [1, 2])
def test_the_paper_preset_traces_at_its_size(stage):
    config = make_config("walker", "paper")
    before, after, metrics = trace(config, EMBED, 6, stage)
    same = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, before, after)
    assert all(jax.tree.leaves(same))
    assert {f"loss/{name}" for name in loss_table(config, stage)} <= metrics.keys()
    assert all(value.shape == () for value in metrics.values())


def test_the_paper_preset_has_the_expected_parameters():
    config = make_config("walker", "paper")
    graph, init = build(config, EMBED, 6)
    state = jax.eval_shape(lambda: init_state(config, init))
    size = {name: count(tree) / 1e6 for name, tree in state.params.items()}
    # GRU: 3 * 1024 * (1024 + 1024) = 6.3 M; input (1024 + 6) * 1024; prior 2 * 1024^2; CNNs 384 * 192 * 16 + ...
    assert 17 < size["world_model"] < 30 and 9 < size["task_imagination"] < 12
    assert 7 < size["fusion"] < 9  # 4 layers * 2 experts * 3 * 512^2 = 6.3 M, h_fuse 1.3 M
    assert 3 < size["actor"] < 5 and 3 < size["critic"] < 5
    assert 0.1 < size["adapter"] < 0.2 and 0.7 < size["aligner"] < 1 and 0.5 < size["semantic"] < 1
    assert state.params["world_model"]["dynamics"]["gru"]["from_state"]["kernel"].shape == (1024, 3072)
    assert set(state.slow) == set(SLOW) and state.step.shape == ()
    assert count(state.opt) == pytest.approx(2 * count(state.params), rel=1e-3)  # Adam's two moments


@pytest.mark.parametrize("name", ["action_prior", "history", "frozen_world_model", "genrl"])
def test_ablations_that_the_quick_sweep_leaves_out_trace_in_both_stages(tiny, name):
    config = tiny(name)
    for stage in (1, 2):
        before, after, metrics = trace(config, 16, 2, stage)
        assert jax.tree.structure(before) == jax.tree.structure(after)
        assert {f"loss/{row}" for row in loss_table(config, stage)} <= metrics.keys()


def test_what_each_ablation_takes_out_of_the_loss_table(tiny):
    full = {name: set(row.modules) for name, row in loss_table(tiny(), 2).items()}
    assert full == {
        "reconstruction": {"world_model"},
        "kl": {"world_model"},
        "semantic": {"fusion", "semantic", "adapter"},
        "text": {"aligner", "adapter"},
        "anchor": {"adapter"},
        "task_kl": {"task_imagination"},
        "dynamics_kl": {"task_imagination"},
        "jbo": {"fusion", "adapter"},
        "actor": {"actor"},
        "critic": {"critic"},
    }
    assert loss_table(tiny(), 1).keys() == full.keys() - {"jbo", "actor", "critic"}
    assert loss_table(tiny("no_mllm_loss"), 1).keys() == loss_table(tiny(), 1).keys() - {"semantic"}
    assert loss_table(tiny("no_mllm_loss"), 1)["text"].modules == ("aligner",)
    assert loss_table(tiny("no_jbo"), 2).keys() == full.keys() - {"jbo"}
    rest = {"reconstruction", "kl", "task_kl", "dynamics_kl"}
    assert loss_table(tiny("frozen_world_model"), 2).keys() == full.keys() - rest
    without = loss_table(tiny("no_adapter"), 2)
    assert without.keys() == full.keys() - {"anchor"}
    assert not any("adapter" in row.modules for row in without.values())
    genrl = loss_table(tiny("genrl"), 2)
    assert genrl.keys() == {"reconstruction", "kl", "text", "task_kl", "actor", "critic"}


def test_modules_follow_the_ablation(tiny):
    names = lambda config: set(jax.eval_shape(build(config, 16, 2)[1], jax.random.key(0)))  # noqa: E731
    assert names(tiny()) - names(tiny("no_adapter")) == {"adapter"}
    fusion = jax.eval_shape(build(tiny("no_tamf"), 16, 2)[1], jax.random.key(0))["fusion"]
    assert fusion.keys() == {"fuse", "missing", "norm"}
    assert names(tiny()) - names(tiny("genrl")) == {"fusion", "adapter"}
