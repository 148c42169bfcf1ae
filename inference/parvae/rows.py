"""Rows in and rows out: from what an application holds to the tensors of the graphs, and back.

Rows are a mapping of column name to array, an Arrow table, or any dataframe that offers the Arrow C stream interface.
Letters in shapes: n rows, d elements of a vector, (h, w, c) height, width and channels of an image.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from parvae.errors import DataError, MissingExtraError
from parvae.images import decode_images, encoded_like
from parvae.schema import (
    NULL_TEXT,
    CategoryFacts,
    Column,
    ImageFacts,
    Input,
    NumericFacts,
    Role,
    Schema,
    VectorFacts,
    canonical_text,
    check_family,
    is_null,
    require_columns,
)
from parvae.times import (
    SECONDS_PER_DAY,
    numpy_from_seconds,
    seconds_from_levels,
    seconds_from_numpy,
    texts_from_seconds,
)

Arrays = dict[str, NDArray[Any]]


class Columns(Protocol):
    """Rows whose columns can be read as arrays; every method checks the type and names the column when it fails."""

    names: tuple[str, ...]
    num_rows: int

    def numbers(self, column: Column) -> NDArray[np.float64]:
        """(n,) values, NaN where null; dates, times and durations in seconds."""

    def truths(self, column: Column) -> NDArray[np.float32]:
        """(n,) 0 or 1, NaN where null."""

    def levels(self, column: Column) -> tuple[list[str], NDArray[np.int64]]:
        """Distinct values as canonical text, and (n,) the index of each row's value among them."""

    def elements(self, column: Column) -> NDArray[Any]:
        """(n, d) elements of a list column, or pixels of encoded images."""


def columns_of(rows: Any, *, num_threads: int = 1) -> Columns:
    """The adapter for what the caller brought; `num_threads` decode encoded images.

    Raises DataError when it is nothing that holds named columns, MissingExtraError when Arrow data comes and pyarrow
    is not installed.
    """
    if isinstance(rows, Mapping):
        return MappingColumns(rows, num_threads=num_threads)
    if hasattr(rows, "__arrow_c_stream__") or hasattr(rows, "__arrow_c_array__"):
        columns: Columns = _arrow().ArrowColumns(rows, num_threads=num_threads)
        return columns
    raise DataError(
        f"rows are a {type(rows).__name__}; give a mapping of column name to array, an Arrow table, "
        "or a dataframe that offers __arrow_c_stream__ (pandas, polars)"
    )


def read_inputs(schema: Schema, rows: Any, *, num_threads: int = 1) -> tuple[Arrays, int]:
    """The input tensors of the graphs, by name, and the number of rows.

    Raises DataError naming the column that is missing, comes twice, or has a type or length the model cannot read.
    """
    columns = columns_of(rows, num_threads=num_threads)
    require_columns(schema, columns.names)
    return {block.name: read_block(block, columns) for block in schema.inputs}, columns.num_rows


def read_block(block: Input, columns: Columns) -> NDArray[Any]:
    """One input tensor: (n, *block.row_shape) of block.dtype."""
    if block.role is Role.CATEGORY:
        texts = np.empty((columns.num_rows, len(block.columns)), dtype=object)
        for index, column in enumerate(block.columns):
            levels, rows = columns.levels(column)
            texts[:, index] = np.array([*levels, ""], dtype=object)[rows]
        return texts
    if block.role in (Role.NUMERIC, Role.TIMESTAMP, Role.BOOLEAN):
        read = columns.truths if block.role is Role.BOOLEAN else columns.numbers
        packed = np.empty((columns.num_rows, len(block.columns)), dtype=block.dtype)
        for index, column in enumerate(block.columns):
            packed[:, index] = read(column)
        return packed
    elements = columns.elements(block.columns[0])
    return np.ascontiguousarray(_cast_elements(block, elements)).reshape(-1, *block.row_shape)


def _cast_elements(block: Input, elements: NDArray[Any]) -> NDArray[Any]:
    (column,) = block.columns
    size = int(np.prod(block.row_shape))
    if not len(elements):
        return np.empty((0, size), block.dtype)
    if elements.shape[1] != size:
        raise DataError(
            f"column {column.name!r} has {elements.shape[1]} elements a row; the model needs {size}: pad, cut or resize"
        )
    if block.dtype == "float32":
        return elements.astype(np.float32, copy=False)
    if elements.dtype != np.uint8:
        if elements.size and not (np.all(elements >= 0) and np.all(elements <= 255) and np.all(elements % 1 == 0)):
            raise DataError(f"column {column.name!r} needs whole numbers from 0 to 255; scale and round it")
        return elements.astype(np.uint8)
    return elements


def signed_log(values: NDArray[Any]) -> NDArray[np.float64]:
    """sign(x) log(1 + |x|): the transform that a column's facts call log1p."""
    numbers = values.astype(np.float64, copy=False)
    logs: NDArray[np.float64] = np.sign(numbers) * np.log1p(np.abs(numbers))
    return logs


