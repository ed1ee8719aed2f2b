"""Several seeds in one program: each run is what it would be alone, and goes on after a stop."""

import json
import shutil

import jax
import numpy as np
import pytest

from bitagent_jax.agent.state import build, init_state
from bitagent_jax.config import make_config
from bitagent_jax.mllm.encoder import load_encoder
from bitagent_jax.training import loops
from bitagent_jax.training.checkpoint import Checkpoints
from bitagent_jax.training.run import RunError, RunFolder
from bitagent_jax.training.together import common_step

SEEDS = ("--seeds", 0, 1)


@pytest.fixture(scope="module")
def options(command, trained):
    """Settings of 8 + 4 steps on the episodes of another run, with a round of new ones at step 10."""

    def make(**fields):
        steps = {"train__stage1_steps": 8, "train__stage2_steps": 4}
        every = {"train__checkpoint_every": 5, "train__video_every": 12}
        own = {"data__folder": trained[0] / "episodes", "data__online_every": 10}
        return command.settings(**(steps | every | own | fields))

    return make


@pytest.fixture(scope="module")
def both(command, options, tmp_path_factory):
    """Two seeds, trained together."""
    folder = tmp_path_factory.mktemp("together") / "sweep"
    out, _ = command.run("train", folder, *options(), *SEEDS)
    assert str(folder / "seed-0" / "checkpoints") in out and str(folder / "seed-1" / "checkpoints") in out
    return folder


@pytest.fixture
def cut(both, tmp_path):
    """A copy of the two that was stopped between its last two saves: one run lacks its last checkpoint."""
    folder = tmp_path / "sweep"
    shutil.copytree(both, folder)
    shutil.rmtree(folder / "seed-1" / "checkpoints" / "12")
    return folder


def params(folder):
    config = RunFolder.load(folder).config
    _, init = build(config, load_encoder().embed_dim, 6)
    state = Checkpoints(folder / "checkpoints").restore(jax.eval_shape(lambda: init_state(config, init)))
    return jax.tree.map(np.asarray, state.params)


def farthest(left, right):
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), left, right)))


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_each_run_is_what_it_would_be_alone(command, trained, both, cut):
    first, alone = rows(both / "seed-0")[0], rows(trained[0])[0]
    assert first.keys() == alone.keys() and first["step"] == alone["step"] == 5
    for name in (name for name in alone if name.startswith("loss/")):
        assert first[name] == pytest.approx(alone[name], rel=1e-3), name
    command.run("train", cut / "seed-1")
    assert Checkpoints(cut / "seed-1" / "checkpoints").latest_step() == 12
    assert farthest(params(cut / "seed-1"), params(both / "seed-1")) < 1e-3
    assert farthest(params(both / "seed-0"), params(both / "seed-1")) > 0.1
    names = lambda run: sorted(p.name for p in (run / "online").iterdir())  # noqa: E731
    assert names(cut / "seed-1") == names(both / "seed-1")
    boards = [b"".join(file.read_bytes() for file in (both / f"seed-{n}" / "tensorboard").iterdir()) for n in (0, 1)]
    assert all(b"open_loop" in board for board in boards) and boards[0] != boards[1]


@pytest.mark.slow
def test_a_run_that_lost_its_last_save_takes_the_other_back_with_it(command, options, both, cut):
    command.run("train", cut, *options(), *SEEDS)
    for seed in ("seed-0", "seed-1"):
        assert Checkpoints(cut / seed / "checkpoints").latest_step() == 12
        assert [row["step"] for row in rows(cut / seed)] == [5, 8, 10, 12]
        assert farthest(params(cut / seed), params(both / seed)) == 0  # resumed equals uninterrupted


def test_runs_go_on_from_one_step(tmp_path):
    runs = []
    for seed, step in enumerate((30, 20, 30)):
        with RunFolder.open(tmp_path / f"seed-{seed}", make_config("walker", "debug")) as run:
            (run.checkpoints / str(step)).mkdir()
            runs.append(run)
    assert common_step(runs) == 20
    (runs[1].checkpoints / "20").rename(runs[1].checkpoints / "5")
    with pytest.raises(RunError, match="seed-1 is at step 5 and .*seed-0 at 30: only runs at the same step train"):
        common_step(runs)


def test_what_cannot_train_together_is_named_before_anything_is_made(trained, tmp_path, monkeypatch):
    config = make_config("walker", "debug")
    with pytest.raises(ValueError, match=r"each seed once, not \[2, 2\]"):
        loops.train_seeds(tmp_path / "new", config, [2, 2])
    config.train.keep = 1
    with pytest.raises(ValueError, match="config.train.keep=1 would leave no step"):
        loops.train_seeds(tmp_path / "new", config, [0, 1])
    config.train.keep = 2
    with pytest.raises(ValueError, match=f"{trained[0].name} is a run itself"):
        loops.train_seeds(trained[0], config, [0, 1])
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    with pytest.raises(ValueError, match="take one device, and here are 8"):
        loops.train_seeds(tmp_path / "new", config, [0, 1])
    assert not (tmp_path / "new").exists()
