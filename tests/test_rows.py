"""Rows in and rows out: every container gives the same tensors, and what cannot be read is named with its remedy."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from mixed_rows import as_arrays
from numpy.typing import NDArray

import parvae
from parvae import Column, DataError, Role, Schema
from parvae.arrow import to_array, to_table
from parvae.rows import read_inputs, rows_from_outputs
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


# Rows out


def numbers_out(kind: pa.DataType, values: list[float]) -> NDArray[Any]:
    schema = Schema(columns=(column("x", Role.NUMERIC, kind, NUMBERS),), num_rows=1)
    return rows_from_outputs(schema, {"numeric": np.array(values)[:, None]})["x"]


@pytest.mark.parametrize(
    "kind", [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()], ids=str
)
def test_integers_come_out_in_their_type_cut_at_its_ends(kind: pa.DataType) -> None:
    bounds = np.iinfo(str(kind))
    found = numbers_out(kind, [1e300, -1e300, math.inf, -math.inf, 2.4])
    assert found.dtype == bounds.dtype
    # The largest float64 below 2**63 stands for the largest int64.
    top = bounds.max if bounds.bits < 64 else int(np.nextafter(float(bounds.max), 0))
    assert found.tolist() == [top, bounds.min, top, bounds.min, 2]


def test_a_null_among_integers_makes_floats() -> None:
    found = numbers_out(pa.int64(), [1.0, math.nan])
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [1.0, math.nan])


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(pa.float16(), "float16"), (pa.float32(), "float32"), (pa.float64(), "float64"), (pa.decimal128(9, 2), "float64")],
    ids=str,
)
def test_floats_come_out_in_their_type(kind: pa.DataType, dtype: str) -> None:
    assert numbers_out(kind, [1.5, math.nan]).dtype == dtype


def test_numbers_from_a_dictionary_column_come_out() -> None:
    assert numbers_out(pa.dictionary(pa.int32(), pa.int64()), [1.0, 2.0]).tolist() == [1, 2]


def test_categories_come_out_as_the_values_they_were() -> None:
    kinds = {"text": pa.string(), "whole": pa.int64(), "real": pa.float64(), "flag": pa.bool_()}
    facts = CategoryFacts(levels=("a",))
    schema = Schema(columns=tuple(column(name, Role.CATEGORY, kind, facts) for name, kind in kinds.items()), num_rows=1)
    texts = np.array([["Zürich", "3", "2.5", "true"], [NULL_TEXT] * 4, ["", "-1", "3", "false"]], dtype=object)
    found = rows_from_outputs(schema, {"category": texts})
    assert found["text"].tolist() == ["Zürich", None, ""]
    assert found["whole"].tolist() == [3, None, -1]
    assert found["real"].tolist() == [2.5, None, 3.0]
    assert found["flag"].tolist() == [True, None, False]


def test_booleans_come_out_as_booleans_or_objects_with_none() -> None:
    schema = Schema(columns=(column("x", Role.BOOLEAN, pa.bool_(), BooleanFacts(share_true=0.5)),), num_rows=1)
    plain = rows_from_outputs(schema, {"boolean": np.array([[1.0], [0.0]], np.float32)})["x"]
    assert (plain.dtype, plain.tolist()) == (np.dtype(bool), [True, False])
    nulls = rows_from_outputs(schema, {"boolean": np.array([[1.0], [math.nan]], np.float32)})["x"]
    assert nulls.tolist() == [True, None]


def test_columns_come_out_in_the_order_of_the_data_set() -> None:
    found = rows_from_outputs(SCHEMA, TENSORS)
    assert list(found) == ["age", "income", "member", "city", "code", "embedding", "photo"]
    assert found["photo"].shape == (4, 2, 2, 1)


def test_tensors_made_into_a_table_read_back_as_the_same_tensors() -> None:
    finite = {**TENSORS, "numeric": np.array([[30, 1.5], [math.nan, math.nan], [-5, 2.5], [2.0**53, 0.0]])}
    table = to_table(SCHEMA, rows_from_outputs(SCHEMA, finite))
    for name in table.column_names:
        assert table.schema.field(name).type.equals(TABLE.schema.field(name).type), name
    assert_reads_as(table, finite)


@pytest.mark.parametrize("kind", [pa.int64(), pa.int32(), pa.int8(), pa.uint8()], ids=str)
def test_integers_with_a_null_are_cut_at_the_ends_of_an_arrow_type(kind: pa.DataType) -> None:
    made = column("x", Role.NUMERIC, kind, NUMBERS)
    found = to_array(made, numbers_out(kind, [1e300, -1e300, math.nan])).to_pylist()
    bounds = np.iinfo(str(kind))
    top = bounds.max if bounds.bits < 64 else int(np.nextafter(float(bounds.max), 0))
    assert found == [top, bounds.min, None]


@pytest.mark.parametrize("values", [[300.0, -300.0], [300.0, math.nan]])
def test_values_beyond_a_narrower_type_are_cut_and_never_wrap(values: list[float]) -> None:
    made = column("x", Role.NUMERIC, pa.float64(), NUMBERS)
    found = to_array(made, np.array(values), pa.int8()).to_pylist()
    assert found == [None if math.isnan(value) else int(np.clip(value, -128, 127)) for value in values]


def as_record_batch(table: pa.Table) -> pa.RecordBatch:
    return table.combine_chunks().to_batches()[0]


OUT_CONTAINERS: dict[str, Callable[[pa.Table], Any]] = {
    "mapping": as_arrays,
    "table": lambda table: table,
    "record batch": as_record_batch,
    "pandas": lambda table: table.to_pandas(),
    "polars": pl.from_arrow,
}


@pytest.fixture(scope="session")
def vae(mixed_bundle: Path) -> parvae.VAE:
    return parvae.load(mixed_bundle)


@pytest.fixture(scope="session")
def full_table(mixed_table: pa.Table) -> pa.Table:
    """Rows without nulls, and a column that the model does not know."""
    table = mixed_table.drop_null().slice(0, 20)
    return table.append_column("extra", pa.array([f"row {index}" for index in range(table.num_rows)]))


@pytest.mark.parametrize("kind", OUT_CONTAINERS)
def test_reconstructed_rows_come_back_in_the_container_that_came(
    kind: str, vae: parvae.VAE, full_table: pa.Table
) -> None:
    rows = OUT_CONTAINERS[kind](full_table)
    again = vae.reconstruct(rows)
    assert type(again) is type(rows)
    names = list(rows) if isinstance(rows, dict) else list(getattr(rows, "column_names", getattr(rows, "columns", [])))
    found = (
        list(again) if isinstance(again, dict) else list(getattr(again, "column_names", getattr(again, "columns", [])))
    )
    assert found == names
    assert list(again["extra"]) == list(rows["extra"])
    assert list(again["id"]) == list(rows["id"])


@pytest.mark.parametrize("kind", OUT_CONTAINERS)
def test_reconstructed_values_do_not_depend_on_the_container(kind: str, vae: parvae.VAE, full_table: pa.Table) -> None:
    wanted = vae.reconstruct(as_arrays(full_table))
    again = vae.reconstruct(OUT_CONTAINERS[kind](full_table))
    for member in vae.schema.modelled:
        values = again[member.name]
        found = values.to_pylist() if hasattr(values, "to_pylist") else np.asarray(values).tolist()
        assert np.array(found).tolist() == wanted[member.name].tolist(), member.name


def test_a_table_keeps_its_types_and_metadata(vae: parvae.VAE, full_table: pa.Table) -> None:
    table = full_table.replace_schema_metadata({"made": "by hand"})
    assert vae.reconstruct(table).schema.equals(table.schema, check_metadata=True)


@pytest.mark.parametrize("to_frame", [lambda table: table.to_pandas(), pl.from_arrow], ids=["pandas", "polars"])
def test_a_dataframe_keeps_its_types(
    to_frame: Callable[[pa.Table], Any], vae: parvae.VAE, full_table: pa.Table
) -> None:
    frame = to_frame(full_table)
    assert list(vae.reconstruct(frame).dtypes) == list(frame.dtypes)


def test_a_pandas_index_is_kept(vae: parvae.VAE, full_table: pa.Table) -> None:
    frame = full_table.to_pandas()
    frame.index = pd.Index([f"k{index}" for index in range(len(frame))], name="key")
    pd.testing.assert_index_equal(vae.reconstruct(frame).index, frame.index)


def whole(table: pa.Table, name: str) -> pa.Array:
    return pa.array(np.rint(np.asarray(table[name])))


OTHER_TYPES: dict[str, tuple[str, Callable[[pa.Table], Any]]] = {
    "int32 for int64": ("age", lambda t: t["age"].cast(pa.int32())),
    "uint8 for int64": ("age", lambda t: t["age"].cast(pa.uint8())),
    "float for integer": ("age", lambda t: t["age"].cast(pa.float64())),
    "dictionary of integers": ("age", lambda t: t["age"].dictionary_encode()),
    "float32 for double": ("income", lambda t: t["income"].cast(pa.float32())),
    "integer for double": ("income", lambda t: whole(t, "income").cast(pa.int64())),
    "decimal for double": (
        "income",
        lambda t: pa.array([round(Decimal(value), 2) for value in t["income"].to_pylist()], pa.decimal128(20, 2)),
    ),
    "dictionary for text": ("city", lambda t: t["city"].dictionary_encode()),
    "large string for text": ("city", lambda t: t["city"].cast(pa.large_string())),
    "float for category": ("code", lambda t: t["code"].cast(pa.float64())),
    "dictionary for category": ("code", lambda t: t["code"].dictionary_encode()),
    "list": ("embedding", lambda t: t["embedding"].cast(pa.list_(pa.float32()))),
    "large list of doubles": ("embedding", lambda t: t["embedding"].cast(pa.large_list(pa.float64()))),
    "fixed list of half floats": ("embedding", lambda t: t["embedding"].cast(pa.list_(pa.float16(), 4))),
}


@pytest.mark.parametrize("how", OTHER_TYPES)
def test_a_column_comes_back_in_the_type_it_came_in(how: str, vae: parvae.VAE, full_table: pa.Table) -> None:
    name, change = OTHER_TYPES[how]
    values = change(full_table)
    table = full_table.set_column(full_table.column_names.index(name), name, values)
    again = vae.reconstruct(table)
    assert again.schema.equals(table.schema)
    assert again.num_rows == table.num_rows


def test_a_column_too_narrow_for_what_the_model_expects_never_wraps(vae: parvae.VAE, full_table: pa.Table) -> None:
    narrow = full_table.set_column(
        full_table.column_names.index("income"), "income", pa.array([1] * full_table.num_rows, pa.int8())
    )
    expected = vae.decode(vae.encode(narrow))["income"]
    assert expected.min() > 127, "incomes are larger than int8 holds"
    assert set(vae.reconstruct(narrow)["income"].to_pylist()) == {127}
