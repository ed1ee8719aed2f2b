"""Collections are told apart by their settings, and each is written by one process at a time."""

import json

import pytest

from bitagent_jax.data.plan import CollectionInUse, claim, plan_path, tag_of


def test_equal_settings_have_one_name_whatever_their_order(tmp_path):
    assert tag_of({"seed": 1, "tasks": ("a",)}) == tag_of({"tasks": ["a"], "seed": 1})
    assert tag_of({"seed": 1}) != tag_of({"seed": 2}) and len(tag_of({})) == 8
    assert plan_path(tmp_path, {}).name == f"collect-{tag_of({})}.json"


def test_a_claim_tells_the_settings_and_excludes_the_same_alone(tmp_path):
    settings, folder = {"seed": 1}, tmp_path / "new"
    for _ in range(2):
        with claim(folder, settings) as tag:
            with pytest.raises(CollectionInUse, match=f"collect-{tag}.json.*give another seed"):
                claim(folder, settings).__enter__()
            with claim(folder, {"seed": 2}) as other:
                assert other != tag
        assert json.loads(plan_path(folder, settings).read_text()) == settings
    assert len(list(folder.iterdir())) == 2


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file, not a folder of episodes"):
        claim(tmp_path / "file", {}).__enter__()
