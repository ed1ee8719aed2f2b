"""Mixes of behaviours: who is in them, and that each environment is given its own."""

import numpy as np
import pytest

from bitagent_jax.data import behaviors
from bitagent_jax.data.behaviors import Behavior
from bitagent_jax.data.collect import collect
from bitagent_jax.data.episodes import read_episode
from bitagent_jax.envs.pool import EnvPool
from bitagent_jax.envs.tasks import tasks_of


def test_the_random_mix_flails_in_every_task():
    tasks = ["quadruped_walk", "quadruped_run"]
    assert behaviors.mixture("random", tasks) == [Behavior(task) for task in tasks]
    assert not behaviors.need_states(behaviors.mixture("random", tasks))


def test_the_zoo_mix_adds_stages_with_noise_and_the_best_also_without(monkeypatch):
    actors = {"walker_walk": behaviors.zoo.load_card()["actors"]["walker_walk"]}
    monkeypatch.setattr(behaviors.zoo, "load_card", lambda: {"actors": actors})
    mix = behaviors.mixture("zoo", ["walker_walk", "walker_lunge_pose"])
    assert mix[:2] == [Behavior("walker_walk"), Behavior("walker_lunge_pose")]
    assert {b.task for b in mix[2:]} == {"walker_walk"}
    assert {b.stage for b in mix[2:10]} == {"early", "middle", "steady"}
    assert mix[10:] == 4 * [Behavior("walker_walk", "mixed")] and mix[10].meta() == {"policy": "zoo mixed"}
    assert [b.noise for b in mix if b.stage == "steady"] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    second = next(b for b in mix if b.stage == "steady" and b.noise)
    assert behaviors.need_states(mix) and second.meta() == {"policy": "zoo steady", "noise": 0.2}
    del actors["walker_walk"]["steady"]
    assert {b.stage for b in behaviors.mixture("zoo", ["walker_walk"])[1:9]} == {"early", "middle", "expert"}


def test_unknown_mixes_and_bodies_without_actors_are_named():
    with pytest.raises(ValueError, match="unknown mix of behaviours 'zo'. Did you mean 'zoo'"):
        behaviors.mixture("zo", ["walker_walk"])
    with pytest.raises(ValueError, match="the zoo has no actor of kitchen_light, only of .* use the mix random"):
        behaviors.mixture("zoo", ["kitchen_light"])


def test_presets_explore_beside_the_zoo_or_at_random():
    assert behaviors.parts("small", ["walker_walk", "walker_lunge_pose"]) == (("zoo", 160), ("plan2explore", 40))
    half = 1997  # of 501 rows
    assert behaviors.parts("full", ["quadruped_run"]) == (("zoo", half), ("plan2explore", half))
    assert behaviors.parts("full", ["kitchen_light"])[0].mix == "random"
    assert 2_000_000 <= 2 * half * 501 < 2_002_000
    with pytest.raises(ValueError, match="unknown preset of collect 'smal'. Did you mean 'small'"):
        behaviors.parts("smal", ["quadruped_run"])
    with pytest.raises(ValueError, match="tasks of one body"):
        behaviors.parts("full", ["quadruped_run", "walker_run"])


def test_behaviours_are_repeated_in_turn_but_never_left_out():
    two = behaviors.mixture("random", ["walker_walk", "walker_run"])
    assert behaviors.spread(two, 5) == [*two, *two, two[0]] and behaviors.spread(two, 1) == two


def test_a_collection_tells_experts_from_flailing(tmp_path):
    chosen = [Behavior("walker_stand"), Behavior("walker_stand", "expert", 0.1)]
    with EnvPool([b.task for b in chosen], size=8, look="fast", state=True) as pool:
        metas = [b.meta() for b in chosen]
        paths = collect(pool, behaviors.acting(chosen), episodes=2, folder=tmp_path, seed=0, metas=metas)
    (flailing, one), (expert, two) = (read_episode(path) for path in paths)
    assert (one["policy"], two["policy"], two["noise"]) == ("random", "zoo expert", 0.1)
    assert np.sum(expert["reward"]) > 2 * np.sum(flailing["reward"])


def test_mixed_environments_change_hands_and_the_others_do_not(tmp_path):
    """Read from whom the policy has act in each environment at each step."""
    chosen = [Behavior("walker_stand", "expert"), Behavior("walker_stand", "mixed"), Behavior("walker_walk", "mixed")]
    with EnvPool([b.task for b in chosen], size=8, look="fast", state=True) as pool:

        def record(index, seed):
            policy = behaviors.acting(chosen)(index, seed)

            def act(rows):
                before = list(policy._actors)
                actions = policy(rows)
                held.append([a is b for a, b in zip(before, policy._actors, strict=True)])
                actors.append(list(policy._actors))
                return actions

            return act

        held, actors = [], []
        collect(pool, record, episodes=3, folder=tmp_path, seed=0, metas=[b.meta() for b in chosen])
    who = np.array([[-1 if a is None else id(a) for a in row] for row in actors])
    assert len(set(who[:, 0])) == 1 and len(set(who[:, 1])) > 3 and len(set(who[:, 2])) > 3
    assert 5 < np.sum(~np.array(held)[:, 1:]) < 60  # of 1,000 steps, one in 50, some of them to the same actor
    expert = np.sum(read_episode(next(tmp_path.glob("000000*")))[0]["reward"])
    assert expert > 1.3 * np.sum(read_episode(next(tmp_path.glob("000001*")))[0]["reward"])


def test_actors_of_the_bodys_other_tasks_take_turns_too_where_any_do(monkeypatch):
    loaded = []
    monkeypatch.setattr(behaviors.zoo, "load_actor", lambda task, stage: loaded.append((task, stage)))
    behaviors.acting(behaviors.mixture("random", ["stickman_walk"]))
    behaviors.acting([Behavior("walker_walk", "expert")])
    assert {task for task, _ in loaded} <= {"stickman_walk", "walker_walk"}
    loaded.clear()
    behaviors.acting([Behavior("walker_walk", "mixed"), Behavior("walker_run")])
    others = [pair for pair in loaded if pair[0] not in ("walker_walk", "walker_run")]
    assert ("walker_stand", "steady") in others and ("walker_lying_down", "expert") in others
    assert {task for task, _ in others} == set(tasks_of("walker")) - {"walker_walk", "walker_run"}
    assert len(others) == len(set(others))
