"""Batches drawn ahead of time by a thread."""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bitagent_jax.data.replay import Replay


class Loader:
    """An endless iterator over batches, the next few being drawn and placed while the last is used.

    The batch of step s is ``place(replay.sample(batch, length, default_rng((seed, s)), only))``: a run resumed at s
    continues exactly as one that never stopped, provided that the replay is the same. So do not add episodes
    while a loader draws: close it, add, and start another at the present step.
    """

    def __init__(
        self,
        replay: Replay,  # or what samples like it
        batch: int,
        length: int,
        *,
        seed: int,
        start_step: int = 0,
        place: Callable[[dict[str, np.ndarray]], Any] = lambda batch: batch,
        ahead: int = 2,
        only: np.ndarray | None = None,
    ):
        """Start drawing.

        Args:
            replay: where sequences come from.
            batch, length: B sequences of T rows each.
            seed: with the step, fixes every batch.
            start_step: the step of the first batch.
            place: turns a NumPy batch into what is handed out, for example by ``jax.device_put``. Its arrays are
                never written again, so that placing without a copy is safe.
            ahead: batches kept ready.
            only: which of the B sequences this process reads, int [b]; None for all.
        """
        self._buffer = _Buffer(ahead)

        def draw(step: int) -> Any:
            return place(replay.sample(batch, length, step_rng(seed, step), only))

        self._thread = threading.Thread(target=_fill, args=(self._buffer, draw, start_step), daemon=True)
        self._stop = weakref.finalize(self, _stop, self._buffer, self._thread)
        self._thread.start()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """Return the next batch; raises what the thread raised, or RuntimeError once closed."""
        return self._buffer.get()

    def close(self) -> None:
        """Stop the thread and wait for its end; safe to call twice."""
        self._stop()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def step_rng(seed: int, step: int) -> np.random.Generator:
    """Return the generator that draws the batch of a step."""
    return np.random.default_rng((seed, step))


class _Buffer:
    """A queue of bounded size that can be closed from both ends."""

    def __init__(self, size: int):
        self._items, self._size = deque(), size
        self._changed = threading.Condition()
        self._error: BaseException | None = None

    def put(self, item: Any) -> bool:
        """Wait for room and add an item; False if the buffer is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or len(self._items) < self._size)
            if self._error:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def get(self) -> Any:
        """Wait for an item and take it; raises the error that the buffer was closed with, after the last item."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._items)
            if not self._items:
                raise self._error
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self, error: BaseException, drop: bool) -> None:
        """Let no more items in; the first error stays. ``drop`` also forgets the items that are ready."""
        with self._changed:
            self._error = self._error or error
            if drop:
                self._items.clear()
            self._changed.notify_all()


def _fill(buffer: _Buffer, draw: Callable[[int], Any], step: int) -> None:
    try:
        while buffer.put(draw(step)):
            step += 1
    except BaseException as error:
        buffer.close(error, drop=False)


def _stop(buffer: _Buffer, thread: threading.Thread) -> None:
    buffer.close(RuntimeError("this loader is closed"), drop=True)
    thread.join()
