"""The verb ``collect`` as another process and as an explorer: what is stopped and begun again ends the same."""

import json
import os
import shutil
import signal
import time

from bitagent_jax import cli, load
from bitagent_jax.data.episodes import list_episodes, read_episode
from bitagent_jax.data.plan import claim
from bitagent_jax.evaluation import gather


def contents(folder):
    return {path.name: path.read_bytes() for path in list_episodes(folder)}


def test_a_killed_collection_continues_bit_for_bit(command, tmp_path):
    """The whole one takes two calls, of which the second asks for more."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = ("--tasks", "cheetah_run", "--num-envs", "1", "--seed", "7", "--episodes")
    process = command.start("collect", killed, *settings, 3)
    until = time.monotonic() + 400
    while not list_episodes(killed):
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    before = {path: path.stat().st_mtime_ns for path in list_episodes(killed)}
    for folder, episodes in ((whole, 1), (whole, 3), (killed, 3)):
        cli.main(["collect", str(folder), *settings, str(episodes)])
    assert contents(killed) == contents(whole) and len(contents(whole)) == 3
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    (plan,) = whole.glob("collect-*.json")
    with claim(whole, json.loads(plan.read_text())):  # another process: of a whole collection nothing is written
        cli.main(["collect", str(whole), *settings, "3"])


def test_a_run_is_told_its_own_prompts(trained, monkeypatch):
    agent, told = load(trained[0]), []
    agent.config.prompts = ("hop", "", "dash")
    monkeypatch.setattr(gather, "load", lambda run, step: agent)
    monkeypatch.setattr(gather, "AgentPolicy", lambda agent, prompts, **how: told.extend(prompts))
    source = gather._run_source("run", None, ["walker_run", "walker_stand", "walker_walk"], 4)
    source.begin(None, "")(0, 0)
    assert told == ["dash", "hop", "walk fast clean", "dash"]


def test_an_explorer_collects_and_continues_from_a_checkpoint(command, tmp_path, capsys):
    """Round 0 is random; rounds 1 and 2 follow two updates each. One copy loses what came after the first two."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    arguments = ["--tasks", "walker_walk", "--mix", "plan2explore", "--num-envs", "1", "--episodes", "3",
                 *command.settings(explore__updates=2, env__action_repeat=20)]  # fmt: skip
    cli.main(["collect", str(whole), *arguments])
    assert "3 episodes of plan2explore" in capsys.readouterr().out
    metas = [read_episode(path)[1] for path in list_episodes(whole)]
    assert [meta["round"] for meta in metas] == [0, 1, 2] and {meta["policy"] for meta in metas} == {"plan2explore"}
    shutil.copytree(whole, stopped)
    (explorer,) = stopped.glob("explorer-*")
    assert sorted(path.name for path in explorer.iterdir()) == ["2", "4"]
    shutil.rmtree(explorer / "4")
    list_episodes(stopped)[-1].unlink()
    cli.main(["collect", str(stopped), *arguments])
    assert "3 episodes of plan2explore" in (out := capsys.readouterr().out) and "1 of them new" in out
    assert contents(stopped) == contents(whole)
