"""The MLLM side's options in the train step: a low-rank adapter, relations kept, L_JBO warmed up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitagent_jax.agent.joint import Row, loss_table, routed_gradients, warm_up


def test_relations_may_move_the_adapter_alone_and_are_off_by_default(tiny):
    for stage in (1, 2):
        assert "relation" not in loss_table(tiny(), stage)
        assert loss_table(tiny(joint__relation=2.0), stage)["relation"] == Row(2.0, ("adapter",))
    assert "relation" not in loss_table(tiny("no_adapter", joint__relation=2.0), 1)


def test_the_backward_path_can_be_cut_before_the_adapter(tiny):
    full, cut = loss_table(tiny(), 2), loss_table(tiny("stop_jbo"), 2)
    assert full["jbo"].modules == ("fusion", "adapter") and cut["jbo"].modules == ("fusion",)
    assert full | {"jbo": 0} == cut | {"jbo": 0}


@pytest.mark.parametrize("done, share", [(0, 0), (1, 0.1), (5, 0.5), (10, 1), (99, 1)])
def test_jbo_warms_up_over_its_first_updates(tiny, done, share):
    config = tiny(joint__warmup=10, joint__jbo=3.0)
    table = loss_table(config, 2)
    warm = warm_up(table, config, jnp.array(config.train.stage1_steps + done))
    assert float(warm["jbo"].scale) == pytest.approx(3 * share) and warm["jbo"].modules == table["jbo"].modules
    assert warm | {"jbo": 0} == table | {"jbo": 0}


def test_without_a_warm_up_and_without_jbo_the_table_stays(tiny):
    for config in (tiny(), tiny("no_jbo", joint__warmup=10)):
        assert warm_up(loss_table(config, 2), config, jnp.array(0)) == loss_table(config, 2)


def test_gradients_take_the_scale_of_the_step(tiny):
    config = tiny(joint__warmup=4)
    table = {"jbo": Row(2.0, ("a",)), "other": Row(1.0, ("a",))}

    @jax.jit
    def gradient(step):
        losses = lambda p: ({"jbo": 3 * p["a"], "other": 5 * p["a"]}, None)  # noqa: E731
        return routed_gradients(losses, {"a": jnp.array(1.0)}, warm_up(table, config, step))[0]["a"]

    first = config.train.stage1_steps
    assert [float(gradient(first + i)) for i in (0, 2, 4)] == [5, 5 + 3, 5 + 6]


def test_a_low_rank_adapter_with_relations_and_warm_up_trains(tiny, start, compiled, batch):
    config = tiny("lowrank", joint__relation=5.0, joint__warmup=2, train__stage1_steps=2)
    state, history = start(config), []
    for _ in range(4):
        state, metrics = compiled(config, 2)[1](state, batch)
        history.append({name: float(value) for name, value in metrics.items()})
    assert all(np.isfinite(value) for row in history for value in row.values())
    assert history[0]["loss/relation"] == pytest.approx(0, abs=1e-6) and history[3]["loss/relation"] > 1e-6
    before = start(config).params["adapter"]
    assert all(np.any(state.params["adapter"][name]["kernel"] != before[name]["kernel"]) for name in ("down", "up"))
