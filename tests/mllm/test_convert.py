"""Pickled torch weights become safetensors once; nothing but tensors is unpickled."""

import pickle
import sys

import numpy as np
import parity
import pytest
from safetensors.numpy import load_file

from bitagent_jax import cli
from bitagent_jax.mllm.convert import convert


@pytest.fixture
def weights():
    torch = parity.torch()
    shared = torch.arange(6.0).reshape(2, 3)
    return {"a": shared, "b": shared.T, "c": torch.ones(2, dtype=torch.bfloat16)}


@pytest.mark.parametrize("wrapper", [None, "model", "module", "state_dict"])
def test_tensors_come_through_whatever_wraps_them(weights, tmp_path, wrapper):
    torch = parity.torch()
    torch.save({wrapper: weights, "step": 3} if wrapper else weights, tmp_path / "x.pt")
    assert convert(tmp_path / "x.pt", tmp_path / "new" / "model.safetensors") == 3
    out = load_file(tmp_path / "new" / "model.safetensors")
    assert np.array_equal(out["b"], weights["b"].numpy()) and out["c"].dtype.name == "bfloat16"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.safetensors"]


def test_a_prefix_of_parallel_training_is_dropped(weights, tmp_path):
    parity.torch().save({f"module.{name}": value for name, value in weights.items()}, tmp_path / "x.pt")
    convert(tmp_path / "x.pt", tmp_path / "model.safetensors")
    assert set(load_file(tmp_path / "model.safetensors")) == {"a", "b", "c"}


class Command:
    def __reduce__(self):
        return print, ("unpickled",)


def test_code_in_a_pickle_is_not_run(tmp_path, capsys):
    parity.torch().save({"a": Command()}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="x.pt cannot be read as plain tensors"):
        convert(tmp_path / "x.pt", tmp_path / "model.safetensors")
    assert "unpickled" not in capsys.readouterr().out and not (tmp_path / "model.safetensors").exists()


def test_what_cannot_be_converted_is_named(weights, tmp_path):
    torch = parity.torch()
    torch.save({"step": 3}, tmp_path / "empty.pt")
    (tmp_path / "broken.pt").write_bytes(pickle.dumps("x", protocol=2)[:-1])
    torch.save(weights, tmp_path / "x.pt")
    out = tmp_path / "model.safetensors"
    problems = {"empty.pt": "holds no state dict", "broken.pt": "cannot be read", "no.pt": "no file"}
    for name, expected in problems.items():
        with pytest.raises(ValueError, match=expected):
            convert(tmp_path / name, out)
    with pytest.raises(ValueError, match="must end in .safetensors"):
        convert(tmp_path / "x.pt", tmp_path / "x.bin")
    convert(tmp_path / "x.pt", out)
    with pytest.raises(ValueError, match="is there already"):
        convert(tmp_path / "x.pt", out)


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "x.pt").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"pip install 'bitagent_jax\[torch\]'"):
        convert(tmp_path / "x.pt", tmp_path / "model.safetensors")


def test_the_command_line(weights, tmp_path, capsys):
    parity.torch().save(weights, tmp_path / "x.pt")
    cli.main(["convert", str(tmp_path / "x.pt"), str(tmp_path / "model.safetensors")])
    assert capsys.readouterr().out == f"3 tensors written to {tmp_path / 'model.safetensors'}\n"
