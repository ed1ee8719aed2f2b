"""What a compiled program does, read from its text: matrix products and what crosses devices, loops included.

XLA's own cost analysis counts the body of a loop once; here it counts as often as it runs.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
BYTES = {"pred": 1, "bf16": 2, "f16": 2, "c64": 8, "c128": 16}  # others end in their bits

PACKAGE = f"{Path(__file__).parents[1]}/"

_CALLS = re.compile(r"(body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SHAPE = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_LINE = re.compile(r"\s*(?:ROOT )?%?([\w.-]+) = (.*)")
_TABLE = re.compile(r"^(\d+) [{\"](.*)[}\"]$")
_CONTRACTED = re.compile(r'lhs_contracting_dim(?:s=|ensions":)[{[]([\d",]*)[\]}]')


class Op(NamedTuple):
    """One instruction: its name, output type as text, opcode, operands' names and the text behind them."""

    name: str
    type: str
    opcode: str
    operands: list[str]
    rest: str


class Collective(NamedTuple):
    """An operation between devices.

    Attributes:
        kind: out of ``COLLECTIVES``.
        tensors: shape, and bytes on one device, of each result.
        times: how often it runs in one run of the program.
        source: the traced operation that it comes from.
    """

    kind: str
    tensors: tuple[tuple[tuple[int, ...], int], ...]
    times: int
    source: str


class Unit(NamedTuple):
    """An instruction as a profiler sees it.

    Attributes:
        opcode: of it.
        product: whether it is, or fuses, a matrix product or convolution.
        looped: whether it runs more than once in one run of the program.
        function: ``file.function`` of this package in which it was traced, ``agent/`` before others, or "".
    """

    opcode: str
    product: bool
    looped: bool
    function: str


def units(text: str) -> dict[str, Unit]:
    """Describe every instruction that runs, by name."""
    computations, _ = _parse(text)
    multiply = {name for name, ops in computations.items() if any(_is_product(op) for op in ops)}
    functions, found = _functions(text), {}
    for op, times, _ in _executed(text):
        product = _is_product(op) or (op.opcode == "fusion" and not multiply.isdisjoint(_called(op)))
        frame = re.search(r"stack_frame_id=(\d+)", op.rest)
        function = functions.get(int(frame.group(1)), "") if frame else ""
        found[op.name] = Unit(op.opcode, product, times > 1, function)
    return found