def rows_from_outputs(schema: Schema, outputs: Mapping[str, NDArray[Any]]) -> Arrays:
    """Columns by name from the output tensors of a graph, in the types of the data set.

    Integers come as their own type unless a null forces float64; dates and durations as datetime64 and timedelta64,
    times of day as seconds; categories and dates that are text as object arrays with None for null;
    vectors as (n, d), images as (n, h, w, c).
    """
    columns: Arrays = {}
    for block in schema.inputs:
        values = outputs[block.name]
        for index, column in enumerate(block.columns):
            packed = block.role in (Role.NUMERIC, Role.TIMESTAMP, Role.BOOLEAN, Role.CATEGORY)
            columns[column.name] = _restore(column, values[:, index] if packed else values)
    return {column.name: columns[column.name] for column in schema if column.is_modelled}


def _restore(column: Column, values: NDArray[Any]) -> NDArray[Any]:
    if isinstance(column.facts, (VectorFacts, ImageFacts)):
        return values
    if isinstance(column.facts, CategoryFacts):
        parsers: dict[str, Callable[[str], Any]] = {
            "integer": int,
            "floating": float,
            "boolean": lambda text: text == "true",
        }
        parse = parsers.get(column.family, str)
        parsed: dict[str, Any] = {text: parse(text) for text in set(values.tolist()) - {NULL_TEXT}}
        return np.array([parsed.get(text) for text in values.tolist()], dtype=object)
    if column.family == "timestamp":
        return numpy_from_seconds(values, column.arrow_type, "M")
    if column.role is Role.TIMESTAMP:
        facts = column.facts_as(NumericFacts)
        # A resolution of 0 is one that is not known.
        are_days = not any(number % SECONDS_PER_DAY for number in (facts.resolution, facts.minimum, facts.maximum))
        return np.array(texts_from_seconds(values, are_days=are_days), dtype=object)
    if column.family == "duration":
        return numpy_from_seconds(values, column.arrow_type, "m")
    present = ~np.isnan(values)
    if column.role is Role.BOOLEAN:
        if present.all():
            return values > 0.5
        return np.array(
            [bool(value > 0.5) if known else None for value, known in zip(values, present, strict=True)], dtype=object
        )
    kind = "int64" if column.holds_lengths else column.arrow_type
    if kind in _INTEGERS and present.all():
        return clip_to_integer(values, kind)
    kinds = {"halffloat": np.float16, "float": np.float32}
    return values.astype(kinds.get(column.arrow_type, np.float64))


_INTEGERS = frozenset({f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)})


def clip_to_integer(values: NDArray[Any], name: str) -> NDArray[Any]:
    """Numbers rounded and cut to what an integer type can hold; NaN becomes 0."""
    bounds = np.iinfo(name)
    if values.dtype.kind in "iu":
        inside: NDArray[Any] = np.clip(values, bounds.min, bounds.max).astype(name)
        return inside
    # float64 cannot hold the largest int64: cut just inside before the cast.
    high = np.nextafter(float(bounds.max), 0) if bounds.bits == 64 else float(bounds.max)
    whole: NDArray[Any] = np.clip(np.rint(np.nan_to_num(values, nan=0.0)), float(bounds.min), high).astype(name)
    return whole


def in_the_form_of(rows: Any, schema: Schema, columns: Arrays) -> Any:
    """`columns` in the kind of container that `rows` is; what the model does not cover passes through."""
    if isinstance(rows, Mapping):
        images = [name for name in columns if schema[name].role is Role.IMAGE]
        return {**rows, **columns, **{name: encoded_like(rows[name], columns[name]) for name in images}}
    return _arrow().in_the_form_of(rows, schema, columns)


def _arrow() -> Any:
    try:
        from parvae import arrow
    except ImportError as error:
        raise MissingExtraError(
            "Arrow tables and dataframes need pyarrow: pip install 'parvae[parquet]' (or pass a mapping of arrays)"
        ) from error
    return arrow


