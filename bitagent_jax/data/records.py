"""Tables of rows on disk: compressed chunks behind a small header, of which a few rows can be read at a time.

    magic (8 bytes) | length and CRC-32 of the header (2 x uint32) | header (JSON) | chunks (zstandard frames)

A chunk holds ``CHUNK`` rows, field after field, and its own checksum. Nothing in a file is ever executed, and sizes
are checked before memory is reserved.
"""

import json
import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zstandard

from bitagent_jax.files import write_atomically

CHUNK = 16  # rows; longer chunks are a little smaller, but a short sequence then decodes more rows for nothing
LEVEL = 3
MAX_BYTES = 1 << 32  # of a whole table in memory: more is taken for an attack or an accident
_MAGIC = b"BiTrows1"
_LEAD = struct.Struct("<8sII")
_KINDS = ("uint8", "float32", "bool")
Fields = dict[str, tuple[str, tuple[int, ...]]]
"""Name -> (dtype, shape of one row)."""


class CorruptFile(ValueError):
    """A file that is not whole and valid; ``path`` names it and ``why`` says what is wrong."""

    def __init__(self, path: str | Path, why: str):
        super().__init__(f"corrupt file {path}: {why}")
        self.path, self.why = Path(path), why


class Records(NamedTuple):
    """An open table: all that is needed to read its rows, but none of them."""

    path: Path
    header: dict[str, Any]
    rows: int
    fields: Fields
    offsets: tuple[int, ...]
    """Where each chunk begins in the file, then where the last one ends."""

    @property
    def meta(self) -> dict[str, Any]:
        """What was given to ``write_records``."""
        return self.header["meta"]

    def read(self) -> dict[str, np.ndarray]:
        """Read all rows; raises CorruptFile."""
        out = {name: np.empty((self.rows, *shape), kind) for name, (kind, shape) in self.fields.items()}
        self.read_into(out, 0)
        return out

    def read_into(self, out: Mapping[str, np.ndarray], start: int) -> None:
        """Fill arrays [T, ...], named like fields, with the rows ``start`` to ``start + T``.

        Decodes only the chunks that hold them. Raises CorruptFile if the file is damaged, changed or gone.
        """
        stop = start + len(next(iter(out.values())))
        if not 0 <= start < stop <= self.rows:
            raise ValueError(f"rows {start} to {stop} of a table of {self.rows}")
        try:
            for chunk, data in self._decode(start // CHUNK, (stop - 1) // CHUNK + 1):
                first, last = max(start, chunk * CHUNK), min(stop, (chunk + 1) * CHUNK)
                for name, rows in self._split(data).items():
                    if name in out:
                        out[name][first - start : last - start] = rows[first - chunk * CHUNK : last - chunk * CHUNK]
        except (OSError, zstandard.ZstdError) as error:
            raise CorruptFile(self.path, f"{type(error).__name__}: {error}") from error

    def _decode(self, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.offsets[first])
            data = memoryview(file.read(self.offsets[last] - self.offsets[first]))
        decoder = zstandard.ZstdDecompressor()
        for chunk in range(first, last):
            base = self.offsets[first]
            frame = data[self.offsets[chunk] - base : self.offsets[chunk + 1] - base]
            wanted = _row_bytes(self.fields) * min(CHUNK, self.rows - chunk * CHUNK)
            if zstandard.frame_content_size(frame) != wanted:
                raise CorruptFile(self.path, f"chunk {chunk} does not hold {wanted} bytes")
            yield chunk, decoder.decompress(frame)

    def _split(self, data: bytes) -> dict[str, np.ndarray]:
        rows, at, out = len(data) // _row_bytes(self.fields), 0, {}
        for name, (kind, shape) in self.fields.items():
            count = rows * math.prod(shape)
            out[name] = np.frombuffer(data, kind, count, at).reshape(rows, *shape)
            at += out[name].nbytes
        return out


def write_records(path: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Write arrays [L, ...] of kinds uint8, float32 and bool, so that a reader finds all or nothing.

    Args:
        path: is replaced; its folder is made if missing.
        arrays: name -> rows.
        meta: anything JSON holds.

    Raises:
        ValueError: more than ``MAX_BYTES``.
    """
    rows, size = len(next(iter(arrays.values()))), sum(array.nbytes for array in arrays.values())
    if size > MAX_BYTES:
        raise ValueError(
            f"{path.name}: {rows} rows of {size} bytes are more than the {MAX_BYTES >> 30} GiB of one file"
        )
    encoder = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
    chunks = [
        encoder.compress(b"".join(array[at : at + CHUNK].tobytes() for array in arrays.values()))
        for at in range(0, rows, CHUNK)
    ]
    body = b"".join(chunks)
    fields = {name: [str(array.dtype), array.shape[1:]] for name, array in arrays.items()}
    header = dict(rows=rows, fields=fields, sizes=[len(chunk) for chunk in chunks], crc=zlib.crc32(body), meta=meta)
    text = json.dumps(header).encode()
    lead = _LEAD.pack(_MAGIC, len(text), zlib.crc32(text))
    write_atomically(path, lambda file: file.write(lead + text + body))


def open_records(path: str | Path) -> Records:
    """Open a table by its header alone; raises CorruptFile if the file is missing, truncated or not a table."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            magic, length, crc = _LEAD.unpack(file.read(_LEAD.size))
            size = os.fstat(file.fileno()).st_size
            text = file.read(length) if magic == _MAGIC and length <= size else b""
        if not text or zlib.crc32(text) != crc:
            raise CorruptFile(path, "its header is damaged or of another kind of file")
        return from_header(path, json.loads(text), _LEAD.size + length, size)
    except (OSError, struct.error, ValueError, RecursionError) as error:
        raise (
            error if isinstance(error, CorruptFile) else CorruptFile(path, f"{type(error).__name__}: {error}")
        ) from error


def from_header(path: Path, header: Any, start: int, size: int) -> Records:
    """Check a header, from the file or remembered: its chunks lie in the file from byte ``start`` to ``size``."""
    try:
        rows, sizes, meta = header["rows"], header["sizes"], header["meta"]
        fields = {name: (kind, tuple(shape)) for name, (kind, shape) in header["fields"].items()}
        numbers = [start, rows, header["crc"], *sizes, *(axis for _, shape in fields.values() for axis in shape)]
        known = all(kind in _KINDS for kind, _ in fields.values()) and isinstance(meta, dict)
        if not known or not fields or not all(type(number) is int and number >= 0 for number in numbers):
            raise CorruptFile(path, "its header makes no sense")
    except (TypeError, LookupError, AttributeError, ValueError) as error:
        raise CorruptFile(path, f"its header makes no sense: {type(error).__name__}: {error}") from error
    if rows * _row_bytes(fields) > MAX_BYTES:
        raise CorruptFile(path, f"{rows} rows of {_row_bytes(fields)} bytes are more than {MAX_BYTES >> 30} GiB")
    offsets = tuple(accumulate([start, *sizes]))
    if len(sizes) != -(-rows // CHUNK) or offsets[-1] != size:
        raise CorruptFile(path, f"{len(sizes)} chunks to byte {offsets[-1]} cannot be {rows} rows in {size} bytes")
    return Records(path, header, rows, fields, offsets)


def _row_bytes(fields: Fields) -> int:
    return sum(np.dtype(kind).itemsize * math.prod(shape) for kind, shape in fields.values())
