"""Everything a training run needs, built or resumed from its folder: data, model, mesh, checkpoints."""

import logging
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Self

import jax
import numpy as np
from ml_collections import ConfigDict

from bitagent_jax.agent import visual
from bitagent_jax.agent.joint import make_train_step
from bitagent_jax.agent.semantics import make_probe
from bitagent_jax.agent.state import TrainState, build, init_state
from bitagent_jax.config import default_tasks, validate
from bitagent_jax.data.behaviors import acting, mixture, need_states, spread
from bitagent_jax.data.collect import collect, numbered
from bitagent_jax.data.embeddings import embed_folder, require_embeddings
from bitagent_jax.data.episodes import list_episodes, require_fitting
from bitagent_jax.data.loader import Loader, step_rng
from bitagent_jax.data.replay import Replay, load_folder
from bitagent_jax.envs.pool import EnvPool
from bitagent_jax.envs.tasks import get_body, get_task
from bitagent_jax.mllm.encoder import load_encoder
from bitagent_jax.mllm.precomputed import NAME as PRECOMPUTED
from bitagent_jax.mllm.precomputed import Precomputed
from bitagent_jax.mllm.prompts import check_prompt
from bitagent_jax.policy import Agent, AgentPolicy
from bitagent_jax.training import sharding
from bitagent_jax.training.checkpoint import Checkpoints
from bitagent_jax.training.exemplars import Exemplars
from bitagent_jax.training.latents import Latents
from bitagent_jax.training.metrics import Metrics
from bitagent_jax.training.resident import Resident, fits
from bitagent_jax.training.run import RunFolder
from bitagent_jax.training.told import tell
from bitagent_jax.video import tile

logger = logging.getLogger(__name__)


def sentences(config: ConfigDict) -> tuple[str, ...]:
    """Return the prompts to learn, sentences or files: the config's own, or those of its tasks."""
    return tuple(config.prompts) or tuple(get_task(name).prompt for name in config.tasks)


