"""The two-stage training loop."""

import logging
import signal
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from bitagent_jax.agent import visual
from bitagent_jax.training import sharding
from bitagent_jax.training.metrics import Metrics, check_finite, progress
from bitagent_jax.training.run import RunFolder
from bitagent_jax.training.session import Session, check_inputs
from bitagent_jax.video import tile

logger = logging.getLogger(__name__)


def train(path: str | Path, config: ConfigDict) -> RunFolder:
    """Train a run to its last step, or continue it: stage 1 (model), then stage 2 (behaviour, joint optimisation).

    SIGTERM saves a checkpoint and leaves with SystemExit(143); the same call continues from the last checkpoint. Of
    several processes, one that gets the signal makes all leave at one step.

    Raises:
        NonFiniteLoss: with step and losses; the last good checkpoint stays.
        RunError, ValueError: for bad input, before any work starts.
    """
    primary = jax.process_index() == 0
    check_inputs(Path(path), config)
    with RunFolder.open(path, config, primary=primary) as run:
        sharding.enable_compilation_cache(run.cache)
        session = Session(run)
        stages = config.train.stage1_steps, config.train.stage1_steps + config.train.stage2_steps
        with session.checkpoints, Metrics(run.path, session.step) as metrics, _Sigterm() as stop:
            for stage, until in enumerate(stages, start=1):
                if session.step < until:
                    run_stage(session, stage, until, metrics, stop)
        sharding.wait_for_all("run ended")
    return run


def run_stage(session: Session, stage: int, until: int, metrics: Metrics, stop: "_Sigterm") -> None:
    """Update until step ``until``, reporting, saving and collecting at their intervals."""
    every, data = session.config.train, session.config.data
    train_step, probe, step, loader = session.train_step(stage), session.probe(), session.step, session.loader(stage)
    try:
        with progress(until, step, desc=f"stage {stage}") as bar:
            while step < until:
                if data.online_every and step and step % data.online_every == 0:
                    loader.close()
                    session.collect_online(step)
                    loader = session.loader(stage)
                batch = next(loader)
                session.state, values = train_step(session.state, batch)
                step += 1
                leaving = stop.due(step)
                last = step == until or leaving
                if last or step % every.log_every == 0 or step % every.checkpoint_every == 0:
                    floats = check_finite(step, values | probe(session.state, batch))
                    metrics.scalars(step, floats | {"stage": stage, "steps_per_second": bar.rate})
                    bar.update(0, note=_note(floats))
                if last or step % every.checkpoint_every == 0:
                    session.checkpoints.save(step, session.state)
                if every.video_every and step % every.video_every == 0:
                    metrics.video(step, "open_loop", open_loop_video(session, session.with_pictures(batch, step - 1)))
                bar.update()
                if leaving:
                    session.checkpoints.close()
                    sharding.wait_for_all("saved and leaving")  # a process that ends early would end the others
                    raise SystemExit(143)
    finally:
        loader.close()


def open_loop_video(session: Session, batch: dict, count: int = 4, context: int = 5) -> np.ndarray:
    """Draw truth, reconstruction and open-loop prediction of a few sequences: uint8 ``[T, H, W, 3]``."""

    def draw(params, batch):
        rows = {name: value[:count] for name, value in batch.items()}
        return visual.open_loop(session.graph, params, rows, context, jax.random.key(0))

    frames = jax.jit(draw, out_shardings=sharding.replicated(session.mesh))(session.state.params, batch)
    sheets = {name: np.concatenate(np.asarray(value), axis=1) for name, value in frames.items()}
    return tile(sheets, height=64 * count)


def _note(values: dict[str, float]) -> str:
    shown = ("loss/reconstruction", "loss/kl", "imagined/reward")
    return " ".join(f"{name.split('/')[1]}={values[name]:.3g}" for name in shown if name in values)


class _Sigterm:
    """While open, SIGTERM only makes a step ``due``, so that the loop can save and leave.

    Of several processes JAX has caught the signal since they were joined, and agrees with all on the step.
    """

    requested = False

    def __enter__(self):
        self._together = jax.process_count() > 1
        self._before = signal.getsignal(signal.SIGTERM)
        if not self._together:
            signal.signal(signal.SIGTERM, self._request)
        return self

    def due(self, step: int) -> bool:
        """Say whether this is the step to leave at; to be asked at every step."""
        if self._together and multihost_utils.reached_preemption_sync_point(step):
            self._request()
        return self.requested

    def _request(self, *_) -> None:
        logger.warning("SIGTERM: saving and leaving")
        self.requested = True

    def __exit__(self, *_) -> None:
        if not self._together:
            signal.signal(signal.SIGTERM, self._before)
