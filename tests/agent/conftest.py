"""One small model, one synthetic batch, and steps of the real train step compiled once for all tests."""

import jax
import numpy as np
import pytest

from bitagent_jax.agent import joint
from bitagent_jax.agent.state import build, init_state
from bitagent_jax.config import make_config, validate

EMBED, ACTIONS, TASKS = 16, 2, 3
TINY = {
    "train.batch": 8,
    "train.length": 8,
    "task_imagination.segment": 8,
    "imagination.horizon": 8,
    "imagination.stride": 2,
    "reward.window": 4,
    "fusion.layers": 1,
    "world_model.logit_scale": 5.0,
    "optim.model_lr": 3e-3,
    "optim.clip": 1e9,  # so that Adam's first moment is a tenth of the gradient
    "optim.behavior_clip": 1e9,
}


def units(rng, *shape):
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="session")
def tiny():
    """Return ``tiny(names="", **fields) -> config``: the debug preset, shrunk, with ablations."""

    def make(names="", **fields):
        config = make_config("walker", f"debug,{names}")
        config.update_from_flattened_dict(TINY | {name.replace("__", "."): value for name, value in fields.items()})
        return validate(config)

    return make


@pytest.fixture(scope="session")
def prompts():
    return units(np.random.default_rng(9), TASKS, EMBED)


@pytest.fixture(scope="session")
def batch():
    """Eight sequences of noise; some rows lack embeddings, two sequences have a text, one begins anew midway."""
    rng = np.random.default_rng(0)
    count, length = TINY["train.batch"], TINY["train.length"]
    has = np.ones((count, length), bool)
    has[0], has[1, :3] = False, False
    first = np.zeros((count, length), bool)
    first[2, 0], first[3, 4] = True, True
    return {
        "image": rng.integers(0, 256, (count, length, 64, 64, 3), dtype=np.uint8),
        "action": rng.uniform(-1, 1, (count, length, ACTIONS)).astype(np.float32),
        "is_first": first,
        "embedding": np.where(has[..., None], units(rng, count, length, EMBED), 0).astype(np.float32),
        "has_embedding": has,
        "text": units(rng, count, EMBED),
        "has_text": np.arange(count) >= 6,
    }


@pytest.fixture(scope="session")
def shown():
    """As many rows to imitate, of the sizes of the debug preset."""
    rng, sizes = np.random.default_rng(7), (TINY["train.batch"], TINY["train.length"])
    rows = {
        "deter": rng.normal(size=(*sizes, 32)).astype(np.float16),
        "post": np.log(rng.dirichlet(np.ones(4), (*sizes, 4))).astype(np.float16),
        "embedding": units(rng, *sizes, EMBED),
        "has_embedding": np.ones(sizes, bool),
        "action": rng.uniform(-1, 1, (*sizes, ACTIONS)).astype(np.float32),
        "task": rng.integers(TASKS, size=sizes).astype(np.int32),
    }
    return {f"shown/{name}": value for name, value in rows.items()}


class Fast:
    """Compiles without most of XLA's optimisations: several times sooner, and these models are tiny."""

    def __enter__(self):
        jax.config.update("jax_disable_most_optimizations", True)

    def __exit__(self, *_):
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def fast():
    return Fast


@pytest.fixture(scope="session")
def compiled(prompts, batch, shown):
    """Return ``compiled(config, stage) -> (graph, train_step)``; equal programs share one compilation."""
    known, programs = {}, {}

    def make(config, stage):
        name = (config.to_json(), stage)
        if name not in known:
            graph, init = build(config, EMBED, ACTIONS)
            state = jax.eval_shape(lambda: init_state(config, init))
            rows = batch | shown if config.behavior.regression else batch
            with Fast():
                lowered = jax.jit(joint.make_train_step(graph, config, prompts, stage)).lower(state, rows)
                text = lowered.as_text()
                programs[text] = programs.get(text) or lowered.compile()
            known[name] = graph, programs[text]
        return known[name]

    return make


@pytest.fixture(scope="session")
def start():
    """Return ``start(config) -> TrainState`` at step 0."""
    known = {}

    def make(config):
        if config.to_json() not in known:
            _, init = build(config, EMBED, ACTIONS)
            with Fast():
                known[config.to_json()] = jax.jit(lambda: init_state(config, init))()
        return known[config.to_json()]

    return make


@pytest.fixture(scope="session")
def shaken(tiny, start):
    """A state of the default model whose every parameter is moved, so that no gradient is zero by initialisation."""
    state = start(tiny())
    leaves, tree = jax.tree.flatten(state.params)
    rng = np.random.default_rng(4)
    moved = [leaf + 0.05 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    return state._replace(params=jax.tree.unflatten(tree, moved))
