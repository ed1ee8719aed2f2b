"""What actors are rewarded with in imagination, of runs that only imagine and of runs that also imitate."""

import json
import shutil

import pytest

from bitagent_jax.config import read
from bitagent_jax.evaluation.imagined import imagined_rewards
from bitagent_jax.training.session import sentences


@pytest.mark.parametrize("regression", [0.0, 1.0])
def test_both_actors_are_rewarded_for_each_sentence(trained, tmp_path, regression):
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    fields = json.loads((run / "config.json").read_text())
    fields |= {"behavior.regression": regression, "joint.world_model_in_stage2": not regression}
    (run / "config.json").write_text(json.dumps(fields))
    found = imagined_rewards(run, batches=1)
    assert tuple(found) == sentences(read(run / "config.json"))
    assert all(-1 <= reward <= 1 and reward for pair in found.values() for reward in pair)
    assert any(before != after for before, after in found.values())
