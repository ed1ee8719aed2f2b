"""Arrays that a pool and its workers both see: one anonymous memory block, gone with its last process."""

import mmap
import os
import tempfile

import numpy as np

_ALIGN = 64


class SharedArrays:
    """Named arrays over one block of shared memory.

    The block is an unlinked file in memory, handed to workers as a file descriptor: it has no name, so nothing
    is left behind however its processes die.
    """

    def __init__(self, spec: dict[str, tuple[tuple[int, ...], str]], fd: int | None = None):
        """Map the arrays of ``spec`` (name -> shape, dtype) in a new block, or in that of ``fd``."""
        sizes = {name: int(np.prod(shape)) * np.dtype(kind).itemsize for name, (shape, kind) in spec.items()}
        total = sum(_padded(size) for size in sizes.values())
        self.fd = _new_block(total) if fd is None else fd
        self._map = mmap.mmap(self.fd, total)
        self._arrays, offset = {}, 0
        for name, (shape, kind) in spec.items():
            self._arrays[name] = np.ndarray(shape, kind, self._map, offset)
            offset += _padded(sizes[name])

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def copies(self) -> dict[str, np.ndarray]:
        """Copy every array out of the block."""
        return {name: array.copy() for name, array in self._arrays.items()}

    def close(self) -> None:
        """Close the file descriptor; the memory is freed when the arrays are."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def step_spec(num_envs: int, size: int, action_dim: int, state_dim: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Describe the arrays of one step of a pool, in the order of ``pool.Timestep``."""
    return {
        "image": ((num_envs, size, size, 3), "uint8"),
        "action": ((num_envs, action_dim), "float32"),
        "reward": ((num_envs,), "float32"),
        "is_first": ((num_envs,), "bool"),
        "is_last": ((num_envs,), "bool"),
        "is_terminal": ((num_envs,), "bool"),
        "state": ((num_envs, state_dim), "float32"),
    }


def _padded(size: int) -> int:
    return max(_ALIGN, -(-size // _ALIGN) * _ALIGN)


def _new_block(size: int) -> int:
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a full folder is an error here, not a signal at the first write
        return os.dup(file.fileno())
