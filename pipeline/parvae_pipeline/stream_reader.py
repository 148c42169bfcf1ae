"""The reader of rows that outgrow memory: windows of shuffled rows, filled ahead of the training loop.

An epoch is one order of all units, drawn from (seed, epoch); their training rows, laid end to end in that order, are a
line that is cut into one section a rank and each section into windows. Rows are shuffled inside a window. All cuts
follow from row counts alone, so any step can be found without reading what lies before its window.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parvae.errors import DataError
from parvae.rows import Arrays
from parvae_pipeline.decode import TrainingRows, UnitRows, empty_arrays, row_bytes
from parvae_pipeline.parallel import map_in_order

MAX_WINDOW_BYTES = 512 * 2**20
"""A larger window mixes hardly better, and the first step waits until the first one is full."""
NUM_WINDOWS = 2
"""One is trained on while the other is filled."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Consecutive training rows of one unit inside a window."""

    unit: int
    skip: int
    """Training rows of the unit that lie before the piece."""
    num_rows: int
    offset: int
    """Where in the window it begins."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """A window whose rows are in memory."""

    epoch: int
    index: int
    num_rows: int
    tensors: dict[str, Tensor]
    """Room for the rows; only the first `num_rows` hold any."""


class StreamReader:
    """Rows read anew every epoch, in windows that fit the memory budget; the last partial batch of an epoch is left
    out, and other rows fall into it each time.

    Every rank takes the same number of steps; a unit that straddles two ranks is decoded by both, and each takes
    its own rows of it. The order depends on the budget and on the number of ranks: who resumes a run names the same.
    Raises DataError when there are more ranks than units.
    """

    def __init__(
        self,
        rows: UnitRows,
        *,
        batch_size: int,
        seed: int,
        budget_bytes: int,
        num_threads: int = 1,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        """`budget_bytes` bounds the windows of this rank; `num_threads` decode, beside the one that reads ahead."""
        num_training = rows.units.num_rows - rows.split.count_held_out(rows.units.bounds)
        self._rows, self._seed, self._num_threads = rows, seed, num_threads
        self._rank, self._num_ranks = rank, num_ranks
        self._units = np.flatnonzero(num_training)
        self._num_training = num_training[self._units]
        if num_ranks > len(self._units):
            raise DataError(
                f"{num_ranks} workers share {len(self._units)} row groups, and would read the same ones over and over; "
                "write the data with more row groups, or use fewer workers"
            )
        rows_per_rank = int(self._num_training.sum()) // num_ranks
        self.batch_size = min(batch_size, rows_per_rank)
        self.steps_per_epoch = rows_per_rank // self.batch_size
        window_rows = min(budget_bytes // NUM_WINDOWS, MAX_WINDOW_BYTES) // row_bytes(rows.schema)
        self._steps_per_window = int(np.clip(window_rows // self.batch_size, 1, self.steps_per_epoch))
        self._num_windows = -(-self.steps_per_epoch // self._steps_per_window)

    def batches(self, first_step: int) -> Iterator[dict[str, Tensor]]:
        epoch, step = divmod(first_step, self.steps_per_epoch)
        first_window, first = divmod(step, self._steps_per_window)
        ahead = ReadAhead(self, epoch, first_window)
        try:
            while True:
                window = ahead.take()
                order = self._shuffled(window.epoch, window.index, window.num_rows)
                for index in range(first, self._steps_in(window.index)):
                    rows = order[index * self.batch_size : (index + 1) * self.batch_size]
                    yield {name: tensor[rows] for name, tensor in window.tensors.items()}
                first = 0
                ahead.give_back(window)
        finally:
            ahead.close()

    def windows_from(self, epoch: int, index: int) -> Iterator[tuple[int, int, list[Piece]]]:
        """(epoch, window, its pieces), without end, from one window on."""
        while True:
            order, bounds = self._epoch_line(epoch)
            start, stop = (int(bounds[-1]) * edge // self._num_ranks for edge in (self._rank, self._rank + 1))
            window_rows = self._steps_per_window * self.batch_size
            for window in range(index, self._num_windows):
                first = start + window * window_rows
                # The last window takes the partial batch too, which is then dropped at random and not by its place.
                last = stop if window == self._num_windows - 1 else first + window_rows
                yield epoch, window, _pieces(order, bounds, first, last)
            epoch, index = epoch + 1, 0

    def fill(
        self, pieces: list[Piece], target: Arrays, opened: TrainingRows | None, stop: threading.Event
    ) -> TrainingRows:
        """Decode pieces into their places; returns the unit of the last one, open where the piece ends.

        `opened` is that of the window before: a unit that goes on is not decoded again from its beginning.
        """

        def copy(piece: Piece) -> TrainingRows:
            goes_on = opened is not None and (opened.unit, opened.position) == (piece.unit, piece.skip)
            unit = opened if opened is not None and goes_on else TrainingRows(self._rows, piece.unit, skip=piece.skip)
            unit.copy(target, piece.offset, piece.num_rows, stop=stop)
            return unit

        return list(map_in_order(copy, pieces, num_threads=self._num_threads))[-1]

    def empty_window(self) -> Arrays:
        """Room for the largest window: the last of an epoch holds a partial batch, and ranks differ by a row."""
        num_rows = min(self._steps_per_window + 1, self.steps_per_epoch + 1) * self.batch_size + 1
        return empty_arrays(self._rows.schema, num_rows)

    def _steps_in(self, window: int) -> int:
        return min(self._steps_per_window, self.steps_per_epoch - window * self._steps_per_window)

    def _epoch_line(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(u,) the units in the order of an epoch, and (u + 1,) where their training rows begin on its line."""
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._units))
        return self._units[order], np.concatenate([[0], np.cumsum(self._num_training[order])])

    def _shuffled(self, epoch: int, window: int, num_rows: int) -> Tensor:
        # rank + 1: numpy takes (seed, epoch) and (seed, epoch, 0) for the same seed.
        generator = np.random.default_rng((self._seed, epoch, self._rank + 1, window))
        return torch.from_numpy(generator.permutation(num_rows))


