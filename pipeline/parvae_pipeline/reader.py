"""What a reader is, and rows as the network takes them.

The cursor of a run is the number of steps taken: step s of seed k reads the same rows whenever it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from parvae.arrow import ArrowColumns
from parvae.rows import Arrays, read_block
from parvae.schema import (
    FIRST_LEVEL_CODE,
    NULL_CODE,
    NULL_TEXT,
    UNSEEN_CODE,
    CategoryFacts,
    Column,
    Role,
    Schema,
    require_columns,
)
from parvae_pipeline.hashing import hashed_codes


class Reader(Protocol):
    """Where the training loop gets its rows."""

    batch_size: int
    steps_per_epoch: int

    def batches(self, first_step: int) -> Iterator[dict[str, Tensor]]:
        """Batches of raw tensors by block name, without end, from step `first_step` on."""


def encode(schema: Schema, table: pa.Table, *, num_threads: int = 1) -> Arrays:
    """The rows of a table as the tensors that the network takes; `num_threads` decode images."""
    columns = ArrowColumns(table, num_threads=num_threads)
    require_columns(schema, columns.names)
    arrays: Arrays = {}
    for block in schema.inputs:
        if block.role is Role.CATEGORY:
            arrays[block.name] = np.stack([_codes(column, *columns.levels(column)) for column in block.columns], axis=1)
        else:
            arrays[block.name] = read_block(block, columns)
    return arrays


def select(arrays: Arrays, rows: NDArray[Any] | slice) -> Arrays:
    """The arrays at these rows."""
    return {name: array[rows] for name, array in arrays.items()}


def _codes(column: Column, texts: list[str], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    facts = column.facts_as(CategoryFacts)
    code_of = {level: FIRST_LEVEL_CODE + index for index, level in enumerate(facts.own_levels)}
    code_of[NULL_TEXT] = NULL_CODE
    if facts.buckets:
        others = [text for text in texts if text not in code_of]
        code_of |= dict(zip(others, hashed_codes(facts, others).tolist(), strict=True))
    return np.array([*(code_of.get(text, UNSEEN_CODE) for text in texts), NULL_CODE], dtype=np.int64)[rows]
