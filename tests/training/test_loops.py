"""The training loop on real episodes: what a run leaves behind, and how it stops when it cannot go on."""

import fcntl
import json
import os
import shutil
import signal

import pytest

from bitagent_jax.config import make_config
from bitagent_jax.inference import load
from bitagent_jax.training import loops
from bitagent_jax.training.checkpoint import Checkpoints
from bitagent_jax.training.metrics import NonFiniteLoss


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_config_checkpoints_metrics_and_episodes(trained):
    folder, out, _ = trained
    assert Checkpoints(folder / "checkpoints").steps() == [40, 50, 60]  # train.keep of them
    assert [row["step"] for row in metrics(folder)] == list(range(5, 61, 5))
    assert [row["stage"] for row in metrics(folder)] == [1] * 8 + [2] * 4
    assert list((folder / "tensorboard").iterdir()) and str(folder / "checkpoints") in out
    assert len(list((folder / "episodes").glob("0*.ep"))) >= 1 and len(list((folder / "online").glob("*.ep"))) == 2


def test_each_stage_reports_its_losses(trained):
    first, last = metrics(trained[0])[0], metrics(trained[0])[-1]
    model = {"reconstruction", "kl", "semantic", "text", "anchor", "task_kl", "dynamics_kl"}
    losses = lambda row: {name.removeprefix("loss/") for name in row if name.startswith("loss/")}  # noqa: E731
    assert losses(first) == model and losses(last) == model | {"jbo", "actor", "critic"}
    assert last["loss/reconstruction"] < first["loss/reconstruction"]
    assert {"imagined/reward", "imagined/reward_0", "imagined/reward_2", "steps_per_second"} <= last.keys()


def test_a_corrupt_episode_is_skipped_named_and_counted(trained):
    folder, _, err = trained
    assert f"skipped corrupt file {folder / 'episodes' / 'broken.ep'}" in err
    assert "skipped 1 corrupt of" in err


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(command, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained[0] / "episodes", folder / "episodes")
    fields = {"optim__model_lr": 1e30, "train__log_every": 1, "train__checkpoint_every": 1}
    _, err = command.run("train", folder, *command.settings(**fields), code=2)
    assert "bitagent train: step 2: not finite:" in err and "loss/reconstruction" in err and "Traceback" not in err
    assert Checkpoints(folder / "checkpoints").steps() == [1]


def test_a_batch_that_the_devices_do_not_divide_is_named(command, tmp_path):
    _, err = command.run("train", tmp_path / "run", *command.settings(train__batch=12), code=2, devices=8)
    assert "config.train.batch=12 is not divisible by the 8 devices; use 8 or 16" in err


def test_a_run_folder_in_use_is_refused_with_the_holder(command, trained):
    with (trained[0] / "lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.truncate(0)
        lock.write("4321\n")
        lock.flush()
        _, err = command.run("train", trained[0], code=2)
    assert "is in use by another process (pid 4321)" in err


@pytest.mark.parametrize("damage", ["truncate", "delete"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(trained, tmp_path, damage, caplog):
    folder = tmp_path / "copy"
    shutil.copytree(trained[0], folder, ignore=shutil.ignore_patterns("cache", "episodes", "online"))
    file = max((f for f in (folder / "checkpoints" / "60").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    file.write_bytes(b"") if damage == "truncate" else file.unlink()
    load(folder)
    assert f"checkpoint {folder / 'checkpoints' / '60'} is damaged" in caplog.text
    with pytest.raises(RuntimeError, match="newest usable one is step 50"):
        load(folder, 60)


class Loop:
    """A session without a model: counts updates, records what is saved, and can act on a report."""

    def __init__(self, on_report=lambda step: None, bad_from: int = 100):
        self.config = make_config("walker", "debug")
        self.step = self.state = 0
        self._bad_from = bad_from
        self.saved, self.reported, self.closed, self._on_report = [], [], 0, on_report

    def close(self):
        self.closed += 1

    def train_step(self, stage):
        kl = lambda step: float("nan") if step >= self._bad_from else 1.0  # noqa: E731
        return lambda step, batch: (step + 1, {"loss/kl": kl(step + 1), "loss/text": 1.0})

    def probe(self):
        return lambda state, batch: {"adapter/effective_rank": 1.0}

    def loader(self, stage):
        return self

    def __next__(self):
        return {}

    def save(self, step):
        self.saved.append((step, self.state))

    def report(self, step, values):
        self.reported.append(step)
        self._on_report(step)


def test_the_loop_reports_and_saves_at_its_intervals_and_at_the_end():
    loop = Loop()
    with loops._Sigterm() as stop:
        loops.run_stage(loop, 1, 23, stop)
    assert loop.reported == [5, 10, 15, 20, 23]
    assert loop.saved == [(10, 10), (20, 20), (23, 23)] and loop.closed == 1


@pytest.mark.parametrize("bad_from, found, saved", [(3, 5, []), (10, 10, []), (11, 15, [10]), (23, 23, [10, 20])])
def test_no_checkpoint_is_written_once_a_loss_is_not_finite(bad_from, found, saved):
    loop = Loop(bad_from=bad_from)
    with loops._Sigterm() as stop, pytest.raises(NonFiniteLoss, match=f"^step {found}: not finite: loss/kl$"):
        loops.run_stage(loop, 1, 23, stop)
    assert [step for step, _ in loop.saved] == saved and loop.closed == 1


def test_sigterm_at_any_moment_saves_the_step_that_it_leaves_at():
    loop = Loop(lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 5 else None)
    with loops._Sigterm() as stop, pytest.raises(SystemExit) as left:
        loops.run_stage(loop, 1, 23, stop)
    assert left.value.code == 143
    assert loop.saved and loop.saved[-1][0] == loop.state


def test_after_the_loop_sigterm_means_what_it_did_before():
    before = signal.getsignal(signal.SIGTERM)
    with loops._Sigterm():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
