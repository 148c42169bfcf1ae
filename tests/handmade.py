"""A schema made by hand, with rows in its columns and the tensors that they are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
from mixed_rows import as_arrays
from numpy.typing import NDArray

from parvae import Column, Role, Schema
from parvae.rows import read_inputs
from parvae.schema import NULL_TEXT, BooleanFacts, CategoryFacts, Facts, ImageFacts, NumericFacts, VectorFacts

NUMBERS = NumericFacts(mean=0.0, stddev=1.0, minimum=-1.0, maximum=1.0, resolution=0.0)
VECTOR_TYPE = pa.list_(pa.float32(), 3)
IMAGE_TYPE = pa.list_(pa.uint8(), 4)


def column(name: str, role: Role, kind: pa.DataType, facts: Facts | None = None) -> Column:
    return Column(name=name, role=role, arrow_type=str(kind), reason="made by hand", facts=facts)


SCHEMA = Schema(
    columns=(
        column("id", Role.KEY, pa.int64()),
        column("age", Role.NUMERIC, pa.int64(), NUMBERS),
        column("income", Role.NUMERIC, pa.float64(), NUMBERS),
        column("member", Role.BOOLEAN, pa.bool_(), BooleanFacts(share_true=0.5)),
        column("city", Role.CATEGORY, pa.string(), CategoryFacts(levels=("Bern", "Ankara"))),
        column("code", Role.CATEGORY, pa.int64(), CategoryFacts(levels=("7",))),
        column(
            "embedding",
            Role.VECTOR,
            VECTOR_TYPE,
            VectorFacts(size=3, element="float32", is_binary=False, mean=0.0, stddev=1.0),
        ),
        column("photo", Role.IMAGE, IMAGE_TYPE, ImageFacts(height=2, width=2, channels=1, mean=0.0, stddev=1.0)),
    ),
    num_rows=100,
)


def lists(values: Any, kind: pa.DataType) -> pa.Array:
    return pa.array(np.asarray(values).tolist(), kind)


TABLE = pa.table(
    {
        "id": pa.array([1, 2, 3, 4]),
        "age": pa.array([30, None, -5, 2**53], pa.int64()),
        "income": pa.array([1.5, math.nan, math.inf, -math.inf]),
        "member": pa.array([True, None, False, True]),
        "city": pa.array(["Bern", None, "", "Ankara"]),
        "code": pa.array([7, 8, None, -1]),
        "embedding": lists(np.arange(12).reshape(4, 3) / 4, VECTOR_TYPE),
        "photo": lists(np.arange(16).reshape(4, 4) * 17, IMAGE_TYPE),
    }
)
TENSORS: dict[str, NDArray[Any]] = {
    "numeric": np.array([[30, 1.5], [math.nan, math.nan], [-5, math.inf], [2.0**53, -math.inf]]),
    "boolean": np.array([[1], [math.nan], [0], [1]], np.float32),
    "category": np.array([["Bern", "7"], [NULL_TEXT, "8"], ["", NULL_TEXT], ["Ankara", "-1"]], object),
    "vector.embedding": (np.arange(12).reshape(4, 3) / 4).astype(np.float32),
    "image.photo": (np.arange(16) * 17).astype(np.uint8).reshape(4, 2, 2, 1),
}
ARRAYS = as_arrays(TABLE)


def with_column(name: str, values: Any) -> pa.Table:
    """TABLE with another array for one column."""
    return TABLE.set_column(TABLE.column_names.index(name), name, values)


def assert_reads_as(rows: Any, wanted: dict[str, NDArray[Any]], num_rows: int = 4) -> None:
    inputs, found_rows = read_inputs(SCHEMA, rows)
    assert found_rows == num_rows
    assert list(inputs) == list(wanted)
    for name, tensor in wanted.items():
        assert inputs[name].dtype == tensor.dtype, name
        np.testing.assert_array_equal(inputs[name], tensor, err_msg=name)
