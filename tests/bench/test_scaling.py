"""What crosses devices in the step that training runs: gradients and scalars, and what is known beside them."""

import json
import os
import subprocess
import sys

import jax
import pytest

from bitagent_jax.bench import scaling

# wide enough for fsdp to split, and no vector of as many elements as there are imagined returns
FIELDS = {"train__batch": 40, "world_model__deter": 128, "world_model__hidden": 128}
RETURNS = 40 * 8 // 4 * 8  # sequences, rows / stride, horizon


@pytest.fixture(scope="module")
def rows(command):
    """Both stages on meshes 8 x 1 and 1 x 8 of fake devices."""
    settings = command.settings(**FIELDS)[1:]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    shown = subprocess.run(
        [sys.executable, "-m", "bitagent_jax", "bench", "scaling", "--preset", "debug", *settings],
        cwd=command.ROOT, env=env, capture_output=True, text=True, timeout=1800, check=True,
    ).stdout  # fmt: skip
    rows = [json.loads(line) for line in shown.splitlines() if line.startswith("{")]
    assert len(rows) == shown.count("\n| ") - 2 and {row["mesh"] for row in rows} == {"8 x 1", "1 x 8"}
    print(shown)
    return rows


@pytest.mark.parametrize("stage", [1, 2])
def test_only_gradients_and_scalars_cross_the_data_axis(rows, stage):
    mine = [row for row in rows if (row["mesh"], row["stage"]) == ("8 x 1", stage)]
    known = [row for row in mine if row["carries"] != "other"]
    assert {(row["collective"], row["carries"]) for row in known} == {
        ("all-reduce", "parameters"), ("all-reduce", "scalars")}  # fmt: skip
    gradients = sum(row["MiB, each loop once"] for row in known if row["carries"] == "parameters")
    assert 1 <= gradients / mine[0]["gradients (MiB)"] < 4  # a module in several rows of the loss table counts for each
    other = [row for row in mine if row["carries"] == "other"]
    gathered = [("all-gather", RETURNS * 4)] if stage == 2 else []  # float32, for the percentiles of all returns
    assert [(row["collective"], row["MiB a step"] * 2**20) for row in other] == gathered


@pytest.mark.parametrize("stage", [1, 2])
def test_fsdp_gathers_parameters_once_and_no_activations(rows, stage):
    mine = [row for row in rows if (row["mesh"], row["stage"]) == ("1 x 8", stage)]
    (gathered,) = (row for row in mine if (row["collective"], row["carries"]) == ("all-gather", "parameters"))
    assert gathered["in loops"] == "no" and gathered["MiB a step"] < 2 * gathered["gradients (MiB)"]
    size = RETURNS * 4 / 2**20 if stage == 2 else 0
    assert sum(row["MiB a step"] for row in mine if row["carries"] == "other") == size


def test_tensors_are_told_apart_by_shape():
    params = {"kernel": jax.ShapeDtypeStruct((128, 96), "float32"), "bias": jax.ShapeDtypeStruct((96,), "float32")}
    shapes = scaling.parameter_shapes(params, fsdp=4)
    assert scaling.carried((96, 1, 128), shapes) == scaling.carried((32, 96), shapes) == "parameters"
    assert scaling.carried((24,), shapes) == "parameters" and scaling.carried((3,), shapes) == "scalars"
    assert scaling.carried((128, 97), shapes) == "other"


def test_more_devices_than_this_process_has_are_refused():
    jax.devices()
    with pytest.raises(ValueError, match="64 devices wanted, but this process already uses"):
        scaling.fake_devices(64)
