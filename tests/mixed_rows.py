"""Rows of the mixed data set as plain numpy arrays, for tests that must not depend on Arrow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Rows = dict[str, NDArray[Any]]


def as_arrays(table: pa.Table) -> dict[str, NDArray[Any]]:
    """A mapping of column name to array: lists as (n, d), text and columns with nulls as objects."""
    arrays: dict[str, NDArray[Any]] = {}
    for name in table.column_names:
        column = table[name]
        if hasattr(column.type, "value_type") and not pa.types.is_dictionary(column.type):
            arrays[name] = np.array(column.to_pylist(), dtype=column.type.value_type.to_pandas_dtype())
        elif column.null_count or pa.types.is_string(column.type) or pa.types.is_dictionary(column.type):
            arrays[name] = np.array(column.to_pylist(), dtype=object)
        else:
            arrays[name] = column.to_numpy()
    return arrays


def full_rows(table: pa.Table, num_rows: int) -> dict[str, NDArray[Any]]:
    """The first rows that hold no null anywhere."""
    return as_arrays(table.drop_null().slice(0, num_rows))


def repeated(rows: dict[str, NDArray[Any]], num_rows: int) -> dict[str, NDArray[Any]]:
    """As many rows as asked for, the given ones over and over."""
    return {name: array[np.arange(num_rows) % len(array)] for name, array in rows.items()}


def select(rows: Rows, chosen: Any) -> Rows:
    return {name: array[chosen] for name, array in rows.items()}


def assert_same_rows(found: Rows, wanted: Rows) -> None:
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)
