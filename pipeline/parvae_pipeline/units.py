"""The plan of a data set: its (file, row group) units, read from the footers alone.

Units lie in the order of the files and of the row groups in them; a row's number in the data set counts along that
order. The plan is arrays, not objects: 40 bytes a unit, 4 MB for 100,000 row groups. Letter in shapes: u units.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from parvae.arrow import without_structs
from parvae.errors import DataError
from parvae.files import DataFile
from parvae_pipeline.parallel import map_in_order

FOOTER_THREADS = 16
"""Footers are small, and far away where they are in a bucket: the wait is for the network, not for a core."""


class HoldsSchema:
    """Travels between processes with its Arrow schema as bytes: pickled, a list type loses the name of its field."""

    schema: pa.Schema

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "schema": self.schema.serialize().to_pybytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({**state, "schema": pa.ipc.read_schema(pa.py_buffer(state["schema"]))})


@dataclass(frozen=True, kw_only=True)
class Units(HoldsSchema):
    """All row groups that hold rows."""

    files: tuple[DataFile, ...]
    schema: pa.Schema
    """Columns and types that all files share; a column that is null in one file has the type of the others."""
    file_index: NDArray[np.int32]
    """(u,) where the unit's file is in `files`."""
    row_group: NDArray[np.int32]
    """(u,) the row group in that file."""
    num_rows: NDArray[np.int64]
    """(u,)"""
    num_bytes: NDArray[np.int64]
    """(u,) decompressed size of the planned columns, as encoded in the file."""
    first_row: NDArray[np.int64]
    """(u,) number of the unit's first row in the data set."""
    folder_columns: frozenset[str] = frozenset()
    """Columns of `schema` that are not in the files: folders name them."""

    def __len__(self) -> int:
        return len(self.num_rows)

    @property
    def total_rows(self) -> int:
        """Rows of the data set."""
        return int(self.num_rows.sum())

    @property
    def bounds(self) -> NDArray[np.int64]:
        """(u + 1,) the first row of every unit, then the number of rows."""
        return np.append(self.first_row, self.total_rows)

    def file_of(self, unit: int) -> DataFile:
        """The file that a unit is in."""
        return self.files[int(self.file_index[unit])]

    def part(self, first: int, last: int) -> Units:
        """The units from `first` up to `last`, with their files alone; rows count from the first of them."""
        chosen = slice(first, last)
        first_file, last_file = (int(self.file_index[unit]) for unit in (first, last - 1))
        return Units(
            files=self.files[first_file : last_file + 1],
            schema=self.schema,
            file_index=self.file_index[chosen] - np.int32(first_file),
            row_group=self.row_group[chosen].copy(),
            num_rows=self.num_rows[chosen].copy(),
            num_bytes=self.num_bytes[chosen].copy(),
            first_row=self.first_row[chosen] - self.first_row[first],
            folder_columns=self.folder_columns,
        )


@dataclass(frozen=True, kw_only=True)
class Footer(HoldsSchema):
    """What the plan keeps of one file's footer. Letter in shapes: g row groups that hold rows."""

    schema: pa.Schema
    """Of the file itself: what its folders name is not kept, for its type depends on the other files."""
    row_group: NDArray[np.int32]
    """(g,)"""
    num_rows: NDArray[np.int64]
    """(g,)"""
    num_bytes: NDArray[np.int64]
    """(g,) decompressed size of the planned columns, as encoded in the file."""


def plan_units(files: Sequence[DataFile], columns: Sequence[str] | None = None) -> Units:
    """The units of files, from their footers; `columns` (all by default) are those whose bytes are counted.

    Raises DataError naming the file that is no Parquet file, is damaged, or disagrees with those before it about its
    columns.
    """
    return units_of(files, read_footers(files, columns))


def read_footers(files: Sequence[DataFile], columns: Sequence[str] | None = None) -> Iterator[Footer]:
    """The footers in the order of the files, read in threads.

    Raises DataError naming the file that is no Parquet file or is damaged.
    """
    return map_in_order(lambda file: _read_footer(file, columns), files, num_threads=FOOTER_THREADS)


def units_of(files: Sequence[DataFile], footers: Iterable[Footer]) -> Units:
    """The units of files whose footers are known.

    Raises DataError naming the file that disagrees with those before it about its columns.
    """
    schema: pa.Schema | None = None
    in_files: set[str] = set()
    parts = []
    for index, (file, footer) in enumerate(zip(files, footers, strict=True)):
        in_files.update(footer.schema.names)
        schema = _joined(file, file.schema_with_partitions(footer.schema), schema)
        file_index = np.full(len(footer.row_group), index, np.int32)
        parts.append((file_index, footer.row_group, footer.num_rows, footer.num_bytes))
    file_index, row_group, num_rows, num_bytes = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Units(
        files=tuple(files),
        schema=schema,
        file_index=file_index,
        row_group=row_group,
        num_rows=num_rows,
        num_bytes=num_bytes,
        first_row=np.cumsum(num_rows) - num_rows,
        folder_columns=frozenset(schema.names if schema else ()) - in_files,
    )


def _read_footer(file: DataFile, columns: Sequence[str] | None) -> Footer:
    with file.open() as parquet:
        metadata = parquet.metadata
        leaves = None if columns is None else _leaves(metadata, frozenset(columns))
        num_rows, num_bytes = np.empty((2, metadata.num_row_groups), np.int64)
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            num_rows[index] = group.num_rows
            if leaves is None:
                num_bytes[index] = group.total_byte_size
            else:
                num_bytes[index] = sum(group.column(leaf).total_uncompressed_size for leaf in leaves)
        (groups,) = np.nonzero(num_rows)
        return Footer(
            schema=without_structs(parquet.schema_arrow.empty_table()).schema,
            row_group=groups.astype(np.int32),
            num_rows=num_rows[groups],
            num_bytes=num_bytes[groups],
        )


def _leaves(metadata: pq.FileMetaData, columns: frozenset[str]) -> list[int]:
    """Parquet stores nested columns by leaf: those that belong to `columns`."""
    paths = (metadata.schema.column(leaf).path for leaf in range(metadata.num_columns))
    return [leaf for leaf, path in enumerate(paths) if any(f"{path}.".startswith(f"{name}.") for name in columns)]


def _joined(file: DataFile, found: pa.Schema, known: pa.Schema | None) -> pa.Schema:
    """`known` with the types that only `found` has, or a DataError where the two disagree."""
    if known is not None and (found is known or found.equals(known)):
        return known
    twice = sorted(name for name, count in Counter(found.names).items() if count > 1)
    if twice:
        raise DataError(f"{file.path} has column {twice[0]!r} more than once; rename or drop the copies")
    if known is None:
        return found
    for name in sorted(set(found.names) ^ set(known.names)):
        fault = "lacks column" if name in known.names else "has one that the files before it lack:"
        raise DataError(f"{file.path} {fault} {name!r}; give all files the same columns")
    for field in found:
        before = known.field(field.name)
        if before.type == pa.null():
            known = known.set(known.get_field_index(field.name), before.with_type(field.type))
        elif field.type not in (before.type, pa.null()):  # a column that is null in one file fits all
            raise DataError(
                f"{file.path}: column {field.name!r} is {field.type}, but {before.type} in the files before it; "
                "cast it to one type"
            )
    return known
