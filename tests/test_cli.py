import json
import shutil
import types

import numpy as np
import pytest
from PIL import Image

from bitagent_jax import cli
from bitagent_jax.data.behaviors import mixture
from bitagent_jax.data.episodes import list_episodes, read_episode, write_episode


def fails(capsys, *argv):
    """Run a verb that must fail with one clear line; returns it."""
    with pytest.raises(SystemExit) as end:
        cli.main([str(arg) for arg in argv])
    err = capsys.readouterr().err
    assert end.value.code == 2 and "Traceback" not in err
    return err


def test_help_and_an_unknown_verb(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"{verb} " in shown and text[:30] in " ".join(shown.split()) for verb, (_, text) in cli.VERBS.items())
    assert "unknown verb 'trian'. Did you mean 'train'?" in fails(capsys, "trian", "runs/x")
    assert "verb" in fails(capsys)
    assert "unknown benchmark 'pol'. Did you mean 'pool'" in fails(capsys, "bench", "pol")


def test_errors_end_with_status_2(command, tmp_path):
    command.run("evaluate", tmp_path, code=2)


def test_config_errors_name_the_nearest(capsys, command, tmp_path):
    run = tmp_path / "run"
    assert "needs a config, for example --config=" in fails(capsys, "train", run)
    missing = fails(capsys, "train", run, f"--config={command.ROOT}/experiments/configs/wlker.py:debug")
    assert "wlker.py" in missing
    assert "'debgu'. Did you mean 'debug'" in fails(capsys, "train", run, f"--config={command.WALKER}:debgu")
    debug = f"--config={command.WALKER}:debug"
    typo = fails(capsys, "train", run, debug, "--config.train.bacth=3")
    assert "'train.bacth'. Did you mean 'train.batch'" in typo
    choice = fails(capsys, "train", run, debug, "--config.reward.similarity=cosin")
    assert "'cosin'. Did you mean 'cosine'" in choice
    assert "many" in fails(capsys, "train", run, debug, "--config.train.batch=many")
    task = fails(capsys, "train", run, debug, "--config.tasks=('walker_fly',)")
    assert "task of body walker 'walker_fly'" in task
    assert "empty sentence" in fails(capsys, "train", run, debug, "--config.prompts=('a', ' ', 'b')")
    assert "'--confg.train.batch=3'" in fails(capsys, "train", run, debug, "--confg.train.batch=3")
    assert "'surplus'" in fails(capsys, "train", run, debug, "surplus")
    assert not run.exists()


def test_overrides_reach_the_config(command):
    options = command.settings("debug,no_jbo", train__batch=6, prompts="('stand on one leg','walk','run')")
    config = cli.parse_config(options)
    assert config.train.batch == 6
    assert config.prompts == ("stand on one leg", "walk", "run")
    assert config.joint.jbo == 0


def test_folders_that_are_no_runs_and_missing_checkpoints(capsys, command, trained, tmp_path):
    for verb in (("evaluate", tmp_path), ("imagine", tmp_path, "run"), ("collect", tmp_path, "--run", tmp_path)):
        tasks = ("--tasks", "walker_run") if verb[0] == "collect" else ()
        assert "is not a run folder" in fails(capsys, *verb, *tasks)
    assert "it holds [40, 50, 60]" in fails(capsys, "evaluate", trained[0], "--step", "55")
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(trained[0] / "config.json", empty)
    assert f"no checkpoint in {empty / 'checkpoints'}" in fails(capsys, "evaluate", empty)
    assert "no episodes" in fails(capsys, "embed", tmp_path / "none")
    assert "is not a run folder" in fails(capsys, "diagnose", tmp_path)
    assert "it holds [40, 50, 60]" in fails(capsys, "diagnose", trained[0], "--step", "55")


