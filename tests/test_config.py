import importlib.util
import itertools
import json
from pathlib import Path

import pytest

from bitagent_jax import config as config_lib
from bitagent_jax.config import CHOICES, make_config, validate
from bitagent_jax.presets import ABLATIONS, BODY_TASKS, PRESETS

CONFIGS = Path(__file__).parent.parent / "experiments" / "configs"


@pytest.mark.parametrize(
    "body, preset, ablation",
    [*((body, "paper", "") for body in BODY_TASKS), *itertools.product(["walker"], PRESETS, ["", *ABLATIONS])],
)
def test_every_body_preset_and_ablation_builds_and_validates(body, preset, ablation):
    config = validate(make_config(body, f"{preset},{ablation}"))
    assert config.body == body and config.is_locked
    flat = config_lib.flatten(config)
    for field, value in (PRESETS[preset] | ABLATIONS.get(ablation, {})).items():
        assert flat[field] == value


@pytest.mark.parametrize("body", BODY_TASKS)
def test_every_config_file_gives_its_body(body):
    spec = importlib.util.spec_from_file_location(f"config_{body}", CONFIGS / f"{body}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.get_config() == make_config(body, "paper")
    assert module.get_config("debug,hold") == make_config(body, "debug,hold")
    assert all(word in module.__doc__ for word in ("Command:", "Hardware:"))


def test_config_files_cover_the_bodies():
    assert {file.stem for file in CONFIGS.glob("*.py")} == set(BODY_TASKS)


def test_the_zoo_fills_the_data_of_the_bodies_that_have_actors():
    mixes = {body: make_config(body, "cpu").data.mix for body in BODY_TASKS}
    assert mixes == dict.fromkeys(("walker", "cheetah", "quadruped", "stickman"), "zoo") | {"kitchen": "random"}
    config = make_config("kitchen", "cpu")
    config.data.mix = "zoo"
    with pytest.raises(ValueError, match="the zoo has no actor of kitchen_microwave"):
        validate(config)
    config.data.folder = "episodes"
    assert validate(config).data.mix == "zoo"


def test_later_names_win():
    assert make_config("walker", "cosine,neg_kl").reward.similarity == "neg_kl"
    assert make_config("walker", None) == make_config("walker", "paper") == make_config("walker", "")


def test_unknown_names_give_the_nearest():
    with pytest.raises(ValueError, match="unknown body 'wlker'. Did you mean 'walker'"):
        make_config("wlker")
    with pytest.raises(ValueError, match="unknown preset or ablation 'debgu'. Did you mean 'debug'"):
        make_config("walker", "debgu")


def test_a_typo_in_a_field_names_the_nearest():
    config = make_config("walker", "debug")
    with pytest.raises(AttributeError, match="Did you mean.*similarity"):
        config.reward.similarty = "cosine"
    with pytest.raises(TypeError):
        config.train.batch = "many"


@pytest.mark.parametrize("field", CHOICES)
def test_a_value_outside_its_choices_is_named(field):
    config = make_config("walker", "debug")
    wrong = CHOICES[field][0] + "x"
    config.update_from_flattened_dict({field: wrong})
    with pytest.raises(ValueError, match=f"config.{field} '{wrong}'. Did you mean '{CHOICES[field][0]}'"):
        validate(config)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"body": "wlker"}, "config.body 'wlker'. Did you mean 'walker'"),
        ({"tasks": ("walker_fly",)}, "task of body walker 'walker_fly'"),
        ({"tasks": ("cheetah_run",)}, "task of body walker 'cheetah_run'"),
        ({"tasks": ()}, "both empty"),
        ({"prompts": ("run", " ")}, "empty sentence"),
        ({"prompts": ("run", ("walk", "stroll"))}, "paraphrases are written 'run fast | sprint'"),
        ({"task_imagination.segment": 12}, "config.task_imagination.segment=12"),
        ({"task_imagination.segment": 0}, "config.task_imagination.segment=0"),
        ({"train.length": 24}, "config.train.length=24"),
        ({"reward.window": 0}, "window=0 is outside 1..16"),
        ({"reward.window": 17}, "window=17 is outside 1..16"),
        ({"behavior.regression": 0.5}, "config.behavior.regression=0.5 judges the data by latents that stay"),
        (
            {"train.length": 0, "behavior.regression": 0.5, "joint.world_model_in_stage2": False},
            "config.train.length=0 must be at least 1",
        ),
        ({"train.batch": 0}, "config.train.batch=0 must be at least 1"),
        ({"env.num_envs": 0}, "config.env.num_envs=0"),
        ({"train.log_every": 0}, "config.train.log_every=0"),
        ({"behavior.init_std": 0.05}, "config.behavior.init_std=0.05 is not between config.behavior.min_std=0.1 and 1"),
        ({"optim.cooldown": 1.5}, "config.optim.cooldown=1.5 is no share, 0 to 1"),
        ({"optim.refine": -0.1}, "config.optim.refine=-0.1 must be at least 0"),
        ({"explore.updates": 0}, "config.explore.updates=0"),
        ({"train.checkpoint_every": 0}, "config.train.checkpoint_every=0 must be at least 1"),
        ({"train.stage1_steps": -5}, "config.train.stage1_steps=-5 must be at least 0"),
        ({"env.size": 48}, "config.env.size=48 is not 64, the pixels that the world model decodes"),
        ({"fusion.semantic_dropout": 2.0}, "config.fusion.semantic_dropout=2.0 is no share, 0 to 1"),
        ({"compute.data_share": 1.5}, "config.compute.data_share=1.5 is no share, 0 to 1"),
        ({"mllm.adapter_rank": 0}, "config.mllm.adapter_rank=0 must be at least 1"),
        ({"explore.heads": 1}, "config.explore.heads=1 cannot disagree"),
        ({"seed": -1}, "config.seed=-1 must be at least 0"),
        ({"fusion.width": 0}, "config.fusion.width=0 must be at least 1"),
        ({"reward.semantic": 1.1}, "config.reward.semantic=1.1 is no share, 0 to 1"),
        ({"behavior.discount": 1.5}, "config.behavior.discount=1.5 is no share, 0 to 1"),
        ({"reward.semantic": 0.5, "joint.mllm": 0.0}, "config.reward.semantic=0.5 needs the semantic decoder"),
    ],
)
def test_values_that_cannot_work_are_named(fields, message):
    config = make_config("walker", "debug")
    config.update_from_flattened_dict(fields)
    with pytest.raises(ValueError) as error:
        validate(config)
    assert message in str(error.value)


