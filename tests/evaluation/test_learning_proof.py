"""The experiment's arithmetic, and (slow) the experiment itself at the smallest size."""

import json

import jax
import numpy as np
import pytest

from bitagent_jax.agent.state import build
from bitagent_jax.config import validate
from bitagent_jax.envs.tasks import TASKS
from experiments import learning_proof


def test_the_control_is_told_of_other_motions():
    told = [learning_proof.shuffled(seed) for seed in range(20)]
    own = {TASKS[name].prompt for name in learning_proof.STAND_WALK_RUN}
    assert all(len(set(three)) == 3 and not set(three) & own for three in told)
    assert len(set(told)) > 10 and told[3] == learning_proof.shuffled(3)


def test_every_variant_of_the_preset_is_a_valid_config_below_a_million_parameters(tmp_path):

    for variant in ("full", "genrl", "shuffled"):
        config = validate(learning_proof.configure(variant, 2, tmp_path))
        _, init = build(config, 128, 6)
        sizes = [leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init, jax.random.key(0)))]
        assert sum(sizes) <= 1_000_000 and config.seed == 2
    assert config.prompts == learning_proof.shuffled(2)


def test_intervals_are_over_seeds_or_over_the_episodes_of_one():
    one = [0.1, 0.3, 0.5]
    mean, half = learning_proof.interval([one])
    assert mean == pytest.approx(0.3) and half == pytest.approx(4.3027 * 0.2 / np.sqrt(3), rel=1e-4)
    assert learning_proof.interval([[0.1, 0.1], [0.3, 0.3], [0.4, 0.6]])[1] == pytest.approx(half)


def test_the_table_takes_the_last_checkpoint_of_each_run():
    run = lambda score: {  # noqa: E731
        "curve": {"10": dict.fromkeys(learning_proof.STAND_WALK_RUN, [9.0, 9.0]),
                  "20": dict.fromkeys(learning_proof.STAND_WALK_RUN, [score, score])},
        "minutes": 30.0,
    }  # fmt: skip
    lines = learning_proof.table({"full-0": run(0.5), "full-1": run(0.7), "random-0": run(0.0)}).splitlines()
    assert lines[2] == "| full | 2 | 0.60 ± 1.27 | 0.60 ± 1.27 | 0.60 ± 1.27 | 30 |"
    assert lines[3].startswith("| random | 1 | 0.00 ± 0.00") and len(lines) == 4


def test_results_are_added_to_and_those_of_other_settings_refused(tmp_path):
    store, settings = tmp_path / "new" / "proof.json", learning_proof.settings_of("debug", (20, 10), 45)
    assert learning_proof.read(store, settings) == {}
    learning_proof.add(store, settings, "full-1", {"minutes": 2})
    assert list(learning_proof.add(store, settings, "full-0", {"minutes": 1})) == ["full-0", "full-1"]
    for other in (("debug", (20, 20), 45), ("debug", (20, 10), 90), ("debug,genrl", (20, 10), 45)):
        with pytest.raises(ValueError, match="another experiment"):
            learning_proof.add(store, learning_proof.settings_of(*other), "full-2", {})
    assert learning_proof.read(store, settings).keys() == {"full-0", "full-1"}


def test_the_results_in_the_repository_are_of_these_settings():
    settings = learning_proof.settings_of("cpu", learning_proof.STEPS, learning_proof.DATA["episodes"])
    assert learning_proof.read(learning_proof.RESULTS / "learning_proof.json", settings)


@pytest.mark.slow
def test_a_run_is_scored_drawn_and_not_done_twice(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = [str(tmp_path / "out"), "--presets", "debug", "--episodes", "45", "--results", str(tmp_path / "kept")]
    learning_proof.main([*arguments, "--variants", "full", "random"])
    store = tmp_path / "kept" / "learning_proof.json"
    found = json.loads(store.read_text())["runs"]
    assert found.keys() == {"full-0", "random-0"} and list(found["full-0"]["curve"]) == ["20", "30"]
    assert len(found["full-0"]["curve"]["30"]["walker_run"]) == learning_proof.FINAL
    assert (tmp_path / "kept" / "learning_proof.png").stat().st_size > 10_000
    before = store.read_bytes()
    learning_proof.main([*arguments, "--variants", "full"])
    assert store.read_bytes() == before and "| full | 1 |" in capsys.readouterr().out
