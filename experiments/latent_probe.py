"""Do a run's latents tell what an expert would do?  What bounds a policy that acts on them, however it learns.

    python -m experiments.latent_probe RUN [--task walker_walk] [--rounds 6]

Hardware: CPU, some minutes.  In each round the best actor of the task that fills the mix ``zoo`` acts once under each
noise of it; small networks then learn its noise-free action, of the last round's episodes unseen, from

    state     the simulator's state, on which the expert acts
    drawn     the latents of the run's last checkpoint, filtered over the episode, z drawn anew at every update
    once      the same, but drawn once, as if the draws were data

Expected: a table of the explained share of the action's variance (R^2) on unseen episodes by noise, z at its mode.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from bitagent_jax import zoo
from bitagent_jax.agent.state import build
from bitagent_jax.agent.world_model import as_observed, feature
from bitagent_jax.data.behaviors import LEVELS, played
from bitagent_jax.data.collect import ZooPolicy
from bitagent_jax.envs.pool import EnvPool
from bitagent_jax.envs.tasks import get_body, tasks_of
from bitagent_jax.errors import unknown
from bitagent_jax.inference import Agent, load
from bitagent_jax.nn.distributions import mode_onehot
from bitagent_jax.nn.layers import MLP

UNITS, BATCH, UPDATES, RATE, DECAY = 128, 512, 4000, 2e-3, 3e-2
WARM = 5
"""First steps of an episode that are left out: their latents have seen too little."""
Rows = dict[str, np.ndarray]


def record(task: str, seed: int, steps: int, action_repeat: int = 2, look: str = "auto") -> Rows:
    """Let the expert act once under each noise; arrays ``[noises, steps, ...]``, ``wanted`` its action before noise."""
    expert = zoo.load_actor(task, played(task)[-1])
    policy = ZooPolicy([expert] * len(LEVELS), noise=LEVELS, seed=seed)
    kept: dict[str, list[np.ndarray]] = {name: [] for name in ("image", "action", "is_first", "state", "wanted")}
    with EnvPool([task] * len(LEVELS), seed=seed, action_repeat=action_repeat, look=look, state=True) as pool:
        timestep = pool.reset()
        for _ in range(steps):
            row = {name: np.array(getattr(timestep, name)) for name in kept if name != "wanted"}
            for name, value in (row | {"wanted": expert(timestep.state)}).items():
                kept[name].append(value)
            timestep = pool.step(policy(timestep))
    return {name: np.stack(values, 1) for name, values in kept.items()}


def filtered(agent: Agent, rows: Rows) -> Rows:
    """Return ``deter [N, T, D]`` and the log-probabilities ``post [N, T, S, C]`` of each episode."""
    graph, _ = build(agent.config, agent.encoder.embed_dim, agent.action_dim)

    @jax.jit
    def observe(params, image, action, is_first, key):
        seen = nnx.merge(graph, params).world_model.observe(image[None], action[None], is_first[None], key)
        return {name: seen[name][0] for name in ("deter", "post")}

    seen = [observe(agent.params, *row, jax.random.key(i))
            for i, row in enumerate(zip(rows["image"], rows["action"], rows["is_first"], strict=True))]  # fmt: skip
    return {name: np.stack([np.asarray(one[name]) for one in seen]) for name in seen[0]}


def explained(inputs: Callable, train: dict, test: dict) -> list[float]:
    """Fit a network to ``wanted`` and return R^2 of each test episode.

    Args:
        inputs: ``(rows, key) -> [N, F]``; with the key None what the network sees in the test.
        train: arrays ``[N, ...]``.
        test: arrays ``[episodes, T, ...]``.
    """
    network = MLP(inputs(jax.tree.map(lambda x: x[:1], train), None).shape[-1], UNITS, 2, train["wanted"].shape[-1],
                  rngs=nnx.Rngs(0))  # fmt: skip
    graph, params = nnx.split(network)
    optimizer = optax.adamw(optax.cosine_decay_schedule(RATE, UPDATES), weight_decay=DECAY)
    predict = jax.jit(lambda params, x: jnp.tanh(nnx.merge(graph, params)(x)))

    def update(carry, key):
        params, state = carry
        pick, draw = jax.random.split(key)
        chosen = jax.random.randint(pick, (BATCH,), 0, len(train["wanted"]))
        batch = jax.tree.map(lambda x: x[chosen], train)
        seen = inputs(batch, draw)
        gradient = jax.grad(lambda p: jnp.mean(jnp.square(predict(p, seen) - batch["wanted"])))(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(1), UPDATES)
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(update, carry, keys))((params, optimizer.init(params)))
    shares = []
    for episode in range(len(test["wanted"])):
        rows = jax.tree.map(lambda x, e=episode: x[e], test)
        error = rows["wanted"] - predict(params, inputs(rows, None))
        shares.append(float(1 - jnp.mean(jnp.square(error)) / jnp.mean(jnp.var(rows["wanted"], 0))))
    return shares


def latent_inputs(rows: dict, key: jax.Array | None) -> jax.Array:
    """Return ``[h, z]``, z drawn from the stored posterior or, without a key, its mode."""
    if key is not None:
        return feature(as_observed(rows, key))
    mode = mode_onehot(rows["post"])
    return jnp.concatenate([rows["deter"], mode.reshape(len(mode), -1)], -1)


def probe(agent: Agent, task: str, rounds: int) -> dict[str, list[float]]:
    """Return R^2 of the last round's episodes, one for each of ``LEVELS``, by what the network sees."""
    repeat, look = agent.config.env.action_repeat, agent.config.env.look
    steps = get_body(agent.config.body).control_steps // repeat + 1
    parts = [record(task, seed, steps, repeat, look) for seed in range(rounds)]
    parts = [part | filtered(agent, part) for part in parts]
    keep = ("state", "wanted", "deter", "post")
    train = {name: jnp.concatenate([p[name][:, WARM:].reshape(-1, *p[name].shape[2:]) for p in parts[:-1]])
             for name in keep}  # fmt: skip
    test = {name: jnp.asarray(parts[-1][name][:, WARM:]) for name in keep}
    drawn = as_observed(train, jax.random.key(0))["stoch"].reshape(train["post"].shape)
    once = train | {"post": jnp.log(jnp.maximum(drawn, 1e-30))}  # certain, so that every draw is this one
    return {
        "state": explained(lambda rows, key: rows["state"], train, test),
        "drawn": explained(latent_inputs, train, test),
        "once": explained(latent_inputs, once, test),
    }


def main(arguments: list[str] | None = None) -> None:
    """Probe a run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--task", default="walker_walk")
    parser.add_argument("--rounds", type=int, default=6, help="the last of which is kept for the test")
    given = parser.parse_args(arguments)
    if given.rounds < 2:
        parser.error(f"--rounds {given.rounds}: one is kept for the test, so that at least 2 are needed")
    agent = load(given.run)
    experts = [task for task in tasks_of(agent.config.body) if task in zoo.load_card()["actors"]]
    if given.task not in experts:
        parser.error(str(unknown(f"task of body {agent.config.body} with an expert", given.task, experts)))
    print("| action noise |", " | ".join(f"{level:g}" for level in LEVELS), "|")
    print("|---" * (len(LEVELS) + 1) + "|")
    for name, shares in probe(agent, given.task, given.rounds).items():
        print(f"| {name} |", " | ".join(f"{share:.2f}" for share in shares), "|", flush=True)


if __name__ == "__main__":
    main()