@pytest.mark.parametrize("regression", [0.0, 0.5])
def test_a_window_may_be_as_long_as_what_is_aligned(regression):
    """Imagined rollouts and windows of the data have the horizon's length, whatever that of sequences."""
    config = make_config("walker", "debug,frozen_world_model")
    fields = {"imagination.horizon": 32, "reward.window": 32, "behavior.regression": regression}
    config.update_from_flattened_dict(fields)
    assert validate(config).train.length == 16


def test_prompts_alone_are_enough():
    config = make_config("walker", "debug")
    config.tasks, config.prompts = (), ("a walker doing a handstand",)
    validate(config)


@pytest.mark.parametrize("body", BODY_TASKS)
def test_a_stored_config_reads_back_equal(tmp_path, body):
    config = make_config(body, "cpu,neg_kl")
    config.prompts = ("a sentence",) * len(config.tasks)
    config_lib.save(config, tmp_path / "config.json")
    back = config_lib.read(tmp_path / "config.json")
    assert back == config and back.is_locked and isinstance(back.tasks, tuple)


def test_stored_fields_that_are_unknown_or_missing_are_named(tmp_path):
    path = tmp_path / "config.json"
    config_lib.save(make_config("walker", "debug"), path)
    stored = json.loads(path.read_text())
    for value in ("x", 4.5):
        path.write_text(json.dumps(stored | {"train.batch": value}))
        with pytest.raises(
            ValueError, match=f"config.train.batch in .*config.json takes a value like 64, not {value!r}"
        ):
            config_lib.read(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="config.json holds no settings but"):
        config_lib.read(path)
    path.write_text(json.dumps(stored | {"fusion.kidn": "tamf"}))
    with pytest.raises(ValueError, match="'fusion.kidn'. Did you mean 'fusion.kind'"):
        config_lib.read(path)
    del stored["fusion.kind"]
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="lacks the config fields fusion.kind"):
        config_lib.read(path)


def test_runs_from_before_a_field_was_there_can_be_read_and_do_what_they_did(tmp_path):
    config, path = make_config("walker", "debug"), tmp_path / "config.json"
    config_lib.save(config, path)
    stored = json.loads(path.read_text())
    early = {name: value for name, value in stored.items() if not name.startswith(config_lib.LATER)}
    assert len(early) < len(stored)
    path.write_text(json.dumps(early))
    config.explore = config_lib.defaults().explore
    back = config_lib.read(path)
    assert back == config and (back.joint.relation, back.joint.warmup) == (0, 0)
