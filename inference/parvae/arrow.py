"""Arrow tables, and dataframes that speak the Arrow C stream interface, as rows. Needs pyarrow; imported late."""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from parvae.errors import DataError
from parvae.images import decode_images, encode_png
from parvae.rows import Arrays, clip_to_integer
from parvae.schema import Column, ImageFacts, Role, Schema, VectorFacts, canonical_text, check_family, type_family
from parvae.times import SECONDS_PER_DAY, seconds_from_levels, seconds_from_ticks, ticks_from_seconds, unit_of

TEMPORAL_FAMILIES = ("timestamp", "duration", "time")


class ArrowColumns:
    """Columns of an Arrow table, read without a Python object a row."""

    def __init__(self, rows: Any, *, num_threads: int = 1) -> None:
        self._num_threads = num_threads
        self._table = without_structs(as_table(rows))
        self.names = tuple(self._table.column_names)
        self.num_rows = self._table.num_rows

    def numbers(self, column: Column) -> NDArray[np.float64]:
        values = self._checked(column)
        family = type_family(str(values.type))
        if family == "text":
            return seconds_from_levels(*distinct_levels(values))
        if family in TEMPORAL_FAMILIES:
            return temporal_seconds(values)
        if family == "list":
            values = list_lengths(values)
        if values.type != pa.float64():
            values = values.cast(pa.float64(), safe=False)
        return np.asarray(values.to_numpy(), dtype=np.float64)

    def truths(self, column: Column) -> NDArray[np.float32]:
        return np.asarray(self._checked(column).cast(pa.uint8()).cast(pa.float32()).to_numpy(), dtype=np.float32)

    def levels(self, column: Column) -> tuple[list[str], NDArray[np.int64]]:
        return distinct_levels(self._checked(column))

    def elements(self, column: Column) -> NDArray[Any]:
        values = self._checked(column)
        if type_family(str(values.type)) == "encoded":
            return decode_images(column, image_files(values), num_threads=self._num_threads)
        return list_elements(column.name, values)

    def _checked(self, column: Column) -> pa.ChunkedArray:
        values = self._table.column(column.name)
        if pa.types.is_null(values.type):
            return _nulls_for(column, len(values))
        check_family(column, type_family(str(values.type)), str(values.type))
        return values


def temporal_seconds(values: pa.ChunkedArray) -> NDArray[np.float64]:
    """(n,) seconds of dates, timestamps (in UTC), times or durations; NaN where null."""
    unit = unit_of(str(values.type))
    storage = pa.int32() if values.type.bit_width == 32 else pa.int64()
    ticks = values.cast(storage).cast(pa.int64())
    whole = np.asarray(pc.fill_null(ticks, 0).to_numpy(), dtype=np.int64)
    seconds = seconds_from_ticks(whole, unit)
    return np.where(np.asarray(values.is_null().to_numpy()), np.nan, seconds) if values.null_count else seconds


def distinct_levels(values: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int64]]:
    """Distinct values as canonical text, and (n,) the index of each row's value among them."""
    encoded = values.combine_chunks()
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    texts = [canonical_text(value) for value in encoded.dictionary.to_pylist()]
    rows = pc.fill_null(encoded.indices.cast(pa.int64()), len(texts)).to_numpy(zero_copy_only=False)
    return [*texts, canonical_text(None)], np.asarray(rows, dtype=np.int64)


def image_files(values: pa.ChunkedArray) -> list[bytes | None]:
    """The files in a column of bytes, or of structs with a field `bytes`."""
    content = pc.struct_field(values, "bytes") if pa.types.is_struct(values.type) else values
    files: list[bytes | None] = content.to_pylist()
    return files


def list_elements(name: str, values: pa.ChunkedArray) -> NDArray[Any]:
    """(n, d) the elements of a list column, as a view where Arrow's memory allows.

    Raises DataError when a row or an element is null, or rows differ in length.
    """
    array = values.combine_chunks()
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    if array.null_count:
        first = pc.index(array.is_null(), True).as_py()
        raise DataError(f"column {name!r} is null in {array.null_count} rows (first: row {first}); fill or drop them")
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
    else:
        if not len(array):
            return np.empty((0, 0), np.float32)
        lengths = pc.unique(pc.list_value_length(array)).to_pylist()
        if len(lengths) > 1:
            raise DataError(
                f"column {name!r} holds lists of different lengths ({sorted(lengths)[:5]}); pad or drop them"
            )
        (size,) = lengths
    flat = array.flatten()
    if flat.null_count:
        raise DataError(f"column {name!r} has {flat.null_count} null elements inside its lists; fill them")
    if type_family(str(flat.type)) not in ("integer", "floating"):
        raise DataError(f"column {name!r} holds lists of {flat.type}; the model needs lists of numbers")
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(array), size)


