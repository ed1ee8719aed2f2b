"""A deterministic actor in NumPy: a small multi-layer perceptron from a body's state to its action."""

import itertools
from collections.abc import Sequence

import numpy as np
from safetensors.numpy import load, save

Layer = tuple[np.ndarray, np.ndarray]
"""The weights [in, out] and biases [out] of one affine layer."""


class Actor:
    """Affine layers with ReLU between them and tanh after the last.

    ``state_dim`` (S) and ``action_dim`` (A) are the widths of its input and output.
    """

    def __init__(self, layers: Sequence[Layer]):
        """Hold the layers in float32; ValueError if their shapes do not chain."""
        self.layers = [(np.asarray(w, np.float32), np.asarray(b, np.float32)) for w, b in layers]
        widths = [self.layers[0][0].shape[0], *(bias.size for _, bias in self.layers)]
        for (weight, bias), sizes in zip(self.layers, itertools.pairwise(widths), strict=True):
            if weight.shape != sizes or bias.shape != sizes[1:]:
                raise ValueError(f"layers do not chain: weight {weight.shape}, bias {bias.shape}, wanted {sizes}")
        self.state_dim, self.action_dim = widths[0], widths[-1]

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """Return the action of each state.

        Args:
            state: float32 [N, S], in physical units as ``DmcEnv.measurements`` gives them.

        Returns:
            float32 [N, A] in [-1, 1].

        Raises:
            ValueError: states of another shape.
        """
        x = np.asarray(state, np.float32)
        if x.ndim != 2 or x.shape[1] != self.state_dim:
            raise ValueError(f"expected states of shape (N, {self.state_dim}), got {x.shape}")
        for weight, bias in self.layers[:-1]:
            x = np.maximum(x @ weight + bias, 0)
        weight, bias = self.layers[-1]
        return np.tanh(x @ weight + bias)


def to_bytes(actor: Actor, kind: str = "float16") -> bytes:
    """Pack an actor's layers as safetensors, rounded to ``kind``: tensors w0, b0, w1, b1, ..."""
    pairs = enumerate(actor.layers)
    return save({f"{name}{i}": array.astype(kind) for i, pair in pairs for name, array in zip("wb", pair, strict=True)})


def from_bytes(raw: bytes) -> Actor:
    """Unpack what ``to_bytes`` packed; ValueError if the tensors are not those of an actor."""
    tensors = load(raw)
    count = len(tensors) // 2
    if not count or set(tensors) != {f"{name}{i}" for i in range(count) for name in "wb"}:
        raise ValueError(f"not the tensors of an actor: {sorted(tensors)}")
    return Actor([(tensors[f"w{i}"], tensors[f"b{i}"]) for i in range(count)])
