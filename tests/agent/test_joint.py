"""The loss table and the train step: which loss reaches which module, checked against plain differentiation."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitagent_jax.agent import joint, rewards
from bitagent_jax.agent.joint import Row, assign_tasks, loss_table, masked, routed_gradients
from bitagent_jax.agent.state import build

# What each loss could reach if nothing but the code of the losses, and no table, stopped it.
REACH = {
    "reconstruction": {"world_model"},
    "kl": {"world_model"},
    "semantic": {"fusion", "semantic", "adapter"},
    "text": {"aligner", "adapter"},
    "anchor": {"adapter"},
    "task_kl": {"task_imagination"},
    "dynamics_kl": {"task_imagination"},
    "jbo": {"fusion", "adapter", "actor"},
    "actor": {"fusion", "adapter", "actor"},
    "critic": {"critic"},
}


def test_masked_keeps_the_mean_of_the_rows_inside():
    loss = jnp.array([[1.0, jnp.nan, 3.0, 5.0]])
    got = masked(loss, jnp.array([[True, False, True, False]]))
    np.testing.assert_allclose(got, [[2, 0, 6, 0]])
    assert float(got.mean()) == 2  # of 1 and 3
    assert not np.any(masked(loss, jnp.zeros((1, 4), bool)))


@pytest.mark.parametrize("sequences, tasks", [(8, 3), (9, 3), (4, 1), (2, 3)])
def test_tasks_have_equal_shares(sequences, tasks):
    ids = np.asarray([assign_tasks(jax.random.key(i), sequences, tasks) for i in range(20)])
    assert ids.shape == (20, sequences) and ids.min() >= 0 and ids.max() < tasks
    for row in ids:
        shares = np.bincount(row, minlength=tasks)
        assert shares.max() - shares.min() <= 1
    assert np.ptp(np.bincount(ids.ravel(), minlength=tasks)) <= 20
    if tasks > 1:
        assert len({tuple(row) for row in ids.tolist()}) > 1  # shuffled


def test_routing_by_hand():
    params = {"a": jnp.array(2.0), "b": jnp.array(3.0), "c": jnp.array(5.0)}
    table = {"one": Row(10.0, ("a",)), "two": Row(1.0, ("a", "b")), "three": Row(2.0, ("b", "a"))}

    def losses(p):
        product = p["a"] * p["b"] * p["c"]
        return {"one": jnp.full(4, product), "two": product**2, "three": p["c"] * p["b"], "other": product}, "aux"

    gradients, means, aux = routed_gradients(losses, params, table)
    # one: 10 * bc = 150 to a alone; two: 2 abc * bc = 900 to a, 2 abc * ac = 600 to b; three: 2 * c = 10 to b
    assert gradients == {"a": 1050.0, "b": 610.0} and aux == "aux"
    assert {name: float(value) for name, value in means.items()} == {"one": 30, "two": 900, "three": 15, "other": 30}


@pytest.fixture(scope="module")
def natural(tiny, shaken, batch, prompts, fast):
    """Run the real train step with every loss differentiated alone with respect to EVERY module.

    Returns loss -> module -> gradients, as plain reverse differentiation gives them, without the table.
    """

    def differentiate(losses, params, table):
        def means(p):
            values, aux = losses(p)
            return {name: jnp.mean(values[name]) for name in table}, aux

        values, pull, aux = jax.vjp(means, params, has_aux=True)
        one = lambda name: {n: jnp.where(n == name, 1.0, 0.0) for n in values}  # noqa: E731
        return {}, values, ({name: pull(one(name))[0] for name in values}, aux[1])

    graph, _ = build(tiny(), 16, 2)
    with pytest.MonkeyPatch.context() as patch, fast():
        patch.setattr(joint, "routed_gradients", differentiate)
        step = joint.make_train_step(graph, tiny(), prompts, 2)
        return jax.jit(lambda state, batch: {k: v for k, v in step(state, batch)[1].items() if "/" not in k})(
            shaken, batch
        )


def largest(tree):
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def test_every_loss_reaches_what_it_may_and_no_more_even_without_the_table(natural):
    assert natural.keys() == REACH.keys()
    for loss, gradients in natural.items():
        reached = {module for module, tree in gradients.items() if largest(tree) != 0}
        assert reached == REACH[loss], loss


def test_every_loss_moves_every_module_of_its_row(natural, tiny):
    for loss, row in loss_table(tiny(), 2).items():
        for module in row.modules:
            assert largest(natural[loss][module]) > 1e-8, (loss, module)


def test_the_backward_path_reaches_the_mllm_side(natural):
    assert largest(natural["jbo"]["adapter"]) > 1e-8 and largest(natural["jbo"]["fusion"]) > 1e-8


def test_it_does_so_where_an_encoder_embeds_only_the_rows_that_end_its_clips(tiny, shaken, compiled, batch):
    config = tiny(joint__mllm=0.0, joint__anchor=0.0, imagination__stride=8)  # of the adapter's rows, jbo's alone
    step = compiled(config, 2)[1]
    ends, never = np.zeros_like(batch["has_embedding"]), np.zeros_like(batch["has_embedding"])
    ends[:, 7] = True
    moved = [float(step(shaken, batch | {"has_embedding": has})[1]["grad_norm/adapter"]) for has in (ends, never)]
    assert moved[0] > 1e-8 and moved[1] == 0


def test_gates_learn_what_a_task_is_from_its_reward_and_not_to_ignore_it_from_clips(natural):
    gates = lambda loss: {n: v for n, v in natural[loss]["fusion"].items() if n.startswith("gate")}  # noqa: E731
    assert gates("semantic").keys() == {"gate_norm", "gate_in", "gate_out"}
    assert largest(gates("semantic")) == 0 and all(largest(leaf) > 0 for leaf in gates("jbo").values())


def test_the_actor_learns_through_the_dynamics(natural):
    assert largest(natural["jbo"]["actor"]) > 1e-8  # the reward alone, which only imagined states carry


def test_no_parameter_is_forgotten(natural, tiny):
    """Every leaf gets a gradient from its rows, but for what the default model never uses."""
    idle = []
    for module in natural["kl"]:
        rows = [loss for loss, row in loss_table(tiny(), 2).items() if module in row.modules]
        total = jax.tree.map(lambda *leaves: max(float(np.abs(x).max()) for x in leaves),
                             *(natural[loss][module] for loss in rows))  # fmt: skip
        idle += [jax.tree_util.keystr(path) for path, v in jax.tree_util.tree_leaves_with_path(total) if v == 0]
    assert not idle


def test_the_train_step_applies_exactly_the_gradients_of_the_table(natural, tiny, shaken, compiled, batch):
    _, step = compiled(tiny(), 2)
    after, metrics = step(shaken, batch)
    for module in shaken.params:
        rows = [(loss, row.scale) for loss, row in loss_table(tiny(), 2).items() if module in row.modules]
        trees = [jax.tree.map(lambda g, s=scale: s * g, natural[loss][module]) for loss, scale in rows]
        want = jax.tree.map(lambda *leaves: sum(leaves), *trees)
        got = jax.tree.map(lambda mu: 10 * mu, after.opt[module][1][0].mu)  # (1 - 0.9) of the gradient
        scale = largest(want)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a / scale, b / scale, atol=2e-4, err_msg=module)


def test_a_train_step_is_deterministic_and_its_randomness_is_the_step(tiny, shaken, compiled, batch):
    _, step = compiled(tiny(), 2)
    (a, values), (b, again) = step(shaken, batch), step(shaken, batch)
    assert same(a, b) and same(values, again)
    other, _ = step(shaken._replace(step=shaken.step + 1), batch)
    assert not same(a.params["actor"], other.params["actor"])
    assert int(a.step) == 1 and np.array_equal(jax.random.key_data(a.key), jax.random.key_data(shaken.key))


def same(left, right):
    left, right = (jax.tree.map(lambda x: np.asarray(x).tobytes(), strip(tree)) for tree in (left, right))
    return left == right


def strip(tree):
    return tree._replace(key=jax.random.key_data(tree.key)) if hasattr(tree, "key") else tree


def test_stage_1_leaves_behaviour_alone_and_its_targets_are_copies(tiny, shaken, compiled, batch):
    after, _ = compiled(tiny(), 1)[1](shaken, batch)
    for module in ("actor", "critic"):
        assert same(after.params[module], shaken.params[module]) and same(after.opt[module], shaken.opt[module])
    for module in ("task_imagination", "aligner"):
        assert same(after.slow[module], after.params[module])
        assert not same(after.params[module], shaken.params[module])


def test_stage_2_moves_its_targets_slowly(tiny, shaken, compiled, batch):
    after, _ = compiled(tiny(), 2)[1](shaken, batch)
    for module in ("critic", "task_imagination", "aligner"):  # both rates are 0.02
        want = jax.tree.map(lambda new, old: 0.02 * new + 0.98 * old, after.params[module], shaken.slow[module])
        for a, b in zip(jax.tree.leaves(after.slow[module]), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_frozen_world_model_stays_bit_for_bit(tiny, shaken, compiled, batch):
    after, _ = compiled(tiny("frozen_world_model"), 2)[1](shaken, batch)
    for module in ("world_model", "task_imagination"):
        assert same(after.params[module], shaken.params[module]), module
    for module in ("semantic", "aligner", "fusion", "adapter", "actor", "critic"):  # the MLLM side stays anchored
        assert not same(after.params[module], shaken.params[module]), module


def test_regression_moves_the_actor_alone_toward_the_data(tiny, shaken, compiled, batch, shown):
    plain, _ = compiled(tiny("frozen_world_model"), 2)[1](shaken, batch)
    pulled, metrics = compiled(tiny("frozen_world_model", behavior__regression=1.0), 2)[1](shaken, batch | shown)
    assert same({n: v for n, v in plain.params.items() if n != "actor"},
                {n: v for n, v in pulled.params.items() if n != "actor"})  # fmt: skip
    assert not same(plain.params["actor"], pulled.params["actor"])
    assert 0 < metrics["loss/regression"] < 2 * 2 + 0.1  # at most 2 in each of two actions


def test_rows_without_an_embedding_change_nothing(tiny, shaken, compiled, batch):
    """Whatever stands in a row without an embedding is never read."""
    _, step = compiled(tiny(), 2)
    hidden = np.where(batch["has_embedding"][..., None], batch["embedding"], 7.0).astype(np.float32)
    text = np.where(batch["has_text"][:, None], batch["text"], -3.0).astype(np.float32)
    left, right = step(shaken, batch)[0], step(shaken, batch | {"embedding": hidden, "text": text})[0]
    for module in left.params:
        for a, b in zip(jax.tree.leaves(left.params[module]), jax.tree.leaves(right.params[module]), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6, err_msg=module)


class Drawn:
    """A task imagination that never decides quite, and features that are the latent itself."""

    def __init__(self, target):
        self.target = lambda prompts, actions: target
        self.world_model = types.SimpleNamespace(latent_features=lambda stoch: stoch)


def test_the_reward_compares_the_latents_that_are_drawn_not_what_they_might_have_been(tiny):
    decided = jnp.eye(4)[jnp.array([0, 1, 2])]  # one target step: three categoricals of four classes
    target = jnp.log(0.7 * decided + 0.075)[None, None].repeat(8, 1)
    undecided = jnp.full((1, 8, 3, 4), jnp.log(0.25))
    path = {"prior": undecided, "action": jnp.zeros((1, 8, 2))}
    judge = lambda stoch: rewards.task_reward(  # noqa: E731
        Drawn(target), path | {"stoch": jnp.broadcast_to(stoch.reshape(-1), (1, 8, 12))}, jnp.ones((1, 16)),
        jnp.array([0]), tiny(),
    )[0]  # fmt: skip
    np.testing.assert_allclose(judge(decided), 1.0, rtol=1e-5)
    np.testing.assert_allclose(judge(jnp.roll(decided, 1, -1)), 0.0, atol=1e-6)
    np.testing.assert_allclose(judge(decided.at[0].set(jnp.eye(4)[3])), 2 / 3, rtol=1e-5)
