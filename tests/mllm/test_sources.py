"""Where weights are looked for, and what is said when they are not there, gated, in pieces or damaged."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from bitagent_jax.mllm import sources
from bitagent_jax.mllm.encoder import ENCODERS, load_encoder
from bitagent_jax.mllm.sources import WeightsError, locate

EXAMPLES = ("maker/model",)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the Hub, without a connection; returns a function that puts files of a repository into it."""
    from huggingface_hub import constants

    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(repo):
        commit = "0" * 40
        home = folder / f"models--{repo.replace('/', '--')}"
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text(commit)
        (home / "snapshots" / commit).mkdir(parents=True)
        return home / "snapshots" / commit

    put.folder = folder
    return put


def source(folder):
    return locate("clip", str(folder), EXAMPLES)


@pytest.mark.parametrize("name", [name for name in ENCODERS if name not in ("embedded", "precomputed")])
def test_weights_must_be_named(name):
    with pytest.raises(WeightsError, match=f"mllm.encoder={name} needs its weights: set mllm.weights to a folder or"):
        load_encoder(name)


def test_the_embedded_encoder_takes_none():
    with pytest.raises(ValueError, match="embedded encoder has its own weights: mllm.weights='x/y' belongs to another"):
        load_encoder("embedded", "x/y")


def test_what_is_neither_a_folder_nor_a_repository(tmp_path):
    with pytest.raises(WeightsError, match=r"'no such' is neither a folder \(looked for .*no such\) nor the id of a"):
        locate("clip", "no such", EXAMPLES)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match="mllm.weights is a folder, not a file: write "):
        source(tmp_path / "model.safetensors")


def test_a_missing_file_is_named_with_its_folder_and_the_command(tmp_path):
    command = f"to get it: hf download maker/model --local-dir {tmp_path}"
    with pytest.raises(WeightsError, match=f"clip: config.json is not in {tmp_path}; {command}"):
        source(tmp_path).json("config.json")
    with pytest.raises(WeightsError, match=f"no model.safetensors .* in {tmp_path}; {command}"):
        source(tmp_path).tensor_files()
    with pytest.raises(WeightsError, match=f"vocab.json, .* is in {tmp_path}, so no tokenizer can be made"):
        from bitagent_jax.mllm.tokens import load_tokenizer

        load_tokenizer(source(tmp_path))


def test_a_pickle_is_not_read_but_the_conversion_named(tmp_path):
    (tmp_path / "weights.pt").write_bytes(b"")
    with pytest.raises(WeightsError, match=f"bitagent convert {tmp_path}/weights.pt {tmp_path}/model.safetensors"):
        source(tmp_path).tensor_files()


def test_a_repository_without_safetensors_names_the_conversion(tmp_path):
    found = sources.Source("clip", "maker/model", tmp_path, "maker/model")
    with pytest.raises(WeightsError, match="hf download maker/model --local-dir clip, and if it has only .pt or .bin"):
        found.tensor_files()


def test_a_lacking_shard_is_named(tmp_path):
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "model-1.safetensors")
    with pytest.raises(WeightsError, match="model-2.safetensors is not in"):
        list(source(tmp_path).arrays())
    save_file({"b": np.zeros(2, np.float32)}, tmp_path / "model-2.safetensors")
    assert [name for name, _ in source(tmp_path).arrays()] == ["a", "b"]


@pytest.mark.parametrize("name", ["model.safetensors", "weights.npz"])
def test_a_truncated_file_is_named(tmp_path, name):
    arrays = {"a": np.ones(999, np.float32)}
    np.savez(tmp_path / name, **arrays) if name.endswith("npz") else save_file(arrays, tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-100])
    with pytest.raises(WeightsError, match=f"{name} is damaged or incomplete .*; to get it again: hf download"):
        list(source(tmp_path).arrays())


def test_damaged_json_and_a_choice_of_weights_are_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="config.json is not JSON"):
        source(tmp_path).json("config.json")
    for name in ("a", "b"):
        save_file({"a": np.ones(2, np.float32)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(WeightsError, match="which of a.safetensors, b.safetensors in"):
        source(tmp_path).tensor_files()


def test_bfloat16_tensors_are_read(tmp_path):
    import ml_dtypes

    save_file({"a": np.ones(2, ml_dtypes.bfloat16)}, tmp_path / "model.safetensors")
    assert dict(source(tmp_path).arrays())["a"].dtype == ml_dtypes.bfloat16


def test_a_repository_is_found_in_the_cache(cache):
    snapshot = cache("maker/model")
    save_file({"a": np.ones(2, np.float32)}, snapshot / "model.safetensors")
    found = locate("clip", "maker/model", EXAMPLES)
    assert found.folder == snapshot and found.command() == "hf download maker/model"


def test_a_repository_that_is_not_in_the_cache_names_the_command(cache):
    expected = rf"clip: maker/model is not complete on this machine \(looked in the cache {cache.folder}\).*"
    with pytest.raises(WeightsError, match=expected + "hf download maker/model"):
        locate("clip", "maker/model", EXAMPLES)


def refusal(kind):
    """Make an error of the Hub's client without the answer of a server."""
    error = kind.__new__(kind)
    Exception.__init__(error, "refused")
    return error


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("GatedRepoError", "maker/model is gated .*: accept its conditions on its page, then: hf auth login && hf down")]
    + [("RepositoryNotFoundError", "there is no folder and no public repository 'maker/model'")],
)
def test_a_gated_or_unknown_repository(cache, monkeypatch, kind, expected):
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.errors import LocalEntryNotFoundError

    def refuse(repo, local_files_only=False, **options):
        raise LocalEntryNotFoundError("not here") if local_files_only else refusal(getattr(errors, kind))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(WeightsError, match=expected):
        locate("clip", "maker/model", EXAMPLES)


def test_the_digest_depends_on_weights_and_small_files_only(tmp_path):
    def digest(folder, value=1.0, text="{}", note=""):
        folder.mkdir()
        save_file({"a": np.full(2, value, np.float32)}, folder / "model.safetensors")
        (folder / "config.json").write_text(text)
        (folder / "notes.md").write_text(note)
        return source(folder).digest()

    first = digest(tmp_path / "a")
    assert digest(tmp_path / "b", note="x") == first
    assert len({first, digest(tmp_path / "c", value=2.0), digest(tmp_path / "d", text='{"a": 1}')}) == 3
    assert sources.SMALL == ("*.json", "*.txt", "*.model")