def test_empty_prompts_and_unknown_names(capsys, command, trained, tmp_path):
    assert "the prompt is empty" in fails(capsys, "imagine", trained[0], "  ")
    assert "the prompt is empty" in fails(capsys, "evaluate", trained[0], "--prompt", "")
    for words in (("imagine", trained[0], "run", "clip.mp5"), ("evaluate", trained[0], "--prompt", "run | clip.mp5")):
        assert "file of the prompt 'clip.mp5': '.mp5'. Did you mean '.mp4'" in fails(capsys, *words)
    assert not (trained[0] / "videos" / "run.mp4").exists()
    assert "--stride 3 is none of 1, 2, 4, 8" in fails(capsys, "embed", trained[0] / "online", "--stride", "3")
    assert "episodes cannot be embedded" in fails(
        capsys, "embed", trained[0] / "online", "--encoder", "precomputed", "--weights", "x:3")  # fmt: skip
    unknown = fails(capsys, "evaluate", trained[0], "--tasks", "walker_rum")
    assert "unknown task 'walker_rum'. Did you mean 'walker_run'" in unknown
    assert "not of the run's body walker" in fails(capsys, "evaluate", trained[0], "--tasks", "cheetah_run")
    assert "unknown task" in fails(capsys, "collect", tmp_path, "--tasks", "walker_jump")
    collect = ("collect", tmp_path / "new", "--tasks", "walker_run")
    assert "unknown mix of behaviours 'zo'. Did you mean 'zoo'" in fails(capsys, *collect, "--mix", "zo")
    assert "unknown preset of collect 'ful'. Did you mean 'full'" in fails(capsys, *collect, "--preset", "ful")
    assert "give it without them" in fails(capsys, *collect, "--preset", "full", "--episodes", "3")
    assert "one of --run and --mix" in fails(capsys, *collect, "--run", trained[0], "--mix", "zoo")
    assert "at least 1, got 0" in fails(capsys, *collect, "--episodes", "0")
    assert "name it with --run" in fails(capsys, *collect, "--step", "40")
    assert "it holds [40, 50, 60]" in fails(capsys, *collect, "--run", trained[0], "--step", "55")
    assert "--config.explore.heads=3" in fails(capsys, *collect, "--config.explore.heads=3")
    explore = (*collect, "--mix", "plan2explore")
    assert "'explore.head'. Did you mean 'explore.heads'" in fails(capsys, *explore, "--config.explore.head=3")
    assert "heads=1 cannot disagree" in fails(capsys, *explore, "--config.explore.heads=1")
    cheetah = f"--config={command.ROOT}/experiments/configs/cheetah.py:debug"
    assert "the config is of body cheetah" in fails(capsys, *explore, cheetah)
    assert not (tmp_path / "new").exists()
    assert "'embeded'. Did you mean 'embedded'" in fails(capsys, "embed", trained[0] / "online", "--encoder", "embeded")
    assert "--epsiodes" in fails(capsys, "evaluate", trained[0], "--epsiodes", "3")
    assert "'wlker'. Did you mean 'walker'" in fails(capsys, "quickstart", tmp_path / "q", "--body", "wlker")


def test_evaluate_with_an_untrained_sentence_beside_the_random_policy(trained, capsys):
    cli.main(["evaluate", str(trained[0]), "--tasks", "walker_stand", "--episodes", "1",
              "--random", "--prompt", "do a backflip"])  # fmt: skip
    out = capsys.readouterr().out
    assert "walker_stand" in out and "random" in out and str(trained[0] / "scores.json") in out
    assert "do a backflip" in json.dumps(json.loads((trained[0] / "scores.json").read_text()))


