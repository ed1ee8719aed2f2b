import json
import os
import signal
import subprocess
import sys

import pytest

from bitagent_jax import config as config_lib
from bitagent_jax.training.run import RESUMABLE, RunError, RunFolder

HOLDER = """
import sys, signal
from bitagent_jax.config import make_config
from bitagent_jax.training.run import RunFolder
run = RunFolder.open(sys.argv[1], make_config("walker", "debug"))
print("held", flush=True)
signal.pause()
"""


def debug(**fields):
    config = config_lib.make_config("walker", "debug")
    config.update_from_flattened_dict(fields)
    return config


def test_a_new_folder_holds_the_resolved_config_and_the_layout(tmp_path):
    with RunFolder.open(tmp_path / "a" / "run", debug(seed=7)) as run:
        assert json.loads((run.path / "config.json").read_text())["seed"] == 7
        assert all(
            folder.is_dir() for folder in (run.checkpoints, run.episodes, run.tensorboard, run.videos, run.cache)
        )
        assert (run.path / "lock").read_text().strip() == str(os.getpid())
    assert RunFolder.load(tmp_path / "a" / "run").config == debug(seed=7)


def test_episodes_may_lie_elsewhere(tmp_path):
    with RunFolder.open(tmp_path / "run", debug(**{"data.folder": str(tmp_path / "shared")})) as run:
        assert run.episodes == tmp_path / "shared" and run.episodes.is_dir()
        assert not (run.path / "episodes").exists()


def test_a_folder_with_only_collected_episodes_becomes_a_run(tmp_path):
    (tmp_path / "run" / "episodes").mkdir(parents=True)
    with RunFolder.open(tmp_path / "run", debug()):
        pass


def test_resuming_with_another_config_names_field_and_both_values(tmp_path):
    with RunFolder.open(tmp_path / "run", debug(seed=1)) as run:
        (run.episodes / "0.ep").touch()
    with pytest.raises(RunError) as error:
        RunFolder.open(tmp_path / "run", debug(seed=2, **{"world_model.deter": 64}))
    assert "config.seed: stored 1, given 2" in str(error.value)
    assert "config.world_model.deter: stored 32, given 64" in str(error.value)
    with RunFolder.open(tmp_path / "run", debug(seed=1)):
        pass  # the failed attempt released the lock and left the stored config


def test_a_run_that_failed_before_it_had_anything_takes_another_config(tmp_path):
    with RunFolder.open(tmp_path / "run", debug(seed=1)) as run:
        run.prompts.touch()
    with RunFolder.open(tmp_path / "run", debug(seed=1)) as run:
        assert run.prompts.exists()  # of the same config they stay: their files may be gone
    with RunFolder.open(tmp_path / "run", debug(seed=2)) as run:
        assert not run.prompts.exists()
    assert RunFolder.load(tmp_path / "run").config.seed == 2


@pytest.mark.parametrize("field", RESUMABLE)
def test_resumable_fields_exist_and_are_updated(tmp_path, field):
    value = 0.25 if field in config_lib.SHARES else 123
    with RunFolder.open(tmp_path / "run", debug()):
        pass
    with RunFolder.open(tmp_path / "run", debug(**{field: value})):
        pass
    assert config_lib.flatten(RunFolder.load(tmp_path / "run").config)[field] == value


def test_a_stored_field_of_another_version_is_an_error(tmp_path):
    with RunFolder.open(tmp_path / "run", debug()) as run:
        path = run.path / "config.json"
        (run.episodes / "0.ep").touch()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"world_model.detr": 3}))
    with pytest.raises(ValueError, match="world_model.deter"):
        RunFolder.open(tmp_path / "run", debug())
    with pytest.raises(ValueError, match="world_model.deter"):
        RunFolder.load(tmp_path / "run")


def test_loading_what_is_not_a_run_names_what_was_looked_for_and_runs_nearby(tmp_path):
    with RunFolder.open(tmp_path / "walker", debug()):
        pass
    with pytest.raises(RunError, match="wlker/config.json.*Runs found near it: .*/walker"):
        RunFolder.load(tmp_path / "wlker")
    with pytest.raises(RunError, match="Runs found near it: .*/walker"):
        RunFolder.load(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["walker"]


def test_a_folder_of_something_else_or_a_file_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("do not touch")
    with pytest.raises(RunError, match="no config.json but holds 'thesis.tex'"):
        RunFolder.open(tmp_path, debug())
    with pytest.raises(RunError, match="is a file"):
        RunFolder.open(tmp_path / "thesis.tex", debug())
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_a_kill_left_in_the_middle_of_a_file_does_not_matter(tmp_path):
    (tmp_path / ".0123456789abcdef.tmp").write_text("{")
    with RunFolder.open(tmp_path, debug()) as run:
        assert run.config == debug()


def test_a_run_trained_by_another_process_is_refused_until_that_process_dies(tmp_path):
    path = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=rf"in use by another process \(pid {holder.pid}\)"):
            RunFolder.open(path, debug())
        assert RunFolder.load(path).config == debug()  # reading needs no lock
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        with RunFolder.open(path, debug()):
            assert (path / "lock").read_text().strip() == str(os.getpid())
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_a_second_process_of_the_same_run_neither_locks_nor_writes(tmp_path):
    with RunFolder.open(tmp_path / "run", debug()):
        assert RunFolder.open(tmp_path / "run", debug(), primary=False).config == debug()
    assert RunFolder.open(tmp_path / "new", debug(), primary=False).path == tmp_path / "new"
    assert not (tmp_path / "new").exists()