def collectives(text: str) -> list[Collective]:
    """List the collectives of a compiled program (``compiled.as_text()``), those in loops once each."""
    found = []
    for op, times, _ in _executed(text):
        kind = op.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            shapes = _shapes(op.type)
            if op.opcode in ("all-gather-start", "collective-permute-start"):  # (inputs, outputs)
                shapes = shapes[len(shapes) // 2 :]
            source = re.search(r'op_name="([^"]*)"', op.rest)
            tensors = tuple((shape, _bytes(dtype) * math.prod(shape)) for dtype, shape in shapes)
            found.append(Collective(kind, tensors, times, source.group(1) if source else ""))
    return found


def matmul_flops(text: str) -> int:
    """Count the floating-point operations of all matrix products and convolutions of one run on one device.

    Each product of two numbers counts 2.
    """
    total = 0
    for op, times, types in _executed(text):
        if _is_product(op):
            total += 2 * times * (_convolution if "dim_labels" in op.rest else _product)(op, types)
    return total


def _product(op: Op, types: dict[str, str]) -> int:
    numbers = _CONTRACTED.search(op.rest)
    (_, left), (_, out) = _shapes(types[op.operands[0]])[0], _shapes(op.type)[0]
    axes = re.findall(r"\d+", numbers.group(1)) if numbers else []
    return math.prod(out) * math.prod(left[int(axis)] for axis in axes)


def _convolution(op: Op, types: dict[str, str]) -> int:
    """Count the products of a layer's output elements with a whole kernel of one output channel each.

    Forward, for the input's gradient and for the kernel's that is the same number. Which of them a convolution without
    cuDNN's name is, is not known: the padding of an input's gradient makes its result the larger side.
    """
    (_, left), (_, right) = (_shapes(types[name])[0] for name in op.operands[:2])
    _, result = _shapes(op.type)[0]
    labels = re.search(r"dim_labels=\w+_(\w+)->", op.rest).group(1)
    per = lambda side, kernel, axis: math.prod(side) * math.prod(kernel) // kernel[labels.index(axis)]  # noqa: E731
    if "BackwardFilter" in op.rest:
        return per(right, result, "o")
    if "BackwardInput" in op.rest:
        return per(left, right, "o")
    if op.opcode == "convolution":
        return min(per(result, right, "o"), per(left, right, "i"))
    return per(result, right, "o")


def _executed(text: str) -> Iterator[tuple[Op, int, dict[str, str]]]:
    """Yield every instruction that runs, how often it does, and the types of its computation's instructions."""
    computations, entry = _parse(text)
    times = dict.fromkeys(computations, 0)
    times[entry] = 1
    for name in reversed(computations):  # a computation is written before those that call it
        types = {op.name: op.type for op in computations[name]}
        for op in computations[name] if times[name] else ():
            yield op, times[name], types
            trips = _TRIPS.search(op.rest)
            for kind, called in _CALLS.findall(op.rest):
                if op.opcode in ("while", "call", "fusion", "conditional", "async-start"):
                    count = int(trips.group(1)) if kind == "body" and trips else 1
                    times[called] += times[name] * count
            for branches in _BRANCHES.findall(op.rest):
                for called in re.findall(r"[\w.-]+", branches):
                    times[called] += times[name]


def _is_product(op: Op) -> bool:
    return op.opcode in ("dot", "convolution") or (
        op.opcode == "custom-call" and ("contracting_dimensions" in op.rest or "__cudnn$conv" in op.rest)
    )


def _called(op: Op) -> list[str]:
    return [name for _, name in _CALLS.findall(op.rest)]


def _functions(text: str) -> dict[int, str]:
    """Return for each stack frame of a program's text the innermost function of this package."""
    tables: dict[str, dict[int, str]] = {}
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            rows = tables[line] = {}
        elif tables and (row := _TABLE.match(line)):
            rows[int(row.group(1))] = row.group(2)
        elif line.endswith("{"):
            break
    number = lambda row, name: int(re.search(rf"{name}=(\d+)", row).group(1))  # noqa: E731
    named: dict[int, str] = {}
    for frame, row in sorted(tables.get("StackFrames", {}).items()):
        place = tables["FileLocations"][number(row, "file_location_id")]
        file = tables["FileNames"][number(place, "file_name_id")]
        function = tables["FunctionNames"][number(place, "function_name_id")].split(".<locals>")[0]
        outer = named.get(number(row, "parent_frame_id") - 1, "")  # parents are counted from 1, 1 being none
        inner = f"{Path(file).stem}.{function}" if file.startswith(PACKAGE) else ""
        named[frame] = inner if inner and (file.startswith(f"{PACKAGE}agent/") or not outer) else outer
    return named


def _parse(text: str) -> tuple[dict[str, list[Op]], str]:
    computations: dict[str, list[Op]] = {}
    entry = current = ""
    for line in text.splitlines():
        if line.endswith("{") and (line.startswith(("%", "ENTRY"))):
            current = re.match(r"(?:ENTRY )?%?([\w.-]+)", line).group(1)
            computations[current] = []
            entry = current if line.startswith("ENTRY") else entry
        elif current and (match := _LINE.match(line)):
            computations[current].append(_op(*match.groups()))
    if not entry:
        raise ValueError("this is not the text of a compiled program: it has no ENTRY computation")
    return computations, entry


def _op(name: str, text: str) -> Op:
    end = _close(text, 0) + 1 if text.startswith("(") else text.index(" ")
    kind, rest = text[:end], text[end:].lstrip()
    opened = rest.index("(")
    closed = _close(rest, opened)
    return Op(name, kind, rest[:opened], re.findall(r"%([\w.-]+)", rest[opened:closed]), rest[closed:])


def _close(text: str, start: int) -> int:
    """Return where the parenthesis that opens at ``start`` closes."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if not depth:
            return index
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


def _shapes(kind: str) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(map(int, dims.split(","))) if dims else ()) for name, dims in _SHAPE.findall(kind)]


def _bytes(kind: str) -> int:
    if kind in BYTES:
        return BYTES[kind]
    bits = re.match(r"[a-z]+(\d+)", kind)
    return max(1, int(bits.group(1)) // 8) if bits else 0
