"""Roles of columns of lists: vectors and images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from builders import list_array
from inferred import RNG, column_of, schema_of

from parvae.errors import DataError, SettingError
from parvae.schema import (
    ImageFacts,
    Role,
    VectorFacts,
)


def pixels(num_rows: int, size: int) -> pa.Array:
    return list_array(RNG.integers(0, 256, size=(num_rows, size)).astype(np.uint8))


def test_lists_of_floats_are_a_vector() -> None:
    column = column_of(list_array(RNG.normal(2.0, 3.0, size=(200, 5)).astype(np.float32)))
    assert column.role is Role.VECTOR
    assert column.reason == "5 numbers a row"
    facts = column.facts_as(VectorFacts)
    assert (facts.size, facts.element, facts.is_binary) == (5, "float32", False)
    assert (facts.mean, facts.stddev) == (pytest.approx(2.0, abs=0.5), pytest.approx(3.0, abs=0.5))


def test_lists_of_variable_type_but_one_length_are_a_vector() -> None:
    assert column_of([[1.0, 2.5]] * 20).role is Role.VECTOR


@pytest.mark.parametrize(("kind", "element"), [(np.uint8, "uint8"), (np.float32, "float32"), (np.int64, "float32")])
def test_zeros_and_ones_are_a_binary_vector_even_where_an_image_would_fit(kind: Any, element: str) -> None:
    column = column_of(list_array(RNG.integers(0, 2, size=(20, 64)).astype(kind)))
    assert column.role is Role.VECTOR
    assert column.reason == "64 zeros and ones a row"
    assert column.facts_as(VectorFacts).is_binary
    assert column.facts_as(VectorFacts).element == element


def test_bytes_of_no_image_shape_are_a_vector_of_bytes() -> None:
    column = column_of(pixels(20, 10))
    assert column.role is Role.VECTOR
    assert column.facts_as(VectorFacts).element == "uint8"
    assert not column.facts_as(VectorFacts).is_binary


@pytest.mark.parametrize(
    ("size", "shape"), [(64, (8, 8, 1)), (784, (28, 28, 1)), (192, (8, 8, 3)), (3072, (32, 32, 3))]
)
def test_a_square_of_bytes_is_an_image(size: int, shape: tuple[int, int, int]) -> None:
    column = column_of(pixels(12, size))
    assert column.role is Role.IMAGE
    assert column.reason == "{} x {} x {} pixels of 0 to 255, shape guessed from the length".format(*shape)
    facts = column.facts_as(ImageFacts)
    assert (facts.height, facts.width, facts.channels) == shape


@pytest.mark.parametrize(
    ("text", "shape"), [("4,6", (4, 6, 1)), ("6, 4, 1", (6, 4, 1)), ("(2, 4, 3)", (2, 4, 3)), ("[8,3]", (8, 3, 1))]
)
@pytest.mark.parametrize("place", ["field", "schema"])
def test_a_shape_in_the_metadata_makes_an_image(place: str, text: str, shape: tuple[int, int, int]) -> None:
    metadata = {"shape": text}
    field = pa.field("c", pa.list_(pa.uint8(), 24), metadata=metadata if place == "field" else None)
    table = pa.table(
        [pixels(20, 24)], schema=pa.schema([field], metadata=metadata if place == "schema" else {"other": "1,1"})
    )
    column = schema_of(table)["c"]
    assert column.role is Role.IMAGE
    assert column.reason.endswith("shape stated in the metadata")
    facts = column.facts_as(ImageFacts)
    assert (facts.height, facts.width, facts.channels) == shape


def test_a_stated_shape_that_does_not_fit_is_not_reported_as_stated() -> None:
    field = pa.field("c", pa.list_(pa.uint8(), 64), metadata={"shape": "5,5"})
    column = schema_of(pa.table([pixels(20, 64)], schema=pa.schema([field])))["c"]
    assert "stated" not in column.reason


def test_floats_named_an_image_are_one_when_they_are_bytes() -> None:
    column = column_of(list_array(RNG.integers(0, 256, size=(12, 64)).astype(np.float32)), override="image")
    assert column.role is Role.IMAGE


@pytest.mark.parametrize(
    "array",
    [
        pa.array([["a", "b"], None] * 10),
        pa.array([[1.0, 2.0], None] * 10),
        pa.array([[1.0, None]] * 20),
        pa.array([["a"]] * 20),
        pa.array([[]] * 20, pa.list_(pa.float32())),
    ],
    ids=["null texts", "null rows", "null elements", "texts", "empty"],
)
def test_lists_that_are_no_matrix_of_numbers_are_ignored_with_the_remedy(array: pa.Array) -> None:
    column = column_of(array)
    assert column.role is Role.IGNORED
    assert "give every row the same length" in column.reason
    with pytest.raises(SettingError, match=r"column 'c' .* cannot be vector: that needs lists of numbers"):
        column_of(array, override="vector")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_vector_with_elements_that_are_no_numbers_is_refused_with_the_remedy(bad: float) -> None:
    matrix = RNG.normal(size=(20, 3))
    matrix[4, 1] = bad
    with pytest.raises(DataError, match=r"column 'c' has 1 elements that are NaN or infinite.*c:ignored"):
        column_of(list_array(matrix))