def test_imagine_films_every_prompt(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save("pose.png")
    cli.main(["imagine", str(trained[0]), "walk fast | stroll", "pose.png", "--steps", "8"])
    out = capsys.readouterr().out
    for name in ("walk_fast_stroll", "pose_png"):
        for ending in ("mp4", "png"):
            (path,) = (trained[0] / "videos").glob(f"{name}-*.{ending}")
            assert str(path) in out and path.stat().st_size > 1000


def test_diagnose_holds_a_runs_rewards_against_the_true_ones(trained, tmp_path, capsys):
    cli.main(["diagnose", str(trained[0]), "--windows", "2", "--step", "40", "--out", str(tmp_path)])
    out = capsys.readouterr().out
    assert "| walker_stand | neg_kl |" in out and "| walker_walk | random | 2 |" in out
    assert json.loads((tmp_path / "diagnose.json").read_text())["facts"]["source"] == str(trained[0])
    assert str(tmp_path / "diagnose.png") in out and not (trained[0] / "diagnose.png").exists()


def test_the_default_number_of_episodes_has_every_behaviour_of_the_zoo(tmp_path, monkeypatch, capsys):
    asked = []

    def gather(folder, tasks, episodes, **settings):
        asked.append(episodes)
        return types.SimpleNamespace(paths=[], new=0)

    monkeypatch.setattr("bitagent_jax.evaluation.gather.gather", gather)
    one = ("collect", str(tmp_path), "--tasks", "walker_walk")
    for more in ((), ("--mix", "zoo"), ("--mix", "zoo", "--episodes", "5"), ("--mix", "plan2explore")):
        cli.main([*one, *more])
    assert asked == [20, len(mixture("zoo", ["walker_walk"])), 5, 20]


def test_collect_at_random_and_with_a_run_then_embed(trained, tmp_path, capsys):
    one = ("collect", str(tmp_path), "--episodes", "1", "--num-envs", "1", "--tasks")
    for arguments in (["walker_run"], ["walker_walk", "--run", str(trained[0])], ["walker_run"]):
        cli.main([*one, *arguments])
    assert [line.split(",")[1] for line in capsys.readouterr().out.splitlines()] == [
        " 1 of them new", " 1 of them new", " 0 of them new"]  # fmt: skip
    first, second = list_episodes(tmp_path)
    assert first.name.startswith("000000-walker_run-501-") and second.name.startswith("000000-walker_walk-501-")
    assert (read_episode(first)[1]["policy"], read_episode(second)[1]["policy"]) == ("random", str(trained[0]))
    assert {path.stem.split("-")[1] for path in tmp_path.glob("collect-*.json")} == {
        path.stem.split("-")[-1] for path in (first, second)}  # fmt: skip
    cli.main(["embed", str(tmp_path)])
    cli.main(["embed", str(tmp_path)])
    cli.main(["embed", str(tmp_path), "--stride", "8"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["2", "0", "0"] and "(stride 8, key " in lines[2]


def test_export_and_import(tmp_path, capsys):
    pytest.importorskip("minari")
    at = np.arange(5)
    arrays = dict(image=np.zeros((5, 40, 40, 3), np.uint8), action=np.zeros((5, 6), np.float32))
    arrays |= dict(reward=np.zeros(5, np.float32), is_first=at == 0, is_last=at == 4)
    write_episode(tmp_path / "own", arrays, {"label": "run"}, name="0")
    cli.main(["export", str(tmp_path / "own"), str(tmp_path / "set-v0")])
    command = ["import", str(tmp_path / "set-v0"), str(tmp_path / "back"), "--format"]
    cli.main([*command, "minari", "--task", "walker_run"])
    out = capsys.readouterr().out
    assert f"1 episodes exported to {tmp_path / 'set-v0'}" in out
    assert f"1 episodes imported into {tmp_path / 'back'}, 0 there before, 0 skipped" in out
    assert read_episode(*list_episodes(tmp_path / "back"))[1].items() >= {
        "label": "run", "body": "walker", "task": "walker_run"}.items()  # fmt: skip
    assert "unknown format 'mnari'. Did you mean 'minari'" in fails(capsys, *command, "mnari")
    assert "unknown body 'wlker'" in fails(capsys, *command, "minari", "--body", "wlker")
    other = fails(capsys, *command, "minari", "--body", "cheetah", "--task", "walker_run")
    assert "task walker_run is of body walker, not cheetah" in other
    assert "nothing to import" in fails(capsys, *command, "genrl")
