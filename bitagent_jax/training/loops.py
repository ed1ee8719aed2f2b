"""The two-stage training loop."""

import logging
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from bitagent_jax.training import sharding
from bitagent_jax.training.metrics import check_finite, progress
from bitagent_jax.training.run import RunFolder
from bitagent_jax.training.session import Session, check_inputs
from bitagent_jax.training.together import Together, common_step, with_seed

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
        run_stages(Session(run))
    return run


def train_seeds(path: str | Path, config: ConfigDict, seeds: Sequence[int]) -> list[RunFolder]:
    """Train runs that differ in nothing but ``seed``, ``path/seed-N`` each, in one program on one device.

    Each is what ``train`` makes of its config, but for rounding, and can be continued by it; interrupted or asked for
    more steps, the same call continues all. Meant for small models on accelerators; its speed has not been measured.

    Raises:
        RunError, ValueError: as of ``train``; also for more than one device, a seed given twice, and runs that are
            not at the same step.
    """
    path = Path(path)
    if jax.device_count() > 1:
        raise ValueError(
            f"several seeds in one program take one device, and here are {jax.device_count()}: show it one (by "
            "CUDA_VISIBLE_DEVICES=0, for example), or start one run a device as in launch/README.md"
        )
    if config.train.keep < 2 <= len(seeds):
        raise ValueError(
            f"config.train.keep={config.train.keep} would leave no step that all seeds have where a process dies while "
            "some have saved the next one: at least 2"
        )
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"each seed once, not {list(seeds)}")
    if (path / "config.json").exists():
        raise ValueError(f"{path} is a run itself; give the seeds another folder")
    configs = {path / f"seed-{seed}": with_seed(config, seed) for seed in seeds}
    for folder, one in configs.items():
        check_inputs(folder, one)
    with ExitStack() as stack:
        runs = [stack.enter_context(RunFolder.open(folder, one)) for folder, one in configs.items()]
        step = common_step(runs)
        sharding.enable_compilation_cache(runs[0].cache)
        run_stages(Together([Session(run, step) for run in runs]))
    return runs


def run_stages(session: "Session | Together") -> None:
    """Train from where a session is to the end of stage 2, and close it."""
    first, second = session.config.train.stage1_steps, session.config.train.stage2_steps
    with session, _Sigterm() as stop:
        for stage, until in enumerate((first, first + second), start=1):
            if session.step < until:
                run_stage(session, stage, until, stop)
    sharding.wait_for_all("run ended")


def run_stage(session: "Session | Together", stage: int, until: int, stop: "_Sigterm") -> None:
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
                    session.report(step, floats | {"stage": stage, "steps_per_second": bar.rate})
                    bar.update(0, note=_note(floats))
                if last or step % every.checkpoint_every == 0:
                    session.save(step)
                if every.video_every and step % every.video_every == 0:
                    session.film(step, batch)
                bar.update()
                if leaving:
                    session.close()
                    sharding.wait_for_all("saved and leaving")  # a process that ends early would end the others
                    raise SystemExit(143)
    finally:
        loader.close()


def _note(values: dict[str, float]) -> str:
    shown = ("loss/reconstruction", "loss/kl", "imagined/reward")
    found = {name: [value for key, value in values.items() if key.endswith(name)] for name in shown}  # of each seed
    return " ".join(f"{name.split('/')[1]}={np.mean(each):.3g}" for name, each in found.items() if each)


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
