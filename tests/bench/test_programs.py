"""The benchmarks of compiled programs: complete and sensible at debug size; speed itself is never tested."""

import json

import numpy as np
import pytest

from bitagent_jax import cli
from bitagent_jax.bench import commands, encoder, loader, program, step
from bitagent_jax.config import make_config
from bitagent_jax.data.episodes import write_episode

MEASURED = {"step (ms)", "min", "max", "in a row (ms)", "frames/s", "GFLOP/s", "of peak"}


@pytest.fixture
def config(command):
    config = make_config("walker", "debug")
    config.update_from_flattened_dict(command.SMALL)
    return config


def lines(shown):
    """Return the rows of the JSON lines."""
    return [json.loads(line) for line in shown.splitlines() if line.startswith("{")]


def options(command):
    """Return the settings of a small run, without the file."""
    return command.settings()[1:]


def test_step_reports_everything(command, capsys):
    asked = ["--preset", "debug", "--batch", "2", "4", "--repeats", "2", "--profile", *options(command)]
    cli.main(["bench", "step", *asked])
    shown = capsys.readouterr().out
    small, large, *places = lines(shown)
    assert [row["batch x length"] for row in (small, large)] == ["2 x 8", "4 x 8"]
    assert shown.count("\n| stage 1") == 2 + len(places)
    assert not [name for name, value in large.items() if value is None]
    assert {"processor", "versions", "preset", "dtype", "matmul peak (GFLOP/s)", "device"} <= large.keys()
    assert large["GFLOP"] == pytest.approx(2 * small["GFLOP"], rel=0.1) and large["GFLOP"] > 0.01
    assert 0 < small["memory (GiB)"] < large["memory (GiB)"] < large["peak memory (GiB)"]
    assert large["min"] <= large["step (ms)"] <= large["max"] and 0 < large["of peak"] < 1
    assert large["frames/s"] == pytest.approx(4 * 8 / large["in a row (ms)"] * 1e3)
    parts = {row["in"]: row for row in places}
    decoder = parts["world_model.WorldModel.decode"]
    assert decoder["ms"] > decoder["in products"] > 0 and decoder["in loops"] == 0
    assert parts["world_model.WorldModel._observe_frames"]["in loops"] > 0
    assert 0 < parts["nothing ran"]["share"] < 1 and places[0]["bench"] == "step profile"


def test_compile_only_does_not_run(config, monkeypatch):
    monkeypatch.setattr(program, "time_steps", None)
    monkeypatch.setattr(program, "matmul_peak", None)
    (row,) = lines(step.bench(config, "debug", compile_only=True))
    assert {name for name, value in row.items() if value is None} == MEASURED
    assert row["memory (GiB)"] > 0 and row["compile (s)"] > 0


@pytest.mark.slow
def test_behavior_whole_and_in_parts(command, capsys):
    shown = ["--config.behavior.regression=1.0", "--config.joint.world_model_in_stage2=False"]
    cli.main(["bench", "behavior", "--preset", "debug", "--repeats", "1", *options(command), *shown])
    whole, fixed, imagination = lines(capsys.readouterr().out)
    assert whole["GFLOP"] > fixed["GFLOP"] > imagination["GFLOP"] > 0
    assert not [name for name, value in imagination.items() if value is None]


def test_loader_compares_with_the_step(config, tmp_path, monkeypatch):
    at = np.arange(20)
    arrays = {
        "image": np.zeros((20, 64, 64, 3), np.uint8), "action": np.zeros((20, 6), np.float32),
        "reward": np.zeros(20, np.float32), "is_first": at == 0, "is_last": at == 19,
    }  # fmt: skip
    write_episode(tmp_path, arrays, {}, name="0")
    monkeypatch.setattr(loader, "_step_seconds", lambda config, repeats: 2.0)
    one, two = lines(loader.bench(config, "debug", tmp_path, threads=(1, 2), seconds=0.05, repeats=2))
    assert (one["threads"], two["threads"], one["episodes"], one["frames"]) == (1, 2, 1, 20)
    assert two["x the step (at least 5 wanted)"] == pytest.approx(2 * two["batches/s"]) and two["batches/s"] > 0
    alone = lines(loader.bench(config, "debug", tmp_path, seconds=0.01, repeats=1, with_step=False))
    assert {row["step of stage 1 (ms)"] for row in alone} == {None} and alone[0]["threads"] == 1
    monkeypatch.setattr(loader, "fits", lambda replay, share: True)
    asked = dict(threads=(1,), seconds=0.01, repeats=1, with_step=False)
    host, device = lines(loader.bench(config, "debug", tmp_path, **asked))
    assert (host["from"], host["threads"], device["from"], device["threads"]) == ("disk", 1, "devices", None)
    assert device["batches/s"] > 0


def test_encoder_times_each_kind():
    rows = lines(encoder.bench("embedded", repeats=1, rows=16))
    assert [row["of"] for row in rows] == ["16 frames", "32 clips", "32 sentences"]
    assert all(row["a second"] > 0 and row["first call (s)"] > 0 and row["encoder"] == "embedded" for row in rows)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["step", "--batch", "0"], "a batch of 0 sequences"),
        (["step", "--repeats", "0", "--compile-only"], "repeats must be at least 1, got 0"),
        (["step", "--profile", "--compile-only"], "--profile runs the programs and --compile-only does not"),
        (["step", "--preset", "pper"], "'pper'. Did you mean 'paper'"),
        (["step", "--body", "wlker"], "Did you mean 'walker'"),
        (["behavior", "--config.train.bacth=3"], "Did you mean 'train.batch'"),
        (["loader", "/nowhere", "--seconds", "0"], "seconds positive"),
        (["loader", "/nowhere", "--no-step"], "no valid episode in /nowhere"),
        (["loader", "/nowhere", "--threads", "0"], "threads at least 1"),
        (["encoder", "--encoder", "clp"], "'clp'. Did you mean 'clip'"),
        (["encoder", "--size", "3"], "size 8"),
        (["encoder", "more"], "unexpected arguments: more"),
        (["scaling", "--devices", "1"], "fewer than 2"),
        (["stp"], "unknown benchmark 'stp'. Did you mean 'step'"),
    ],
)
def test_bad_settings_are_named(capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", *arguments])
    err = capsys.readouterr().err
    assert end.value.code == 2 and message in err and "Traceback" not in err


def test_every_benchmark_has_a_module_and_help(capsys):
    for name in commands.BENCHES:
        with pytest.raises(SystemExit) as end:
            cli.main(["bench", name, "--help"])
        assert end.value.code == 0 and f"bench {name}" in capsys.readouterr().out
