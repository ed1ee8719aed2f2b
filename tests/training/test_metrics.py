import io
import json
import math
import os
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from bitagent_jax.training import metrics as metrics_lib
from bitagent_jax.training.metrics import Metrics, NonFiniteLoss, Progress, check_finite


def read_rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read_events(folder):
    """Parse TensorBoard's record files: length (8), crc (4), data, crc (4)."""
    events = []
    for file in sorted((folder / "tensorboard").iterdir()):
        data, offset = file.read_bytes(), 0
        while offset < len(data):
            (length,) = struct.unpack_from("<Q", data, offset)
            events.append(Event.FromString(data[offset + 12 : offset + 12 + length]))
            offset += 16 + length
    return events


def moving_square(count=6):
    frames = np.zeros((count, 64, 64, 3), np.uint8)
    for index in range(count):
        frames[index, 20:40, 8 * index : 8 * index + 8] = (250, 40, 40)
    return frames


def test_rows_are_on_disk_at_once_and_in_tensorboard_after_closing(tmp_path):
    with Metrics(tmp_path) as metrics:
        metrics.scalars(5, {"loss": jnp.float32(0.5), "rate": np.int64(3)})
        assert read_rows(tmp_path) == [{"step": 5, "loss": 0.5, "rate": 3.0}]
    values = {
        (value.tag, event.step): value.simple_value for event in read_events(tmp_path) for value in event.summary.value
    }
    assert values == {("loss", 5): 0.5, ("rate", 5): 3.0}


def test_a_value_that_is_not_finite_is_null_in_strict_json(tmp_path):
    with Metrics(tmp_path) as metrics:
        metrics.scalars(1, {"a": math.nan, "b": math.inf, "c": 1.0})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"step": 1, "a": None, "b": None, "c": 1.0}


def test_what_is_no_scalar_is_named(tmp_path):
    with Metrics(tmp_path) as metrics, pytest.raises(ValueError, match=r"'loss' has shape \[2\]"):
        metrics.scalars(1, {"loss": jnp.ones(2)})


def test_a_resumed_runs_rows_equal_an_uninterrupted_ones(tmp_path):
    def run(folder, start, stop):
        with Metrics(folder, start) as metrics:
            for step in range(start + 1, stop + 1):
                metrics.scalars(step, {"loss": 1 / step})

    run(tmp_path / "whole", 0, 9)
    run(tmp_path / "resumed", 0, 6)  # killed at 6, the last checkpoint is of step 4
    with (tmp_path / "resumed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    run(tmp_path / "resumed", 4, 9)
    resumed, whole = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("resumed", "whole"))
    assert resumed == whole
    starts = [event.step for event in read_events(tmp_path / "resumed") if event.session_log.status == SessionLog.START]
    assert starts == [1, 5]  # TensorBoard purges from these steps on
    assert len(os.listdir(tmp_path / "resumed" / "tensorboard")) == 2


def test_a_video_is_an_animation_in_tensorboard(tmp_path):
    frames = moving_square()
    with Metrics(tmp_path) as metrics:
        metrics.video(3, "imagined", frames, fps=10)
    (image,) = [
        value.image for event in read_events(tmp_path) for value in event.summary.value if value.tag == "imagined"
    ]
    assert (image.height, image.width, image.colorspace) == (64, 64, 3)
    with Image.open(io.BytesIO(image.encoded_image_string)) as animation:
        assert animation.n_frames == 6 and animation.info["duration"] == 100
        animation.seek(5)
        last = np.asarray(animation.convert("RGB")).astype(int)
    assert np.abs(last - frames[5]).mean() < 3


def test_videos_of_another_type_are_refused(tmp_path):
    with Metrics(tmp_path) as metrics, pytest.raises(ValueError, match=r"not float32 \[2, 8, 8, 3\]"):
        metrics.video(1, "v", np.zeros((2, 8, 8, 3), np.float32))


def test_a_loss_that_is_not_finite_stops_with_step_and_names():
    with pytest.raises(NonFiniteLoss, match="step 12: not finite: actor, kl") as error:
        check_finite(12, {"actor": jnp.nan, "image": 2.0, "kl": -jnp.inf})
    assert error.value.step == 12 and error.value.names == ["actor", "kl"]
    assert check_finite(1, {"a": jnp.float32(1.5)}) == {"a": 1.5}


def test_progress_on_a_pipe_is_quiet_for_short_work():
    stream = io.StringIO()
    with Progress(5, desc="short", stream=stream) as bar:
        for _ in range(5):
            bar.update(note="loss 1")
    assert stream.getvalue() == "" and bar.rate > 0


def test_progress_on_a_pipe_writes_whole_lines_at_intervals(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    stream = io.StringIO()
    bar = Progress(100, initial=20, desc="stage 1", stream=stream)
    bar._bar._time = lambda: clock[0]  # tqdm binds its clock when the bar is made
    with bar:
        for step in range(20, 100):
            clock[0] += 1
            bar.update(note=f"loss {step}")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3  # after 30 s, after 60 s, at the end
    assert lines[0] == "stage 1: 50/100, 1.00 steps/s, 00:50 left, loss 49"
    assert lines[-1].startswith("stage 1: 100/100") and "\r" not in stream.getvalue()
    assert bar.rate == 1.0


def test_progress_on_a_terminal_draws_a_bar():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with Progress(4, desc="embed", stream=stream) as bar:
        bar.update(4)
    assert "embed: 100%" in stream.getvalue() and "4/4" in stream.getvalue()
    with metrics_lib.progress(1) as bar:
        bar.update()


WRITER = """
import sys, os, signal
from bitagent_jax.training.metrics import Metrics
metrics = Metrics(sys.argv[1])
for step in range(1, 4):
    metrics.scalars(step, {"loss": 1.0})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_rows_survive_kill_9(tmp_path):
    subprocess.run([sys.executable, "-c", WRITER, str(tmp_path)], check=False, timeout=60)
    assert [row["step"] for row in read_rows(tmp_path)] == [1, 2, 3]
