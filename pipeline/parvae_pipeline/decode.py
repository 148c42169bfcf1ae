"""From units to arrays: row groups decoded chunk by chunk, the training rows apart from those held out.

A chunk is a slice of a row group of a few megabytes, so that what Arrow holds beside our arrays stays small however
large the row groups are. Only the modelled columns are read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from parvae.arrow import without_structs
from parvae.errors import DataError
from parvae.rows import Arrays
from parvae.schema import Role, Schema
from parvae_pipeline.parallel import map_in_order
from parvae_pipeline.reader import encode
from parvae_pipeline.split import Split
from parvae_pipeline.units import Units

CHUNK_BYTES = 8 * 2**20
"""Size of the rows that are decoded at a time: as pages, or as float64 if that is more (a page may hold very few bytes
where values repeat)."""
MAX_CHUNK_ROWS = 65_536
CACHED_FOOTERS = 16
"""Footers kept for the next row group of the same file: parsing one anew for each row group would be quadratic."""


class UnitTables:
    """The row groups of a plan as Arrow tables; may be used from several threads."""

    def __init__(self, units: Units, *, columns: list[str] | None, row_bytes: int = 0) -> None:
        """`columns` are those to read; None reads all. A row decodes to `row_bytes` if its type does not say more."""
        self.units, self._columns = units, columns
        fields = [units.schema.field(name) for name in columns or units.schema.names]
        self._row_bytes = max(row_bytes, 8 * sum(_num_elements(field.type) for field in fields))
        self._footer: Callable[[int], pq.FileMetaData] = lru_cache(maxsize=CACHED_FOOTERS)(self._read_footer)

    def chunks(self, unit: int) -> Iterator[tuple[int, pa.Table]]:
        """The rows of a unit in order, a few megabytes at a time, and the number in the unit of the first of them.

        Raises DataError naming the file when the row group is damaged, or the file changed since it was planned.
        """
        units = self.units
        file, group, num_rows = units.file_of(unit), int(units.row_group[unit]), int(units.num_rows[unit])
        file.require_unchanged()
        row_bytes = max(self._row_bytes, int(units.num_bytes[unit]) // num_rows)
        chunk_rows = int(np.clip(CHUNK_BYTES // row_bytes, 1, MAX_CHUNK_ROWS))
        first = 0
        try:
            with file.open(metadata=self._footer(int(units.file_index[unit]))) as parquet:
                batches = parquet.iter_batches(chunk_rows, row_groups=[group], columns=self._columns, use_threads=False)
                for batch in batches:
                    yield first, file.with_partitions(without_structs(pa.Table.from_batches([batch])))
                    first += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file.path}: row group {group} cannot be read ({error}); replace the file") from error
        if first != num_rows:
            raise DataError(
                f"{file.path}: row group {group} holds {first} rows, and {num_rows} by its footer; replace the file"
            )

    def error(self, unit: int, first: int, error: DataError) -> DataError:
        """`error` in the chunk that begins at row `first` of a unit, with the place where it happened."""
        file, group = self.units.file_of(unit), self.units.row_group[unit]
        return DataError(f"{file.path}, row group {group}, rows from {first:,} on: {error}")

    def _read_footer(self, file_index: int) -> pq.FileMetaData:
        with self.units.files[file_index].open() as parquet:
            return parquet.metadata


class UnitRows:
    """The rows of units as the network takes them, split into training rows and held-out rows."""

    def __init__(self, units: Units, schema: Schema, split: Split) -> None:
        self.units, self.schema, self.split = units, schema, split
        names = [column.name for column in schema.modelled]
        self._tables = UnitTables(units, columns=names, row_bytes=row_bytes(schema))
        self._num_image_threads = threads_within(len(units))

    def chunks(self, unit: int) -> Iterator[tuple[NDArray[np.bool_], Callable[[], Arrays]]]:
        """For every chunk of a unit: (n,) which rows are held out, and a function that encodes them."""
        for first, table in self._tables.chunks(unit):
            held_out = self.split.held_out(int(self.units.first_row[unit]) + first, table.num_rows)

            def encoded(first: int = first, table: pa.Table = table) -> Arrays:
                try:
                    return encode(self.schema, table, num_threads=self._num_image_threads)
                except DataError as error:
                    raise self._tables.error(unit, first, error) from error

            yield held_out, encoded


class TrainingRows:
    """The training rows of one unit, copied out in pieces: where one window ends, the next goes on."""

    def __init__(self, rows: UnitRows, unit: int, *, skip: int) -> None:
        """Begin after `skip` training rows. They must be decompressed, but are not encoded."""
        self.unit, self.position = unit, 0
        self._chunks = rows.chunks(unit)
        self._arrays: Arrays = {}
        self._waiting: NDArray[np.int64] = np.empty(0, np.int64)
        self._skip = skip

    def copy(self, target: Arrays, offset: int, count: int, *, stop: threading.Event) -> None:
        """Write the next `count` rows to `target` from row `offset` on, or fewer once `stop` is set."""
        while count and not stop.is_set():
            if not len(self._waiting):
                self._next_chunk()
                continue
            rows, self._waiting = self._waiting[:count], self._waiting[count:]
            _take(self._arrays, rows, target, offset)
            offset, count, self.position = offset + len(rows), count - len(rows), self.position + len(rows)

    def _next_chunk(self) -> None:
        held_out, encoded = next(self._chunks)
        training = np.flatnonzero(~held_out)
        num_skipped = min(self._skip - self.position, len(training))
        if num_skipped > 0:
            self.position += num_skipped
            training = training[num_skipped:]
        self._waiting = training
        self._arrays = encoded() if len(training) else {}


def read_split(rows: UnitRows, *, max_training_rows: int | None = None) -> tuple[Arrays, Arrays]:
    """The first `max_training_rows` training rows (default: all) and every held-out row, both in the order of the data
    set, decoded in threads straight into arrays of the final size.

    Raises DataError naming the file that is damaged, changed since the plan, or holds what the model cannot read.
    """
    units = rows.units
    num_held_out = rows.split.count_held_out(units.bounds)
    num_training = units.num_rows - num_held_out
    first_held_out, first_training = np.cumsum(num_held_out) - num_held_out, np.cumsum(num_training) - num_training
    limit = int(num_training.sum()) if max_training_rows is None else min(max_training_rows, int(num_training.sum()))
    training, held_out = empty_arrays(rows.schema, limit), empty_arrays(rows.schema, int(num_held_out.sum()))

    def read(unit: int) -> None:
        at_training, at_held_out = int(first_training[unit]), int(first_held_out[unit])
        for mask, encoded in rows.chunks(unit):
            wanted = np.flatnonzero(~mask)[: max(0, limit - at_training)]
            if len(wanted) or mask.any():
                arrays = encoded()
                at_training += _take(arrays, wanted, training, at_training)
                at_held_out += _take(arrays, np.flatnonzero(mask), held_out, at_held_out)

    wanted_units = np.flatnonzero((first_training < limit) | (num_held_out > 0)).tolist()
    for _ in map_in_order(read, wanted_units, num_threads=pa.cpu_count()):
        pass
    return training, held_out


def empty_arrays(schema: Schema, num_rows: int) -> Arrays:
    """Room for `num_rows` encoded rows, by block name."""
    return {
        block.name: np.empty((num_rows, *block.row_shape), "int64" if block.role is Role.CATEGORY else block.dtype)
        for block in schema.inputs
    }


def row_bytes(schema: Schema) -> int:
    """Bytes that one encoded row takes in memory."""
    return sum(array.nbytes for array in empty_arrays(schema, 1).values())


def threads_within(num_units: int) -> int:
    """Threads that one unit may use of its own, for images, where there are fewer units than processors."""
    return max(1, int(pa.cpu_count()) // max(1, num_units))


def _num_elements(kind: pa.DataType) -> int:
    """Numbers in one value of an Arrow type; 1 where the type does not say."""
    if isinstance(kind, pa.BaseExtensionType):
        return _num_elements(kind.storage_type)
    return kind.list_size * _num_elements(kind.value_type) if pa.types.is_fixed_size_list(kind) else 1


def _take(arrays: Arrays, rows: NDArray[np.int64], target: Arrays, offset: int) -> int:
    """Write the arrays at `rows` to `target` from row `offset` on; returns how many there were."""
    for name, array in arrays.items():
        # "clip" lets numpy write straight to `out`; the default would fill a buffer first.
        np.take(array, rows, axis=0, out=target[name][offset : offset + len(rows)], mode="clip")
    return len(rows)