class MappingColumns:
    """A mapping of column name to numpy array (or list)."""

    def __init__(self, rows: Mapping[str, Any], *, num_threads: int = 1) -> None:
        self._num_threads = num_threads
        self._arrays = {name: _as_array(name, values) for name, values in rows.items()}
        self.names = tuple(self._arrays)
        lengths = {name: len(array) for name, array in self._arrays.items()}
        self.num_rows = next(iter(lengths.values()), 0)
        for name, length in lengths.items():
            if length != self.num_rows:
                raise DataError(
                    f"column {name!r} has {length} rows and column {self.names[0]!r} {self.num_rows}; "
                    "give all columns the same number of rows"
                )

    def numbers(self, column: Column) -> NDArray[np.float64]:
        if column.holds_lengths:
            return _lengths(column, self._arrays[column.name])
        array = self._scalars(column)
        if column.role is Role.TIMESTAMP and _numpy_family(array, column) == "text":
            return seconds_from_levels(*self.levels(column))
        return _floats(column, array)

    def truths(self, column: Column) -> NDArray[np.float32]:
        return _floats(column, self._scalars(column)).astype(np.float32)

    def levels(self, column: Column) -> tuple[list[str], NDArray[np.int64]]:
        array = self._scalars(column)
        seen: dict[Any, int] = {}
        rows = np.fromiter((seen.setdefault(value, len(seen)) for value in array.tolist()), np.int64, self.num_rows)
        return [canonical_text(value) for value in seen], rows

    def elements(self, column: Column) -> NDArray[Any]:
        array = self._arrays[column.name]
        if not len(array):
            return np.empty((0, 0), np.float32)
        if column.role is Role.IMAGE and array.ndim == 1 and array.dtype.kind in "OS":
            return decode_images(column, array.tolist(), num_threads=self._num_threads)
        if array.dtype == object or array.ndim < 2:
            if array.ndim == 1 and any(isinstance(row, _LISTS) for row in array.tolist()):
                raise DataError(
                    f"column {column.name!r} cannot be read as an array: its rows differ in length, or some are null; "
                    "pad or drop them"
                )
            raise DataError(
                f"column {column.name!r} must be an array of shape (rows, elements) with numbers; "
                f"it is {array.dtype} of shape {array.shape}"
            )
        check_family(column, "list" if array.dtype.kind in "iufb" else "other", str(array.dtype))
        return array.reshape(len(array), int(np.prod(array.shape[1:])))

    def _scalars(self, column: Column) -> NDArray[Any]:
        array = self._arrays[column.name]
        if array.ndim != 1:
            raise DataError(f"column {column.name!r} must have one value a row; it has shape {array.shape}")
        if len(array):
            check_family(column, _numpy_family(array, column), str(array.dtype))
        return array


def _as_array(name: str, values: Any) -> NDArray[Any]:
    if isinstance(values, np.ma.MaskedArray):
        masked = np.ma.getmaskarray(values)
        values = np.ma.getdata(values).astype(object)
        values[masked] = None
    if isinstance(values, Sequence) and any(isinstance(value, bytes) for value in values):
        files = np.empty(len(values), dtype=object)  # as numpy's own kind of bytes they would lose zeros at their end
        files[:] = values
        return files
    try:
        array = np.asarray(values)
    except ValueError:  # lists of several lengths: whether they may be is a question of the column's role
        array = np.empty(len(values), dtype=object)
        array[:] = list(values)
    if array.ndim == 0:
        raise DataError(f"column {name!r} is a single value; give one value a row, for example [{values!r}]")
    return array


_LISTS = (list, tuple, np.ndarray)


def _lengths(column: Column, array: NDArray[Any]) -> NDArray[np.float64]:
    """(n,) the number of values in each list, NaN where it is null."""
    if array.ndim > 1:
        return np.full(len(array), float(array.shape[1]))
    known = [row for row in array.tolist() if isinstance(row, _LISTS) or not is_null(row)]
    if not all(isinstance(row, _LISTS) for row in known):
        raise DataError(f"column {column.name!r} holds {known[0]!r}, but the model was trained on lists; give lists")
    return np.array([float(len(row)) if isinstance(row, _LISTS) else np.nan for row in array.tolist()])


def _floats(column: Column, array: NDArray[Any]) -> NDArray[np.float64]:
    if array.dtype == object and (column.role is Role.TIMESTAMP or column.family == "duration"):
        kind = "m8[us]" if column.family == "duration" else "M8[us]"
        array = np.array([None if is_null(value) else value for value in array.tolist()], dtype=kind)
    if array.dtype.kind in "Mm":
        return seconds_from_numpy(array)
    if array.dtype == object:
        array = np.array([np.nan if is_null(value) else value for value in array.tolist()])
    try:
        floats: NDArray[np.float64] = array.astype(np.float64, copy=False)
    except ValueError as error:
        raise DataError(
            f"column {column.name!r} holds text among its values ({error}); cast it to {column.arrow_type}"
        ) from error
    return floats


def _numpy_family(array: NDArray[Any], column: Column) -> str:
    if array.dtype == object:
        known = next((value for value in array.tolist() if not is_null(value)), None)
        if known is None:
            return column.family
        if isinstance(known, _LISTS):
            return "list"
        array = np.asarray(known)
        if isinstance(known, (datetime.date, datetime.timedelta)):
            return "timestamp" if isinstance(known, datetime.date) else "duration"
    if column.family == "time" and array.dtype.kind in "iuf":  # numpy has no time of day: seconds stand for it
        return column.family
    families = {
        "i": "integer",
        "u": "integer",
        "f": "floating",
        "b": "boolean",
        "U": "text",
        "T": "text",
        "M": "timestamp",
        "m": "duration",
    }
    return families.get(array.dtype.kind, "other")
