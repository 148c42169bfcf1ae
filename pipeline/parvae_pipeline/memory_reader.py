"""The reader of rows that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from parvae.errors import DataError
from parvae.rows import Arrays


class MemoryReader:
    """Rows decoded once into contiguous arrays, shuffled anew every epoch; the last partial batch of an epoch is left
    out, and other rows fall into it each time.

    The global batch of a step is one slice of the epoch's order, which the ranks share out in turn: n ranks with batch
    b see the rows that one rank with batch n * b sees. Raises DataError when there are fewer rows than ranks.
    """

    def __init__(self, arrays: Arrays, *, batch_size: int, seed: int, rank: int = 0, num_ranks: int = 1) -> None:
        self._tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        self._num_rows = len(next(iter(arrays.values())))
        self._seed, self._rank, self._num_ranks = seed, rank, num_ranks
        if self._num_rows < num_ranks:
            raise DataError(f"{self._num_rows} training rows cannot feed {num_ranks} workers; use fewer workers")
        self.batch_size = min(batch_size, self._num_rows // num_ranks)
        self.steps_per_epoch = self._num_rows // (self.batch_size * num_ranks)

    def batches(self, first_step: int) -> Iterator[dict[str, Tensor]]:
        epoch, first = divmod(first_step, self.steps_per_epoch)
        while True:
            order = torch.from_numpy(np.random.default_rng((self._seed, epoch)).permutation(self._num_rows))
            for index in range(first, self.steps_per_epoch):
                start = (index * self._num_ranks + self._rank) * self.batch_size
                rows = order[start : start + self.batch_size]
                yield {name: tensor[rows] for name, tensor in self._tensors.items()}
            epoch, first = epoch + 1, 0
