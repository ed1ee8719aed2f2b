"""The race between the pool and its peers."""

import pytest

from bitagent_jax.bench import pool as bench_pool

BARE = ("bare mj_step + renderer", "fast")


class Contestant:
    """Takes its speeds from a list and notes its calls."""

    def __init__(self, name, speeds, calls):
        self.name, self.speeds, self.calls = name, iter(speeds), calls

    def run(self, seconds):
        self.calls.append((self.name, seconds))
        return next(self.speeds)

    def close(self):
        self.calls.append((self.name, "closed"))


@pytest.fixture
def calls(monkeypatch):
    """Run the race of a pool and its three peers with these speeds, after one of the warm-up."""
    speeds = {
        ("pool", "fast"): [0, 80, 10, 90],
        BARE: [0, 100, 10, 100],
        (bench_pool.ASYNC, "fast"): [0, 40, 5, 60],
        (bench_pool.ASYNC, "stock"): [0, 10, 2, 9],
        ("bare mj_step + renderer", "stock"): [0, 20, 4, 9],
    }
    calls = []

    def contestants(task, num_envs):
        return {name: lambda name=name: Contestant(name, speeds[name], calls) for name in speeds}

    monkeypatch.setattr(bench_pool, "_contestants", contestants)
    monkeypatch.setattr(bench_pool, "worker_environment", lambda render: {})
    return calls


def test_contestants_run_in_turn_and_ratios_are_medians_over_the_rounds(calls):
    rows = bench_pool.race("walker_walk", 4, 3, 0.5)
    order = [name for name, what in calls if what == 0.5]
    assert order[:5] == order[5:10] == order[10:] and len(set(order[:5])) == 5
    assert [what for _, what in calls[-5:]] == ["closed"] * 5
    pool = rows[0]
    # of bare: .8, 1, .9; of Async in the same look: 2, 2, 1.5; of Async stock: 8, 5, 10
    assert (pool["steps/s"], pool["min"], pool["max"]) == (80, 10, 90)
    assert (pool["of bare"], pool["x Async, same look"], pool["x Async, stock"]) == (0.9, 2, 8)


def test_all_are_closed_when_one_fails(calls):
    with pytest.raises(StopIteration):
        bench_pool.race("walker_walk", 4, 4, 0.5)
    assert [what for _, what in calls[-5:]] == ["closed"] * 5


@pytest.mark.parametrize(
    "task, change, message",
    [
        ("walker_rum", {}, "Did you mean 'walker_run'"),
        ("kitchen_light", {}, "not that of kitchen_light"),
        ("walker_run", {"repeats": 0}, "got 0 and 2"),
        ("walker_run", {"seconds": -1.5}, "got 5 and -1.5"),
    ],
)
def test_bad_settings_are_named(task, change, message):
    with pytest.raises(ValueError, match=message):
        bench_pool.bench(task, **change)


@pytest.mark.slow
def test_the_whole_benchmark():
    shown = bench_pool.bench("cheetah_run", num_envs=1, repeats=1, seconds=0.1)
    assert shown.count('"bench": "pool"') == 7 and shown.count('"bench": "pool.breakdown"') == 8
