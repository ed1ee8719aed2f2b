"""Weight tables: how the tensors of a published checkpoint become the arrays of our modules.

A table is a list of rules, each a regular expression on the checkpoint's key, the path of our array, and what to
do with the values. A key that no rule knows, and an array that no key fills, are errors: nothing is guessed.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

_SHOWN = 8


def same(x: np.ndarray) -> np.ndarray:
    """Leave the values."""
    return x


def transpose(x: np.ndarray) -> np.ndarray:
    """Turn the weight of a torch linear layer, [out, in], into a kernel [in, out]."""
    return x.T


def patches(x: np.ndarray) -> np.ndarray:
    """Turn the weight of a convolution over patches, [out, C, (1,) p, p], into a kernel [p * p * C, out]."""
    x = x.reshape(*x.shape[:2], *x.shape[-2:])
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


def flat(x: np.ndarray) -> np.ndarray:
    """Drop leading axes of length one, down to a matrix or, of a single row, to that row."""
    x = x.reshape(x.shape[-2:]) if x.ndim > 1 else x
    return x[0] if x.ndim > 1 and len(x) == 1 else x


def thirds(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """Part packed query, key and value: a weight [3 out, in] or a bias [3 out]."""
    return tuple(part.T for part in np.split(x, 3))


def add_one(x: np.ndarray) -> np.ndarray:
    """Turn a norm's scale that is stored as its difference from one into the scale."""
    return x.astype(np.float32) + 1.0


def over_time(frames: int, patches: int, extra: int = 1) -> Callable:
    """Return a transform that stretches position embeddings over time, linearly between the frames' centres.

    Args:
        frames: wanted.
        patches: embeddings of a frame.
        extra: embeddings that come first and are kept, as of a class token.

    Returns:
        A function from [1, extra + T * patches, W] to [extra + frames * patches, W].
    """

    def stretch(x: np.ndarray) -> np.ndarray:
        first, rest = np.split(x.reshape(x.shape[-2:]), [extra])
        if len(rest) % patches:
            return x.reshape(x.shape[-2:])  # of another picture size: the shapes will be found to differ
        rest = rest.reshape(-1, patches, rest.shape[-1])
        if len(rest) != frames:
            rest = np.asarray(jax.image.resize(rest.astype(np.float32), (frames, *rest.shape[1:]), "linear"))
        return np.concatenate([first, rest.reshape(-1, rest.shape[-1])])

    return stretch


@dataclass(frozen=True)
class Rule:
    """What becomes of the keys that ``pattern`` matches in full.

    Attributes:
        pattern: a regular expression.
        path: dotted path of our array, with ``\\1`` for groups; ``[\\1]`` is an index into its leading axis, and
            ``{a,b}`` means several arrays, for a transform that returns as many. None: the key is of no use here.
        transform: from the stored array to ours.
    """

    pattern: str
    path: str | None
    transform: Callable = same


def linear(pattern: str, path: str, bias: bool = True) -> list[Rule]:
    """Return the rules of a torch linear layer ``pattern.{weight,bias}`` at ``path``."""
    rules = [Rule(rf"{pattern}\.weight", f"{path}.kernel", transpose)]
    return rules + ([Rule(rf"{pattern}\.bias", f"{path}.bias")] if bias else [])


def norm(pattern: str, path: str, bias: bool = True) -> list[Rule]:
    """Return the rules of a torch norm ``pattern.{weight,bias}`` at ``path``."""
    rules = [Rule(rf"{pattern}\.weight", f"{path}.scale")]
    return rules + ([Rule(rf"{pattern}\.bias", f"{path}.bias")] if bias else [])


def block(pattern: str, path: str, names: dict[str, str]) -> list[Rule]:
    """Return the rules of a stack's blocks with separate projections, norms and MLP.

    Args:
        pattern: of the layers, with one group for their number.
        path: of the stack.
        names: the checkpoint's name, below the layer, of each of ours: ``attention.query`` and so on.
    """
    rules = []
    for ours, theirs in names.items():
        make = norm if ours.startswith("norm") else linear
        rules += make(rf"{pattern}\.{re.escape(theirs)}", f"{path}.layers.{ours}")
    return [Rule(rule.pattern, rule.path + r"[\1]", rule.transform) for rule in rules]


