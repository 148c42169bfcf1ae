"""Rows in: every container gives the same tensors, and what cannot be read is named with its remedy."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from handmade import (
    ARRAYS,
    SCHEMA,
    TABLE,
    TENSORS,
    assert_reads_as,
    column,
    lists,
    with_column,
)
from numpy.typing import NDArray

from parvae import DataError, Role, Schema
from parvae.rows import read_inputs
from parvae.schema import NULL_TEXT, VectorFacts

CONTAINERS: dict[str, Callable[[], Any]] = {
    "mapping of arrays": lambda: ARRAYS,
    "mapping of lists": lambda: TABLE.to_pydict(),
    "table": lambda: TABLE,
    "record batch": lambda: TABLE.to_batches()[0],
    "pandas": lambda: TABLE.to_pandas(),
    "pandas with nullable types": lambda: TABLE.to_pandas(
        types_mapper={pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}.get
    ),
    "pandas with Arrow types": lambda: TABLE.to_pandas(types_mapper=pd.ArrowDtype),
    "polars": lambda: pl.from_arrow(TABLE),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_every_container_gives_the_same_tensors(kind: str) -> None:
    assert_reads_as(CONTAINERS[kind](), TENSORS)


REWRITTEN: dict[str, Callable[[], Any]] = {
    "chunks": lambda: pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1, 0), TABLE.slice(1, 3)]),
    "slice": lambda: pa.concat_tables([TABLE, TABLE]).combine_chunks().slice(4, 4),
    "slice across chunks": lambda: pa.concat_tables([TABLE, TABLE, TABLE]).slice(4, 4),
    "integers as floats with NaN": lambda: with_column("age", pa.array([30.0, math.nan, -5.0, 2.0**53])),
    "integers as floats with null": lambda: with_column("age", pa.array([30.0, None, -5.0, 2.0**53])),
    "category integers as floats": lambda: with_column("code", pa.array([7.0, 8.0, math.nan, -1.0])),
    "category integers as int8": lambda: with_column("code", pa.array([7, 8, None, -1], pa.int8())),
    "category integers as dictionary": lambda: with_column("code", TABLE["code"].dictionary_encode()),
    "numbers as dictionary": lambda: with_column("age", TABLE["age"].dictionary_encode()),
    "text as dictionary": lambda: with_column("city", TABLE["city"].dictionary_encode()),
    "text as dictionary that lists null": lambda: with_column(
        "city", pa.DictionaryArray.from_arrays(pa.array([1, 0, 3, 2]), pa.array([None, "Bern", "Ankara", ""]))
    ),
    "text as chunks with other dictionaries": lambda: pa.concat_tables(
        [with_column("city", TABLE["city"].dictionary_encode()).slice(first, 2) for first in (0, 2)]
    ),
    "text as large strings": lambda: with_column("city", TABLE["city"].cast(pa.large_string())),
    "text as string views": lambda: with_column("city", TABLE["city"].cast(pa.string_view())),
    "numbers as decimals": lambda: with_column("age", pa.array([Decimal(30), None, Decimal(-5), Decimal(2**53)])),
    "vector as list": lambda: with_column("embedding", TABLE["embedding"].cast(pa.list_(pa.float32()))),
    "vector as large list of doubles": lambda: with_column(
        "embedding", TABLE["embedding"].cast(pa.large_list(pa.float64()))
    ),
    "vector as half floats": lambda: with_column("embedding", TABLE["embedding"].cast(pa.list_(pa.float16(), 3))),
    "vector as tensors": lambda: with_column(
        "embedding",
        pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [3]), TABLE["embedding"].combine_chunks()),
    ),
    "pixels as list": lambda: with_column("photo", TABLE["photo"].cast(pa.list_(pa.uint8()))),
    "pixels as int64": lambda: with_column("photo", TABLE["photo"].cast(pa.list_(pa.int64(), 4))),
    "pixels as doubles": lambda: with_column("photo", TABLE["photo"].cast(pa.list_(pa.float64(), 4))),
    "columns in another order": lambda: TABLE.select(TABLE.column_names[::-1]),
    "only what is modelled": lambda: TABLE.drop_columns(["id"]),
    "extra columns": lambda: TABLE.append_column("extra", pa.array([[{"a": 1}]] * 4)),
}


@pytest.mark.parametrize("how", REWRITTEN)
def test_the_layout_of_arrow_memory_does_not_matter(how: str) -> None:
    assert_reads_as(REWRITTEN[how](), TENSORS)


def text_objects(values: list[Any]) -> NDArray[Any]:
    return np.array(values, dtype=object)


REWRITTEN_ARRAYS: dict[str, dict[str, Any]] = {
    "pixels with a shape": {"photo": ARRAYS["photo"].reshape(4, 2, 2)},
    "pixels with shape and channel": {"photo": ARRAYS["photo"].reshape(4, 2, 2, 1)},
    "pixels as floats": {"photo": ARRAYS["photo"].astype(np.float32)},
    "elements in Fortran order": {"embedding": np.asfortranarray(ARRAYS["embedding"].astype(np.float64))},
    "integers as floats": {"age": np.array([30, math.nan, -5, 2.0**53])},
    "numpy scalars as objects": {"code": text_objects([np.int64(7), np.int32(8), None, np.float64(-1)])},
    "category integers as floats": {"code": np.array([7, 8, math.nan, -1])},
    "category integers as objects of float32": {"code": text_objects([np.float32(7), np.float32(8), None, -1])},
    "nulls as NaN among text": {"city": text_objects(["Bern", math.nan, "", "Ankara"])},
    "pandas strings": {"city": pd.Series(["Bern", None, "", "Ankara"])},
    "pandas nullable strings": {"city": pd.array(["Bern", None, "", "Ankara"], dtype="string")},
    "pandas nullable integers": {"age": pd.Series([30, None, -5, 2**53], dtype="Int64")},
    "pandas nullable booleans": {"member": pd.Series([True, None, False, True], dtype="boolean")},
    "strided views": {name: np.repeat(array, 2, axis=0)[::2] for name, array in ARRAYS.items()},
    "extra columns": {"extra": [object(), 1, "a", None]},
}


@pytest.mark.parametrize("how", REWRITTEN_ARRAYS)
def test_the_layout_of_a_mapping_does_not_matter(how: str) -> None:
    assert_reads_as({**ARRAYS, **REWRITTEN_ARRAYS[how]}, TENSORS)


def test_masked_arrays_are_read_with_their_mask() -> None:
    masked = np.ma.masked_array(np.array([30, 99, -5, 2**53]), mask=[False, True, False, False])
    assert_reads_as({**ARRAYS, "age": masked}, TENSORS)


@pytest.mark.parametrize("length", [0, 1])
@pytest.mark.parametrize("kind", CONTAINERS)
def test_no_row_and_one_row_are_read(kind: str, length: int) -> None:
    rows = CONTAINERS[kind]()
    if isinstance(rows, dict):
        few: Any = {name: values[:length] for name, values in rows.items()}
    else:
        few = rows[:length] if isinstance(rows, (pd.DataFrame, pl.DataFrame)) else rows.slice(0, length)
    assert_reads_as(few, {name: tensor[:length] for name, tensor in TENSORS.items()}, length)


@pytest.mark.parametrize("length", [0, 1])
@pytest.mark.parametrize(
    "how", ["chunks", "vector as list", "vector as tensors", "pixels as list", "text as dictionary"]
)
def test_no_row_and_one_row_are_read_in_every_layout(how: str, length: int) -> None:
    few = REWRITTEN[how]().slice(0, length)
    assert_reads_as(few, {name: tensor[:length] for name, tensor in TENSORS.items()}, length)


def test_a_table_without_chunks_is_read() -> None:
    empty = TABLE.schema.empty_table()
    assert_reads_as(empty, {name: tensor[:0] for name, tensor in TENSORS.items()}, 0)


@pytest.mark.parametrize("name", ["age", "income", "member", "city", "code"])
def test_a_column_of_nulls_is_read_whatever_its_type(name: str) -> None:
    inputs, _ = read_inputs(SCHEMA, with_column(name, pa.nulls(4)))
    from_mapping, _ = read_inputs(SCHEMA, {**ARRAYS, name: [None] * 4})
    for block in SCHEMA.inputs:
        np.testing.assert_array_equal(inputs[block.name], from_mapping[block.name])
        for index, member in enumerate(block.columns):
            if member.name == name:
                values = inputs[block.name][:, index]
                assert all(value == NULL_TEXT if block.role is Role.CATEGORY else np.isnan(value) for value in values)


def test_integers_beyond_the_reach_of_float64_are_rounded_alike() -> None:
    extremes = [2**63 - 1, -(2**63), None, 0]
    table, _ = read_inputs(SCHEMA, with_column("age", pa.array(extremes)))
    mapping, _ = read_inputs(SCHEMA, {**ARRAYS, "age": extremes})
    np.testing.assert_array_equal(table["numeric"][:, 0], [2.0**63, -(2.0**63), math.nan, 0.0])
    np.testing.assert_array_equal(mapping["numeric"], table["numeric"])


def test_reading_leaves_the_rows_as_they_were() -> None:
    before = {name: array.copy() for name, array in ARRAYS.items()}
    inputs, _ = read_inputs(SCHEMA, ARRAYS)
    assert not any(np.shares_memory(inputs["numeric"], array) for array in ARRAYS.values())
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(array, before[name])


def without(name: str) -> pa.Table:
    return TABLE.drop_columns([name])


def replaced(name: str, values: Any) -> dict[str, Any]:
    return {**ARRAYS, name: values}


REFUSED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "missing": (lambda: without("age"), "age", "add the column"),
    "missing in a mapping": (lambda: {k: v for k, v in ARRAYS.items() if k != "city"}, "city", "add the column"),
    "missing in pandas": (lambda: without("member").to_pandas(), "member", "add the column"),
    "number as text": (lambda: with_column("age", pa.array(list("abcd"))), "age", "cast it to int64"),
    "number as text in a mapping": (lambda: replaced("age", list("abcd")), "age", "cast it to int64"),
    "number as time stamp": (
        lambda: with_column("age", pa.array([0] * 4, pa.timestamp("s"))),
        "age",
        "cast it to int64",
    ),
    "number as numpy time": (lambda: replaced("age", np.zeros(4, "datetime64[s]")), "age", "cast it to int64"),
    "number as boolean": (lambda: replaced("income", [True] * 4), "income", "cast it to double"),
    "text as number": (lambda: with_column("city", pa.array([1, 2, 3, 4])), "city", "cast it to string"),
    "text as bytes": (lambda: replaced("city", np.array([b"Bern"] * 4)), "city", "cast it to string"),
    "boolean as number": (lambda: with_column("member", pa.array([0, 1, 0, 1])), "member", "cast it to bool"),
    "category number as text": (lambda: with_column("code", pa.array(["7"] * 4)), "code", "cast it to int64"),
    "vector as number": (
        lambda: with_column("embedding", pa.array([1.0] * 4)),
        "embedding",
        "cast it to fixed_size_list",
    ),
    "text among numbers": (lambda: replaced("age", text_objects([1, "x", None, 2])), "age", "cast it to int64"),
    "text among booleans": (
        lambda: replaced("member", text_objects([True, "x", None, False])),
        "member",
        "cast it to bool",
    ),
    "text among numbers in pandas": (
        lambda: TABLE.to_pandas().assign(age=text_objects([1, "x", None, 2])),
        "age",
        "cast",
    ),
    "twice in a table": (lambda: TABLE.append_column("age", TABLE["age"]), "age", "rename or drop"),
    "twice in pandas": (
        lambda: pd.concat([TABLE.to_pandas(), without("city").to_pandas()[["age"]]], axis=1),
        "age",
        "drop",
    ),
    "fewer rows than the others": (lambda: replaced("city", ["Bern"] * 3), "city", "give"),
    "a single value": (lambda: replaced("age", 3), "age", "give one value a row"),
    "two values a row": (lambda: replaced("age", np.ones((4, 2))), "age", "must have one value a row"),
    "ragged vector": (
        lambda: with_column("embedding", pa.array([[1.0, 2, 3]] * 3 + [[1.0]])),
        "embedding",
        "pad or drop",
    ),
    "ragged vector in a mapping": (lambda: replaced("embedding", [[1, 2, 3]] * 3 + [[1]]), "embedding", "pad or drop"),
    "objects in a vector": (lambda: replaced("embedding", text_objects([None] * 4)), "embedding", "must be an array"),
    "vector too short": (lambda: replaced("embedding", np.ones((4, 2))), "embedding", "the model needs 3"),
    "vector too short in a table": (
        lambda: with_column("embedding", lists(np.ones((4, 2)), pa.list_(pa.float32(), 2))),
        "embedding",
        "the model needs 3",
    ),
    "null vector": (
        lambda: with_column("embedding", pa.array([[1.0, 2, 3]] * 3 + [None])),
        "embedding",
        "fill or drop",
    ),
    "null in a vector": (
        lambda: with_column("embedding", pa.array([[1.0, 2, 3]] * 3 + [[1.0, None, 3.0]])),
        "embedding",
        "fill",
    ),
    "text in a vector": (
        lambda: with_column("embedding", pa.array([list("abc")] * 4)),
        "embedding",
        "needs lists of numbers",
    ),
    "text in a vector of a mapping": (lambda: replaced("embedding", [list("abc")] * 4), "embedding", "cast it to"),
    "pixels beyond 255": (lambda: replaced("photo", np.full((4, 4), 256)), "photo", "0 to 255"),
    "negative pixels": (lambda: replaced("photo", np.full((4, 4), -1)), "photo", "0 to 255"),
    "fractions of pixels": (lambda: replaced("photo", np.full((4, 4), 0.5)), "photo", "0 to 255"),
    "pixels that are no number": (lambda: replaced("photo", np.full((4, 4), math.nan)), "photo", "0 to 255"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_read_is_named_with_the_remedy(fault: str) -> None:
    make, name, remedy = REFUSED[fault]
    rows = make()
    with pytest.raises(DataError) as caught:
        read_inputs(SCHEMA, rows)
    # pandas words its own faults: it names the column without quotes
    assert (name if "pandas" in fault else repr(name)) in str(caught.value)
    assert remedy in str(caught.value)


@pytest.mark.parametrize(
    "rows",
    [
        None,
        3,
        "rows.parquet",
        np.zeros((2, 2)),
        [{"age": 1}],
        pa.array([1, 2]),
        pd.Series([1, 2]),
        pl.Series([1, 2]),
    ],
    ids=lambda rows: type(rows).__module__ + "." + type(rows).__name__,
)
def test_what_has_no_named_columns_is_refused_with_what_may_come(rows: Any) -> None:
    with pytest.raises(DataError, match="give a mapping of column name to array, an Arrow table, or a dataframe"):
        read_inputs(SCHEMA, rows)


def test_a_column_that_pandas_cannot_hand_over_is_named_with_the_remedy() -> None:
    frame = TABLE.to_pandas().assign(extra=text_objects([1, "a", None, 2.5]))
    with pytest.raises(DataError, match=r"column extra.*cast or drop"):
        read_inputs(SCHEMA, frame)


def test_a_vector_of_zeros_and_ones_reads_as_uint8_from_booleans() -> None:
    facts = VectorFacts(size=2, element="uint8", is_binary=True, mean=0.5, stddev=0.5)
    schema = Schema(columns=(column("bits", Role.VECTOR, pa.list_(pa.uint8(), 2), facts),), num_rows=1)
    inputs, _ = read_inputs(schema, {"bits": np.array([[True, False]])})
    assert inputs["vector.bits"].dtype == np.uint8
    assert inputs["vector.bits"].tolist() == [[1, 0]]
