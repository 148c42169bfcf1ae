"""Rows out: in the types of the data set, and in the container that came."""

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
    NUMBERS,
    SCHEMA,
    TABLE,
    TENSORS,
    assert_reads_as,
    column,
)
from mixed_rows import as_arrays
from numpy.typing import NDArray

import parvae
from parvae import Role, Schema
from parvae.arrow import to_array, to_table
from parvae.rows import rows_from_outputs
from parvae.schema import NULL_TEXT, BooleanFacts, CategoryFacts


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
