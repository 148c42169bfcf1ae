"""From Parquet files to batches: the statistics pass, the held-out split, and seeded batches with an exact cursor.

The cursor of a run is the number of steps taken: step s of seed k reads the same rows whenever it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from parvae.arrow import ArrowColumns
from parvae.errors import DataError
from parvae.files import DataFile
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
from parvae_pipeline.statistics import ColumnStatistics, statistics_of


class Reader(Protocol):
    """Where the training loop gets its rows."""

    batch_size: int
    steps_per_epoch: int

    def batches(self, first_step: int) -> Iterator[dict[str, Tensor]]:
        """Batches of raw tensors by block name, without end, from step `first_step` on."""


class MemoryReader:
    """Rows decoded once into contiguous arrays, shuffled anew every epoch; the last partial batch of an epoch is left
    out, and other rows fall into it each time."""

    def __init__(self, arrays: Arrays, *, batch_size: int, seed: int) -> None:
        self._tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        self._num_rows = len(next(iter(arrays.values())))
        self._seed = seed
        self.batch_size = min(batch_size, self._num_rows)
        self.steps_per_epoch = self._num_rows // self.batch_size

    def batches(self, first_step: int) -> Iterator[dict[str, Tensor]]:
        epoch, first = divmod(first_step, self.steps_per_epoch)
        while True:
            order = torch.from_numpy(np.random.default_rng((self._seed, epoch)).permutation(self._num_rows))
            for index in range(first, self.steps_per_epoch):
                rows = order[index * self.batch_size : (index + 1) * self.batch_size]
                yield {name: tensor[rows] for name, tensor in self._tensors.items()}
            epoch, first = epoch + 1, 0


def scan(files: Sequence[DataFile]) -> dict[str, ColumnStatistics]:
    """Statistics of every column over all files, one row group in memory at a time.

    Raises DataError when a file is no Parquet file, is damaged, or disagrees with the first about its columns.
    """
    merged: dict[str, ColumnStatistics] = {}
    for file, table in _row_groups(files, columns=None):
        _check_columns(file, table, merged)
        try:
            found = statistics_of(table)
        except DataError as error:
            raise DataError(f"{file.path}: {error}") from error
        for name, statistics in found.items():
            if name in merged:
                merged[name].merge(statistics)
            else:
                merged[name] = statistics
    return merged


def read_rows(files: Sequence[DataFile], schema: Schema) -> Arrays:
    """All rows as the tensors that the network takes, by block name: categories as codes, everything else raw."""
    names = [column.name for column in schema.modelled]
    parts = [encode(schema, table) for _, table in _row_groups(files, columns=names)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def encode(schema: Schema, table: pa.Table) -> Arrays:
    """The rows of a table as the tensors that the network takes."""
    columns = ArrowColumns(table)
    require_columns(schema, columns.names)
    arrays: Arrays = {}
    for block in schema.inputs:
        if block.role is Role.CATEGORY:
            arrays[block.name] = np.stack([_codes(column, *columns.levels(column)) for column in block.columns], axis=1)
        else:
            arrays[block.name] = read_block(block, columns)
    return arrays


def held_out_rows(num_rows: int, *, share: float, max_rows: int, seed: int) -> NDArray[np.bool_]:
    """(num_rows,) which rows are held out: a hash of the row's number, so that it needs no list and no order.

    At least one row is held out and one is kept.
    """
    share = min(share, max_rows / num_rows)
    offset = np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    mixed = _splitmix64(np.arange(num_rows, dtype=np.uint64), offset)
    held_out: NDArray[np.bool_] = mixed < np.uint64(share * 2.0**64)
    if not held_out.any():
        held_out[np.argmin(mixed)] = True
    if held_out.all():
        held_out[np.argmax(mixed)] = False
    return held_out


def select(arrays: Arrays, rows: NDArray[Any]) -> Arrays:
    """The arrays at these rows."""
    return {name: array[rows] for name, array in arrays.items()}


def _check_columns(file: DataFile, table: pa.Table, known: dict[str, ColumnStatistics]) -> None:
    names = table.column_names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{file.path} has column {twice[0]!r} more than once; rename or drop the copies")
    if not known:
        return
    for name in sorted(set(names) ^ set(known)):
        fault = "lacks column" if name in known else "has one that the files before it lack:"
        raise DataError(f"{file.path} {fault} {name!r}; give all files the same columns")
    for field in table.schema:
        types = {field.type, known[field.name].arrow_type} - {pa.null()}  # a column that is null in one file fits all
        if len(types) > 1:
            raise DataError(
                f"{file.path}: column {field.name!r} is {field.type}, but {known[field.name].arrow_type} in the files "
                "before it; cast it to one type"
            )


def _row_groups(files: Sequence[DataFile], columns: list[str] | None) -> Iterator[tuple[DataFile, pa.Table]]:
    for file in files:
        with file.open() as parquet:
            if not parquet.metadata.num_row_groups:
                yield file, parquet.schema_arrow.empty_table()
            for index in range(parquet.metadata.num_row_groups):
                yield file, _read_row_group(file, parquet, index, columns)


def _read_row_group(file: DataFile, parquet: pq.ParquetFile, index: int, columns: list[str] | None) -> pa.Table:
    try:
        return parquet.read_row_group(index, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file.path}: row group {index} cannot be read ({error}); replace the file") from error


def _codes(column: Column, texts: list[str], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    levels = column.facts_as(CategoryFacts).levels
    code_of = {level: FIRST_LEVEL_CODE + index for index, level in enumerate(levels)}
    code_of[NULL_TEXT] = NULL_CODE
    return np.array([*(code_of.get(text, UNSEEN_CODE) for text in texts), NULL_CODE], dtype=np.int64)[rows]


def _splitmix64(counter: NDArray[np.uint64], offset: np.uint64) -> NDArray[np.uint64]:
    """Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"."""
    with np.errstate(over="ignore"):
        z = counter + offset + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