def fill(rules: Sequence[Rule], arrays: Iterable[tuple[str, np.ndarray]], template: nnx.State, source: object,
         dtype: jnp.dtype = jnp.float32) -> nnx.State:  # fmt: skip
    """Build a model's weights from a checkpoint.

    Args:
        rules: the model's table; the first rule that matches a key counts.
        arrays: the checkpoint's keys and values, read one at a time.
        template: the model's state as ``nnx.eval_shape`` gives it.
        source: where the arrays are from, for the errors.
        dtype: of the result's floating-point numbers.

    Raises:
        ValueError: naming the keys without a rule, the arrays without a key, or shapes that differ.
    """
    wanted = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(template)}
    found: dict[str, dict[int | None, np.ndarray]] = {}
    odd = []
    for key, value in arrays:
        rule, match = _lookup(rules, key)
        if rule is None:
            odd.append(key)
        elif rule.path is not None:
            for path, part in _parts(rule, match, value):
                _put(found, path, np.asarray(part, dtype), key)
    lacking = [path for path, leaf in wanted.items() if not _complete(found.get(path, {}), leaf.shape)]
    lost = sorted(found.keys() - wanted.keys())
    if odd or lacking or lost:
        problems = {"tensors that it has no place for:": odd + lost, "no tensors for": lacking}
        listed = "; ".join(_listing(what, names) for what, names in problems.items() if names)
        raise ValueError(f"{source} do not fit the model: {listed}")
    full = {path: _whole(parts, path, wanted[path].shape, source) for path, parts in found.items()}
    pairs = nnx.to_flat_state(template)
    return nnx.from_flat_state([(path, leaf.replace(full[".".join(map(str, path))])) for path, leaf in pairs])


def _lookup(rules: Sequence[Rule], key: str) -> tuple[Rule | None, re.Match | None]:
    for rule in rules:
        if match := re.fullmatch(rule.pattern, key):
            return rule, match
    return None, None


def _parts(rule: Rule, match: re.Match, value: np.ndarray) -> list[tuple[str, np.ndarray]]:
    path, parts = match.expand(rule.path), rule.transform(value)
    if "{" not in path:
        return [(path, parts)]
    head, names, tail = re.fullmatch(r"(.*)\{(.*)\}(.*)", path).groups()
    return [(head + name + tail, part) for name, part in zip(names.split(","), parts, strict=True)]


def _put(found: dict, path: str, value: np.ndarray, key: str) -> None:
    path, _, index = path.removesuffix("]").partition("[")
    parts, index = found.setdefault(path, {}), int(index) if index else None
    if index in parts:
        raise ValueError(f"{key} would fill {path} a second time: the checkpoint holds the model twice")
    parts[index] = value


def _complete(parts: dict, shape: tuple[int, ...]) -> bool:
    return set(parts) in ({None}, set(range(shape[0] if shape else 0)))


def _whole(parts: dict, path: str, shape: tuple[int, ...], source: object) -> np.ndarray:
    values = [parts[index] for index in sorted(parts)] if None not in parts else parts[None]
    different = {value.shape for value in values} - {shape[1:]} if None not in parts else {values.shape} - {shape}
    if different:
        expected = shape[1:] if None not in parts else shape
        raise ValueError(f"{source}: {path} has shape {[list(s) for s in different][0]}, the model {list(expected)}")
    return np.stack(values) if None not in parts else values


def _listing(what: str, names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{what} {', '.join(names[:_SHOWN])}{more}"


def template(make: Callable[[nnx.Rngs], nnx.Module]) -> tuple[nnx.GraphDef, nnx.State]:
    """Return a model's structure and the shapes of its weights, without making any."""
    return nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))


def count(state: nnx.State) -> int:
    """Count a state's parameters."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state))