def check_inputs(path: Path, config: ConfigDict) -> None:
    """Check what a config says and the files that it names, before a run folder is made.

    Raises:
        ValueError: for bad settings, a prompt that is none (of a run that has begun, prompts are kept in its folder),
            a data set of another body or of other shapes, or one without the precomputed embeddings.
    """
    validate(config)
    body, length, capacity = get_body(config.body), config.train.length, config.data.capacity
    if config.data.folder:
        require_fitting(config.data.folder, body.name, config.env.size, body.action_dim, length, capacity)
    elif not length <= (rows := body.control_steps // config.env.action_repeat + 1) <= capacity:
        raise ValueError(
            f"episodes of {body.name} have {rows} rows, which is less than config.train.length={length} or more than "
            f"config.data.capacity={capacity}"
        )
    if not (path / "prompts.npz").exists():
        for prompt in sentences(config):
            check_prompt(prompt)
    if config.mllm.encoder == PRECOMPUTED:
        encoder = load_encoder(PRECOMPUTED, config.mllm.weights)
        require_embeddings(config.data.folder, encoder.fingerprint, encoder.embed_dim)


class Session:
    """The parts of one training run; ``state`` is replaced at every update. A context manager."""

    def __init__(self, run: RunFolder, step: int | None = None):
        """Check the config against devices, collect and embed what data is missing, then build or restore.

        Args:
            run: open for training.
            step: the checkpoint to go on from, 0 for none; the newest readable one by default.
        """
        self.run, self.config = run, run.config
        self.mesh = sharding.make_mesh(self.config.compute.fsdp)
        sharding.check_batch(self.mesh, self.config.train.batch)
        self.encoder = load_encoder(self.config.mllm.encoder, self.config.mllm.weights)
        self._precomputed = isinstance(self.encoder, Precomputed)
        self.checkpoints = Checkpoints(run.checkpoints, self.config.train.keep)
        sharding.check_same("checkpoints", self.checkpoints.steps())  # once the first process has opened the folder
        self.told = tell(run.prompts, sentences(self.config), self.encoder, primary=jax.process_index() == 0)
        self._build_state(step)
        self._collect_first()
        self.replay = Replay(self.config.data.capacity, embed_dim=self.encoder.embed_dim)
        self._add(run.episodes)
        rounds = max(0, self.step - 1) // self.config.data.online_every if self.config.data.online_every else 0
        if rounds:
            self._add(self.online_folder, range(rounds * self.config.data.online_episodes))
        sharding.check_same("episodes", [path.name for path in self.replay.paths], self.replay.frames)
        self.replay.sample(1, self.config.train.length, np.random.default_rng(0))  # raises if it is too short
        exemplars = None
        if self.config.behavior.regression:
            exemplars = Exemplars(
                self.graph, self.config, self.told.embeddings, run.returns, primary=jax.process_index() == 0
            )
        self._latents = Latents(self.replay, self.graph, self.config, exemplars)
        self._resident: Resident | None = None
        self._metrics = Metrics(run.path, self.step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Finish what is being written; safe to call twice."""
        try:
            self.checkpoints.close()
        finally:
            self._metrics.close()

    def save(self, step: int) -> None:
        """Write a checkpoint of the present state in the background."""
        self.checkpoints.save(step, self.state)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Write a row of metrics."""
        self._metrics.scalars(step, values)

    def film(self, step: int, batch: dict[str, jax.Array]) -> None:
        """Report truth, reconstruction and open-loop prediction of a few sequences of the last update's batch."""
        self._metrics.video(step, "open_loop", self._open_loop(self._with_pictures(batch, step - 1)))

    @property
    def step(self) -> int:
        """Updates done (waits for the last one)."""
        return int(self.state.step)

    @property
    def online_folder(self) -> Path:
        """Where episodes of the learning policy go."""
        return self.run.path / "online"

    def train_step(self, stage: int):
        """Compile the stage's ``train_step(state, batch) -> (state, metrics)`` for this mesh."""
        step = make_train_step(self.graph, self.config, self.told.embeddings, stage)
        compiled = sharding.jit_step(step, self.mesh, self._shardings)
        if jax.process_count() > 1 and jax.default_backend() == "cpu":  # gloo can deadlock with two steps in flight
            return lambda state, batch: jax.block_until_ready(compiled(state, batch))
        return compiled

    def probe(self):
        """Compile ``probe(state, batch) -> metrics`` of the MLLM side, for the steps that are reported."""
        probe = make_probe(self.graph, self.told.embeddings)
        return jax.jit(lambda state, batch: probe(state.params, batch), out_shardings=sharding.replicated(self.mesh))

    def loader(self, stage: int, among: int = 1) -> Loader:
        """Start drawing the batches of the present step of a stage and those after it.

        In stage 2 with a world model that rests they hold latents, computed here, in place of pictures. Pictures come
        from the devices' own memory where the data set has room in it, which so many sessions share, and no episode
        will be added.
        """
        train, source, place = self.config.train, self.replay, self._place
        if stage == 2 and not self.config.joint.world_model_in_stage2:
            self._resident = None
            self._latents.update(sharding.on_host(self.state.params))
            source = self._latents
        elif self._resident or self._may_reside(among):
            self._resident = self._resident or Resident(self.replay, self.mesh)
            source, place = self._resident, lambda batch: batch
        return Loader(
            source, train.batch, train.length, seed=self.config.seed, start_step=self.step, only=self._mine,
            place=place,
        )  # fmt: skip

    def _with_pictures(self, batch: dict[str, jax.Array], step: int) -> dict[str, jax.Array]:
        """Return a step's batch, or where it holds latents the sequences of pictures that they were made of."""
        if "image" in batch:
            return batch
        train, rng = self.config.train, step_rng(self.config.seed, step)
        return self._place(self.replay.sample(train.batch, train.length, rng, self._mine))

    def _open_loop(self, batch: dict[str, jax.Array], count: int = 4, context: int = 5) -> np.ndarray:
        """Draw the first sequences of a batch: uint8 ``[T, H, W, 3]``."""

        def draw(params, batch):
            rows = {name: value[:count] for name, value in batch.items()}
            return visual.open_loop(self.graph, params, rows, context, jax.random.key(0))

        frames = jax.jit(draw, out_shardings=sharding.replicated(self.mesh))(self.state.params, batch)
        sheets = {name: np.concatenate(np.asarray(value), axis=1) for name, value in frames.items()}
        return tile(sheets, height=64 * count)

    def _may_reside(self, among: int) -> bool:
        return not self.config.data.online_every and fits(self.replay, self.config.compute.data_share / among)

    @property
    def _mine(self) -> np.ndarray:
        """Which sequences of a batch this process reads."""
        return sharding.local_rows(self.mesh, self.config.train.batch)

    def _place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Put a batch on the devices without the reward: the agent never sees it."""
        return sharding.place(self.mesh, {name: rows for name, rows in batch.items() if name != "reward"})

    def agent(self) -> Agent:
        """Return the present policy; of several processes all have to ask for it."""
        return Agent(self.config, sharding.on_host(self.state.params), self.encoder, self.told.known)

    def collect_online(self, step: int) -> None:
        """Collect the round of episodes that is due at a step with the present policy; the first process does."""
        data, agent = self.config.data, self.agent()
        number = (step // data.online_every - 1) * data.online_episodes
        if jax.process_index() == 0:
            self._collect_round(agent, step, number)
        sharding.wait_for_all(f"episodes of step {step}")
        self._add(self.online_folder, range(number, number + data.online_episodes))

    def _collect_round(self, agent: Agent, step: int, number: int) -> None:
        """Collect episodes from ``number`` on, one sentence a slot, and embed them."""
        data, prompts = self.config.data, sentences(self.config)
        tasks = tuple(self.config.tasks) or default_tasks(self.config.body)[:1]
        slots = min(data.online_episodes, self.config.env.num_envs)
        turns = range(number // data.online_episodes * slots, (number // data.online_episodes + 1) * slots)
        slot_prompts = [prompts[turn % len(prompts)] for turn in turns]
        with self._pool([tasks[turn % len(tasks)] for turn in turns]) as pool:
            collect(
                pool, lambda _, seed: AgentPolicy(agent, slot_prompts, sample=True, seed=seed),
                episodes=data.online_episodes, folder=self.online_folder, start=number,
                seed=self.config.seed + step, metas=[{"policy": f"agent at step {step}"}] * pool.num_envs,
            )  # fmt: skip
        self._embed(self.online_folder)

    def _build_state(self, step: int | None) -> None:
        actions = get_body(self.config.body).action_dim
        self.graph, init = build(self.config, self.encoder.embed_dim, actions)
        abstract = jax.eval_shape(lambda: init_state(self.config, init))
        self._shardings = sharding.state_shardings(self.mesh, abstract)
        self.state: TrainState
        if step == 0 or self.checkpoints.latest_step() is None:
            self.state = jax.jit(lambda: init_state(self.config, init), out_shardings=self._shardings)()
        else:
            self.state = self.checkpoints.restore(sharding.with_shardings(abstract, self._shardings), step)

    def _collect_first(self) -> None:
        """Have the first process fill the run's own episode folder, and all embed it, a share each."""
        if jax.process_index() == 0:
            self._collect_mix()
        sharding.wait_for_all("episodes collected")
        if jax.process_count() > 1:
            self._embed(self.run.episodes, share=(jax.process_index(), jax.process_count()))
            sharding.wait_for_all("episodes embedded")
        self._embed(self.run.episodes)  # where the processes have each a copy, the others' share is still missing

    def _collect_mix(self) -> None:
        """Collect a mix of behaviours; a given ``data.folder`` is left as it is."""
        data, folder, seed = self.config.data, self.run.episodes, self.config.seed
        if not data.folder and len(list_episodes(folder)) < data.episodes:
            tasks = tuple(self.config.tasks) or default_tasks(self.config.body)
            behaviors = spread(mixture(data.mix, tasks), min(self.config.env.num_envs, data.episodes))
            with self._pool([b.task for b in behaviors], state=need_states(behaviors)) as pool:
                collect(
                    pool, acting(behaviors), episodes=data.episodes, folder=folder, seed=seed,
                    metas=[b.meta() for b in behaviors],
                )  # fmt: skip

    def _embed(self, folder: Path, share: tuple[int, int] = (0, 1)) -> None:
        """Embed the rows that training reads: the encoder's own, but all if imagined steps hold an embedding."""
        if not self._precomputed:
            stride = 1 if self.config.imagination.semantics == "hold" else 0
            embed_folder(folder, self.encoder, stride=stride, share=share)

    def _pool(self, tasks: list[str], state: bool = False) -> EnvPool:
        env = self.config.env
        return EnvPool(
            tasks, seed=self.config.seed, workers=env.workers or None, size=env.size,
            action_repeat=env.action_repeat, look=env.look, state=state,
        )  # fmt: skip

    def _add(self, folder: Path, numbers: Container[int] | None = None) -> None:
        """Add a folder's episodes, or of a collection those of such numbers."""
        paths = None if numbers is None else [path for number, path in numbered(folder).items() if number in numbers]
        load_folder(folder, self.replay, fingerprint=self.encoder.fingerprint, paths=paths)
        if not self._precomputed and (labels := sorted(self.replay.labels)):
            self.replay.set_texts(dict(zip(labels, self.encoder.embed_text(labels), strict=True)))
