"""Arrow tables and Parquet files into `.vaez` and back, in bounded memory. Needs pyarrow; imported late."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from parvae.arrow import as_table
from parvae.errors import DataError
from parvae.files import DataFile
from parvae.vaez.codec import Codec
from parvae.vaez.columns import ColumnData, Numbers, Opaque, Texts, ordered_texts
from parvae.vaez.rows import Batch, compress_to, rows_of_a_block

MIN_PIXELS = 16
_STORED_AS = {32: pa.int32(), 64: pa.int64()}


def compress_table(
    sink: BinaryIO,
    rows: Any,
    *,
    bounds: Mapping[str, Any] | None,
    block_rows: int,
    effort: int,
    codec: Codec | None = None,
    carry: bool = False,
) -> dict[str, int]:
    """Compress a table or dataframe."""
    table = as_table(rows)
    block_rows = rows_of_a_block(table.nbytes / max(1, table.num_rows), block_rows)
    starts = range(0, max(1, table.num_rows), block_rows)
    return compress_to(
        sink,
        lambda: (batch_of(table.slice(first, block_rows)) for first in starts),
        _head(table.schema),
        bounds=bounds,
        effort=effort,
        codec=codec,
        carry=carry,
    )


def compress_files(
    sink: BinaryIO,
    files: Sequence[DataFile],
    *,
    bounds: Mapping[str, Any] | None,
    effort: int,
    codec: Codec | None = None,
    carry: bool = False,
) -> dict[str, int]:
    """Compress Parquet files of one schema, one after the other, a block at a time."""
    schema = _schema_of(files[0])

    def batches() -> Iterator[Batch]:
        num_batches = 0
        for file in files:
            if not _schema_of(file).equals(schema):
                raise DataError(f"{file.path} has other columns than {files[0].path}; compress them apart")
            for batch in file_batches(file):
                num_batches += 1
                yield batch
        if not num_batches:
            yield batch_of(schema.empty_table())

    return compress_to(sink, batches, _head(schema), bounds=bounds, effort=effort, codec=codec, carry=carry)


def file_batches(file: DataFile, columns: Sequence[str] | None = None) -> Iterator[Batch]:
    """The rows of a Parquet file, or some columns of them, as many at a time as make a block."""
    with file.open() as parquet:
        wanted = None if columns is None else [name for name in columns if name in parquet.schema_arrow.names]
        groups = [parquet.metadata.row_group(place) for place in range(parquet.metadata.num_row_groups)]
        row_bytes = sum(group.total_byte_size for group in groups) / max(1, parquet.metadata.num_rows)
        row_bytes = max(row_bytes, sum(_width(field.type) for field in parquet.schema_arrow))
        for batch in parquet.iter_batches(batch_size=rows_of_a_block(row_bytes), columns=wanted):
            yield batch_of(file.with_partitions(pa.Table.from_batches([batch])))


def _schema_of(file: DataFile) -> pa.Schema:
    with file.open() as parquet:
        return file.schema_with_partitions(parquet.schema_arrow)


def _width(kind: pa.DataType) -> float:
    """Bytes of a value, where all have the same."""
    if pa.types.is_fixed_size_list(kind):
        return float(kind.list_size) * _width(kind.value_type)
    return kind.bit_width / 8 if pa.types.is_primitive(kind) or pa.types.is_fixed_size_binary(kind) else 0.0


def table_from(head: Mapping[str, Any], batches: Iterable[Batch], columns: Sequence[str] | None) -> pa.Table:
    """The batches as one table in the types they had."""
    schema = schema_from(head, columns)
    return pa.concat_tables([schema.empty_table(), *(to_table(batch, schema) for batch in batches)])


def schema_from(head: Mapping[str, Any], columns: Sequence[str] | None) -> pa.Schema:
    """The Arrow schema of the columns that a file holds."""
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(head["arrow"])))
    names = [column["name"] for column in head["columns"]] if columns is None else columns
    return pa.schema([schema.field(name) for name in names], metadata=schema.metadata)


def to_table(batch: Batch, schema: pa.Schema) -> pa.Table:
    """One batch in the types of `schema`."""
    return pa.Table.from_arrays([_to_arrow(batch[field.name], field.type) for field in schema], schema=schema)


def batch_of(table: pa.Table) -> Batch:
    """The columns of a table as the codec holds them."""
    if len(set(table.column_names)) != table.num_columns:
        raise DataError(f"columns share a name ({table.column_names}); rename them")
    return {name: _from_arrow(table.column(name)) for name in table.column_names}


def _head(schema: pa.Schema) -> dict[str, Any]:
    types = {field.name: str(field.type) for field in schema}
    return {"arrow": base64.b64encode(schema.serialize().to_pybytes()).decode(), "types": types}


def _from_arrow(column: pa.ChunkedArray) -> ColumnData:
    kind = column.type
    values = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], kind)
    if pa.types.is_dictionary(kind) and _is_text(kind.value_type):
        values, kind = values.cast(kind.value_type), kind.value_type
    if _is_binary(kind) and (raw := _equal_bytes(values)) is not None:
        return Numbers(values=raw)
    if _is_text(kind):
        encoded = values.dictionary_encode()
        levels = [_as_bytes(level) for level in encoded.dictionary.to_pylist()]
        codes = pc.fill_null(encoded.indices.cast(pa.int64()), len(levels)).to_numpy(zero_copy_only=False)
        return ordered_texts([*levels, None], codes, is_text=pa.types.is_string(kind) or pa.types.is_large_string(kind))
    if pa.types.is_fixed_size_list(kind) and _is_number(kind.value_type) and not pa.types.is_boolean(kind.value_type):
        flat = values.flatten()
        if not values.null_count and not flat.null_count:
            matrix = flat.to_numpy(zero_copy_only=False).reshape(len(values), kind.list_size)
            return Numbers(values=matrix)
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        values = values.view(_STORED_AS[kind.bit_width])
        kind = values.type
    if _is_number(kind):
        valid = np.asarray(values.is_valid()) if values.null_count else None
        zero = pa.scalar(False if pa.types.is_boolean(kind) else 0, pa.bool_() if pa.types.is_boolean(kind) else kind)
        filled = pc.fill_null(values, zero) if valid is not None else values
        return Numbers(values=filled.to_numpy(zero_copy_only=False), valid=valid)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema([pa.field("column", kind)])) as writer:
        writer.write_table(pa.table({"column": values}))
    return Opaque(content=sink.getvalue().to_pybytes(), num_rows=len(values))


def _to_arrow(column: ColumnData, kind: pa.DataType) -> pa.Array:
    if isinstance(column, Opaque):
        found = pa.ipc.open_stream(column.content).read_all().column(0)
        return pa.concat_arrays(found.chunks) if found.num_chunks else pa.array([], kind)
    if isinstance(column, Texts):
        value_type = kind.value_type if pa.types.is_dictionary(kind) else kind
        levels = [level.decode() if column.is_text else level for level in column.levels]
        codes = pa.array(column.codes, mask=column.codes < 0)
        texts = pa.DictionaryArray.from_arrays(codes, pa.array(levels, value_type)).cast(value_type)
        return texts.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else texts
    values = column.values.astype(column.values.dtype.newbyteorder("="), copy=False)
    if _is_binary(kind):
        content = pa.py_buffer(np.ascontiguousarray(values))
        equal = pa.FixedSizeBinaryArray.from_buffers(pa.binary(values.shape[1]), len(values), [None, content])
        return equal.cast(kind)
    if values.ndim > 1:
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, kind.list_size).cast(kind)
    array = pa.array(values, mask=None if column.valid is None else ~column.valid, from_pandas=False)
    if array.type == kind:
        return array
    return array.view(kind) if pa.types.is_temporal(kind) else array.cast(kind)


def _equal_bytes(values: pa.Array) -> Any:
    """(n, d) bytes, where all rows have the same length, as pixels have, and most differ; else None."""
    if values.null_count or not len(values):
        return None
    lengths = pc.min_max(pc.binary_length(values))
    size = lengths["min"].as_py()
    if size != lengths["max"].as_py() or size < MIN_PIXELS or 2 * pc.count_distinct(values).as_py() <= len(values):
        return None
    content = np.frombuffer(b"".join(values.to_pylist()), np.uint8)
    return content.reshape(len(values), size)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _as_bytes(level: Any) -> bytes:
    return level.encode() if isinstance(level, str) else bytes(level)