class ReadAhead:
    """A thread that fills one window while another is trained on, and ends when it is closed."""

    def __init__(self, reader: StreamReader, epoch: int, window: int) -> None:
        self._stop = threading.Event()
        self._free: queue.SimpleQueue[Arrays | None] = queue.SimpleQueue()
        self._filled: queue.SimpleQueue[Window | BaseException] = queue.SimpleQueue()
        for _ in range(NUM_WINDOWS):
            self._free.put(reader.empty_window())
        self._thread = threading.Thread(
            target=self._read, args=(reader, epoch, window), name="parvae-read-ahead", daemon=True
        )
        self._thread.start()

    def take(self) -> Window:
        """The next window, as soon as it is full; raises what went wrong while it was filled."""
        found = self._filled.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def give_back(self, window: Window) -> None:
        """Let the thread fill the memory of a window again."""
        self._free.put({name: tensor.numpy() for name, tensor in window.tensors.items()})

    def close(self) -> None:
        """End the thread, at the latest when the chunk that it decodes is done."""
        self._stop.set()
        self._free.put(None)
        self._thread.join()

    def _read(self, reader: StreamReader, epoch: int, window: int) -> None:
        opened: TrainingRows | None = None
        try:
            for number, index, pieces in reader.windows_from(epoch, window):
                arrays = self._free.get()
                if arrays is None or self._stop.is_set():
                    return
                opened = reader.fill(pieces, arrays, opened, self._stop)
                tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
                num_rows = sum(piece.num_rows for piece in pieces)
                self._filled.put(Window(epoch=number, index=index, num_rows=num_rows, tensors=tensors))
        except BaseException as error:  # it belongs to the loop that waits for the window
            self._filled.put(error)


def _pieces(units: NDArray[np.int64], bounds: NDArray[np.int64], first: int, last: int) -> list[Piece]:
    """The units that the rows from `first` to `last` of a line lie in."""
    low, high = int(np.searchsorted(bounds, first, side="right")) - 1, int(np.searchsorted(bounds, last, side="left"))
    pieces = []
    for place in range(low, high):
        start, stop = max(first, int(bounds[place])), min(last, int(bounds[place + 1]))
        skip = start - int(bounds[place])
        pieces.append(Piece(unit=int(units[place]), skip=skip, num_rows=stop - start, offset=start - first))
    return pieces
