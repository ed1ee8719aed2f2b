"""The comparison of backward paths: pairs by seed, starts from one checkpoint, and continues where it stopped."""

import json

import jax
import numpy as np
import pytest

from bitagent_jax.agent.state import build, init_state
from bitagent_jax.config import flatten
from bitagent_jax.mllm.encoder import load_encoder
from bitagent_jax.training.checkpoint import Checkpoints
from bitagent_jax.training.run import RunFolder
from experiments import backward_path as module

RESULTS = {
    "gradient": {"0": {"a": 0.5, "b": 0.7}, "1": {"a": 0.6, "b": 0.8}},
    "off": {"0": {"a": 0.4, "b": 0.7}, "1": {"a": 0.3, "b": 0.8}},
    "stop": {"0": {"a": 0.5, "b": 0.6}},
}


def test_differences_are_paired_by_seed():
    off = module.differences(RESULTS, "off")
    assert off["a"].value == pytest.approx(0.2) and off["a"].high - 0.2 == pytest.approx(12.706 * 0.1, rel=1e-3)
    assert off["b"] == pytest.approx((0, 0, 0)) and off["mean"].value == pytest.approx(0.1)
    one = module.differences(RESULTS, "stop")["mean"]  # of the one seed that both have
    assert one == pytest.approx((0.05, np.nan, np.nan), nan_ok=True)
    lines = module.report(RESULTS).splitlines()
    assert "gradient   mean normalised score 0.650 over 2 seeds" in lines[0]
    assert any("gradient - off   mean" in line and "+0.100  95% [-0.535, +0.735]" in line for line in lines)


@pytest.mark.slow
def test_variants_differ_in_the_backward_path_alone_and_seeds_in_the_seed(trained):
    stage1 = RunFolder.load(trained[0])
    base = flatten(module.variant_config(stage1, "gradient", 3, 7))
    assert base["seed"] == 3 and base["train.stage2_steps"] == 7 and base["data.online_every"] == 0
    changed = {
        name: {k for k, v in flatten(module.variant_config(stage1, name, 3, 7)).items() if v != base[k]}
        for name in module.VARIANTS
    }
    assert changed == {"gradient": set(), "off": {"joint.jbo"}, "stop": {"joint.jbo_reaches_adapter"}}


@pytest.mark.slow
def test_a_branch_keeps_the_model_and_has_the_behaviour_of_its_seed(trained, tmp_path):
    stage1 = RunFolder.load(trained[0])
    states = []
    for seed in (0, 5):
        config = module.variant_config(stage1, "off", seed, 2)
        module.branch(stage1, tmp_path / str(seed), config)
        _, init = build(config, load_encoder().embed_dim, 6)
        abstract = jax.eval_shape(lambda config=config, init=init: init_state(config, init))
        with Checkpoints(tmp_path / str(seed) / "checkpoints") as checkpoints:
            assert checkpoints.steps() == [40]
            states.append(checkpoints.restore(abstract))
    left, right = states
    assert int(left.step) == 40

    def same(name):
        pairs = zip(jax.tree.leaves(left.params[name]), jax.tree.leaves(right.params[name]), strict=True)
        return all(np.array_equal(a, b) for a, b in pairs)

    assert {name for name in left.params if not same(name)} == {"actor", "critic"}
    assert np.any(jax.random.key_data(left.key) != jax.random.key_data(right.key))


@pytest.mark.slow
def test_the_same_command_continues(trained, tmp_path, monkeypatch, capsys):
    scored = []
    monkeypatch.setattr(module, "score", lambda path, *_: scored.append(path.name) or {"walker_run": 0.1})
    command = [str(tmp_path / "out"), "--stage1", str(trained[0]), "--updates", "2", "--seeds"]
    module.main([*command, "1"])
    assert scored == ["gradient-0", "off-0", "stop-0"]
    assert "gradient - stop  mean             +0.000" in capsys.readouterr().out
    file = tmp_path / "out" / "results.json"
    stored = json.loads(file.read_text())
    assert stored["scores"]["stop"] == {"0": {"walker_run": 0.1}}
    file.write_text(json.dumps(stored | {"scores": {"gradient": {"0": {"walker_run": 0.3}}}}))
    module.main([*command, "1"])  # what was trained is scored again, and trained no more
    assert scored[3:] == ["off-0", "stop-0"] and "+0.200" in capsys.readouterr().out
    with pytest.raises(ValueError, match="was begun with .*'episodes': 10.* not .*'episodes': 3"):
        module.main([*command, "1", "--episodes", "3"])