def list_lengths(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """The number of values in each list, null where the list is."""
    return pc.list_value_length(values).cast(pa.int64())


def as_table(rows: Any) -> pa.Table:
    """Any Arrow-speaking object as a table, without a copy where its memory allows.

    Raises DataError when it holds no named columns, or a column that is of no one type.
    """
    if isinstance(rows, pa.Table):
        return rows
    if isinstance(rows, pa.RecordBatch):
        return pa.Table.from_batches([rows])
    try:
        return pa.table(rows)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(
            f"a {type(rows).__name__} cannot be read as rows ({error}); give a mapping of column name to array, an "
            "Arrow table, or a dataframe, each column with one name and one type (rename, cast or drop the others)"
        ) from error


def without_structs(table: pa.Table) -> pa.Table:
    """The table with every field of a struct as a column `struct.field`; files of images stay structs.

    A struct that is null has null fields. Raises DataError when a column of that name is there already.
    """
    if not any(_is_open(field) for field in table.schema):
        return table
    while any(_is_open(field) for field in table.schema):
        columns: list[pa.ChunkedArray] = []
        fields: list[pa.Field] = []
        for field, values in zip(table.schema, table.columns, strict=True):
            if _is_open(field):
                columns += values.flatten()
                fields += field.flatten()
            else:
                columns.append(values)
                fields.append(field)
        table = pa.Table.from_arrays(columns, schema=pa.schema(fields, table.schema.metadata))
    twice = [name for name in table.column_names if table.column_names.count(name) > 1]
    if twice:
        raise DataError(f"there are two columns {twice[0]!r}, one of them the field of a struct; rename one")
    return table


def _is_open(field: pa.Field) -> bool:
    return pa.types.is_struct(field.type) and type_family(str(field.type)) != "encoded"


def arrow_type(column: Column) -> pa.DataType:
    """The Arrow type of a column, from its printed name."""
    text = column.arrow_type
    if column.holds_lengths:
        return pa.int64()
    if column.family == "encoded":
        fields = re.findall(r"(\w+): (\w+)", text)
        kinds = [(name, pa.type_for_alias(kind)) for name, kind in fields]
        return pa.struct(kinds) if text.startswith("struct") else pa.type_for_alias(text)
    if isinstance(column.facts, (VectorFacts, ImageFacts)):
        size = column.facts.size if isinstance(column.facts, VectorFacts) else _num_pixels(column.facts)
        element = column.facts.element if isinstance(column.facts, VectorFacts) else "uint8"
        return pa.list_(pa.type_for_alias(element), size)
    if text.startswith("dictionary"):
        return pa.string()
    zoned = re.fullmatch(r"timestamp\[(\w+), tz=(.+)\]", text)
    if zoned:
        return pa.timestamp(zoned[1], tz=zoned[2])
    decimal = re.fullmatch(r"decimal(\d+)\((\d+), (-?\d+)\)", text)
    if decimal:
        bits, precision, scale = map(int, decimal.groups())
        return getattr(pa, f"decimal{bits}")(precision, scale)
    return pa.type_for_alias(text)


def to_array(column: Column, values: NDArray[Any], kind: pa.DataType | None = None) -> pa.Array:
    """One column of `rows_from_outputs` as an Arrow array of `kind` (default: the type it was trained on)."""
    kind = kind or arrow_type(column)
    if column.role is Role.IMAGE and type_family(str(kind)) == "encoded":
        files = encode_png(values)
        return pa.array([{"bytes": file} for file in files] if pa.types.is_struct(kind) else files, kind)
    if column.role in (Role.VECTOR, Role.IMAGE):
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:]))).cast(kind)
    if pa.types.is_dictionary(kind):
        return to_array(column, values, kind.value_type).dictionary_encode().cast(kind)
    if type_family(str(kind)) == "time":
        ticks = ticks_from_seconds(np.clip(values, 0.0, SECONDS_PER_DAY - 1e-6), unit_of(str(kind)))
        storage = pa.int32() if kind.bit_width == 32 else pa.int64()
        return pa.array(ticks, mask=np.isnan(values)).cast(storage).cast(kind)
    if pa.types.is_decimal(kind):
        return pa.array(np.round(values, kind.scale), from_pandas=True).cast(kind, safe=False)
    if column.role is Role.NUMERIC and pa.types.is_integer(kind):
        null = np.isnan(values) if values.dtype.kind == "f" else None
        return pa.array(clip_to_integer(values, str(kind)), mask=null)
    return pa.array(values, from_pandas=True).cast(kind)


def to_table(schema: Schema, columns: Arrays) -> pa.Table:
    """Columns made by a graph as a table in the types of the data set."""
    return pa.table({name: to_array(schema[name], values) for name, values in columns.items()})


def in_the_form_of(rows: Any, schema: Schema, columns: Arrays) -> Any:
    """`columns` put into a copy of `rows`: an Arrow table, or the dataframe kind that came."""
    table = without_structs(as_table(rows))
    for name, values in columns.items():
        field = table.schema.field(name)
        keeps_type = not (pa.types.is_null(field.type) or schema[name].holds_lengths)
        array = to_array(schema[name], values, field.type if keeps_type else None)
        table = table.set_column(table.schema.get_field_index(name), field.with_type(array.type), array)
    module = type(rows).__module__.partition(".")[0]
    if module == "pandas":
        return table.to_pandas()
    if module == "polars":
        return sys.modules["polars"].from_arrow(table)
    if isinstance(rows, pa.RecordBatch):
        return pa.RecordBatch.from_arrays([column.combine_chunks() for column in table.columns], schema=table.schema)
    return table


def _num_pixels(facts: ImageFacts) -> int:
    return facts.height * facts.width * facts.channels


def _nulls_for(column: Column, length: int) -> pa.ChunkedArray:
    return pa.chunked_array([pa.nulls(length, arrow_type(column))])
